"""Harvester's file exchange: another server, whose messages are files in a directory that both can see (PILOT3 7.1).

Harvester puts job definitions there and the pilot takes them; the pilot asks for more, and with `-z` its reports are
files too, which Harvester's shared-file messenger reads and sends on. Every file is written by rename: Harvester reads
whenever it likes, and takes `event_status.dump.json` away by a rename of its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pilot.errors import ServerError
from pilot.server import Server
from pilot.server.legacy import update_fields
from pilot.server.offline import NoServer
from pilot.server.report import FileReport, JobRequest, RawJob, Reply, Report
from pilot.stop import Deadline, Stop, in_thread

logger = logging.getLogger(__name__)

#: Names of the exchange (Harvester's `payload_interaction`; Pilot 3's `[Harvester]`).
JOB_FILES = ("pandaJobData.out", "HPCJobs.json")
REQUEST, ATTRIBUTES, OUTPUTS, REPORT = (
    *("worker_requestjob.json", "worker_attributes.json"),
    *("event_status.dump.json", "jobReport.json"),
)
#: Touched at the end of a pilot. It is not `kill_worker.json`, by which Harvester ends the batch job: that may be about
#: to send its log, or have other pilots in it.
END = "kill_worker"
#: Largest file with job definitions, bytes: one has some 100 kB at most.
_LIMIT = 256 << 20
#: Checksums that Harvester knows, the one it computes itself first.
_CHECKSUMS = ("adler32", "md5")


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
        self._homes: dict[int, Path] = {}
        self._unremoved: set[int] = set()
        self._ended: set[int] = set()
        self._lock = threading.Lock()

    async def acquire(self, request: JobRequest) -> list[RawJob]:
        """The next job that lies there; if there is none, Harvester is asked for one.

        Raises:
            ServerError: a file with definitions cannot be understood; it is left as it is.
        """
        taken = await in_thread(self._take)
        if taken is None and self._exchange.pulls:
            return await self.behind.acquire(request)
        if taken is None:
            if self._exchange.access:
                await in_thread(_write, self._exchange.access / REQUEST, {"nJobs": max(1, request.n_jobs)})
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

    def finish(self) -> None:
        """Tell Harvester that this worker takes no more jobs. A failure is a warning."""
        if self._exchange.access:
            path = self._exchange.access / END
            try:
                path.touch()
            except OSError as error:
                logger.warning("%s: %s", path, error.strerror)

    def _take(self) -> tuple[RawJob, Path] | None:
        """Take one job out of the first file that has one; the others stay there, for later or for the next pilot."""
        for path in self._files():
            jobs = [job for job in read_jobs(path) if _job_id(job) not in self._unremoved]
            if jobs:
                by_id = {str(_job_id(job)): job for job in jobs}
                _write(self._exchange.copies / "job_definition.json", by_id, mode=0o600)
                self._strike_out(path, jobs[0], jobs[1:])
                return jobs[0], path.parent
            with suppress(OSError):
                path.unlink()
        return None

    def _strike_out(self, path: Path, job: RawJob, rest: Sequence[RawJob]) -> None:
        """Leave the others in the file. Where it cannot be written to, we remember whom we have taken."""
        try:
            if rest:
                _write(path, {str(_job_id(other)): other for other in rest}, mode=0o600)
            else:
                path.unlink()
        except (OSError, ServerError) as error:
            logger.warning("job %d cannot be taken out of its file: %s", _job_id(job), error)
            self._unremoved.add(_job_id(job))

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
            _write(attributes, worker_attributes(report))
            if not report.state.final:
                return
            self._ended.add(report.job_id)
            _add_outputs(self._exchange.outputs or home / OUTPUTS, report)
            if short := short_report(report.metadata):
                _write(attributes.with_name(REPORT), short)


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
        if not isinstance(job, dict) or not str(job.get("PandaID", "")).isdigit():
            raise ServerError(f"{path}: expected job definitions with a PandaID, as key=value&... or as JSON")
    return jobs


def worker_attributes(report: Report) -> dict[str, Any]:
    """What Harvester reads of a job: the update in the words of the legacy API, without its files (`xml`)."""
    fields = update_fields(report)
    fields.pop("xml", None)
    return {
        **fields,
        "jobStatus": report.state.value,
        "messageLevel": "debug" if report.stdout else "",
        "cpuConversionFactor": 1,
        "workdir": os.getcwd(),
        "timestamp": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        "transExitCode": report.trans_exit_code or 0,
        "pilotErrorCode": report.error_code,
    }


def output_entry(file: FileReport) -> dict[str, Any]:
    """An output for Harvester, which stores it: its local path where it has one."""
    parts = urlsplit(file.surl)
    kind = next((kind for kind in _CHECKSUMS if kind in file.checksums), "")
    return {
        "type": "log" if file.is_log else "output",
        "path": unquote(parts.path) if parts.scheme in ("", "file") else file.surl,
        "guid": file.guid,
        "fsize": file.size,
        "chksum": file.checksums.get(kind, ""),
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
