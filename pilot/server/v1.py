"""The codec of `/api/v1/...` (panda-server 0.8 and newer; the only API of 1.0).

HTTP status 200 says nothing: `success` and then `data.StatusCode` do. Arguments are strict: an unknown name or a wrong
JSON type is refused and nothing is stored. Names and types as in `api/v1/pilot_api.py` of panda-server 1.0.4.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlencode

from pilot.errors import ServerError
from pilot.masking import Secret
from pilot.server import wire
from pilot.server.faults import KeyRefusedError, RefusedError, UnavailableError, of_status
from pilot.server.report import JobRequest, RawJob, Reply, Report
from pilot.server.wire import Answer, Call, Request

T = TypeVar("T")

name = "v1"

#: Exactly this: with `; charset=utf-8` the server takes the body for a form and refuses it.
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}

#: Bodies above this many bytes are compressed; below, the packet is sent whole anyway.
_GZIP_ABOVE = 4096

_NO_JOBS = "No jobs in PanDA"
_UNEXPECTED = re.compile(r"Argument error: got an unexpected keyword argument '(\w+)'")
_WRONG_TYPE = re.compile(r"Type error: (?:All elements in )?'(\w+)'")
_PASSING = re.compile(r"timed? ?out|database error", re.IGNORECASE)

_NODE_TYPES: dict[str, Callable[[Any], Any]] = {
    "site": str,
    "host_name": str,
    "cpu_model": str,
    "panda_queue": str,
    "n_logical_cpus": int,
    "n_sockets": int,
    "cores_per_socket": int,
    "threads_per_core": int,
    "cpu_architecture": str,
    "cpu_architecture_level": str,
    "clock_speed": float,
    "total_memory": int,
    "total_local_disk": int,
}
_GPU_TYPES: dict[str, Callable[[Any], Any]] = {
    "site": str,
    "host_name": str,
    "vendor": str,
    "model": str,
    "count": int,
    "vram": int,
    "architecture": str,
    "framework": str,
    "framework_version": str,
    "driver_version": str,
}


def acquire(request: JobRequest) -> Call[list[RawJob]]:
    """Ask for jobs; none is an empty list."""
    fields = {
        "site_name": request.queue,
        "prod_source_label": request.label,
        "node": wire.clean(request.node, wire.LIMITS["node"]),
        "computing_element": request.computing_element,
        "memory": None if request.memory is None else int(request.memory),
        "disk_space": None if request.disk is None else int(request.disk),
        "prod_user_id": request.user,
        "task_id": request.task_id,
        "job_type": request.job_type,
        "resource_type": request.resource_type,
        "harvester_id": request.harvester_id,
        "worker_id": wire.as_int(request.worker_id),
        "remaining_time": None if request.remaining_time is None else int(request.remaining_time),
        "n_jobs": request.n_jobs if request.n_jobs != 1 else None,
    }
    return _post("pilot/acquire_jobs", wire.compact(fields), {"site_name"}, _jobs)


def update(report: Report) -> Call[Reply]:
    """Report on a job."""
    fields = _identity(report) | _usage(report)
    if report.state.final:
        fields |= _outcome(report)
    return _post("pilot/update_job", wire.compact(fields), {"job_id", "job_status", "attempt_nr"}, _reply)


def worker_status(status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> Call[None]:
    """Tell of a worker; the queue is known to this generation from Harvester."""
    del queue
    fields = {"worker_id": worker_id, "harvester_id": harvester_id, "status": status, "node_id": node}
    return _post("pilot/update_worker_status", wire.compact(fields), {"worker_id", "harvester_id", "status"}, _nothing)


def worker_node(mapping: Mapping[str, Any]) -> Call[None]:
    """Tell of this node's CPU, memory (MB) and disk (GB)."""
    return _post("pilot/update_worker_node", _typed(mapping, _NODE_TYPES), {"site", "host_name", "cpu_model"}, _nothing)


def worker_gpu(mapping: Mapping[str, Any]) -> Call[None]:
    """Tell of this node's GPUs of one model; `vram` in MB."""
    required = {"site", "host_name", "vendor", "model", "count"}
    return _post("pilot/update_worker_node_gpu", _typed(mapping, _GPU_TYPES), required, _nothing)


