"""What a copy tool is: the interface that the staging engine calls and that plug-ins implement.

A copy tool moves one file at a time between a local path and a URL. It is plain blocking code: the engine gives each
transfer a thread of its own, decides about parallelism, retries, replicas and checksums, and stops transfers. Passing
`pilot.testing.CopyToolConformance` is what makes a class a copy tool.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from pilot.job import File
from pilot.masking import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One file on its way.

    Attributes:
        file: which file of the job this is, with the endpoint that was chosen for it.
        url: where it is (get) or goes (put), in one of the tool's schemes.
        path: the local file to make (get) or to read (put).
        size: bytes expected, None if unknown.
        checksums: type to lower-case hex digits that the bytes must have; may be empty for an input. For an output the
            engine has just computed them from `path`.
        checksum_type: the type to compute or ask the storage for when the tool has a choice.
        timeout: seconds the whole transfer may take; for tools whose program or library wants to know.
        onward: for an output that is only handed over at `url`: where the batch system will take it; else empty.
    """

    file: File
    url: str
    path: Path
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    checksum_type: str = "adler32"
    timeout: float = 10800.0
    onward: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file as it now lies somewhere.

    Attributes:
        url: the final URL, which may differ from the one asked for.
        size: bytes, None if the tool does not know.
        checksums: of the bytes that arrived, as far as they are known without reading them again: seen while they
            passed, or told by the storage that took them. Type to lower-case hex digits. Never a copy of what was
            expected: the engine compares the two.
    """

    url: str
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)


class Handle(Protocol):
    """The engine's end of a running transfer, given to the tool."""

    def check(self) -> None:
        """Raise if the transfer must end now: stop, time-out, too slow. Call it between blocks."""

    def advance(self, count: int) -> None:
        """`count` more bytes have passed. Implies `check`. One thread at a time calls it."""

    def run(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, watch: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, output captured; it and its children are ended when the transfer must end.

        Args:
            argv: program and arguments; no shell is involved.
            env: variables to add to the environment.
            watch: a local file whose growth counts as progress.

        Returns:
            Exit status and the last MiB of each output. A program that failed is the tool's to judge.

        Raises:
            OSError: it cannot be started.
        """


class StorageKeys(NamedTuple):
    """What opens an object store; `secure`: it speaks TLS."""

    access: str
    secret: Secret
    secure: bool = True


KeyFinder = Callable[[str], StorageKeys | None]


def no_keys(url: str) -> None:
    """Nobody has keys for the storage of a URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may know of the queue and the node, given to its constructor.

    Attributes:
        options: the queue's `copytools` entry of this tool (`{"setup": "..."}` and whatever else it says).
        launch_dir: where the pilot was started.
        settings: the pilot's settings that concern tools, by name, such as `mv_stagein`.
        environ: the pilot's environment.
        keys: from a URL to the keys that the PanDA server has for its storage, None if it has none. Blocks.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    launch_dir: Path = Path()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    keys: KeyFinder = no_keys


class CopyTool(ABC):
    """A way to move a file. All errors are raised as `pilot.errors.TransferError` with a code and a trait.

    Attributes:
        name: its name in `copytools` and `acopytools`.
        schemes: URL schemes it can read and write, without `://`.
        checksums: checksum types it can compare with the storage without a second read; empty if none.
        works_by: programs and installed packages that do the work, for a doctor to tell their versions.
    """

    name: ClassVar[str]
    schemes: ClassVar[frozenset[str]]
    checksums: ClassVar[frozenset[str]] = frozenset()
    works_by: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: ToolContext) -> None:
        self.context = context

    def unavailable(self) -> str | None:
        """Why the tool cannot work on this node, in a few words with a hint; None if it can."""
        return None

    def fills_disk(self) -> bool:
        """Whether `get` takes space on the local disk; False for a tool that only links."""
        return True

    def sums_source(self) -> bool:
        """Whether `put` sums up what it reads, if no checksum is given, and tells that the copy has the same.

        Then an output is not read before; `Stored.checksums` must have `Transfer.checksum_type`.
        """
        return False

    def storage_path(self, file: File, storage_type: str, queue: str, job_id: int) -> str | None:
        """Path of an output below a storage's prefix where the storage has no layout; None if we have none either.

        Args:
            file: the output.
            storage_type: such as `OS_LOGS`.
            queue: its PanDA name.
            job_id: PandaID.
        """
        return None

    def sends_plain_logs(self, log: File) -> bool:
        """Whether a log goes file by file, to be read where it is, and not as an archive."""
        return False

    def public_url(self, url: str) -> str:
        """What a person enters into a browser to see `url`."""
        return url

    @abstractmethod
    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring `transfer.url` to `transfer.path`. The final name appears only when the file is complete.

        A file that is there under that name is ours, from an earlier try, and may be replaced.
        """

    @abstractmethod
    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Take `transfer.path` to `transfer.url`. The final name appears only when the file is complete.

        An existing file of the same size and checksum is success; a different one is FILEEXISTS (1221).
        """

    @abstractmethod
    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and, where the storage knows them, checksums of `url`; None if there is no such file."""

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """As `stat`, of a file that the payload reads where it is: open it and read a byte.

        A storage may know a file that nobody may read, or whose disk is away. Where a tool cannot open a file without
        copying it, to look has to do.
        """
        return self.stat(url, handle)

    @abstractmethod
    def remove(self, url: str, handle: Handle) -> None:
        """Delete `url`; not an error if it is not there."""
