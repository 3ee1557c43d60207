"""Harvester's file exchange: another server, whose messages are files in a directory that both can see (PILOT3 7.1).

Harvester puts job definitions there and the pilot takes them; the pilot asks for more, and with `-z` its reports are
files too, which Harvester's shared-file messenger reads and sends on. Every file is written by rename: Harvester reads
whenever it likes, and takes `event_status.dump.json` away by a rename of its own.

Its monitor reads the request, then `worker_attributes.json`, then the outputs. What comes after it has read `finished`
or `failed` of a job is lost, so that is written last. A job of which it has read neither is what the batch job is:
finished, if that ended well, whatever became of the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pilot.errors import Code, PilotError, ServerError
from pilot.jobdef import job_identity
from pilot.server import Server, wire
from pilot.server.legacy import update_fields
from pilot.server.offline import NoServer
from pilot.server.report import FileReport, JobRequest, RawJob, Reply, Report, State
from pilot.stop import Deadline, Stop, in_thread

logger = logging.getLogger(__name__)

#: Names of the exchange (Harvester's `payload_interaction`; Pilot 3's `[Harvester]`).
JOB_FILES = ("pandaJobData.out", "HPCJobs.json")
REQUEST, ATTRIBUTES, OUTPUTS, REPORT = (
    *("worker_requestjob.json", "worker_attributes.json"),
    *("event_status.dump.json", "jobReport.json"),
)
#: Touched at the end of a pilot, as by Pilot 3; Harvester does not read it. It is not `kill_worker.json`, for which
#: Harvester's monitor has the batch job removed: that may be about to send its log, or have other pilots in it.
END = "kill_worker"
#: Its age tells Harvester that a worker lives, where the messenger of a queue has `worker_heartbeat` (minutes).
ALIVE = "worker_heartbeat.json"
_ALIVE_PERIOD = 60.0
#: Largest file with job definitions, bytes: one has some 100 kB at most.
_LIMIT = 256 << 20
#: s to report a job that was not begun.
_LAST_REPORT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Where files go.

    Attributes:
        inboxes: directories where job definitions may lie, the first that has some counts.
        access: Harvester's work directory for this worker, for requests and the end; None without Harvester.
        attributes, outputs: files for reports and outputs; None: in the directory where the job came from.
        copies: directory for the copy of the definitions.
        reports: whether reports are files instead of calls of the server (`-z`).
        pulls: whether the server is asked when no job lies there.
    """

    inboxes: tuple[Path, ...]
    access: Path | None
    attributes: Path | None
    outputs: Path | None
    copies: Path
    reports: bool = False
    pulls: bool = False


