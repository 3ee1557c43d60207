"""Outputs as they appear: a finished output goes to its storage while the payload still runs.

Finished is a file that the payload has renamed into place, or that was closed and then left alone for a while
(`early_stageout=closed`); or one that it names in a manifest, one LFN a line (`early_stageout=manifest`).

Nothing here can fail a job: what does not work is left to the stage-out after the payload. That one leaves out what is
there already and did not change; a file that did change is removed from its storage and sent again, unless the
catalogue knows it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pilot.errors import Code, PilotError
from pilot.job import File
from pilot.left import open_left
from pilot.staging.engine import StagingEngine
from pilot.staging.result import StagedFile, StagingResult
from pilot.staging.store import Store
from pilot.stop import Stop
from pilot.watch.inotify import Directory

logger = logging.getLogger(__name__)

#: Bytes of a manifest that are read at most: 10,000 names of 100 characters.
MANIFEST_LIMIT = 1 << 20

#: Seconds between two looks into a manifest that is kept open.
LOOK = 2.0

#: Of our time, to find out what patterns match: that takes 10 ms in a directory of 1000 files.
SHARE = 0.05

Identity = tuple[int, ...]


class EarlyOut:
    """Sends finished outputs of one job, as long as it is entered.

    Args:
        workdir: the job's directory.
        outputs: what the job's outputs are now: patterns may match more files later.
        engine: moves files.
        store: removes them.
        stop: the job's: ends everything at once.
        keep: notes a file that arrived.
        register: lets the catalogue know of what arrived; None if the pilot does not.
        manifest: name of the file in which the payload lists finished outputs; empty to go by closed files.
        quiet: seconds that a closed file must be left alone.
    """

    def __init__(
        self,
        workdir: Path,
        outputs: Callable[[], Sequence[File]],
        engine: StagingEngine,
        store: Store,
        stop: Stop,
        keep: Callable[[StagingResult], None],
        *,
        register: Callable[[Stop], Awaitable[None]] | None = None,
        manifest: str = "",
        quiet: float = 10.0,
    ) -> None:
        self._workdir = workdir
        self._outputs = outputs
        self._engine = engine
        self._store = store
        self._parent = stop
        self._stop = Stop(stop)
        self._keep = keep
        self._register = register
        self._registering = asyncio.Lock()
        self._registered: set[str] = set()
        self._manifest = manifest
        self._quiet = quiet
        self._watch = Directory(workdir, self._changed)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, File] = {}
        self._next = 0.0
        self._done: dict[str, tuple[StagedFile, Identity]] = {}
        self._listed: set[str] = set()
        self._over = False

    async def __aenter__(self) -> Self:
        """From now on; enter before the payload is started."""
        self._watch.start()
        if self._manifest:
            self._look_again()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The payload is over. What is on its way goes on, until `rest` or `give_up`."""
        self._watch.close()
        for timer in self._timers.values():
            timer.cancel()

    async def give_up(self) -> None:
        """End what is still on its way, if the job has failed: nothing of it may arrive after the final report."""
        if not self._over:
            self._stop.request(PilotError(Code.STAGEOUTFAILED, "the job has failed"), grace=1.0)
            await self._settle()

    async def recall(self, outputs: Sequence[File], forget: Callable[[File], None]) -> None:
        """Remove what has changed since it was sent, so that it is sent again.

        Args:
            outputs: all of them.
            forget: takes back what was noted of such a file.

        Raises:
            PilotError: STAGEOUTFAILED (1137), a file has changed that is in the catalogue already: who reads from there
                must not find another file.
        """
        for file in outputs:
            if file.lfn in self._done and self._has_changed(file.lfn):
                staged, _ = self._done[file.lfn]
                if file.lfn in self._registered:
                    detail = f"{file.lfn} changed after it was staged out and registered"
                    raise PilotError(Code.STAGEOUTFAILED, detail)
                del self._done[file.lfn]
                forget(staged.file)  # first: who takes over from here must not take the old copy for the file
                await self._take_back(staged)

    async def rest(self, outputs: Sequence[File], forget: Callable[[File], None]) -> list[File]:
        """What is left to send of the outputs, once the payload is over and well.

        Args, errors: as for `recall`.
        """
        await self._settle()
        await self.recall(outputs, forget)
        return [file for file in outputs if file.lfn not in self._done]

    async def _settle(self) -> None:
        if self._moving:
            await asyncio.wait(list(self._moving.values()))
        if not self._over:
            self._over = True
            self._parent.detach(self._stop)

    def _has_changed(self, lfn: str) -> bool:
        """A file that is gone was moved or cleaned up: its copy is good."""
        now = identity(self._workdir / lfn)
        return now is not None and now != self._done[lfn][1]

    async def _take_back(self, staged: StagedFile) -> None:
        logger.warning("%s changed after it was staged out: it is removed there and sent again", staged.file.lfn)
        try:
            await self._store.remove(staged.tool, staged.place or staged.url, self._parent)
        except PilotError as error:  # the new copy will find the old one in its way, and the job fails for that
            logger.error("the first copy of %s stays: %s", staged.file.lfn, error)

    def _changed(self, name: str, moved: bool) -> None:
        """A file of the job's directory was closed by who wrote it, or got its name."""
        if not self._manifest:
            self._begin_in(name, 0.0 if moved else self._quiet)
        elif name == self._manifest:
            self._read_manifest()

    def _look_again(self) -> None:
        """A payload may keep its manifest open: nobody tells of a line that it adds."""
        self._read_manifest()
        self._timers[self._manifest] = asyncio.get_running_loop().call_later(LOOK, self._look_again)

    def _read_manifest(self) -> None:
        for lfn in _listed(self._workdir / self._manifest) - self._listed:
            self._listed.add(lfn)
            self._begin(lfn)

    def _begin_in(self, name: str, seconds: float) -> None:
        if old := self._timers.pop(name, None):
            old.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, self._begin_closed, name, seconds)

    def _begin_closed(self, name: str, quiet: float) -> None:
        """It was left alone, unless somebody has opened it again and writes."""
        self._timers.pop(name, None)
        try:
            age = time.time() - (self._workdir / name).lstat().st_mtime
        except OSError:
            return
        if 0 <= age < quiet:
            self._begin_in(name, quiet - age + 0.01)
        else:
            self._begin(name)

    def _begin(self, name: str) -> None:
        """Send it, once: one that goes on changing is left to the end."""
        if self._stop.requested or name in self._moving or name in self._done:
            return
        if name not in self._known and (wait := self._ask()):
            self._timers[name] = asyncio.get_running_loop().call_later(wait, self._begin, name)
            return
        file, found = self._known.get(name), identity(self._workdir / name)
        if file is not None and found is not None:
            self._moving[name] = asyncio.create_task(self._send(file, found))
        elif self._manifest:
            logger.warning("%s lists %r, which is not there or no output of this job", self._manifest, name)

    def _ask(self) -> float:
        """Ask what the outputs are now; seconds to wait instead if that would take more than `SHARE` of our time."""
        started = time.monotonic()
        if started < self._next:
            return self._next - started
        try:
            self._known |= {file.lfn: file for file in self._outputs()}
        except PilotError as error:  # a name that no storage takes: the stage-out will tell
            logger.debug("%s", error)
        ended = time.monotonic()
        self._next = ended + (ended - started) / SHARE
        return 0.0

    async def _send(self, file: File, before: Identity) -> None:
        try:
            with self._held(file.lfn) as paths:
                result = await self._engine.stage_out([file], self._workdir, self._stop, paths=paths)
            for staged in result.staged:
                self._done[file.lfn] = staged, before
                self._keep(StagingResult(staged=(staged,)))
                logger.info("%s was staged out while the payload runs", file.lfn)
                await self._let_know(file.lfn)
            for failure in result.failed:
                logger.warning("%s is left to the stage-out: %s", file.lfn, failure.error)
        except Exception:  # a bug here must not cost the job its outputs
            logger.exception("%s is left to the stage-out", file.lfn)
        finally:
            del self._moving[file.lfn]

    @contextmanager
    def _held(self, lfn: str) -> Iterator[dict[str, Path]]:
        """Where to read an output of a payload that runs in a container: by what is open here.

        It cannot put a link to what it may not see in the place of the file, as it could with a name, while that moves.
        Programs must find that, too: by our number in the `/proc` that they have, perhaps not the one that we know.
        """
        if not self._engine.confined:
            yield {}
            return
        with open_left(self._workdir / lfn) as file:
            yield {lfn: Path(f"{os.path.realpath('/proc/self')}/fd/{file.fileno()}")}

    async def _let_know(self, lfn: str) -> None:
        if self._register is None:
            return
        async with self._registering:
            if lfn in self._registered:  # with another one, while this one waited
                return
            stored = set(self._done)
            try:
                await self._register(self._stop)
            except PilotError as error:
                logger.warning("%s is registered later: %s", lfn, error)
            else:
                self._registered |= stored


def identity(path: Path) -> Identity | None:
    """What changes with the content of a file; None if there is no regular file with something in it."""
    try:
        info = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode) or not info.st_size:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _listed(manifest: Path) -> set[str]:
    """The names in a manifest; a last line without an end is still being written."""
    try:
        with open_left(manifest) as file:
            text = file.read(MANIFEST_LIMIT)
    except OSError:
        return set()
    lines = os.fsdecode(text[: text.rfind(b"\n") + 1]).splitlines()
    return {line.strip() for line in lines if line.strip()}
