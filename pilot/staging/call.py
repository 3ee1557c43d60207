"""One call of the staging engine: its transfers, how many at once, how often, and how they end when they must."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File
from pilot.staging.faults import Direction
from pilot.staging.handle import Launcher, TransferHandle
from pilot.staging.history import History, PassedOver
from pilot.staging.mover import transfer_timeout
from pilot.staging.pace import Pace, PaceLimits
from pilot.staging.plan import Candidate
from pilot.staging.progress import ProgressLine
from pilot.staging.result import (
    Attempt,
    FailedFile,
    Progress,
    StagedFile,
    StagingObserver,
    StagingResult,
    Trial,
    gave_up,
    shown,
    tried,
)
from pilot.staging.slots import Slots
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a transfer has to clean up once it must end, half of them until its program is killed. A thread that
#: hangs in the kernel for longer is left alone.
LINGER = 2.0

#: Seconds that no pause between two tries exceeds.
LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingLimits:
    """How much the engine may do.

    Attributes:
        parallel: transfers at once.
        per_storage: transfers at once with one storage; 0 for no limit of its own.
        pace: that transfers must keep up.
        attempts_in, attempts_out: tries with one tool at one URL, as long as the errors say that another may help.
        open_timeout: seconds to look whether an input that the payload reads over the network is there; 0: no look.
        pause: seconds before the second try, doubled before each further one, each within 50 % at random.
        input_size: bytes that all inputs together may take on the disk; None for no check, of free space neither.
        checksum_types: that outputs get.
        empty_outputs: outputs of no byte are good, too.
        tell_every: seconds between two lines of progress in the log; 0 for none.
    """

    parallel: int = 4
    per_storage: int = 0
    pace: PaceLimits = field(default_factory=PaceLimits)
    attempts_in: int = 3
    attempts_out: int = 3
    open_timeout: float = 60.0
    pause: float = 2.0
    input_size: int | None = None
    checksum_types: tuple[str, ...] = ("adler32",)
    empty_outputs: bool = False
    tell_every: float = 60.0


class Call:
    """The files of one call, with a stop of their own below the job's.

    Args:
        direction: in or out.
        files: to move.
        stop: the job's.
        slots: bounds the transfers at once, of all calls of an engine.
        limits, launcher, observer, environment: as for the engine.
        history: what has just failed and is tried last.
        together: a file that fails makes the others useless, and ends them.

    Attributes:
        progress: where it stands.
        culprit: LFN of the file for which `prepare` fails, if it does so for one; the others have its error.
    """

    def __init__(
        self,
        direction: Direction,
        files: Sequence[File],
        stop: Stop,
        *,
        slots: Slots,
        limits: StagingLimits,
        launcher: Launcher,
        observer: StagingObserver,
        environment: Mapping[str, str],
        history: History,
        together: bool = False,
    ) -> None:
        self._direction = direction
        self._files = files
        self._parent = stop
        self._stop = Stop(stop)
        self._slots = slots
        self._tries = max(1, limits.attempts_in if direction is Direction.IN else limits.attempts_out)
        self._limits = limits
        self._together = together
        self._launcher = launcher
        self._observer = observer
        self._environment = environment
        self._history = history
        self.culprit = ""
        self._failed: list[FailedFile] = []
        known = sum(file.size or 0 for file in files) if direction is Direction.IN else 0
        self.progress = Progress(direction, len(files), known)

    async def run(
        self,
        one: Callable[[File], Awaitable[StagedFile | FailedFile]],
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> StagingResult:
        """Await `prepare`, then `one` for each file; what they raise is what went wrong with the file."""
        self._observer.started(self.progress)
        telling = asyncio.ensure_future(self._tell())
        try:
            if prepare is not None:
                await prepare()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._settled(file, one)) for file in self._files]
            staged = [task.result() for task in tasks]
        except PilotError as error:  # in `prepare`
            staged = []
            for file in sorted(self._files, key=lambda file: file.lfn != self.culprit):
                self._lost(FailedFile(file=file, error=error))
        finally:
            telling.cancel()
            self._parent.detach(self._stop)
        result = StagingResult(staged=tuple(done for done in staged if done), failed=tuple(self._failed))
        self._observer.ended(result)
        return result

    async def first_that_works(
        self,
        file: File,
        size: int | None,
        candidates: Sequence[Candidate],
        once: Callable[..., StagedFile],
    ) -> StagedFile | FailedFile:
        """Try `once(candidate=, handle=)` with each candidate; what has just failed for other files comes last.

        Raises:
            PilotError: the stop's reason.
        """
        attempts: list[Attempt] = []
        waiting, passed = deque(candidates), set[Candidate]()
        while waiting:
            candidate = waiting.popleft()
            others = () if candidate in passed else tuple(waiting)
            way = _Way(file, candidate, size, partial(once, candidate=candidate), others)
            try:
                done = await self._persist(way, attempts)
            except PassedOver:
                passed.add(candidate)
                waiting.append(candidate)
                continue
            if isinstance(done, StagedFile):
                logger.info("%s of %s: %s", self._direction.value, file.lfn, _told(done))
                return done
            if done is Trait.FATAL:
                break
        return gave_up(file, attempts)

    async def aside(self, work: Callable[..., T], *args: object) -> T:
        """Run blocking `work(*args)` in a thread that is left alone at a stop."""
        return await self._stop.guard(in_thread(work, *args))

    async def in_slot(
        self, size: int | None, work: Callable[..., T], storage: str = "", patience: tuple[float, Code] | None = None
    ) -> T:
        """Run blocking `work(handle=)` in a thread when there is a place.

        Args:
            size: of what moves: for as long as so many bytes may take.
            work: to do.
            storage: that it is done with.
            patience: seconds to give it instead, and the code of an error after that time.
        """
        async with self._slots.place(storage):
            self._stop.check()
            timeout, code = patience or (transfer_timeout(size), self._direction.timed_out)
            late = TransferError(code, f"not done within {timeout:.0f} s", Trait.NEXT)
            handle = TransferHandle(self._stop, self._launcher, timeout, late, self._environment)
            pace = Pace(self._limits.pace, self._direction, size)
            self.progress.running.add(handle)
            try:
                return await _supervised(
                    partial(work, handle=handle),
                    handle,
                    self._stop,
                    partial(self._fault, pace),
                    self._limits.pace.interval,
                )
            finally:
                self.progress.running.discard(handle)

    def _fault(self, pace: Pace, handle: TransferHandle) -> PilotError | None:
        """Why a transfer must not go on."""
        return self._excess() or pace.fault(handle.moved)

    def _excess(self) -> PilotError | None:
        """Inputs of unknown size show only on their way that they are too large."""
        limit = self._limits.input_size if self._direction is Direction.IN else None
        if limit is None or self.progress.written <= limit:
            return None
        detail = f"the inputs have more than the {limit} bytes that the queue allows"
        return TransferError(Code.SIZETOOLARGE, detail, Trait.FATAL)

    async def _tell(self) -> None:
        line = ProgressLine(self.progress)
        while self._limits.tell_every and not await self._stop.wait(self._limits.tell_every):
            logger.info("%s", line.text())

    async def _settled(
        self, file: File, one: Callable[[File], Awaitable[StagedFile | FailedFile]]
    ) -> StagedFile | None:
        try:
            done = await one(file)
        except PilotError as error:
            done = FailedFile(file=file, error=error)
        if isinstance(done, FailedFile):
            self._lost(done)
            return None
        self.progress.done += 1
        self.progress.finished += done.size
        self.progress.linked += 0 if done.local else done.size
        if excess := self._excess():
            self._lost(FailedFile(file=file, error=excess, attempts=done.attempts))
            return None
        self._observer.arrived(done)
        return done

    def _lost(self, failure: FailedFile) -> None:
        """Note a failure."""
        failure = replace(failure, direction=self._direction)
        if not self._stop.requested:
            for line in tried(failure.attempts) if len(failure.attempts) > 1 else ():
                logger.error("%s was tried: %s", failure.file.lfn, line)
            logger.error("%s of %s: %s", self._direction.value, failure.file.lfn, failure.error)
        self._failed.append(failure)
        self._observer.failed(failure)
        if self._together:
            self._stop.request(failure.error)

    async def _persist(self, way: _Way, attempts: list[Attempt]) -> StagedFile | Trait:
        """Try one way until it works, its errors say that it never will, or it had its tries.

        Raises:
            PassedOver: another one is to be tried first.
        """
        for number in range(1, self._tries + 1):
            done = await self._try(way)
            if isinstance(done, StagedFile):
                self._history.worked(way.candidate)
                return replace(done, attempts=tuple(attempts))
            attempts.append(done)
            logger.warning("%s, try %d: %s", self._direction.value, number, done)
            trait = Trait(getattr(done.error, "trait", Trait.FATAL))
            if trait is not Trait.RETRY:
                break
            way.others = ()  # it has begun
            if number < self._tries:
                pause = min(self._limits.pause * 2 ** (number - 1), LONGEST_PAUSE)
                await self._stop.wait(pause * random.uniform(0.5, 1.5))
                self._stop.check()
        self._history.failed(way.candidate, attempts[-1].error)
        return Trait.NEXT if trait is Trait.RETRY else trait

    async def _try(self, way: _Way) -> StagedFile | Attempt:
        """One try, of which the observer hears."""
        file, candidate = way.file, way.candidate
        patience = (self._limits.open_timeout, Code.REMOTEFILEOPENTIMEDOUT) if candidate.direct else None
        tell = partial(
            Trial,
            direction=self._direction,
            file=replace(file, size=way.size),
            tool=candidate.tool,
            url=candidate.url,
            endpoint=candidate.endpoint,
        )
        try:
            staged = await self.in_slot(way.size, partial(way.begin, self._history), storage_of(candidate), patience)
        except PilotError as error:
            self._stop.check()
            self._observer.tried(tell(began=way.began, seconds=way.seconds, error=error))
            return Attempt(
                tool=candidate.tool, url=candidate.url, error=error, seconds=way.seconds, endpoint=candidate.endpoint
            )
        staged = replace(staged, seconds=way.seconds)
        self._observer.tried(tell(began=way.began, seconds=way.seconds, staged=staged))
        return staged


@dataclass(slots=True)
class _Way:
    """One file on one way.

    Attributes:
        others: ways that may be taken first, if this one has just failed for other files.
        began: when its last try had its turn, seconds since the epoch.
    """

    file: File
    candidate: Candidate
    size: int | None
    once: Callable[..., StagedFile]
    others: tuple[Candidate, ...]
    began: float = field(default_factory=time.time)
    _since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since then."""
        return time.monotonic() - self._since

    def begin(self, history: History, handle: TransferHandle) -> StagedFile:
        """In a thread, when there is a place for it."""
        if self.others and history.overtaken(self.candidate, self.others):
            raise PassedOver
        self.began, self._since = time.time(), time.monotonic()
        return self.once(handle=handle)


