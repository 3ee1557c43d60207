"""What became of a job, as a value; and who may listen while it becomes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pilot.errors import Code, Fault, PilotError
from pilot.job import File, Job, Kind
from pilot.server.report import FileReport, State, Usage
from pilot.staging.progress import ProgressLine
from pilot.staging.result import Progress as Transfers
from pilot.staging.result import StagingObserver, StagingResult

#: Phases of a job in their order; each has its time in a result, 0 for one that was not reached.
PHASES = ("stagein", "setup", "payload", "stageout", "log", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """A file of a job that is where it should be: an input on the node, an output or the log in its storage."""

    file: File
    url: str
    size: int
    checksums: Mapping[str, str]

    @property
    def reported(self) -> FileReport:
        """As the server wants to hear of an output."""
        return FileReport(
            lfn=self.file.lfn,
            guid=self.file.guid,
            size=self.size,
            checksums=self.checksums,
            surl=self.url,
            endpoint=self.file.endpoint,
            is_log=self.file.kind is Kind.LOG,
        )

    def as_dict(self) -> dict[str, Any]:
        """For the journal and the result file."""
        return {
            "kind": self.file.kind.value,
            "lfn": self.file.lfn,
            "guid": self.file.guid,
            "size": self.size,
            "adler32": self.checksums.get("adler32"),
            "md5": self.checksums.get("md5"),
            "url": self.url,
        }


@dataclass(slots=True)
class Outcome:
    """A job as it stands; complete once it was reported.

    Attributes:
        error: the first thing that went wrong; None as long as all is well.
        exit_code, signum: how the payload ended, both None if it never ran or did not end.
        fault: whose the error is, where that is known better than by its code; see `blame`.
        files: inputs, outputs and log that were moved.
        timings: seconds per phase that was reached, and `total`.
        story: what staging tried and why it failed, one line each.
        reported: True once the server took the final report.
        kept: its outputs are kept for a later run to deliver, so that the job is not over.
    """

    job: Job
    error: PilotError | None = None
    exit_code: int | None = None
    signum: int | None = None
    exe_code: int = 0
    exe_diag: str = ""
    fault: Fault | None = None
    files: list[FileOutcome] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    metrics: dict[str, str] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    reported: bool = False
    kept: bool = False

    @property
    def state(self) -> State:
        """The final state, if the job ended now."""
        if self.kept:
            return State.HOLDING
        return State.FAILED if self.error else State.FINISHED

    @property
    def code(self) -> int:
        """The pilot error code, 0 for a good job; negated for an analysis job that may be tried again."""
        if self.error is None:
            return 0
        code = self.error.code
        return -int(code) if self.job.is_analysis and code.recoverable else int(code)

    @property
    def blame(self) -> str:
        """Whose fault the error is: `user`, `site`, `storage`, `server`, `pilot`, `unknown`; empty for a good job."""
        if self.error is None:
            return ""
        from pilot.causes import CAUSES

        return (self.fault or CAUSES[self.error.code].fault).value

    @property
    def staged_job(self) -> Job:
        """The job with its inputs as they were staged: from where, and those that have no local copy."""
        staged = {done.file.lfn: done.file for done in self.files if done.file.kind is Kind.INPUT}
        return replace(self.job, inputs=tuple(staged.get(file.lfn, file) for file in self.job.inputs))

    def fail(self, error: PilotError) -> None:
        """Keep an error if it is the first."""
        if self.error is None:
            self.error = error

    def stored(self) -> list[FileOutcome]:
        """Outputs and log that are in their storage, the log last."""
        kept = [done for done in self.files if done.file.kind is not Kind.INPUT]
        return sorted(kept, key=lambda done: done.file.kind is Kind.LOG)

    def as_dict(self) -> dict[str, Any]:
        """The result file of `pilot local`."""
        return {
            "job_id": self.job.job_id,
            "state": self.state.value,
            "pilot_error_code": self.code,
            "pilot_error_diag": self.error.diag if self.error else "",
            "fault": self.blame,
            "payload": {"exit_code": self.exit_code, "signal": self.signum},
            "files": [done.as_dict() for done in self.files],
            "timings": {name: round(self.timings.get(name, 0.0), 3) for name in (*PHASES, "total")},
            "metrics": self.metrics | _measured(self.usage),
        }


def _measured(usage: Usage) -> dict[str, Any]:
    values = ((name, getattr(usage, name)) for name in Usage.__slots__)
    return {name: value for name, value in values if value is not None}


class Stopwatch:
    """Seconds per phase; phases do not overlap."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.timings: dict[str, float] = {}
        self._phase = ""
        self._since = self.started

    def enter(self, phase: str) -> None:
        """The phase before ends now and `phase` begins; an empty name ends without a new one."""
        now = time.monotonic()
        if self._phase:
            self.timings[self._phase] = self.timings.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
        self.timings["total"] = now - self.started


class Progress:
    """Somebody who watches jobs go by: a terminal, a test, nobody. All methods are quick and return nothing."""

    def job(self, job: Job) -> None:
        """A job was acquired."""

    def phase(self, job: Job, phase: str) -> None:
        """A job entered a phase: stagein, setup, payload, stageout, log, report."""

    def moving(self, job: Job, line: ProgressLine | None) -> None:
        """Files begin to move, and the line says how far they are; None when they no longer do."""

    def moved(self, job: Job, done: FileOutcome) -> None:
        """A file arrived."""

    def ended(self, outcome: Outcome) -> None:
        """A job is over and reported."""

    def waiting(self, what: str, seconds: float) -> None:
        """The slot waits, for at most so long."""


class Shown(StagingObserver):
    """Shows the transfers of a job to who watches it."""

    def __init__(self, progress: Progress, job: Job) -> None:
        self._progress = progress
        self._job = job

    def started(self, progress: Transfers) -> None:
        """Files begin to move."""
        self._progress.moving(self._job, ProgressLine(progress))

    def ended(self, result: StagingResult) -> None:
        """They no longer do."""
        self._progress.moving(self._job, None)


def internal_error(error: BaseException) -> PilotError:
    """Our own bug as an error of the table: the job is to be reported, not left behind with a traceback."""
    return PilotError(Code.INTERNALPILOTPROBLEM, f"{type(error).__name__}: {error}")
