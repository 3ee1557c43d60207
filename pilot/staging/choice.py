"""Which tools can do what is wanted on this node, and why the others cannot: said once, not for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from pilot.errors import PilotError, Trait, TransferError
from pilot.queuedata import StorageProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way for a file.

    Attributes:
        tool: name of the copy tool.
        url: for the tool.
        endpoint: the storage, empty if no storage is concerned.
        surl: what to report as the file's place instead of `url`, if that is not the same.
        onward: the tool only hands the file over at `url`; the batch system takes it to `surl`.
        near: over the network of the queue (LAN).
        direct: the payload reads the input there itself; the tool only looks whether that is possible.
        doubt: why it will not work on this node, as far as can be told before; empty if nothing speaks against it.
    """

    tool: str
    url: str
    endpoint: str = ""
    surl: str = ""
    onward: bool = False
    near: bool = True
    direct: bool = False
    doubt: str = field(default="", compare=False)


class Told(NamedTuple):
    """A line for the log, empty if there is nothing to tell; with the same key it says the same of another file."""

    text: str
    key: tuple[str, ...]


class Choice:
    """The ways that were found for one file, and what was wrong with others."""

    def __init__(self) -> None:
        self.found: list[Candidate] = []
        self._problems: dict[str, PilotError] = {}

    def ask(self, tools: Iterable[str], ways: Callable[[str], Iterable[Candidate]]) -> None:
        """Add what each tool can do, in their order; why one cannot is kept."""
        for tool in tools:
            try:
                self.found += ways(tool)
            except PilotError as error:
                self._problems.setdefault(tool, error)

    def sure(self) -> list[Candidate]:
        """Without those that are doubtful, unless there are no others."""
        return [way for way in self.found if not way.doubt] or self.found

    def told(self) -> Told:
        """The tool that comes first and why not another one."""
        ways = self.sure()
        doubts = {way.tool: way.doubt for way in self.found if way.doubt and way not in ways}
        passed = {tool: error.detail for tool, error in self._problems.items()} | doubts
        if not (ways and passed):
            return Told("", ())
        first = ways[0]
        reasons = "; ".join(f"{tool}: {why}" for tool, why in passed.items())
        text = f"{first.tool} is used{f' for {first.endpoint}' if first.endpoint else ''}; passed over: {reasons}"
        return Told(text, (first.tool, first.endpoint, *passed))

    def nothing(self) -> NoReturn:
        """Raise the first problem, with the others in its detail."""
        problems = list(self._problems.values())
        detail = "; ".join(dict.fromkeys(problem.detail for problem in problems))
        raise TransferError(problems[0].code, detail, Trait.FATAL)


def not_mounted(protocol: StorageProtocol, storage: str) -> str:
    """Why a mounted file system cannot be used: it is not there; empty if it is.

    Writing to it all the same would fill a directory of the node that nobody looks into.
    """
    where = protocol.endpoint + protocol.path
    path = Path(unquote(urlsplit(where).path) if "://" in where else where or "/")
    try:
        there = path.is_dir()
    except OSError:  # such as a mount that is stale
        there = False
    return "" if there else f"the file system of {storage} is not mounted here: there is no {path}"
