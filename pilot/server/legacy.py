"""The codec of `/server/panda/...`, the only API of panda-server before 0.8.

Bodies are gzip-compressed JSON without a `Content-Encoding`: the server decompresses whatever comes as
`application/json`, and plain JSON fails. Names and types as Pilot 3 sends them (PILOT3.md 2.2, 2.6), since not only
panda-server reads them. Answers are JSON when `Accept` says so and the method knows how, else `a=b&c=d`.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pilot.masking import Secret
from pilot.server import wire
from pilot.server.faults import KeyRefusedError, NotServedError, RefusedError, of_status
from pilot.server.report import JobRequest, RawJob, Reply, Report
from pilot.server.wire import Answer, Call, Request

T = TypeVar("T")

name = "legacy"

_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


def acquire(request: JobRequest) -> Call[list[RawJob]]:
    """Ask for jobs; none is an empty list."""
    optional = {
        "diskSpace": None if request.disk is None else int(request.disk),
        "cpu": request.cpu_speed,
        "mem": request.memory,
        "jobType": request.job_type,
        "countryGroup": request.country_group,
        "prodUserID": request.user,
        "taskID": request.task_id,
        "resourceType": request.resource_type,
        "harvester_id": request.harvester_id,
        "worker_id": request.worker_id,
        "nJobs": request.n_jobs if request.n_jobs != 1 else None,
    }
    fields = {
        "siteName": request.queue,
        "computingElement": request.computing_element,
        "prodSourceLabel": request.label,
        "workingGroup": request.working_group,
        "node": wire.clean(request.node, wire.LIMITS["node"]),
        "allowOtherCountry": request.allow_other_country,
    }
    return _post("getJob", fields | wire.compact(optional), {"siteName"}, _jobs)


def update(report: Report) -> Call[Reply]:
    """Report on a job."""
    fields = update_fields(report)
    required = {"jobId", "state", "attemptNr"}
    return _post("updateJob", fields, required, partial(_reply, with_metadata=bool(report.metadata)))


def update_fields(report: Report) -> dict[str, Any]:
    """The whole update as Pilot 3 writes it: the arguments of `updateJob`, and what `heartbeat.json` holds."""
    optional = _identity(report) | _usage(report)
    fields = {
        "jobId": str(report.job_id),
        "state": report.state.value,
        "timestamp": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        "attemptNr": int(report.attempt),
        "xml": wire.files_text(report.files) if report.state.final else "",
        "metaData": wire.clean(report.metadata),
    }
    fields |= wire.compact(optional)
    return fields | _outcome(report) if report.state.final else fields


def worker_status(status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> Call[None]:
    """Tell of a worker."""
    fields = {"workerID": worker_id, "harvesterID": harvester_id, "status": status, "site": queue, "node_id": node}
    return _post("updateWorkerPilotStatus", wire.compact(fields), {"workerID", "harvesterID", "status"}, _nothing)


def worker_node(mapping: Mapping[str, Any]) -> Call[None]:
    """This generation has no such method.

    Raises:
        NotServedError: always.
    """
    raise NotServedError("the legacy API does not know worker nodes")


def worker_gpu(mapping: Mapping[str, Any]) -> Call[None]:
    """This generation has no such method.

    Raises:
        NotServedError: always.
    """
    raise NotServedError("the legacy API does not know GPUs of worker nodes")


def resource_types() -> Call[list[dict[str, Any]]]:
    """The resource types."""
    return _post("getResourceTypes", {}, set(), _resource_types)


def job_status(job_ids: Iterable[int]) -> Call[dict[int, tuple[str, int]]]:
    """State and attempt of jobs."""
    wanted = [int(job_id) for job_id in job_ids]
    return _post("getStatus", {"ids": " ".join(map(str, wanted))}, {"ids"}, partial(_job_status, wanted))


def proxy(role: str, dn: str) -> Call[Secret]:
    """A user's X.509 proxy as PEM text."""
    return _post("getProxy", wire.compact({"role": role, "dn": dn}), {"role", "dn"}, partial(_text, "userProxy"))


def access_token(client_name: str, token_key: str) -> Call[Secret]:
    """A fresh access token."""
    fields = wire.compact({"client_name": client_name, "token_key": token_key})
    return _post("get_access_token", fields, set(fields), partial(_text, "userProxy"))


def key_pair(public_name: str, private_name: str) -> Call[tuple[str, Secret]]:
    """A public and a private key by their names."""
    fields = {"publicKeyName": public_name, "privateKeyName": private_name}
    return _post("getKeyPair", fields, set(fields), _key_pair)


def user_secrets(keys: Iterable[str]) -> Call[dict[str, Secret]]:
    """The secrets stored for the credential's owner; all of them when no key is named."""
    fields = wire.compact({"get_json": True, "keys": ",".join(keys)})
    return _post("get_user_secrets", fields, {"keys"}, _user_secrets)


# --- fields ---------------------------------------------------------------------------------------------------------


def _identity(report: Report) -> dict[str, Any]:
    limits = wire.LIMITS
    return {
        "jobSubStatus": report.sub_state,
        "siteName": report.queue,
        "node": wire.clean(report.node, limits["node"]),
        "schedulerID": report.scheduler_id,
        "pilotID": wire.clean(report.pilot_id, limits["pilot_id"]),
        "batchID": wire.clean(report.batch_id, limits["batch_id"]),
        "startTime": report.start_time,
        "coreCount": report.core_count,
        "nEvents": report.n_events,
        "nInputFiles": report.n_input_files,
        "corruptedFiles": ",".join(report.corrupted_files),
        "jobMetrics": wire.clean_words(report.metrics, limits["metrics"]),
        "stdout": wire.clean(report.stdout),
        "source_site": report.source_site,
        "destination_site": report.destination_site,
    }


