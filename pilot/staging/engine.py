"""The staging engine: files in, files out, several at once, each tried until it is there or nothing is left to try.

    plan: tools and URLs for each file -> room for all of them -> transfers, each: get or put, then verify

Transfers are blocking code in threads (`pilot.staging.mover`); what decides about them is here and in
`pilot.staging.call`. A call never raises for what can go wrong with a file, nor when it is stopped: its result says
what arrived and what did not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File
from pilot.staging.call import Call, StagingLimits
from pilot.staging.faults import Direction
from pilot.staging.handle import Launcher
from pilot.staging.mover import Mover
from pilot.staging.plan import Candidate
from pilot.staging.result import FailedFile, StagedFile, StagingObserver, StagingResult
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop


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
        launcher: starts the programs of tools.
        limits: how much at once, how often.
        observer: hears of every file.
        environment: of programs.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        tools: ToolBox,
        launcher: Launcher,
        limits: StagingLimits | None = None,
        observer: StagingObserver | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._plan = plan
        self._tools = tools
        self._limits = limits or StagingLimits()
        self._mover = Mover(tools, self._limits.checksum_types)
        self._call = partial(
            Call,
            slots=asyncio.Semaphore(self._limits.parallel),
            limits=self._limits,
            launcher=launcher,
            observer=observer or StagingObserver(),
            environment=environment,
        )

    async def stage_in(self, files: Sequence[File], workdir: Path, stop: Stop) -> StagingResult:
        """Bring inputs into a directory, under their LFNs. The first that fails ends the others: the job is lost.

        Args:
            files: inputs; those that the payload reads over the network are not for us.
            workdir: the job's directory.
            stop: ends all transfers at once; what has arrived stays.
        """
        plans: dict[str, Sequence[Candidate]] = {}
        call = self._call(Direction.IN, files, stop)

        async def prepare() -> None:
            plans.update(await call.aside(self._prepare, files, workdir))

        async def bring(file: File) -> StagedFile | FailedFile:
            bring_one = partial(self._mover.bring, file=file, path=workdir / file.lfn)
            return await call.first_that_works(file, file.size, plans[file.lfn], bring_one)

        return await call.run(bring, prepare)

    async def stage_out(self, files: Sequence[File], workdir: Path, stop: Stop) -> StagingResult:
        """Take outputs or the log out of a directory. One that fails does not keep back the others.

        Args:
            files: outputs, the log, or both.
            workdir: the job's directory, where they lie under their LFNs.
            stop: ends all transfers at once; what is out stays out.
        """
        call = self._call(Direction.OUT, files, stop)

        async def take(file: File) -> StagedFile | FailedFile:
            local = await call.in_slot(None, partial(self._mover.inspect, file, workdir))
            call.progress.bytes += local.size
            candidates = await call.aside(self._plan.destinations, file)
            return await call.first_that_works(file, local.size, candidates, partial(self._mover.take, local=local))

        return await call.run(take)

    def _prepare(self, files: Sequence[File], workdir: Path) -> dict[str, Sequence[Candidate]]:
        """Plan all inputs and see that there is room for them, before the first byte moves."""
        plans = {file.lfn: self._plan.sources(file) for file in files}
        total = sum(file.size or 0 for file in files if self._fills_disk(plans[file.lfn]))
        if total and self._limits.input_size is not None:
            _check_room(total, self._limits.input_size, workdir)
        return plans

    def _fills_disk(self, candidates: Sequence[Candidate]) -> bool:
        try:
            return self._tools.get(candidates[0].tool).fills_disk()
        except PilotError:  # will be told when it is tried
            return True


def free_space(directory: Path) -> int:
    """Bytes that we may still write there."""
    info = os.statvfs(directory)
    return info.f_bavail * info.f_frsize


def _check_room(total: int, limit: int, workdir: Path) -> None:
    if total > limit:
        detail = f"the inputs have {total} bytes, the queue allows {limit}"
        raise TransferError(Code.SIZETOOLARGE, detail, Trait.FATAL)
    if total > (free := free_space(workdir)):
        detail = f"the inputs have {total} bytes, {workdir} has room for {free}"
        raise TransferError(Code.NOLOCALSPACE, detail, Trait.FATAL)
