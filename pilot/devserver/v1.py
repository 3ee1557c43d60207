"""The API of panda-server 1.0: `/api/v1/<module>/<method>`, answers `{"success", "message", "data"}` with HTTP 200."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sized
from typing import Any

from pilot.devserver.jobs import DefinitionError
from pilot.devserver.jobspec import from_specs
from pilot.devserver.messages import JSON, Answer, BodyError, Identity, Request
from pilot.devserver.spec import (
    CALLS,
    JOB_STATES,
    RESOURCE_TYPES,
    WORKER_STATES,
    Call,
    CrashError,
    RefusedError,
    bind,
)
from pilot.devserver.state import Ask, State, Update, Verdict

Reply = dict[str, Any]
Handler = Callable[[Identity, dict[str, Any]], Reply]
_PREFIX = "/api/v1/"
_NO_ROLE = "no production/pilot role in VOMS FQANs or non pilot owner"
_RIGHTS = "DOMA_PANDAMETA.USERS.GRIDPREF"


class V1:
    """Answers the v1 calls that pilots and Harvester make."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._handlers: Mapping[str, Handler] = {
            "pilot/acquire_jobs": self._acquire_jobs,
            "pilot/get_job_status": self._get_job_status,
            "pilot/update_job": self._update_job,
            "pilot/update_jobs_bulk": self._update_jobs_bulk,
            "pilot/update_worker_status": self._update_worker_status,
            "pilot/update_worker_node": self._update_worker_node,
            "pilot/update_worker_node_gpu": self._update_worker_node_gpu,
            "metaconfig/get_resource_types": lambda _, __: reply(data=RESOURCE_TYPES),
            "event/get_available_event_range_count": lambda _, __: reply(data=0),
            "event/acquire_event_ranges": lambda _, __: reply(data=[]),
            "event/update_single_event_range": self._update_single_event_range,
            "event/update_event_ranges": self._update_event_ranges,
            "creds/get_user_secrets": lambda _, __: reply(data="{}"),
            "creds/get_key_pair": self._get_key_pair,
            "creds/get_proxy": self._credential("proxy"),
            "creds/get_access_token": self._credential("access token"),
            "creds/get_token_key": lambda who, _: _denied(
                f"Denied since '{who.user}' not authorized with 't' in {_RIGHTS}"
            ),
            "harvester/update_workers": self._update_workers,
            "harvester/update_service_metrics": self._noted("update_service_metrics", "metrics"),
            "harvester/add_dialogs": self._noted("add_dialogs"),
            "harvester/heartbeat": self._noted("heartbeat"),
            "harvester/report_worker_statistics": self._noted("report_worker_statistics", message="OK"),
            "harvester/acquire_commands": lambda _, __: reply(data=[]),
            "harvester/acknowledge_commands": self._noted("acknowledge_commands"),
            "job/get_status": self._get_job_status,
            "job/kill": self._kill,
            "job/set_command": self._set_command,
            "job/set_debug_mode": self._set_debug_mode,
            "job/submit": self._submit,
            "system/is_alive": lambda _, __: reply(),
        }

    def method(self, path: str) -> str:
        """The method's bare name for a path that is ours and known, else empty."""
        name = path.removeprefix(_PREFIX)
        return name.rpartition("/")[2] if path.startswith(_PREFIX) and name in self._handlers else ""

    def parse(self, request: Request) -> dict[str, Any]:
        """What the client sent, before any check. Only an exact content type makes a body JSON.

        Raises:
            BodyError: the body cannot be read. CrashError: it is JSON, but no object.
        """
        if request.header("Content-Type") != JSON or request.method not in ("POST", "PUT"):
            return request.parameters()
        try:
            value = request.json(unzip=request.header("Content-Encoding") == "gzip")
        except BodyError as error:
            raise BodyError(f"ERROR : received invalid JSON : {error}" if error.json_failed else str(error)) from error
        if not isinstance(value, dict):
            raise CrashError(f"argument after ** must be a mapping, not {type(value).__name__}")
        return value

    def run(self, request: Request, given: dict[str, Any]) -> Answer:
        """Make the call and put its answer in words: JSON if the client wrote or accepts it, else a Python repr."""
        call = CALLS[request.path.removeprefix(_PREFIX)]
        result = self._checked(call, request.identity, given, request.method)
        if JSON in (request.header("Content-Type"), request.header("Accept")):
            return Answer.text(200, json.dumps(result, default=_unserialisable))
        return Answer.text(200, str(result))

    def _checked(self, call: Call, who: Identity, given: Mapping[str, Any], method: str) -> Reply:
        if call.secure and not who.user:
            return _denied("SSL secure connection is required")
        if call.production and not who.production:
            return _denied("production or pilot role required")
        if method != call.method:
            return _denied(f"expecting {call.method}, received {method}")
        try:
            arguments = bind(call, given, method)
            # Only an update needs to know what was left out: a default must not overwrite what is stored.
            return self._handlers[call.name](who, dict(given) if call.name == "pilot/update_job" else arguments)
        except RefusedError as error:
            return _denied(str(error))

    # --- pilot

    def _acquire_jobs(self, who: Identity, a: dict[str, Any]) -> Reply:
        if not who.production and a["prod_source_label"] != "user":
            return _denied(_NO_ROLE)
        _check_architecture(a["target_architecture"])
        ask = Ask(
            queue=a["site_name"],
            label=a["prod_source_label"],
            n_jobs=a["n_jobs"],
            memory=_at_least_zero(a["memory"]),
            disk=_at_least_zero(a["disk_space"]),
            remaining_time=_at_least_zero(a["remaining_time"]),
            resource_type=a["resource_type"],
            task_id=None if a["task_id"] is None else str(a["task_id"]),
        )
        jobs = self._state.acquire(ask)
        if not jobs:
            return _denied("No jobs in PanDA")
        return reply(data={"StatusCode": 0, "jobs": jobs})

    def _update_job(self, who: Identity, given: dict[str, Any]) -> Reply:
        if given["job_status"] not in JOB_STATES:
            return reply(False, f"Invalid job status: {given['job_status']}", {"StatusCode": 50})
        verdict = self._state.update(
            Update("v1", given["job_id"], given["job_status"], given.get("attempt_nr"), fields=given, arguments=given)
        )
        return _told(verdict)

    def _update_jobs_bulk(self, who: Identity, a: dict[str, Any]) -> Reply:
        call = CALLS["pilot/update_job"]
        replies = []
        for job in a["job_list"]:
            try:
                given = {"job_id": job["job_id"], "job_status": job["job_status"], **job}
            except (KeyError, TypeError) as error:
                return reply(False, f"failed with {type(error).__name__} {error}", [])
            replies.append(self._checked(call, who, given, "POST"))
        return reply(data=replies)

    def _get_job_status(self, who: Identity, a: dict[str, Any]) -> Reply:
        return reply(data=[self._status_of(job_id) for job_id in a["job_ids"]])

    def _status_of(self, job_id: int) -> Reply:
        status, attempt, _ = self._state.status(job_id) or ("not found", 0, "")
        return {"job_id": job_id, "status": status, "attempt_number": attempt}

    def _update_worker_status(self, who: Identity, a: dict[str, Any]) -> Reply:
        if a["status"] not in WORKER_STATES:
            return _denied(f"Invalid worker state. The worker state has to be in {WORKER_STATES}")
        self._state.note("update_worker_status", a)
        return reply()

    def _update_worker_node(self, who: Identity, a: dict[str, Any]) -> Reply:
        self._state.note("update_worker_node", a, key=f"{a['site']}/{a['host_name']}")
        return reply(message="Inserted new worker node.")  # 1.0.4 says so for a known one, too

    def _update_worker_node_gpu(self, who: Identity, a: dict[str, Any]) -> Reply:
        new = self._state.note("update_worker_node_gpu", a, key=f"{a['site']}/{a['host_name']}/{a['model']}")
        return reply(message="Inserted new worker node GPU." if new else "Updated existing worker node GPU.")

    # --- events: this server has none to give, so it answers as for ranges it does not know

    def _update_single_event_range(self, who: Identity, a: dict[str, Any]) -> Reply:
        return reply(data={"Command": event_commands([{"eventRangeID": a["event_range_id"]}])})

    def _update_event_ranges(self, who: Identity, a: dict[str, Any]) -> Reply:
        ranges = event_ranges(a["event_ranges"])
        self._state.note("update_event_ranges", a)
        # 1.0.4 writes a set where it means a dictionary, and then cannot send it.
        return reply(data={"Returns", event_returns(ranges), "Commands", event_commands(ranges)})

    # --- Harvester

    def _credential(self, what: str) -> Handler:
        def hand_out(who: Identity, _: dict[str, Any]) -> Reply:
            text = self._state.granted(what)
            return _denied(_not_listed(who, what)) if text is None else reply(data={"user_proxy": text})

        return hand_out

    def _get_key_pair(self, who: Identity, a: dict[str, Any]) -> Reply:
        found = self._state.key_pair(who.user, a["public_key_name"], a["private_key_name"])
        if found is None:
            return _denied(f"Failed since '{who.user}' not authorized with 'k' in {_RIGHTS}")
        if isinstance(found, str):
            return _denied(f"Failed for {found} on {socket.getfqdn()}")
        return reply(data={"public_key": found[0], "private_key": found[1]})

    def _noted(self, kind: str, counted: str = "", message: str = "") -> Handler:
        """A handler that keeps what it is told; for each element of `counted` it answers true."""

        def handler(who: Identity, a: dict[str, Any]) -> Reply:
            self._state.note(kind, a)
            return reply(message=message, data=[True] * len(a[counted]) if counted else None)

        return handler

    def _update_workers(self, who: Identity, a: dict[str, Any]) -> Reply:
        if not a["workers"]:
            return _denied("database error in the PanDA server")
        return self._noted("update_workers", "workers")(who, a)

    # --- what users and the task engine do to jobs

    def _kill(self, who: Identity, a: dict[str, Any]) -> Reply:
        return reply(data=[self._state.kill(job_id, a["code"], who.user) for job_id in a["job_ids"]])

    def _set_command(self, who: Identity, a: dict[str, Any]) -> Reply:
        return reply(*self._state.set_command(a["job_id"], a["command"]))

    def _set_debug_mode(self, who: Identity, a: dict[str, Any]) -> Reply:
        message = self._state.set_debug(a["job_id"], a["mode"])
        return reply(message != "Succeeded", message)  # the real server has it the wrong way round

    def _submit(self, who: Identity, a: dict[str, Any]) -> Reply:
        try:
            jobs = from_specs(a["jobs"])
            ids = self._state.submit(jobs)
        except DefinitionError as error:
            return _denied(f"Failed to deserialize jobs: {error}")
        if not jobs:
            return _denied("No jobs were submitted")
        return reply(data=[[i, job["jobDefinitionID"], job["jobName"]] for i, job in zip(ids, jobs, strict=True)])


