"""Logs that go file by file into an object store, to be read there in a browser, as Pilot 3's `gs` and `s3` do it.

The files are `payload*.*`, `memory_monitor*.*` and `pilotlog*.*` of the job directory, masked, under their own names in
the folder where the archive would be; the URL of `pilotlog.txt` becomes the first part of `pilotID`. The archive stays
here: its size and checksum are what the server is told of the log (PILOT3 4.6).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from pilot.bench import Bench
from pilot.errors import Code, PilotError
from pilot.job import File, Job
from pilot.logarchive import FILE_LIMIT, PILOT_LOG, masked_copy
from pilot.queuedata import QueueInfo, hash_path
from pilot.staging.checksum import file_checksums
from pilot.staging.copytool import CopyTool
from pilot.staging.plan import Candidate
from pilot.staging.result import FailedFile, StagedFile, StagingResult
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

PATTERNS = ("payload*.*", "memory_monitor*.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainLog:
    """What became of it: as for an archive, and where the pilot's log can be read (empty if it is not there)."""

    result: StagingResult
    url: str = ""


async def send_plain_log(
    bench: Bench, info: QueueInfo, job: Job, workdir: Path, log_start: int, stop: Stop
) -> PlainLog | None:
    """Send the log file by file if the tool for it does so; None if it wants the archive.

    Args:
        bench: what all jobs of the slot share.
        info: the queue as the job sees it.
        job: with a log.
        workdir: its directory, where the archive is.
        log_start: where the job's part of the pilot's log begins.
        stop: ends it.

    Raises:
        PilotError: there is no place for the log, the files cannot be copied, or the stop's reason.
    """
    log = job.log
    tools = info.queue.tools(["pl", "write_lan_analysis", "write_lan", "w"])
    store = bench.store(info, job)
    if log is None or not store.any_tool(tools, lambda tool: tool.sends_plain_logs(log)):
        return None
    place, tool = await store.destination(log, stop)
    if not tool.sends_plain_logs(log):
        return None
    sender = _Sender(bench, info, job, workdir, stop)
    base = _base(place, log)
    names = await stop.guard(in_thread(sender.copy, log_start))
    failed = await sender.send([replace(log, lfn=name, guid="", url=f"{base}/{name}") for name in names])
    if failed:
        failures = tuple(replace(failure, file=log) for failure in failed[:1])
        return PlainLog(result=StagingResult(failed=failures))
    staged = await stop.guard(in_thread(_as_staged, log, workdir / log.lfn, place, base, bench.settings.checksum_type))
    return PlainLog(result=StagingResult(staged=(staged,)), url=_shown(tool, base) if PILOT_LOG in names else "")


class _Sender:
    """Sends files of one job's log."""

    def __init__(self, bench: Bench, info: QueueInfo, job: Job, workdir: Path, stop: Stop) -> None:
        self._bench = bench
        self._job = job
        self._workdir = workdir
        self._folder = workdir
        self._stop = stop
        self._engine = bench.engine(info, job)
        self._store = bench.store(info, job)

    def copy(self, log_start: int) -> list[str]:
        """Make masked copies; their names. One that cannot be read is left out. Blocks."""
        try:  # a name of its own: a payload may have made any other
            self._folder = Path(mkdtemp(prefix="plain_logs.", dir=self._workdir))
        except OSError as error:
            raise PilotError(Code.LOGFILECREATIONFAILURE, f"{self._workdir}: {error.strerror}") from error
        others = {file.lfn for file in (*self._job.inputs, *self._job.outputs)}
        names = sorted(set(os.listdir(self._workdir)) - others)
        wanted = [name for name in names if any(fnmatchcase(name, pattern) for pattern in PATTERNS)]
        masker = self._bench.masker
        made, left = [], FILE_LIMIT  # for all of them: holes in a file take room in its copy
        for name in wanted:
            if self._made(partial(masked_copy, self._workdir / name, masker=masker, limit=left), name):
                made.append(name)
                left -= (self._folder / name).stat().st_size
        if part := self._bench.log.part(log_start):
            path, header_end, start = part

            def own(target: Path) -> None:
                masked_copy(path, target, masker, [(0, header_end), (start, max(start, path.stat().st_size))])

            made += [PILOT_LOG] if self._made(own, PILOT_LOG) else []
        return made

    def _made(self, make: Callable[[Path], None], name: str) -> bool:
        self._stop.check()
        try:
            make(self._folder / name)
        except OSError as error:
            logger.warning("%s is not among the plain logs: %s", name, error.strerror or error)
            (self._folder / name).unlink(missing_ok=True)
            return False
        return True

    async def send(self, files: list[File]) -> tuple[FailedFile, ...]:
        """Send them; the log of an earlier try is replaced."""
        result = await self._engine.stage_out(files, self._folder, self._stop)
        old = [failure for failure in result.failed if failure.error.code is Code.FILEEXISTS and failure.attempts]
        for failure in old:
            await self._store.remove(failure.attempts[0].tool, failure.file.url, self._stop)
        if not old:
            return result.failed
        again = await self._engine.stage_out([failure.file for failure in old], self._folder, self._stop)
        return (*(failure for failure in result.failed if failure not in old), *again.failed)


def _base(place: Candidate, log: File) -> str:
    """The folder of the files: that of the archive, or one of the archive's name where many logs share a folder."""
    if place.url.endswith(hash_path(log.scope, log.lfn)):
        return place.url
    return place.url.removesuffix(f"/{log.lfn}")


def _as_staged(log: File, archive: Path, place: Candidate, base: str, kind: str) -> StagedFile:
    return StagedFile(
        file=replace(log, endpoint=place.endpoint or log.endpoint),
        path=archive,
        url=base,
        size=archive.stat().st_size,
        checksums=file_checksums(archive, (kind,), lambda: None),
        tool=place.tool,
        seconds=0.0,
    )


def _shown(tool: CopyTool, base: str) -> str:
    return tool.public_url(f"{base}/{PILOT_LOG}")
