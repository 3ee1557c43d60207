"""What the real server's calls take, as data, and the checks it makes before a call runs.

Sources: the signatures of panda-server 1.0.4 (`/api/v1`) and 0.8.1 (`/server/panda`); for texts, tests/contract/wire.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REQUIRED = object()
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": float,
    "dict": dict,
    "list": list,
    "list[int]": list,
    "list[str]": list,
    "number": (int, float),
    "dict|str": (dict, str),
}
_ELEMENTS: Mapping[str, type] = {"list[int]": int, "list[str]": str}
_UNIONS = ("number", "dict|str")


class RefusedError(Exception):
    """The server's answer is `success: false` with this message, nothing was stored."""


class CrashError(Exception):
    """The real server fails here: HTTP 500 with this text."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a v1 call: `kind` is a key of the types above, or `any` for an unchecked one."""

    name: str
    kind: str
    default: object


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the v1 API: its HTTP method, whether it needs credentials and the production role, its arguments."""

    name: str
    method: str
    secure: bool
    production: bool
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class LegacyCall:
    """One call of the legacy API: names only, since it checks no types. `v1` is the same call's name there."""

    name: str
    v1: str
    required: tuple[str, ...]
    optional: frozenset[str]


def bind(call: Call, given: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The call's arguments with defaults filled in, checked as the real server checks them.

    Args:
        call: the call.
        given: what the client sent.
        method: the HTTP method; the values of a GET are text and are cast.

    Raises:
        RefusedError: with the real server's message for a missing, unknown or wrongly typed argument.
        CrashError: where the real server's own check fails.
    """
    known = {argument.name for argument in call.arguments}
    for argument in call.arguments:
        if argument.default is REQUIRED and argument.name not in given:
            raise RefusedError(f"Argument error: missing a required argument: '{argument.name}'")
    for name in given:
        if name not in known:
            raise RefusedError(f"Argument error: got an unexpected keyword argument '{name}'")
    return {argument.name: _value(argument, given, method) for argument in call.arguments}


def _value(argument: Argument, given: Mapping[str, Any], method: str) -> Any:
    if argument.name not in given:
        return argument.default
    value = given[argument.name]
    if argument.kind == "any" or value == argument.default:
        return value
    if method == "GET":
        value = _cast(argument, value)
    _check(argument, value)
    return value


def _cast(argument: Argument, value: Any) -> Any:
    if value == "None" and argument.default is None:
        return None
    if argument.kind in _ELEMENTS and isinstance(value, str):
        value = [value]
    try:
        return _from_text(argument.kind, value)
    except (ValueError, TypeError):
        shown = "List" if argument.kind.startswith("list[") else argument.kind
        raise RefusedError(
            f"Type error: '{argument.name}' with value '{value}' could not be casted to type {shown} "
            f"from {type(value).__name__}."
        ) from None
    except (AttributeError, SyntaxError) as error:
        raise CrashError(str(error)) from None


def _from_text(kind: str, value: Any) -> Any:
    if kind == "str":
        return value
    if kind == "bool":
        return value.lower() in ("true", "1")
    if kind == "int":
        return int(float(value))
    if kind == "list[int]":
        return [int(float(item)) for item in value]
    if kind == "list[str]":
        return value
    value = ast.literal_eval(value)
    if not isinstance(value, _TYPES[kind]):
        raise TypeError
    return value


def _check(argument: Argument, value: Any) -> None:
    if value is None and argument.default is None:
        return
    if not isinstance(value, _TYPES[argument.kind]):
        if argument.kind in _UNIONS:  # the real server builds its message from a union type, and fails
            raise CrashError("'types.UnionType' object has no attribute '__name__'")
        shown = argument.kind.partition("[")[0]
        raise RefusedError(f"Type error: '{argument.name}' must be of type {shown}, got {type(value).__name__}.")
    element = _ELEMENTS.get(argument.kind)
    if element and isinstance(value, list) and not all(isinstance(item, element) for item in value):
        raise RefusedError(f"Type error: All elements in '{argument.name}' must be {element.__name__}.")


def bind_legacy(call: LegacyCall, given: Mapping[str, Any]) -> None:
    """Check names as Python does when it calls the real server's function.

    Raises:
        CrashError: an unknown or a missing argument; the real server answers 500 with Python's own words.
    """
    for name in given:
        if name not in call.optional and name not in call.required:
            raise CrashError(f"{call.name}() got an unexpected keyword argument '{name}'")
    missing = [f"'{name}'" for name in call.required if name not in given]
    if missing:
        plural = "" if len(missing) == 1 else "s"
        raise CrashError(
            f"{call.name}() missing {len(missing)} required positional argument{plural}: {_series(missing)}"
        )


def _series(names: Sequence[str]) -> str:
    if len(names) < 3:
        return " and ".join(names)
    return ", ".join(names[:-1]) + ", and " + names[-1]


def _argument(text: str) -> Argument:
    name, _, rest = text.partition(":")
    if rest.endswith("!"):
        return Argument(name, rest[:-1], REQUIRED)
    kind, _, default = rest.partition("=")
    return Argument(name, kind, ast.literal_eval(default) if default else None)


def _calls(table: str) -> dict[str, Call]:
    calls = {}
    for entry in table.strip().split("\n\n"):
        name, method, rights, *arguments = entry.split()
        secure, production = rights != "open", rights == "production"
        calls[name] = Call(name, method, secure, production, tuple(map(_argument, arguments)))
    return calls


def _legacy_calls(table: str) -> dict[str, LegacyCall]:
    calls = {}
    for entry in table.strip().split("\n\n"):
        name, v1, *names = entry.split()
        required = tuple(text[:-1] for text in names if text.endswith("!"))
        calls[name] = LegacyCall(name, v1, required, frozenset(text for text in names if not text.endswith("!")))
    return calls


# module/method, HTTP method, rights, then the arguments: name:kind, `!` required, `=` a default that is not None.
CALLS = _calls("""
pilot/acquire_jobs POST user site_name:str! timeout:int=60 memory:int disk_space:int prod_source_label:str node:str
    computing_element:str prod_user_id:str get_proxy_key:str task_id:int n_jobs:int=1 background:bool resource_type:str
    harvester_id:str worker_id:int scheduler_id:str job_type:str via_topic:bool remaining_time:any
    target_architecture:dict|str

pilot/get_job_status GET user job_ids:list[int]! timeout:int=60

pilot/update_job POST production job_id:int! job_status:str! job_output_report:str='' node:str cpu_consumption_time:int
    cpu_consumption_unit:str scheduler_id:str pilot_id:str site_name:str pilot_log:str='' meta_data:str=''
    cpu_conversion_factor:number trans_exit_code:int pilot_error_code:int pilot_error_diag:str exe_error_code:int
    exe_error_diag:str pilot_timing:str start_time:str end_time:str n_events:int n_input_files:int batch_id:str
    attempt_nr:int job_metrics:str stdout:str='' job_sub_status:str core_count:int
    max_rss:number max_vmem:number max_swap:number max_pss:number avg_rss:number avg_vmem:number avg_swap:number
    avg_pss:number tot_rchar:number tot_wchar:number tot_rbytes:number tot_wbytes:number rate_rchar:number
    rate_wchar:number rate_rbytes:number rate_wbytes:number corrupted_files:str mean_core_count:int
    cpu_architecture_level:str grid:str source_site:str destination_site:str timeout:int=60

pilot/update_jobs_bulk POST production job_list:list! harvester_id:str

pilot/update_worker_status POST production worker_id:any! harvester_id:any! status:any! timeout:any=60 node_id:any

pilot/update_worker_node POST production site:str! host_name:str! cpu_model:str! panda_queue:str n_logical_cpus:int
    n_sockets:int cores_per_socket:int threads_per_core:int cpu_architecture:str cpu_architecture_level:str
    clock_speed:float total_memory:int total_local_disk:int timeout:int=60

pilot/update_worker_node_gpu POST production site:str! host_name:str! vendor:str! model:str! count:int! vram:int
    architecture:str framework:str framework_version:str driver_version:str timeout:int=60

metaconfig/get_resource_types GET user

event/get_available_event_range_count GET production job_id:int! jobset_id:int! task_id:int! timeout:any=60

event/acquire_event_ranges POST production job_id:int! jobset_id:int! task_id:int n_ranges:int=10 timeout:int=60
    scattered:bool=False segment_id:int

event/update_single_event_range POST production event_range_id:str! event_range_status:str! core_count:int
    cpu_consumption_time:float object_store_id:any timeout:int=60

event/update_event_ranges POST production event_ranges:str! timeout:int=120 version:int=0

creds/get_user_secrets GET user keys:list[str]

creds/get_key_pair GET user public_key_name:str! private_key_name:str!

creds/get_proxy GET user role:str dn:str

creds/get_access_token GET user client_name:str! token_key:str

creds/get_token_key GET user client_name:str!

harvester/update_workers POST user harvester_id:str! workers:list!

harvester/update_service_metrics POST user harvester_id:str! metrics:list!

harvester/add_dialogs POST user harvester_id:str! dialogs:list!

harvester/heartbeat POST user harvester_id:str! data:dict

harvester/report_worker_statistics POST user harvester_id:str! panda_queue:str! statistics:str!

harvester/acquire_commands POST production harvester_id:str! n_commands:int! timeout:int=30

harvester/acknowledge_commands POST production command_ids:list! timeout:int=30

job/get_status GET user job_ids:list[int]! timeout:int=60

job/kill POST user job_ids:list[int]! code:int use_email_as_id:bool=False kill_options:list[str]=[]

job/set_command POST production job_id:int! command:str!

job/set_debug_mode POST production job_id:int! mode:bool!

job/submit POST user jobs:str!

system/is_alive GET open
""")

# method, the same call in v1, then the arguments: `!` required.
LEGACY_CALLS = _legacy_calls("""
isAlive is_alive

getJob acquire_jobs siteName! token timeout cpu mem diskSpace prodSourceLabel node computingElement AtlasRelease
    prodUserID getProxyKey countryGroup workingGroup allowOtherCountry taskID nJobs background resourceType harvester_id
    worker_id schedulerID jobType viaTopic remaining_time

updateJob update_job jobId! state! token transExitCode pilotErrorCode pilotErrorDiag timestamp timeout xml node workdir
    cpuConsumptionTime cpuConsumptionUnit remainingSpace schedulerID pilotID siteName messageLevel pilotLog metaData
    cpuConversionFactor exeErrorCode exeErrorDiag pilotTiming computingElement startTime endTime nEvents nInputFiles
    batchID attemptNr jobMetrics stdout jobSubStatus coreCount maxRSS maxVMEM maxSWAP maxPSS avgRSS avgVMEM avgSWAP
    avgPSS totRCHAR totWCHAR totRBYTES totWBYTES rateRCHAR rateWCHAR rateRBYTES rateWBYTES corruptedFiles meanCoreCount
    cpu_architecture_level grid source_site destination_site

updateJobsInBulk update_jobs_bulk jobList! harvester_id

getStatus get_job_status ids! timeout

checkJobStatus check_job_status ids! timeout

updateWorkerPilotStatus update_worker_status site! workerID! harvesterID! status! timeout node_id

getEventRanges acquire_event_ranges pandaID! jobsetID! taskID nRanges timeout scattered segment_id

updateEventRange update_single_event_range eventRangeID! eventStatus! coreCount cpuConsumptionTime objstoreID timeout
    pandaID

updateEventRanges update_event_ranges eventRanges! timeout version pandaID

checkEventsAvailability get_available_event_range_count pandaID! jobsetID! taskID! timeout

getProxy get_proxy role dn

getKeyPair get_key_pair publicKeyName! privateKeyName!

get_access_token get_access_token client_name! token_key

get_token_key get_token_key client_name!

get_user_secrets get_user_secrets keys get_json

getResourceTypes get_resource_types timeout

getCommands acquire_commands harvester_id! n_commands! timeout

ackCommands acknowledge_commands command_ids! timeout

updateWorkers update_workers harvesterID! workers!

updateServiceMetrics update_service_metrics harvesterID! metrics!

addHarvesterDialogs add_dialogs harvesterID! dialogs!

harvesterIsAlive heartbeat harvesterID! data

reportWorkerStats_jobtype report_worker_statistics harvesterID! siteName! paramsList!

setDebugMode set_debug_mode pandaID! modeOn!
""")

# updateJob's fields by their names in v1, so that what a job was told looks the same through either API.
UPDATE_NAMES: Mapping[str, str] = {
    "jobId": "job_id",
    "state": "job_status",
    "attemptNr": "attempt_nr",
    "xml": "job_output_report",
    "transExitCode": "trans_exit_code",
    "pilotErrorCode": "pilot_error_code",
    "pilotErrorDiag": "pilot_error_diag",
    "exeErrorCode": "exe_error_code",
    "exeErrorDiag": "exe_error_diag",
    "cpuConsumptionTime": "cpu_consumption_time",
    "cpuConsumptionUnit": "cpu_consumption_unit",
    "cpuConversionFactor": "cpu_conversion_factor",
    "schedulerID": "scheduler_id",
    "pilotID": "pilot_id",
    "batchID": "batch_id",
    "siteName": "site_name",
    "pilotLog": "pilot_log",
    "metaData": "meta_data",
    "pilotTiming": "pilot_timing",
    "startTime": "start_time",
    "endTime": "end_time",
    "nEvents": "n_events",
    "nInputFiles": "n_input_files",
    "jobMetrics": "job_metrics",
    "jobSubStatus": "job_sub_status",
    "coreCount": "core_count",
    "meanCoreCount": "mean_core_count",
    "corruptedFiles": "corrupted_files",
    **{
        f"{which}{what}": f"{which}_{what.lower()}"
        for which in ("max", "avg")
        for what in ("RSS", "VMEM", "SWAP", "PSS")
    },
    **{
        f"{which}{what}": f"{which}_{what.lower()}"
        for which in ("tot", "rate")
        for what in ("RCHAR", "WCHAR", "RBYTES", "WBYTES")
    },
}

# Longest texts the server stores, in characters (`pilot_api.update_job`).
FIELD_LIMITS: Mapping[str, int] = {
    "cpu_architecture_level": 20,
    "node": 128,
    "pilot_error_diag": 500,
    "exe_error_diag": 500,
    "job_metrics": 500,
    "pilot_id": 200,
    "batch_id": 80,
}
COMMAND_LIMIT = 250  # commandToPilot's column
JOB_STATES = ("running", "failed", "finished", "holding", "starting", "transferring")
WORKER_STATES = ("started", "finished")
RESOURCE_TYPES: list[dict[str, Any]] = [
    dict(zip(("resource_name", "mincore", "maxcore", "minrampercore", "maxrampercore"), row, strict=True))
    for row in (
        ("Undefined", 1, None, None, None),
        ("SCORE", 1, 1, 0, 2000),
        ("SCORE_HIMEM", 1, 1, 2001, None),
        ("MCORE", 2, None, 0, 2000),
        ("MCORE_HIMEM", 2, None, 2001, None),
    )
]
