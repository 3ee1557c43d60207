"""What a pilot tells the server of a job, and what the server answers: values that no API generation shows in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pilot.masking import Secret


class State(Enum):
    """A job's state, in the server's words."""

    STARTING = "starting"
    RUNNING = "running"
    TRANSFERRING = "transferring"
    HOLDING = "holding"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """True if nothing may follow."""
        return self in (State.FINISHED, State.FAILED, State.HOLDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """An output, or the log if `is_log`: `surl` is its full URL, `endpoint` its RSE, checksums are as in `job.File`."""

    lfn: str
    guid: str
    size: int
    checksums: Mapping[str, str]
    surl: str
    endpoint: str
    is_log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a payload used. Memory in kB, I/O in bytes and bytes/s; None is not known and is not sent.

    Attributes:
        cpu_time: CPU seconds of the whole process tree.
        cores: mean of measured cores in use.
    """

    cpu_time: int | None = None
    cores: float | None = None
    max_rss: int | None = None
    max_vmem: int | None = None
    max_swap: int | None = None
    max_pss: int | None = None
    avg_rss: int | None = None
    avg_vmem: int | None = None
    avg_swap: int | None = None
    avg_pss: int | None = None
    tot_rchar: int | None = None
    tot_wchar: int | None = None
    tot_rbytes: int | None = None
    tot_wbytes: int | None = None
    rate_rchar: int | None = None
    rate_wchar: int | None = None
    rate_rbytes: int | None = None
    rate_wbytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds spent per phase, in the order the server knows them (`pilot_timing`)."""

    getjob: float = 0
    stagein: float = 0
    payload: float = 0
    stageout: float = 0
    initial_setup: float = 0
    setup: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One update of one job. Empty texts and None are not sent.

    Attributes:
        job_id: PandaID. attempt: as in the job.
        state: the server's state; for the error fields and timings to be sent it must be final.
        start_time, end_time: seconds since 1970.
        node, queue, scheduler_id, pilot_id, batch_id: who is speaking.
        cpu_unit: `cpuConsumptionUnit`, such as `s+Intel(R) Xeon(R) 2-Core Processor 107520 KB 1-Socket+AVX2`.
        error_code, error_diag: the pilot's code from the table and its text; 0 and empty if all is well.
        exe_code, exe_diag: what the payload itself reported.
        trans_exit_code: the payload's exit status.
        files: outputs and log that were stored; sent only with a final state.
        metrics: `jobMetrics` as `key=value` words. pilot_log: extract of the log for failed jobs.
        stdout: tail of the payload's output in debug mode. metadata: text of the payload's job report.
    """

    job_id: int
    attempt: int
    state: State
    sub_state: str = ""
    node: str = ""
    queue: str = ""
    scheduler_id: str = ""
    pilot_id: str = ""
    batch_id: str = ""
    start_time: float | None = None
    end_time: float | None = None
    core_count: int | None = None
    cpu_unit: str = ""
    cpu_level: str = ""
    error_code: int = 0
    error_diag: str = ""
    exe_code: int = 0
    exe_diag: str = ""
    trans_exit_code: int | None = None
    files: tuple[FileReport, ...] = ()
    corrupted_files: tuple[str, ...] = ()
    timings: Timings | None = None
    usage: Usage = field(default_factory=Usage)
    n_events: int | None = None
    n_input_files: int | None = None
    metrics: str = ""
    pilot_log: str = ""
    stdout: str = ""
    metadata: str = ""
    source_site: str = ""
    destination_site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The server's answer to an update.

    Attributes:
        command: what it wants (`tobekilled`, `debug`, `ps -ef`, ...); empty for nothing.
        secrets: `pilotSecrets` that came along, to be hidden at once.
    """

    command: str = ""
    secrets: Mapping[str, Secret] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a slot says of itself when it asks for a job. Memory and disk in MB, times in s, cpu_speed in MHz."""

    queue: str
    computing_element: str = ""
    label: str = ""
    node: str = ""
    memory: int | None = None
    disk: int | None = None
    cpu_speed: float | None = None
    working_group: str = ""
    country_group: str = ""
    allow_other_country: bool = False
    user: str = ""
    task_id: int | None = None
    job_type: str = ""
    resource_type: str = ""
    harvester_id: str = ""
    worker_id: str = ""
    remaining_time: int | None = None
    n_jobs: int = 1


RawJob = Mapping[str, Any]
