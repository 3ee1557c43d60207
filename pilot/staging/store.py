"""Where the outputs of a job go, for those who do more with a destination than send a file there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pilot.errors import PilotError, Trait, TransferError
from pilot.job import File
from pilot.staging.copytool import CopyTool
from pilot.staging.faults import Direction
from pilot.staging.handle import Launcher, TransferHandle
from pilot.staging.plan import Candidate
from pilot.staging.result import shown
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop, in_thread

#: Seconds to remove a file.
_PATIENCE = 120.0


class Store:
    """The storages of a job's outputs.

    Args:
        destinations: finds the places of an output, best first; raises `PilotError`. Blocks.
        tools: the copy tools.
        launcher: starts the programs of tools.
        environment: of programs.
    """

    def __init__(
        self,
        destinations: Callable[[File], Sequence[Candidate]],
        tools: ToolBox,
        launcher: Launcher,
        environment: Mapping[str, str],
    ) -> None:
        self._destinations = destinations
        self._tools = tools
        self._launcher = launcher
        self._environment = environment

    def any_tool(self, names: Iterable[str], test: Callable[[CopyTool], bool]) -> bool:
        """Whether one of these tools can be used here and has a property."""
        for name in names:
            try:
                if test(self._tools.get(name)):
                    return True
            except PilotError:
                continue
        return False

    async def destination(self, file: File, stop: Stop) -> tuple[Candidate, CopyTool]:
        """The best place of an output, and the tool that takes it there.

        Raises:
            PilotError: there is none, or the stop's reason.
        """
        candidate = (await stop.guard(in_thread(self._destinations, file)))[0]
        return candidate, self._tools.get(candidate.tool)

    async def remove(self, tool: str, url: str, stop: Stop) -> None:
        """Delete a copy of an output that is not good any more.

        Raises:
            PilotError: it cannot be removed, or the stop's reason.
        """
        late = TransferError(Direction.OUT.timed_out, f"{shown(url)} was not removed in time", Trait.NEXT)
        handle = TransferHandle(stop, self._launcher, _PATIENCE, late, self._environment)

        def act() -> None:
            try:
                self._tools.get(tool).remove(url, handle)
            except PilotError:
                raise
            except Exception as error:  # the door: a third party's tool may have a bug
                raise Direction.OUT.fault(f"{tool}: {type(error).__name__}: {error}", Trait.NEXT) from error

        try:
            await stop.guard(in_thread(act))
        finally:
            handle.terminate()