def reply(success: bool = True, message: str = "", data: Any = None) -> Reply:
    """The envelope of every answer."""
    return {"success": success, "message": message, "data": data}


def event_ranges(text: str) -> list[Mapping[str, Any]]:
    """The ranges of an update's JSON text; nothing for one that is no such list."""
    try:
        value = json.loads(text)
    except ValueError:
        return []
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def event_returns(ranges: Sized) -> str:
    """What a real server said of ranges it does not know: all well, and a false at the end for its own failed step."""
    return json.dumps([True] * len(ranges) + [False])


def event_commands(ranges: list[Mapping[str, Any]]) -> str:
    """No command for the jobs of the ranges, whose ids are task-job-file-process-attempt."""
    ids = [str(item.get("eventRangeID", "")).split("-") for item in ranges]
    return json.dumps({parts[1]: None for parts in ids if len(parts) == 5})


def _denied(message: str) -> Reply:
    return reply(False, message)


def _not_listed(who: Identity, what: str) -> str:
    return f"failed: '{who.user}' not in authorized users with 'p' in {_RIGHTS} to get {what}"


def _told(verdict: Verdict) -> Reply:
    if verdict.status_code:
        return reply(message="Database error", data={"StatusCode": verdict.status_code})
    secrets = {} if verdict.secrets is None else {"pilotSecrets": verdict.secrets}
    return reply(data={"StatusCode": 0, **secrets, "command": verdict.command})


def _at_least_zero(value: Any) -> int:
    return max(0, int(value)) if isinstance(value, int | float) else 0


def _check_architecture(value: Any) -> None:
    if not value:
        return
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise RefusedError(f"failed to parse target_architecture with {error}") from None
    if not isinstance(value, dict):
        raise RefusedError("target_architecture must be a JSON object")


def _unserialisable(value: Any) -> Any:
    raise CrashError(f"Type not serializable for {value} ({type(value)})")