def resource_types() -> Call[list[dict[str, Any]]]:
    """The resource types."""
    return _get("metaconfig/get_resource_types", {}, _resource_types)


def job_status(job_ids: Iterable[int]) -> Call[dict[int, tuple[str, int]]]:
    """State and attempt of jobs."""
    return _get("pilot/get_job_status", {"job_ids": [int(job_id) for job_id in job_ids]}, _job_status)


def proxy(role: str, dn: str) -> Call[Secret]:
    """A user's X.509 proxy as PEM text."""
    return _get("creds/get_proxy", {"role": role, "dn": dn}, partial(_text, "user_proxy"))


def access_token(client_name: str, token_key: str) -> Call[Secret]:
    """A fresh access token."""
    fields = {"client_name": client_name, "token_key": token_key}
    return _get("creds/get_access_token", fields, partial(_text, "user_proxy"))


def key_pair(public_name: str, private_name: str) -> Call[tuple[str, Secret]]:
    """A public and a private key by their names."""
    return _get("creds/get_key_pair", {"public_key_name": public_name, "private_key_name": private_name}, _key_pair)


def user_secrets(keys: Iterable[str]) -> Call[dict[str, Secret]]:
    """The secrets stored for the credential's owner; all of them when no key is named."""
    return _get("creds/get_user_secrets", {"keys": list(keys)}, _user_secrets)


# --- fields ---------------------------------------------------------------------------------------------------------


def _identity(report: Report) -> dict[str, Any]:
    limits = wire.LIMITS
    return {
        "job_id": int(report.job_id),
        "job_status": report.state.value,
        "attempt_nr": int(report.attempt),
        "job_sub_status": report.sub_state,
        "node": wire.clean(report.node, limits["node"]),
        "site_name": report.queue,
        "scheduler_id": report.scheduler_id,
        "pilot_id": wire.clean(report.pilot_id, limits["pilot_id"]),
        "batch_id": wire.clean(report.batch_id, limits["batch_id"]),
        "start_time": wire.utc_text(report.start_time),
        "core_count": report.core_count,
        "n_events": report.n_events,
        "n_input_files": report.n_input_files,
        "corrupted_files": ",".join(report.corrupted_files),
        "job_metrics": wire.clean_words(report.metrics, limits["metrics"]),
        "meta_data": wire.clean(report.metadata),
        "stdout": wire.clean(report.stdout),
        "source_site": report.source_site,
        "destination_site": report.destination_site,
    }


def _usage(report: Report) -> dict[str, Any]:
    usage = report.usage
    cpu = wire.cpu_seconds(usage.cpu_time)
    return wire.measured(usage) | {
        "cpu_consumption_time": cpu,
        "cpu_conversion_factor": None if cpu is None else 1.0,
        "cpu_consumption_unit": report.cpu_unit,
        "cpu_architecture_level": wire.clean(report.cpu_level, wire.LIMITS["cpu_level"]),
        "mean_core_count": None if usage.cores is None else int(usage.cores + 0.5),  # the server refuses a float
    }


def _outcome(report: Report) -> dict[str, Any]:
    limit = wire.LIMITS["error_diag"]
    return {
        "end_time": wire.utc_text(report.end_time),
        "job_output_report": wire.files_text(report.files),
        "pilot_error_code": int(report.error_code),
        "pilot_error_diag": wire.clean(report.error_diag, limit),
        "exe_error_code": int(report.exe_code),
        "exe_error_diag": wire.clean(report.exe_diag, limit),
        "trans_exit_code": report.trans_exit_code,
        "pilot_timing": wire.timing_text(report.timings),
        "pilot_log": wire.clean(report.pilot_log, wire.LIMITS["pilot_log"]),
    }


