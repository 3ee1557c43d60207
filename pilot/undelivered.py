"""Outputs that could not be delivered: kept with what a later run needs to deliver them.

When the payload of a job is over and well, its outputs and all that is to be reported of them are written into the job
directory (`delivery.json`). If the stage-out fails, the directory moves to `keep_undelivered` and the job is reported
`holding`: the server waits for it. If the pilot is killed, the directory stays where it was. Either way `deliver`, in a
later pilot or by `pilot deliver`, stages out what the journal does not have as stored, reports the job `finished`, and
removes the directory. The file is locked as long as somebody works on it, so that no two do.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pilot.contain import JOB_DIRECTORY, private_beside
from pilot.errors import Code, PilotError, ServerError
from pilot.experiment import JOURNAL, NOTE, SECRETS
from pilot.job import Access, File, Job, Kind
from pilot.jobfields import checked_lfn
from pilot.journal import JobState, Journal, Moved, state
from pilot.left import open_left
from pilot.logarchive import PILOT_LOG, archive_folder, make_log_archive
from pilot.outcome import FileOutcome
from pilot.registering import PASSING, Registrar, wants_registration
from pilot.removal import remove_tree
from pilot.server.report import FileReport, Report, State, Timings, Usage
from pilot.stop import Deadline, Stop, in_thread

if TYPE_CHECKING:
    from pilot.bench import Bench

logger = logging.getLogger(__name__)

#: Errors that a later run would have again, or that say that nobody wants the outputs.
_HOPELESS = {
    Code.MISSINGOUTPUTFILE, Code.ZEROFILESIZE, Code.FILEEXISTS, Code.LFNTOOLONG, Code.BADOUTPUTFILENAME, Code.PANDAKILL,
}  # fmt: skip

#: What a job must have for the stage-out to be planned, traced and registered as it would have been.
_FACTS = (
    *("job_id", "task_id", "attempt", "jobset_id", "definition_id", "name", "user", "label", "processing_type"),
    *("transfer_type", "transformation", "destination_dblock", "nucleus", "alt_stageout", "is_analysis"),
    *("queue_overrides", "storage_overrides", "container_image", "platform", "user_platform"),
)

#: States of a job, in the server's words, that no report changes any more.
_OVER = {"finished", "failed", "cancelled", "closed"}

#: Bytes of the file with a job's secrets that are read.
_SECRETS_LIMIT = 1 << 20

#: Directories below one that is searched: `PanDA_Pilot3_N/PanDA_Pilot-N` of a pilot that was killed.
_DEPTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is in `delivery.json`.

    Attributes:
        job: with the facts that matter now.
        files: outputs, and the log if there is one.
        report: the final one, as it would be if all were delivered; its `files` do not count.
        queue: name of the queue.
    """

    job: Job
    files: tuple[File, ...]
    report: Report
    queue: str


