"""The API of panda-server 0.8 and older: `/server/panda/<method>`, forms in, `a=b&c=d` or JSON out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from pilot.devserver.messages import JSON, Answer, Identity, Request
from pilot.devserver.spec import (
    CALLS,
    JOB_STATES,
    LEGACY_CALLS,
    RESOURCE_TYPES,
    UPDATE_NAMES,
    WORKER_STATES,
    CrashError,
    bind_legacy,
)
from pilot.devserver.state import Ask, State, Update
from pilot.devserver.v1 import event_commands, event_ranges, event_returns

Handler = Callable[[Request, dict[str, Any]], Answer]
_PREFIX = "/server/panda/"
_NO_ROLE = "no production/pilot role in VOMS FQANs or non pilot owner"
_RIGHTS = "DOMA_PANDAMETA.USERS.GRIDPREF"
#: What Harvester sends as JSON text, and what v1 calls its arguments.
_LISTS = ("workers", "metrics", "dialogs")
_HARVESTER_NAMES = {"harvesterID": "harvester_id", "siteName": "panda_queue", "paramsList": "statistics"}
_KINDS = {argument.name: argument.kind for argument in CALLS["pilot/update_job"].arguments}


class Legacy:
    """Answers the legacy calls that pilots make."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._handlers: Mapping[str, Handler] = {
            "isAlive": lambda _, __: Answer.text(200, "alive=yes"),
            "getJob": self._get_job,
            "updateJob": self._update_job,
            "updateJobsInBulk": self._update_jobs_in_bulk,
            "getStatus": self._get_status,
            "checkJobStatus": self._check_job_status,
            "updateWorkerPilotStatus": self._update_worker_pilot_status,
            "getEventRanges": self._for_pilots(lambda request, _: _encoded(request, {"eventRanges": []})),
            "updateEventRange": self._for_pilots(self._update_event_range),
            "updateEventRanges": self._for_pilots(self._update_event_ranges),
            "checkEventsAvailability": lambda _, __: _json({"nEventRanges": 0}),
            "getProxy": self._credential("proxy"),
            "getKeyPair": self._get_key_pair,
            "get_access_token": self._credential("access token"),
            "get_token_key": self._get_token_key,
            "get_user_secrets": self._get_user_secrets,
            "getResourceTypes": lambda request, _: _encoded(request, {"Returns": 0, "ResourceTypes": RESOURCE_TYPES}),
            "getCommands": lambda request, _: _encoded(request, {"Returns": 0, "Commands": []}),
            "ackCommands": lambda request, _: _encoded(request, {"Returns": 0}),
            "setDebugMode": self._set_debug_mode,
            "updateWorkers": self._told_by_harvester("update_workers", "workers"),
            "updateServiceMetrics": self._told_by_harvester("update_service_metrics", "metrics"),
            "addHarvesterDialogs": self._told_by_harvester("add_dialogs"),
            "harvesterIsAlive": self._told_by_harvester("heartbeat"),
            "reportWorkerStats_jobtype": self._told_by_harvester("report_worker_statistics"),
        }

    def _credential(self, what: str) -> Handler:
        def hand_out(request: Request, _: dict[str, Any]) -> Answer:
            text = self._state.granted(what)
            if text is None:
                return _json(_denied(_not_listed(request.identity, what)), code=70)
            return _json({"userProxy": text})

        return hand_out

    def _told_by_harvester(self, kind: str, counted: str = "") -> Handler:
        """A handler that keeps what it is told; for each element of `counted`, JSON text, it answers true."""

        def handler(request: Request, given: dict[str, Any]) -> Answer:
            if not request.identity.user:
                return Answer.text(200, json.dumps([False, "SSL is required"]))
            try:
                told = {key: json.loads(value) if key in _LISTS else value for key, value in given.items()}
            except ValueError:
                return Answer.text(200, json.dumps([False, "failed to load JSON"]))
            self._state.note(kind, {_HARVESTER_NAMES.get(key, key): value for key, value in told.items()})
            return Answer.text(200, json.dumps([True, [True] * len(told[counted]) if counted else "OK"]))

        return handler

    def method(self, path: str) -> str:
        """The name that a call has in v1 for a path that is ours and known, else empty."""
        name = path.removeprefix(_PREFIX)
        return LEGACY_CALLS[name].v1 if path.startswith(_PREFIX) and name in self._handlers else ""

    def parse(self, request: Request) -> dict[str, Any]:
        """What the client sent: a form, or JSON that is gzip without a word about it. Booleans become text.

        Raises:
            BodyError: the body cannot be read. CrashError: it is JSON, but no object.
        """
        if request.header("Content-Type") != JSON:
            return request.parameters()
        value = request.json(unzip=True)
        if not isinstance(value, dict):
            raise CrashError(f"argument after ** must be a mapping, not {type(value).__name__}")
        return {key: str(item) if isinstance(item, bool) else item for key, item in value.items()}

    def run(self, request: Request, given: dict[str, Any]) -> Answer:
        """Make the call."""
        name = request.path.removeprefix(_PREFIX)
        bind_legacy(LEGACY_CALLS[name], given)
        return self._handlers[name](request, given)

    # --- jobs

    def _get_job(self, request: Request, given: dict[str, Any]) -> Answer:
        label = given.get("prodSourceLabel")
        if not request.identity.production and label != "user":
            return _no_role(request)
        ask = Ask(
            queue=str(given["siteName"]),
            label=label,
            n_jobs=int(given["nJobs"]) if str(given.get("nJobs", "")).isdigit() else 1,
            memory=_whole(given.get("mem")),
            disk=_whole(given.get("diskSpace")),
            remaining_time=_whole(given.get("remaining_time")),
            resource_type=given.get("resourceType"),
            task_id=None if given.get("taskID") is None else str(given["taskID"]),
        )
        jobs = self._state.acquire(ask)
        if not jobs:
            return _encoded(request, {"errorDialog": "no jobs in PanDA"} if _wants_json(request) else {}, code=20)
        if given.get("nJobs") is None:
            return _encoded(request, jobs[0])
        return _encoded(request, {"jobs": jobs if _wants_json(request) else json.dumps(jobs)})

    def _update_job(self, request: Request, given: dict[str, Any]) -> Answer:
        if not request.identity.production:
            return _no_role(request)
        if given["jobId"] == "NULL" or given["state"] not in JOB_STATES:
            return _encoded(request, {})
        try:
            job_id = int(given["jobId"])
        except (ValueError, TypeError) as error:
            raise CrashError(str(error)) from None
        fields = {UPDATE_NAMES.get(key, key): _typed(UPDATE_NAMES.get(key, key), value) for key, value in given.items()}
        attempt = _attempt(given.get("attemptNr"))
        verdict = self._state.update(Update("legacy", job_id, given["state"], attempt, fields=fields, arguments=given))
        if verdict.status_code:
            return _encoded(request, {}, code=verdict.status_code)
        secrets = {} if verdict.secrets is None else {"pilotSecrets": verdict.secrets}
        return _encoded(request, {"command": verdict.command, **secrets})

    def _update_jobs_in_bulk(self, request: Request, given: dict[str, Any]) -> Answer:
        answers: list[Any] = []
        try:
            for job in json.loads(given["jobList"]):
                fields = {"jobId": job["jobId"], "state": job["state"], **job}
                bind_legacy(LEGACY_CALLS["updateJob"], fields)
                answers.append(_nested(self._update_job(request, fields)))
        except (ValueError, KeyError, TypeError) as error:
            return _failed_bulk(given, f"{type(error).__name__} {error}")
        except CrashError as error:
            return _failed_bulk(given, f"TypeError {error}")
        return Answer.text(200, json.dumps([True, answers]))

    def _get_status(self, request: Request, given: dict[str, Any]) -> Answer:
        found = [self._state.status(_id(text)) or ("notfound", 0, "") for text in str(given["ids"]).split()]
        states, attempts = "+".join(state for state, _, _ in found), "+".join(str(number) for _, number, _ in found)
        return Answer.text(200, urlencode({"StatusCode": 0, "status": states, "attemptNr": attempts}))

    def _check_job_status(self, request: Request, given: dict[str, Any]) -> Answer:
        found = [self._state.status(_id(text)) or ("unknown", 0, "tobekilled") for text in str(given["ids"]).split(",")]
        return _json({"data": [{"command": command or None, "status": state} for state, _, command in found]})

    def _set_debug_mode(self, request: Request, given: dict[str, Any]) -> Answer:
        if not request.identity.user:
            return Answer.text(200, "ERROR: SSL secure connection is required")
        return Answer.text(200, self._state.set_debug(_id(given["pandaID"]), str(given["modeOn"]) == "True"))

    # --- workers, events, credentials

    def _for_pilots(self, handler: Handler) -> Handler:
        """The handler behind the check that some calls make; its refusals are plain texts with HTTP 200."""

        def checked(request: Request, given: dict[str, Any]) -> Answer:
            if not request.identity.user:
                return Answer.text(200, "failed to retrieve DN")
            if not request.identity.production:
                return Answer.text(200, "production or pilot role is required")
            return handler(request, given)

        return checked

    def _update_worker_pilot_status(self, request: Request, given: dict[str, Any]) -> Answer:
        return self._for_pilots(self._store_worker_status)(request, given)

    def _store_worker_status(self, request: Request, given: dict[str, Any]) -> Answer:
        if given["status"] not in WORKER_STATES:
            return Answer.text(200, f"Invalid worker state. The worker state has to be in {WORKER_STATES}")
        renamed = {"workerID": "worker_id", "harvesterID": "harvester_id"}
        self._state.note("update_worker_status", {renamed.get(key, key): value for key, value in given.items()})
        return _encoded(request, {})

    def _update_event_range(self, request: Request, given: dict[str, Any]) -> Answer:
        command = event_commands([{"eventRangeID": given["eventRangeID"]}])
        return Answer.text(200, urlencode({"StatusCode": 0, "Command": command}))

    def _update_event_ranges(self, request: Request, given: dict[str, Any]) -> Answer:
        ranges = event_ranges(given["eventRanges"])
        self._state.note("update_event_ranges", given)
        return _encoded(request, {"Returns": event_returns(ranges), "Command": event_commands(ranges)})

    def _get_key_pair(self, request: Request, given: dict[str, Any]) -> Answer:
        public, private, user = given["publicKeyName"], given["privateKeyName"], request.identity.user
        found = self._state.key_pair(user, public, private) if user else None
        if isinstance(found, tuple):
            return _encoded(request, {"publicKey": found[0], "privateKey": found[1]})
        start = f"getKeyPair {public}/{private} json={_wants_json(request)}: "
        if found:
            return _encoded(request, _denied(f"{start}failed for {found}"), code=70)
        dialog = f"{start}failed since '{user}' not authorized with 'k' in {_RIGHTS}"
        return _encoded(request, _denied(dialog if user else _NO_DN), code=70)

    def _get_token_key(self, request: Request, given: dict[str, Any]) -> Answer:
        dialog = f"denied since '{request.identity.user}' not authorized with 't' in {_RIGHTS}"
        no_name = "failed since DN cannot be extracted. non-HTTPS?"
        return _encoded(request, _denied(dialog if request.identity.user else no_name), code=70)

    def _get_user_secrets(self, request: Request, given: dict[str, Any]) -> Answer:
        if not request.identity.user:
            return Answer.text(200, json.dumps([False, "SSL_CLIENT_S_DN is missing in HTTP request"]))
        return Answer.text(200, json.dumps([True, {} if str(given.get("get_json")) == "True" else "{}"]))