def _typed(mapping: Mapping[str, Any], types: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The known keys of `mapping` in the types the server wants; what does not convert is left out."""
    fields: dict[str, Any] = {}
    for key, kind in types.items():
        if mapping.get(key) is None:
            continue
        try:
            fields[key] = kind(mapping[key])
        except (TypeError, ValueError, OverflowError):
            continue
    return fields


# --- requests -------------------------------------------------------------------------------------------------------


def _post(path: str, fields: Mapping[str, Any], required: set[str], decode: Callable[[Any, Answer], T]) -> Call[T]:
    return Call(
        method=path.rpartition("/")[2],
        fields=fields,
        required=frozenset(required),
        encode=partial(_encode_post, path),
        decode=partial(_decode, decode),
    )


def _get(path: str, fields: Mapping[str, Any], decode: Callable[[Any, Answer], T]) -> Call[T]:
    sent = {key: value for key, value in fields.items() if value not in ("", None, [])}
    return Call(
        method=path.rpartition("/")[2],
        fields=sent,
        required=frozenset(sent),
        encode=partial(_encode_get, path),
        decode=partial(_decode, decode),
    )


def _encode_post(path: str, fields: Mapping[str, Any]) -> Request:
    body, headers = json.dumps(fields).encode(), dict(_JSON)
    if len(body) > _GZIP_ABOVE:
        body = gzip.compress(body, 6)
        headers["Content-Encoding"] = "gzip"
    return Request("POST", f"/api/v1/{path}", body, headers)


def _encode_get(path: str, fields: Mapping[str, Any]) -> Request:
    query = f"?{urlencode(fields, doseq=True)}" if fields else ""
    return Request("GET", f"/api/v1/{path}{query}", b"", {"Accept": "application/json"})


# --- answers --------------------------------------------------------------------------------------------------------


def _decode(read: Callable[[Any, Answer], T], answer: Answer) -> T:
    envelope = wire.load_json(answer)
    if not isinstance(envelope, Mapping) or not isinstance(envelope.get("success"), bool):
        raise wire.garbage(answer, "no v1 answer")
    words, data = str(envelope.get("message") or ""), envelope.get("data")
    if not envelope["success"]:
        if words == _NO_JOBS:
            return read({"jobs": []}, answer)
        raise _refusal(words, data)
    if isinstance(data, Mapping) and "StatusCode" in data:
        status = wire.status_code(data, answer)
        if words == "Failed to add meta_data":  # its StatusCode is 30; the report itself was not stored either
            raise KeyRefusedError("meta_data", words, lasting=False)
        if status != 0:
            raise of_status(status, words)
    return read(data, answer)


def _refusal(words: str, data: Any) -> ServerError:
    """The error for `success: false`."""
    unexpected, wrong = _UNEXPECTED.search(words), _WRONG_TYPE.search(words)
    if unexpected or wrong:
        return KeyRefusedError((unexpected or wrong)[1], words)  # type: ignore[index]
    if isinstance(data, Mapping) and "StatusCode" in data:
        number = wire.as_int(str(data["StatusCode"]))
        if number:
            return of_status(number, words)
    return (UnavailableError if _PASSING.search(words) else RefusedError)(words or "refused without a word")


def _jobs(data: Any, answer: Answer) -> list[RawJob]:
    if not isinstance(data, Mapping):
        raise wire.garbage(answer, "no job data")
    return wire.jobs_of(data, answer)


def _reply(data: Any, answer: Answer) -> Reply:
    if not isinstance(data, Mapping):
        raise wire.garbage(answer, "no update data")
    if "command" not in data:  # without StatusCode it would do: `success` was true
        wire.status_code(data, answer)
    return Reply(command=wire.command_of(data.get("command")), secrets=wire.secrets_of(data.get("pilotSecrets")))


def _nothing(data: Any, answer: Answer) -> None:
    del data, answer


def _resource_types(data: Any, answer: Answer) -> list[dict[str, Any]]:
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise wire.garbage(answer, "no list of resource types")
    return data


def _job_status(data: Any, answer: Answer) -> dict[int, tuple[str, int]]:
    try:
        return {int(job["job_id"]): (str(job["status"]), int(job["attempt_number"])) for job in data}
    except (KeyError, TypeError, ValueError):
        raise wire.garbage(answer, "no job states") from None


def _text(key: str, data: Any, answer: Answer) -> Secret:
    return Secret(wire.text_field(data, key, answer))


def _key_pair(data: Any, answer: Answer) -> tuple[str, Secret]:
    return wire.text_field(data, "public_key", answer), Secret(wire.text_field(data, "private_key", answer))


def _user_secrets(data: Any, answer: Answer) -> dict[str, Secret]:
    del answer
    return wire.secrets_of(data)
