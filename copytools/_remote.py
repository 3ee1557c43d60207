"""What the tools for remote storages have in common: a file gets its name last, on the node and in the storage.

A tool says how to bring bytes, send bytes, look, rename and delete; `RemoteTool` makes `get` and `put` of these.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import stat as modes
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial as partial_call
from pathlib import Path
from urllib.parse import quote, unquote

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.staging.checksum import computable, differing, file_checksums
from pilot.staging.copytool import CopyTool, Handle, Stored, Transfer
from pilot.staging.faults import Direction, of_os_error
from pilot.staging.result import shown
from pilot.stop import Deadline

logger = logging.getLogger(__name__)

#: Longest file name of every file system in use, bytes.
NAME_MAX = 255


#: Seconds for cleaning up after a stop; the engine gives a thread 2 s in all (`pilot.staging.call.LINGER`).
LAST_MOMENT = 0.8


#: What may mean something in a URL, a program's argument apart.
_SPECIAL = re.compile(r"[^A-Za-z0-9_.+/-]")


class CannotRename(Exception):  # noqa: N818 - an answer, not an error
    """The storage does not rename files, or not for us."""


class LastMoment:
    """A handle for cleaning up after a stop: it gives a moment, and starts no programs."""

    def __init__(self) -> None:
        self._deadline = Deadline(LAST_MOMENT)

    def check(self) -> None:
        """Raise when the moment is over."""
        if self._deadline.expired:
            raise TransferError(Code.COMMANDTIMEDOUT, "no answer in the last moment", Trait.FATAL)

    def advance(self, count: int) -> None:
        """Nobody counts."""
        self.check()

    def run(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, watch: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Refuse."""
        raise TransferError(Code.COMMANDTIMEDOUT, f"no time left for {argv[0]}", Trait.FATAL)