def _usage(report: Report) -> dict[str, Any]:
    usage = report.usage
    cpu = wire.cpu_seconds(usage.cpu_time)
    parts = ((name.partition("_"), value) for name, value in wire.measured(usage).items())
    return {f"{kind}{what.upper()}": value for (kind, _, what), value in parts} | {
        "cpuConsumptionTime": cpu,
        "cpuConversionFactor": None if cpu is None else 1.0,
        "cpuConsumptionUnit": report.cpu_unit,
        "cpu_architecture_level": wire.clean(report.cpu_level, wire.LIMITS["cpu_level"]),
        "meanCoreCount": None if usage.cores is None else float(usage.cores),
    }


def _outcome(report: Report) -> dict[str, Any]:
    limit = wire.LIMITS["error_diag"]
    fields = {
        "endTime": report.end_time,
        "pilotTiming": wire.timing_text(report.timings),
        "transExitCode": report.trans_exit_code,
    }
    return wire.compact(fields) | {
        "pilotLog": wire.clean(report.pilot_log, wire.LIMITS["pilot_log"]),
        "pilotErrorCode": int(report.error_code),
        "pilotErrorDiag": wire.clean(report.error_diag, limit),
        "exeErrorCode": int(report.exe_code),
        "exeErrorDiag": wire.clean(report.exe_diag, limit),
    }


# --- requests -------------------------------------------------------------------------------------------------------


def _post(method: str, fields: Mapping[str, Any], required: set[str], decode: Callable[[Any, Answer], T]) -> Call[T]:
    return Call(
        method=method,
        fields=fields,
        required=frozenset(required),
        encode=partial(_encode, method),
        decode=lambda answer: decode(parse(answer), answer),
    )


def _encode(method: str, fields: Mapping[str, Any]) -> Request:
    return Request("POST", f"/server/panda/{method}", gzip.compress(json.dumps(fields).encode(), 6), _HEADERS)


# --- answers --------------------------------------------------------------------------------------------------------


def parse(answer: Answer) -> Any:
    """An answer in any of the ways this API writes it: JSON, `a=b&c=d`, or the word `Succeeded`.

    Raises:
        UnavailableError: it is none of them.
    """
    text = answer.text.strip()
    if text == "Succeeded":
        return {"StatusCode": 0, "command": None}
    if text[:1] in ("{", "["):
        return wire.load_json(answer)
    pairs = parse_qsl(text, keep_blank_values=True)
    if not pairs:
        raise wire.garbage(answer, "neither JSON nor key=value")
    return dict(pairs)


def _good(data: Any, answer: Answer) -> Mapping[str, Any]:
    """An answer whose StatusCode is 0."""
    if not isinstance(data, Mapping):
        raise wire.garbage(answer, "no object")
    status = wire.status_code(data, answer)
    if status:
        raise of_status(status, str(data.get("errorDialog") or ""))
    return data


def _jobs(data: Any, answer: Answer) -> list[RawJob]:
    if isinstance(data, Mapping) and wire.status_code(data, answer) == 20:
        return []
    return wire.jobs_of(_good(data, answer), answer)


def _reply(data: Any, answer: Answer, *, with_metadata: bool) -> Reply:
    good = _good(data, answer)
    if with_metadata and "command" not in good:
        # a report whose metadata could not be stored is dropped whole, and the answer is 0 without a command
        raise KeyRefusedError("metaData", "the server did not store the report with its metadata", lasting=False)
    return Reply(command=wire.command_of(good.get("command")), secrets=wire.secrets_of(good.get("pilotSecrets")))


def _nothing(data: Any, answer: Answer) -> None:
    _good(data, answer)


def _resource_types(data: Any, answer: Answer) -> list[dict[str, Any]]:
    types = _good(data, answer).get("ResourceTypes")
    if isinstance(types, str):
        try:
            types = ast.literal_eval(types)  # a Python repr, when the answer is a=b&c=d
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise wire.garbage(answer, "unreadable resource types") from None
    if not isinstance(types, list) or not all(isinstance(entry, dict) for entry in types):
        raise wire.garbage(answer, "no list of resource types")
    return types


def _job_status(wanted: list[int], data: Any, answer: Answer) -> dict[int, tuple[str, int]]:
    good = _good(data, answer)
    states, attempts = (str(good.get(key, "")).split("+") for key in ("status", "attemptNr"))
    try:
        return {
            job_id: ("not found" if state == "notfound" else state, int(attempt))
            for job_id, state, attempt in zip(wanted, states, attempts, strict=True)
        }
    except ValueError:
        raise wire.garbage(answer, "no job states") from None


def _text(key: str, data: Any, answer: Answer) -> Secret:
    return Secret(wire.text_field(_good(data, answer), key, answer))


def _key_pair(data: Any, answer: Answer) -> tuple[str, Secret]:
    good = _good(data, answer)
    return wire.text_field(good, "publicKey", answer), Secret(wire.text_field(good, "privateKey", answer))


def _user_secrets(data: Any, answer: Answer) -> dict[str, Secret]:
    if not isinstance(data, list) or len(data) != 2:
        raise wire.garbage(answer, "no pair")
    if data[0] is not True:
        raise RefusedError(str(data[1]))
    return wire.secrets_of(data[1])