_NO_DN = "Cannot extract DN from proxy. not HTTPS?"


def _wants_json(request: Request) -> bool:
    return JSON in request.header("Accept")


def _encoded(request: Request, data: Mapping[str, Any], code: int = 0) -> Answer:
    if _wants_json(request):
        return _json(data, code)
    return Answer.text(200, urlencode({"StatusCode": code, **data}))


def _json(data: Mapping[str, Any], code: int = 0) -> Answer:
    return Answer.json({"StatusCode": code, **data})


def _nested(answer: Answer) -> Any:
    """An answer inside an answer: the real server's own value for JSON, the plain text otherwise."""
    text = answer.body.decode()
    return {"type": "json", "content": text} if answer.content_type == JSON else text


def _failed_bulk(given: Mapping[str, Any], problem: str) -> Answer:
    return Answer.text(200, json.dumps([False, f"updateJobsInBulk {given.get('harvester_id')} failed with {problem}"]))


def _no_role(request: Request) -> Answer:
    return _encoded(request, {"errorDialog": _NO_ROLE} if _wants_json(request) else {}, code=60)


def _denied(dialog: str) -> dict[str, str]:
    return {"errorDialog": dialog}


def _not_listed(who: Identity, what: str) -> str:
    if not who.user:
        return _NO_DN
    return f"failed since '{who.user}' not in the authorized user list who have 'p' in {_RIGHTS} to get {what}"


def _whole(value: Any) -> int:
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def _attempt(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None  # the real server takes the update without looking at the attempt


def _id(text: Any) -> int:
    return _attempt(text) or -1  # no job has -1


def _typed(name: str, value: Any) -> Any:
    """A form's text as the number that v1 would have for it, so that both APIs can be read alike."""
    if _KINDS.get(name) not in ("int", "number") or not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number
