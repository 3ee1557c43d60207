"""The staging engine: files in, files out, several at once, each tried until it is there or nothing is left to try.

    plan: tools and URLs for each file -> room for all of them -> transfers, each: get or put, then verify

Transfers are blocking code in threads (`pilot.staging.mover`); what decides about them is here and in
`pilot.staging.call`. A call never raises for what can go wrong with a file, nor when it is stopped: its result says
what arrived and what did not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File
from pilot.staging.cache import NAME as CACHE
from pilot.staging.cache import InputCache
from pilot.staging.call import Call, StagingLimits
from pilot.staging.copytool import Handle
from pilot.staging.faults import Direction
from pilot.staging.handle import Launcher
from pilot.staging.history import History
from pilot.staging.mover import LocalFile, Mover
from pilot.staging.plan import Candidate
from pilot.staging.result import FailedFile, StagedFile, StagingObserver, StagingResult
from pilot.staging.room import Room
from pilot.staging.slots import Slots
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop

logger = logging.getLogger(__name__)


#: Asks a catalogue for all inputs of a job at once: from files and a handle to the files with what it knows of them.
LookUp = Callable[[Sequence[File], Handle], Sequence[File]]

#: Looking replicas up may take as long as a file of so many bytes: 400 s (PILOT3 4.4).
LOOK_UP_SIZE = 0


class Plan(Protocol):
    """Where files can be had and where they go, best first: `pilot.staging.plan.Planner`."""

    def sources(self, file: File) -> Sequence[Candidate]:
        """At least one. Raises `PilotError` if there is none."""

    def destinations(self, file: File) -> Sequence[Candidate]:
        """At least one. Raises `PilotError` if there is none."""


class StagingEngine:
    """Moves the files of a job.

    Args:
        plan: where files can be had and where they go.
        tools: the copy tools.
        look_up: asks a catalogue before inputs are planned; None if there is none to ask.
        launcher: starts the programs of tools.
        limits: how much at once, how often.
        observer: hears of every file.
        environment: of programs.
        room: what is reserved on the node's disks, by the jobs of a pilot together.
        cache: of inputs, None if there is none.
        confined: the payload is in a container, so no output may be a link out of the job directory.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        tools: ToolBox,
        launcher: Launcher,
        look_up: LookUp | None = None,
        limits: StagingLimits | None = None,
        observer: StagingObserver | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        room: Room | None = None,
        cache: InputCache | None = None,
        confined: bool = False,
    ) -> None:
        self.confined = confined
        self._plan = plan
        self._tools = tools
        self._look_up = look_up
        self._limits = limits or StagingLimits()
        self._mover = Mover(
            tools, self._limits.checksum_types, self._limits.empty_outputs, self._limits.open_timeout > 0
        )
        self._room = room or Room()
        self._cache = cache
        self._call = partial(
            Call,
            slots=Slots(self._limits.parallel, self._limits.per_storage),
            limits=self._limits,
            launcher=launcher,
            observer=observer or StagingObserver(),
            environment=environment,
            history=History(),
        )

    async def stage_in(
        self, files: Sequence[File], workdir: Path, stop: Stop, *, together: bool = True
    ) -> StagingResult:
        """Bring inputs into a directory, under their LFNs.

        Args:
            files: inputs; those that the payload reads over the network stay where they are.
            workdir: the job's directory.
            stop: ends all transfers at once; what has arrived stays.
            together: the first that fails ends the others, since the job is lost.
        """
        plans: dict[str, Sequence[Candidate]] = {}
        known: dict[str, File] = {}
        call = self._call(Direction.IN, files, stop, together=together)

        async def prepare() -> None:
            found = files
            if self._look_up is not None:
                found = await call.in_slot(LOOK_UP_SIZE, partial(self._look_up, files))
            known.update((file.lfn, file) for file in found)
            await call.aside(self._plan_all, found, plans, call)
            room = self._room_for(found, plans, workdir, call)
            await call.aside(held.enter_context, room)

        async def bring(named: File) -> StagedFile | FailedFile:
            file, ways, path = known[named.lfn], plans[named.lfn], workdir / named.lfn
            if not ways[0].direct and (cached := await self._cached(call, file, path)):
                return cached
            bring_one = partial(self._mover.bring, file=file, path=path)
            done = await call.first_that_works(file, file.size, ways, bring_one)
            if self._cache and isinstance(done, StagedFile) and not done.file.turl:
                await call.in_slot(done.size, partial(self._cache.keep, done))
            return done

        with ExitStack() as held:
            result = await call.run(bring, prepare)
        return result if self._cache is None else replace(result, metrics=_cache_metrics(result))

    async def stage_out(
        self, files: Sequence[File], workdir: Path, stop: Stop, *, paths: Mapping[str, Path] = MappingProxyType({})
    ) -> StagingResult:
        """Take outputs or the log out of a directory. One that fails does not keep back the others.

        Args:
            files: outputs, the log, or both.
            workdir: the job's directory, where they lie under their LFNs.
            stop: ends all transfers at once; what is out stays out.
            paths: of LFNs that are elsewhere.
        """
        call = self._call(Direction.OUT, files, stop)
        within = workdir if self.confined else None

        def look(file: File) -> tuple[LocalFile, Sequence[Candidate]]:
            path = paths.get(file.lfn, workdir / file.lfn)
            return self._mover.inspect(file, path, within), self._plan.destinations(file)

        async def take(file: File) -> StagedFile | FailedFile:
            local, candidates = await call.aside(look, file)
            call.progress.bytes += local.size
            return await call.first_that_works(file, local.size, candidates, partial(self._mover.take, local=local))

        return await call.run(take)

    async def _cached(self, call: Call, file: File, path: Path) -> StagedFile | None:
        """An input from the cache; one that does not answer is as good as none."""
        if self._cache is None:
            return None
        try:
            return await call.in_slot(file.size, partial(self._cache.fetch, file, path))
        except TransferError as error:
            logger.warning("input cache: %s", error)
            return None

    def _plan_all(self, files: Sequence[File], plans: dict[str, Sequence[Candidate]], call: Call) -> None:
        for file in files:
            call.culprit = file.lfn
            plans[file.lfn] = self._plan.sources(file)
        call.culprit = ""

    @contextmanager
    def _room_for(
        self, files: Sequence[File], plans: Mapping[str, Sequence[Candidate]], workdir: Path, call: Call
    ) -> Iterator[None]:
        """See that the inputs may be as large as they are, and keep room for them, before the first byte moves."""
        total = sum(file.size or 0 for file in files if self._fills_disk(plans[file.lfn]))
        limit = self._limits.input_size
        if not total or limit is None:
            yield
            return
        if total > limit:
            detail = f"the inputs have {total} bytes, the queue allows {limit}"
            raise TransferError(Code.SIZETOOLARGE, detail, Trait.FATAL)
        with self._room.reserved("the inputs", total, workdir, lambda: call.progress.written):
            yield

    def _fills_disk(self, candidates: Sequence[Candidate]) -> bool:
        if candidates[0].direct:
            return False
        try:
            return self._tools.get(candidates[0].tool).fills_disk()
        except PilotError:  # will be told when it is tried
            return True


def _cache_metrics(result: StagingResult) -> dict[str, str]:
    hits = sum(staged.tool == CACHE for staged in result.staged)
    return {"inputCacheHits": str(hits), "inputCacheMisses": str(len(result.staged) - hits)}