class HarvesterServer:
    """Takes jobs from files; reports to files with `-z`, else to the server behind.

    Args:
        exchange: where files are.
        behind: who gets what is no file.

    Attributes:
        behind: the same.
    """

    def __init__(self, exchange: Exchange, behind: Server) -> None:
        self.behind = behind
        self._exchange = exchange
        self._taken: tuple[RawJob, Path] | None = None
        self._homes: dict[int, Path] = {}
        self._unremoved: set[int] = set()
        self._shared: set[Path] = set()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._asked = False
        self._ended: set[int] = set()
        self._lock = threading.Lock()

    async def acquire(self, request: JobRequest) -> list[RawJob]:
        """The next job that lies there; if there is none, Harvester is asked for one.

        Raises:
            ServerError: a file with definitions cannot be understood; it is left as it is.
        """
        taken = await in_thread(self._take)
        self._taken = None
        if taken is None and self._exchange.pulls:
            return await self.behind.acquire(request)
        if taken is None:
            if self._exchange.access:
                await in_thread(_write, self._exchange.access / REQUEST, {"nJobs": max(1, request.n_jobs)})
                self._asked = True
            return []
        job, home = taken
        self._homes[_job_id(job)] = home
        return [job]

    async def update(self, report: Report, deadline: Deadline, stop: Stop | None = None) -> Reply:
        """Deliver a report: as files with `-z`, else to the server.

        Raises:
            ServerError: it was not delivered.
        """
        if not self._exchange.reports:
            return await self.behind.update(report, deadline, stop)
        await in_thread(self._report, report)
        return Reply()

    async def worker_status(self, status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> None:
        """Say that this worker started or finished."""
        await self.behind.worker_status(status, worker_id, harvester_id, node, queue)

    async def get_job_status(self, job_ids: Iterable[int]) -> dict[int, tuple[str, int]]:
        """What the server behind knows."""
        return await self.behind.get_job_status(job_ids)

    async def resource_types(self) -> list[dict[str, Any]]:
        """What the server behind tells."""
        return await self.behind.resource_types()

    async def update_worker_node(self, mapping: Mapping[str, Any]) -> None:
        """To the server behind."""
        await self.behind.update_worker_node(mapping)

    async def update_worker_gpu(self, mapping: Mapping[str, Any]) -> None:
        """To the server behind."""
        await self.behind.update_worker_gpu(mapping)

    async def is_given_more(self) -> bool:
        """Whether Harvester has given another job, which it counts as this worker's."""
        return self._exchange.access is not None and await in_thread(lambda: any(map(self._fresh, self._files())))

    async def show_life(self) -> None:
        """Touch Harvester's heartbeat file for ever."""
        while self._exchange.access:
            with _warned():
                await in_thread((self._exchange.access / ALIVE).touch)
            await asyncio.sleep(_ALIVE_PERIOD)

    async def finish(self, reason: PilotError | None) -> None:
        """Tell Harvester that this worker takes no more jobs, and of those it was given but has not begun.

        Args:
            reason: why the pilot ends, if something is wrong.
        """
        access = self._exchange.access
        if not access:
            return
        await in_thread(self._withdraw)
        for path, job in await in_thread(self._left):
            if await in_thread(self._strike_out, path, job, []):
                await self._give_up(job, path.parent, reason)
        if self._taken:  # a stop came meanwhile, and nobody waited for it
            await self._give_up(*self._taken, reason)
        with _warned():
            await in_thread((access / END).touch)

    async def _give_up(self, job: RawJob, home: Path, reason: PilotError | None) -> None:
        self._homes[_job_id(job)] = home
        with _warned():
            await self.update(_not_begun(job, reason), Deadline(_LAST_REPORT))

    def _take(self) -> tuple[RawJob, Path] | None:
        """Take one job out of the first file that has one; the others stay there, for later or for the next pilot."""
        for path in self._files():
            jobs = [] if self._is_being_written(path) else self._fresh(path, strict=True)
            if not jobs:
                continue
            by_id = {str(_job_id(job)): job for job in jobs}
            _write(self._exchange.copies / "job_definition.json", by_id, mode=0o600)
            if self._strike_out(path, jobs[0], jobs[1:]):
                self._withdraw()
                self._clear(path.parent)
                self._taken = jobs[0], path.parent
                return self._taken
        return None

    def _is_being_written(self, path: Path) -> bool:
        """Harvester does not rename: it writes the file, links the inputs, and removes the request when all is there.

        Where the request stays, a file that is as it was a look ago is whole.
        """
        access = self._exchange.access
        if not (access and self._asked and (access / REQUEST).exists()):
            return False
        try:
            status = path.stat()
        except OSError:
            return True
        known, now = self._seen.get(path), (status.st_size, status.st_mtime_ns)
        self._seen[path] = now
        return known != now

    def _fresh(self, path: Path, *, strict: bool = False) -> list[RawJob]:
        """Jobs of a file that we have not taken. One that cannot be understood has none, or is an error if `strict`."""
        try:
            return [job for job in read_jobs(path) if _job_id(job) not in self._unremoved]
        except ServerError:
            if strict:
                raise
            return []

    def _left(self) -> list[tuple[Path, RawJob]]:
        """Jobs that were not begun. What is left of a file with several is for another pilot."""
        files = [(path, self._fresh(path)) for path in self._files() if path not in self._shared]
        return [(path, jobs[0]) for path, jobs in files if len(jobs) == 1]

    def _withdraw(self) -> None:
        """Harvester must not give another job now, if we have asked again while it gave this one."""
        if self._exchange.access and self._asked:
            with _warned():
                (self._exchange.access / REQUEST).unlink(missing_ok=True)

    def _clear(self, home: Path) -> None:
        """Harvester must not take what the job before has reported there for a report of this one."""
        if self._exchange.reports:
            attributes = self._exchange.attributes or home / ATTRIBUTES
            for path in (attributes, attributes.with_name(REPORT)):
                with _warned():
                    path.unlink(missing_ok=True)

    def _strike_out(self, path: Path, job: RawJob, rest: Sequence[RawJob]) -> bool:
        """Leave the others in the file. Where it cannot be written to, we remember whom we have taken.

        False if another pilot was quicker.
        """
        try:
            if rest:
                _write(path, {str(_job_id(other)): other for other in rest}, mode=0o600)
                self._shared.add(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return False
        except (OSError, ServerError) as error:
            logger.warning("job %d cannot be taken out of its file: %s", _job_id(job), error)
            self._unremoved.add(_job_id(job))
        return True

    def _files(self) -> Iterator[Path]:
        """Files with definitions; with several jobs a worker Harvester makes a directory for each, named by its id."""
        for inbox in self._exchange.inboxes:
            folders = sorted(path for path in _entries(inbox) if path.name.isdigit())
            for folder in (inbox, *folders):
                yield from (folder / name for name in JOB_FILES if (folder / name).is_file())

    def _report(self, report: Report) -> None:
        """One after the other: an update that a slow file system has kept must not come after the final one."""
        home = self._homes.get(report.job_id) or self._exchange.access or self._exchange.copies
        attributes = self._exchange.attributes or home / ATTRIBUTES
        with self._lock:
            if report.job_id in self._ended and not report.state.final:
                return
            if report.state.final:
                self._ended.add(report.job_id)
                if short := short_report(report.metadata):
                    _write(attributes.with_name(REPORT), short)
                if report.files:
                    _add_outputs(self._exchange.outputs or home / OUTPUTS, report)
            _write(attributes, worker_attributes(report))


def _add_outputs(path: Path, report: Report) -> None:
    """Put the outputs of a job into the file, beside those of another one that Harvester has not taken yet."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        known = {}
    own = {str(report.job_id): [output_entry(file) for file in _log_first(report.files)]}
    _write(path, {**known, **own} if isinstance(known, dict) else own)


def read_jobs(path: Path) -> list[RawJob]:
    """The definitions in a file: url-encoded text of one, JSON of one, of a list, or `{id: definition}`.

    Raises:
        ServerError: it is none of these.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LIMIT).strip()
        found = json.loads(text) if text[:1] in ("{", "[") else dict(parse_qsl(text, keep_blank_values=True))
    except (OSError, ValueError) as error:
        raise ServerError(f"{path}: {error}") from error
    if isinstance(found, dict) and found and all(isinstance(value, dict) for value in found.values()):
        found = list(found.values())
    jobs = found if isinstance(found, list) else [found] if found else []
    for job in jobs:
        if not isinstance(job, dict) or not str(job.get("PandaID", "")).isdecimal():
            raise ServerError(f"{path}: expected job definitions with a PandaID, as key=value&... or as JSON")
    return jobs


def worker_attributes(report: Report) -> dict[str, Any]:
    """What Harvester reads of a job: the update in the words of the legacy API, without its files (`xml`).

    Of the final states it knows only two: a job that is kept to be delivered later has failed for it. Harvester hands
    on the times as they are, and of those the server takes only text, in UTC.
    """
    fields = update_fields(report)
    fields.pop("xml", None)
    for name, when in (("startTime", report.start_time), ("endTime", report.end_time)):
        if name in fields:
            fields[name] = wire.utc_text(when)
    if not fields["metaData"]:
        del fields["metaData"]
    return {
        **fields,
        "jobStatus": (State.FAILED if report.state is State.HOLDING else report.state).value,
        "messageLevel": "debug" if report.stdout else "",
        "cpuConversionFactor": 1,
        "workdir": os.getcwd(),
        "timestamp": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        "transExitCode": report.trans_exit_code or 0,
        "pilotErrorCode": report.error_code,
    }


def output_entry(file: FileReport) -> dict[str, Any]:
    """An output for Harvester, which stores it: its local path where it has one.

    Harvester takes every checksum for an adler32, and computes what is missing where it can read the file.
    """
    parts = urlsplit(file.surl)
    is_local = parts.scheme in ("", "file")
    checksum = file.checksums.get("adler32", "")
    return {
        "type": "log" if file.is_log else "output",
        "path": unquote(parts.path) if is_local else file.surl,
        "guid": file.guid,
        "fsize": file.size,
        **({"chksum": checksum} if checksum or not is_local else {}),
    }


def short_report(metadata: str) -> dict[str, Any] | None:
    """The payload's job report without the long lists of its log files; None if there is none."""
    try:
        report = json.loads(metadata) if metadata else None
    except ValueError:
        return None
    if not isinstance(report, dict):
        return None
    executors = report.get("executor")
    for part in executors if isinstance(executors, list) else ():
        if isinstance(part, dict) and "logfileReport" in part:
            part["logfileReport"] = {}
    return report


class FileJobs(NoServer):
    """Takes jobs from files; keeps reports in `heartbeat.json`."""

    def __init__(self, directories: Sequence[Path], heartbeat: Path) -> None:
        super().__init__(heartbeat)
        exchange = Exchange(
            inboxes=tuple(directories),
            access=None,
            attributes=None,
            outputs=None,
            copies=directories[-1],
        )
        self._files = HarvesterServer(exchange, self)

    async def acquire(self, request: JobRequest) -> list[RawJob]:
        """The next job that lies there."""
        return await self._files.acquire(request)


def _not_begun(raw: RawJob, reason: PilotError | None) -> Report:
    job_id, attempt = job_identity(raw)
    error = reason or PilotError(Code.GENERALERROR, "the time of the pilot is over")
    diag = f"the job was not begun: {error.diag}"
    return Report(job_id=job_id, attempt=attempt, state=State.FAILED, error_code=int(error.code), error_diag=diag)


@contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except (OSError, PilotError) as error:
        logger.warning("Harvester's files: %s", error)


def _log_first(files: Sequence[FileReport]) -> list[FileReport]:
    return sorted(files, key=lambda file: not file.is_log)


def _job_id(job: RawJob) -> int:
    return int(job["PandaID"])


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _write(path: Path, content: Mapping[str, Any], mode: int = 0o644) -> None:
    """Replace a file by rename.

    Raises:
        ServerError: it cannot be written.
    """
    import tempfile

    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # pilots on other nodes write, too
        with open(fd, "w") as file:
            os.fchmod(fd, mode)
            json.dump(content, file)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise ServerError(f"{path}: {error.strerror}") from error