class Custody:
    """The outputs of one job, from the end of its payload until they are delivered or given up.

    Args:
        workdir: the job's directory.
        note: to be written there.

    Raises:
        PilotError: FILEHANDLINGFAILURE (1303), it cannot be written.
    """

    def __init__(self, workdir: Path, note: Note) -> None:
        self._workdir = workdir
        self._note = note
        try:
            self._file = _new(workdir / NOTE, _encoded(note))
        except OSError as error:
            raise PilotError(Code.FILEHANDLINGFAILURE, f"{workdir / NOTE}: {error.strerror}") from error

    def is_worth_it(self, stored: Iterable[FileOutcome], error: PilotError, stopped: bool = False) -> bool:
        """Whether a later run can deliver what is not stored: it is there, and the error may pass.

        Args:
            stored: what is.
            error: why the job would fail.
            stopped: that is a stop, and the catalogue may not know what is stored.
        """
        done = {outcome.file.lfn for outcome in stored}
        left = [file for file in self._note.files if file.lfn not in done]
        there = all(_is_there(self._workdir / file.lfn) for file in left if file.kind is Kind.OUTPUT)
        unregistered = stopped or error.code in PASSING  # all is stored, and the catalogue does not know
        return (bool(left) or unregistered) and there and error.code not in _HOPELESS

    def place(self, folder: Path) -> Path:
        """Where the job directory will be kept.

        Raises:
            OSError: the folder cannot be made.
        """
        folder = folder.absolute()
        folder.mkdir(mode=0o770, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not ours to write to")
        target = folder / self._workdir.name
        return target if not target.exists() else folder / f"{target.name}-{self._note.job.attempt}-{os.getpid()}"

    def move(self, target: Path) -> None:
        """Move the job directory there, whole or not at all, without what nobody needs any more. Blocks.

        Where that is not possible it stays, to be found by those who look there.
        """
        try:
            self._settle_links()
            self._prune()
            try:
                self._workdir.rename(target)
            except OSError:  # another file system
                _copy(self._workdir, target)
                remove_tree(self._workdir)
        except OSError as error:
            logger.error("%s stays where it is: %s", self._workdir, error)
        finally:
            self._file.close()

    def end(self) -> None:
        """Nothing is left to deliver. Blocks."""
        (self._workdir / NOTE).unlink(missing_ok=True)
        self._file.close()

    def _settle_links(self) -> None:
        """An output that is a link into the directory becomes that file; one that leads out leads there from anywhere.

        The move would break the one if it is absolute, and the other if it is relative or goes by a link to an input.
        """
        top = os.path.realpath(self._workdir)
        for path in (self._workdir / file.lfn for file in self._note.files):
            if path.is_symlink():
                real = os.path.realpath(path)
                settled = path.with_name(f".{path.name}.settled")
                (os.link if Path(real).is_relative_to(top) else os.symlink)(real, settled)
                settled.replace(path)

    def _prune(self) -> None:
        """Inputs and what the payload left beside its outputs is in the log; without a log it stays."""
        log = next((file.lfn for file in self._note.files if file.kind is Kind.LOG), "")
        if not (state(self._workdir / JOURNAL).log_stored or (log and (self._workdir / log).is_file())):
            return
        needed = {JOURNAL, NOTE, *(file.lfn for file in self._note.files)}
        for entry in os.scandir(self._workdir):
            if entry.name not in needed:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(Path(entry))
                else:
                    os.unlink(entry)


def find(places: Iterable[Path]) -> list[Path]:
    """Directories with outputs to deliver: these places, or below them."""
    found: dict[Path, None] = {}
    for place in places:
        for depth in range(_DEPTH + 1):
            for note in sorted(place.glob("*/" * depth + NOTE)):
                if not note.parent.name.startswith(".") and _is_a_pilots(note.parent):
                    found[note.parent] = None
    return list(found)


def _is_a_pilots(folder: Path) -> bool:
    """Whether a note there is no payload's, which could make us send what it may not read, and report other jobs.

    It can only write below its own job directory, and there only until the pilot has seen to its end.
    """
    below = any(re.match(rf"{JOB_DIRECTORY}\d", part) for part in folder.absolute().parent.parts)
    return not below and not private_beside(folder).exists()


def _found(places: Iterable[Path]) -> list[Path]:
    """As `find`; a place that cannot be looked at has nothing."""
    try:
        return find(places)
    except OSError as error:
        logger.error("undelivered outputs are not looked for: %s", error)
        return []


async def deliver_all(bench: Bench, places: Iterable[Path], stop: Stop) -> int:
    """Deliver what is found; how many directories are left that could not be. Raises nothing."""
    left = 0
    try:
        folders = await stop.guard(in_thread(_found, list(places)))  # where they are may hang
    except PilotError:
        return left
    for folder in folders:
        if stop.requested:
            break
        try:
            left += not await _deliver(bench, folder, stop)
        except (PilotError, OSError, ValueError) as error:
            logger.error("%s is not delivered: %s", folder, error)
            left += 1
        except Exception:  # the door: other jobs' outputs and our own jobs must not suffer from one directory
            logger.exception("%s is not delivered", folder)
            left += 1
    return left


async def _deliver(bench: Bench, folder: Path, stop: Stop) -> bool:
    """Deliver one directory; True if it is no longer there, or somebody else's."""
    with _locked(folder) as file:
        if file is None:
            return True
        note = _decoded(json.load(file))
        if note.queue != bench.info.queue.name:
            logger.info("%s is left to pilots of its queue %s", folder, note.queue)
            return False
        journal = Journal(folder / JOURNAL)
        try:
            if await Delivery(bench, folder, note, journal, stop).run():
                await stop.guard(in_thread(remove_tree, folder))
                return True
        finally:
            journal.close()
    return False


class Delivery:
    """Delivers the outputs of one job."""

    def __init__(self, bench: Bench, folder: Path, note: Note, journal: Journal, stop: Stop) -> None:
        self._bench = bench
        self._folder = folder
        self._note = note
        self._journal = journal
        self._stop = stop

    async def run(self) -> bool:
        """Stage out what is left, then report. True if there is nothing more to do."""
        known = await self._stop.guard(in_thread(state, self._folder / JOURNAL))
        job_id = self._note.job.job_id
        if not await self._is_wanted(known):
            logger.warning("job %d is over for the server: its outputs in %s are removed", job_id, self._folder)
            return True
        logger.info("job %d: delivering what is left of its outputs in %s", job_id, self._folder)
        stored = {moved.lfn: moved for moved in known.moved if moved.kind != Kind.INPUT.value}
        left = [file for file in self._note.files if file.lfn not in stored]
        before = [_stored(self._note, moved) for moved in stored.values()]
        done = [*before, *await self._stage_out(left)]
        await self._register(done)
        return await self._report(tuple(outcome.reported for outcome in done), known)

    async def _is_wanted(self, known: JobState) -> bool:
        """Ask the server, unless it was told that the job has failed; one that does not answer may want it."""
        if known.reported and known.final_state in ("finished", "failed"):
            return False
        job = self._note.job
        try:
            answer = await self._stop.guard(self._bench.server.get_job_status([job.job_id]))
        except ServerError as error:
            logger.warning("the state of job %d is not known: %s", job.job_id, error.detail)
            return True
        status, attempt = answer.get(job.job_id, ("", job.attempt))
        return status not in _OVER and attempt in (job.attempt, 0)

    async def _stage_out(self, left: Sequence[File]) -> list[FileOutcome]:
        """Stage out; raises the first failure once all were tried."""
        job, bench = self._note.job, self._bench
        info = bench.info.overlaid(job.queue_overrides, job.storage_overrides)
        for file in left:
            if file.kind is Kind.LOG and not (self._folder / file.lfn).is_file():
                await self._stop.guard(in_thread(self._pack, file))
        result = await bench.engine(info, job).stage_out(left, self._folder, self._stop)
        done = []
        for staged in result.staged:
            done.append(FileOutcome(file=staged.file, url=staged.url, size=staged.size, checksums=staged.checksums))
            self._journal.record("moved", sync=True, **done[-1].as_dict(), endpoint=staged.file.endpoint)
        if result.error:
            raise result.error
        return done

    async def _register(self, done: Sequence[FileOutcome]) -> None:
        """All of them, where the pilot does that: those that the catalogue knows already do no harm."""
        job, bench = self._note.job, self._bench
        queue = bench.info.overlaid(job.queue_overrides, job.storage_overrides).queue
        if wants_registration(bench.settings, queue):
            await Registrar(bench.catalogue, bench.processes, self._journal.record).register(done, self._stop)

    def _pack(self, log: File) -> None:
        """The pilot was killed before it made the log."""
        pilot_log = self._folder.parent / PILOT_LOG  # not by the link beside the outputs: the payload may have moved it
        with suppress(OSError), open_left(self._folder / SECRETS) as secrets:
            self._bench.masker.add(secrets.read(_SECRETS_LIMIT).decode(errors="replace"))
        make_log_archive(
            self._folder,
            self._folder / log.lfn,
            folder=archive_folder(self._note.job.job_id, self._note.queue),
            exclude=[*(file.lfn for file in self._note.files), NOTE, SECRETS],
            masker=self._bench.masker,
            extra=[pilot_log] if pilot_log.is_file() and not pilot_log.is_symlink() else [],
            check=self._stop.check,
        )

    async def _report(self, files: tuple[FileReport, ...], known: JobState) -> bool:
        report = replace(self._note.report, state=State.FINISHED, files=files, error_code=0, error_diag="")
        self._journal.record("report", sync=True, state=report.state.value, code=0)
        patience = Deadline(self._bench.settings.final_report_timeout)
        try:
            reply = await self._bench.server.update(report, patience, self._stop)
        except ServerError as error:
            logger.error("job %d: delivered, but not reported: %s", self._note.job.job_id, error.detail)
            self._journal.record("unreported", sync=True)
            return False
        self._journal.record("reported", sync=True)
        logger.info("job %d: delivered and reported %s", self._note.job.job_id, reply.command or "finished")
        return True


def _copy(folder: Path, target: Path) -> None:
    """Whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copytree(folder, partial, symlinks=True)
        partial.rename(target)
    except OSError:
        remove_tree(partial)
        raise


def _is_there(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def _new(path: Path, text: str) -> BinaryIO:
    """A file with a text that only its owner may read, locked until it is closed. The payload may have made one."""
    path.unlink(missing_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(text.encode())
        os.fdatasync(file.fileno())
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


@contextmanager
def _locked(folder: Path) -> Iterator[BinaryIO | None]:
    """The note of a directory; None if somebody else has it, or it is gone."""
    try:
        file = open_left(folder / NOTE)
    except FileNotFoundError:
        yield None
        return
    with file:
        if os.fstat(file.fileno()).st_uid != os.geteuid():
            raise PermissionError(f"{NOTE} is another user's")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file if (folder / NOTE).exists() else None


def _encoded(note: Note) -> str:
    job = {name: getattr(note.job, name) for name in _FACTS}
    job |= {"queue_overrides": dict(note.job.queue_overrides), "storage_overrides": dict(note.job.storage_overrides)}
    files = [asdict(replace(file, checksums=dict(file.checksums))) for file in note.files]
    report = asdict(replace(note.report, files=()))
    return json.dumps({"job": job, "files": files, "report": report, "queue": note.queue}, default=_value, indent=1)


def _value(thing: object) -> Any:
    """Enumerations by their values."""
    return getattr(thing, "value", None) or str(thing)


def _decoded(raw: dict[str, Any]) -> Note:
    """What `_encoded` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        report = dict(raw["report"])
        report["state"] = State(report["state"])
        report["usage"] = Usage(**report["usage"])
        report["timings"] = Timings(**report["timings"]) if report["timings"] else None
        report |= {"files": (), "corrupted_files": tuple(report["corrupted_files"])}
        files = tuple(
            File(**{**file, "kind": Kind(file["kind"]), "access": Access(file["access"])}) for file in raw["files"]
        )
        for file in files:
            checked_lfn("files", file.lfn)
        return Note(job=Job(**raw["job"]), files=files, report=Report(**report), queue=str(raw["queue"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{NOTE} is not what a pilot wrote: {error}") from error


def _stored(note: Note, moved: Moved) -> FileOutcome:
    """A file that was stored before."""
    kind = Kind.LOG if moved.kind == Kind.LOG.value else Kind.OUTPUT
    file = next((file for file in note.files if file.lfn == moved.lfn), File(lfn=moved.lfn, kind=kind))
    file = replace(file, guid=moved.guid, endpoint=moved.endpoint or file.endpoint)
    return FileOutcome(file=file, url=moved.url, size=moved.size or 0, checksums=moved.checksums)