class RemoteTool(CopyTool):
    """A copy tool made of a few operations."""

    @abstractmethod
    def download(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Bring all bytes of `url` to the new file `path`.

        Returns:
            Checksums of the bytes that passed by, if they were seen: of the types that `checksum_types` names.
        """

    @abstractmethod
    def upload(self, url: str, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Send `transfer.path` to `url`, where nothing is, and make its parents.

        Returns:
            As for `download`.
        """

    @abstractmethod
    def look(self, url: str, kinds: Sequence[str], handle: Handle) -> Stored | None:
        """Size and a checksum of `url`, the first of `kinds` that the storage has; None if there is no such file."""

    @abstractmethod
    def rename(self, url: str, to: str, handle: Handle) -> None:
        """Rename `url`.

        Raises:
            CannotRename: the storage does not do that.
        """

    @abstractmethod
    def beside(self, url: str, suffix: str) -> str:
        """The URL of a name beside that of `url`: the same with a suffix, not longer than `NAME_MAX`."""

    def location(self, transfer: Transfer) -> str:
        """The URL of a transfer as the tool writes it."""
        return transfer.url

    def renames(self, url: str) -> bool:
        """Whether it is worth to try to rename in that storage."""
        return True

    def discard(self, url: str, handle: Handle) -> None:
        """Delete what a failed transfer left, as well as that can be done when it is being stopped."""
        try:
            handle.check()
        except PilotError:
            handle = LastMoment()
        self.remove(url, handle)

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring a file into the job's directory."""
        url = self.location(transfer)
        with local_faults(Direction.IN, f"{self.name} to {transfer.path}"):
            transfer.path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(transfer.path) as partial:
                found = self.download(url, partial, transfer, handle)
                size = partial.stat().st_size
                found = found or file_checksums(partial, checksum_types(transfer), handle.check)
                verify(Stored(url=url, size=size, checksums=found), transfer, Direction.IN)
                partial.replace(transfer.path)
        return Stored(url=url, size=size, checksums=found)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Take a file of the job to the storage."""
        url = self.location(transfer)
        with local_faults(Direction.OUT, f"{self.name} of {transfer.path}"):
            size = regular_size(transfer.path)
            there = self.look(url, checksum_types(transfer), handle)
            if there is not None:
                return same_content(there, transfer, size, handle)
            if self.renames(url):
                try:
                    return self._put_and_rename(url, transfer, handle)
                except CannotRename as answer:
                    logger.warning("%s: %s; files are sent to their final names", self.name, answer)
            return self._put_whole(url, transfer, handle)

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and, if the storage knows one, adler32 of a file."""
        return self.look(url, ("adler32",), handle)

    def _put_and_rename(self, url: str, transfer: Transfer, handle: Handle) -> Stored:
        partial = self.beside(url, partial_suffix())
        try:
            stored = self._sent(partial, transfer, handle)
            self.rename(partial, url, handle)
        except BaseException:
            self._clear(partial, handle)
            raise
        return Stored(url=url, size=stored.size, checksums=stored.checksums)

    def _put_whole(self, url: str, transfer: Transfer, handle: Handle) -> Stored:
        try:
            return self._sent(url, transfer, handle)
        except TransferError as error:
            if error.code is not Code.FILEEXISTS:  # else somebody was quicker, and the file is theirs
                self._clear(url, handle)
            raise
        except BaseException:
            self._clear(url, handle)
            raise

    def _sent(self, url: str, transfer: Transfer, handle: Handle) -> Stored:
        seen = self.upload(url, transfer, handle)
        stored = self.look(url, checksum_types(transfer), handle)
        if stored is None:
            raise Direction.OUT.fault(f"nothing at {shown(url)} after the copy")
        expected = transfer.checksums or seen
        verify(Stored(url=url, size=stored.size, checksums=seen), transfer, Direction.OUT, expected)
        verify(stored, transfer, Direction.OUT, expected)
        return stored

    def _clear(self, url: str, handle: Handle) -> None:
        try:
            self.discard(url, handle)
        except (PilotError, OSError) as error:
            logger.info("%s: %s may be left: %s", self.name, shown(url), error)


def checksum_types(transfer: Transfer) -> list[str]:
    """The types to compute or to ask for: those that are expected, else the one that is wanted."""
    return [kind for kind in transfer.checksums if computable(kind)] or [transfer.checksum_type]


def verify(stored: Stored, transfer: Transfer, direction: Direction, expected: Mapping[str, str] | None = None) -> None:
    """Raise if a file is not what it should be; `expected` stands for the checksums of `transfer`."""
    expected = transfer.checksums if expected is None else expected
    if transfer.size is not None and stored.size not in (None, transfer.size):
        raise direction.fault(f"{shown(stored.url)} has {stored.size} bytes, not {transfer.size}", Trait.NEXT)
    if kind := differing(expected, stored.checksums):
        detail = f"{shown(stored.url)} has {kind} {stored.checksums[kind]}, not {expected[kind]}"
        raise TransferError(direction.mismatch(kind), detail, Trait.NEXT if direction is Direction.IN else Trait.RETRY)


def same_content(there: Stored, transfer: Transfer, size: int, handle: Handle) -> Stored:
    """What is at the destination already, if it is the file to put; FILEEXISTS (1221) if not, or if nobody can tell."""
    if there.size == size:
        expected = transfer.checksums or file_checksums(transfer.path, there.checksums, handle.check)
        if expected.keys() & there.checksums.keys() and not differing(expected, there.checksums):
            return there
    raise TransferError(Code.FILEEXISTS, f"{shown(there.url)} is there with other content", Trait.NEXT)


def regular_size(path: Path) -> int:
    """Bytes of an output. A directory, pipe or device is refused: opening a pipe would wait for ever."""
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise TransferError(Code.MISSINGOUTPUTFILE, f"there is no {path}", Trait.FATAL) from None
    if not modes.S_ISREG(info.st_mode):
        raise Direction.OUT.fault(f"{path} is not a regular file", Trait.FATAL)
    return info.st_size


@contextmanager
def local_faults(direction: Direction, what: str) -> Iterator[None]:
    """Errors of the node's file system as errors of the table; a full disk of ours is never the storage's."""
    try:
        yield
    except OSError as error:
        raise of_os_error(error, direction, what) from error


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other pilot uses; what has that name afterwards is removed.

    It has no character that means something in a URL: XRootD's and gfal's programs take local names for URLs.
    """
    partial = path.with_name(with_suffix(_SPECIAL.sub("_", path.name), partial_suffix()))
    clear = partial_call(partial.unlink, missing_ok=True)
    atexit.register(clear)  # a server that hangs may hold this thread until the process ends
    try:
        yield partial
    finally:
        clear()
        atexit.unregister(clear)


def partial_suffix() -> str:
    """What makes a name that nobody else uses: while it has that, a file is not whole."""
    return f".{os.getpid()}-{secrets.token_hex(4)}.partial"


@contextmanager
def speakable(path: Path) -> Iterator[Path]:
    """`path`, or a link to it, without characters that mean something in a URL."""
    path = path.absolute()
    if not _SPECIAL.search(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pilot-link-") as folder:
        link = Path(folder) / "to"
        link.symlink_to(path)
        yield link


def escaped(url: str, lfn: str) -> str:
    """A URL with %-escapes. The planner joins a storage's URL and the LFN as it is; a job gives a URL that is one."""
    if lfn and url.endswith("/" + lfn):
        url = url.removesuffix(lfn) + quote(lfn, safe="")
    return quote(url, safe="%/:?#[]@!$&'()*+,;=~")


def escaped_beside(url: str, suffix: str) -> str:
    """An escaped URL with a suffix to its name."""
    path, mark, query = (url, "", "") if "?SFN=" in url else url.partition("?")
    folder, _, name = path.rpartition("/")
    return f"{folder}/{quote(with_suffix(unquote(name), suffix), safe='')}{mark}{query}"


def with_suffix(name: str, suffix: str) -> str:
    """A name with a suffix, cut before that to what a file system takes."""
    stem = os.fsencode(name)[: NAME_MAX - len(suffix)]
    return stem.decode(errors="ignore") + suffix