async def _supervised(
    work: Callable[[], T],
    handle: TransferHandle,
    stop: Stop,
    fault: Callable[[TransferHandle], PilotError | None],
    interval: float,
) -> T:
    """The result of blocking `work` in a thread that is ended at a stop, at its time-out, and when we are cancelled.

    Args:
        work: to do.
        handle: that it has.
        stop: ends it.
        fault: asked every `interval` seconds why it should end.
        interval: seconds.
    """
    task = asyncio.ensure_future(in_thread(work))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while left := handle.deadline.remaining:
            await asyncio.wait({task, stopping}, timeout=min(left, interval), return_when=asyncio.FIRST_COMPLETED)
            if task.done() or stopping.done():
                break
            if error := fault(handle):
                handle.late = error
                break
        await _end(task, handle, stop)
    except asyncio.CancelledError:
        await _end(task, handle, stop)
        raise
    finally:
        stopping.cancel()
    if not task.done():
        task.add_done_callback(_ignore)
        raise handle.reason
    return task.result()


async def _end(task: asyncio.Future[T], handle: TransferHandle, stop: Stop) -> None:
    """Give a thread that still runs the time to clean up, as far as the stop leaves any."""
    patience = min(LINGER, stop.deadline.remaining)
    for act in (handle.terminate, handle.kill):
        if not task.done():
            act()
            await asyncio.wait({task}, timeout=patience / 2)


def _ignore(task: asyncio.Future[T]) -> None:
    """Nobody waits any more for a thread that was left alone; asyncio need not warn of its error."""
    if not task.cancelled():
        task.exception()


def storage_of(candidate: Candidate) -> str:
    """Who is asked to serve a candidate: its endpoint, else the host of its URL; empty for the node's own disks."""
    if candidate.endpoint or "://" not in candidate.url:
        return candidate.endpoint
    try:
        return urlsplit(candidate.url).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def _told(done: StagedFile) -> str:
    if done.file.turl:
        return f"not copied, the payload reads {done.size} bytes at {shown(done.url)}"
    speed = done.size / max(1e-6, done.seconds) / 1e6
    return f"{done.size} bytes by {done.tool}, {shown(done.url)}, in {done.seconds:.2f} s ({speed:.0f} MB/s)"
