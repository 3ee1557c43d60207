"""A file in parts that move side by side, for copy tools that talk to object stores.

The tool's own thread reads the parts in order, for checksums, and keeps looking at the handle; each part moves in a
thread of its own. So a stop is obeyed within `LOOK` seconds, also while a server says nothing, and memory does not grow
with the file: a part is never held, only the blocks of it that pass.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from copytools._remote import partial_file
from pilot.errors import Trait, TransferError
from pilot.staging.checksum import BLOCK, Hasher
from pilot.staging.copytool import Handle
from pilot.staging.faults import Direction

T = TypeVar("T")

#: Seconds between two looks at the handle.
LOOK = 0.2

#: Seconds that parts still moving get to notice that the transfer is over.
_LINGER = 1.0

#: Bytes given to a socket at once; http clients ask for 16 KiB, which costs a third more processor time.
_SEND = 256 << 10


#: Bytes taken from a socket at once. Of 1 MiB, S3 brings 640 MiB/s and needs 65 MiB; of this 920 MiB/s and 61 MiB.
_TAKE = 512 << 10


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `end` of a file; parts are numbered from 1."""

    number: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def split(size: int, length: int) -> list[Part]:
    """The parts of a file, each of `length` bytes but the last; a file without bytes has one without bytes."""
    starts = range(0, max(1, size), length)
    return [Part(number, start, min(start + length, size)) for number, start in enumerate(starts, 1)]


class Reader(Protocol):
    """A stream of bytes from a server."""

    def read(self, amount: int, /) -> bytes:
        """At most so many bytes, none at the end."""

    def close(self) -> None:
        """No more is wanted."""


class Lanes:
    """Threads that move the parts of one file, at most `count` at once. A context: nothing moves after it.

    They are daemons: one that waits for a dead server keeps nobody from exiting.
    """

    def __init__(self, count: int, handle: Handle) -> None:
        self._handle = handle
        self._free = threading.Semaphore(count)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._failed: BaseException | None = None
        self._over = False

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over = True
        deadline = time.monotonic() + _LINGER
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def advance(self, count: int) -> None:
        """`count` more bytes have passed in one of the lanes."""
        with self._lock:  # a handle is for one thread at a time
            if self._over:
                raise InterruptedError("the transfer is over")
            self._handle.advance(count)

    def check(self) -> None:
        """Raise if the transfer must end, or one of its parts has failed."""
        self._handle.check()
        if self._failed is not None:
            raise self._failed

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` in a lane, as soon as one is free."""
        while not self._free.acquire(timeout=LOOK):
            self.check()
        self.check()
        future: Future[T] = Future()
        thread = threading.Thread(target=self._run, args=(work, future), name="part", daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()
        return future

    def result(self, future: Future[T]) -> T:
        """What `work` gave, once it has."""
        while not future.done():
            self.check()
            wait([future], LOOK)
        return future.result()

    def _run(self, work: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again in the transfer's thread
            self._failed = self._failed or error
            future.set_exception(error)
        finally:
            self._free.release()


class Body:
    """A part of an open file, to be sent; may be sent again from its start.

    Args:
        fd: of the file.
        part: which bytes.
        advance: hears of bytes that go out for the first time.
        least: bytes given at least, however few are asked for.
    """

    def __init__(self, fd: int, part: Part, advance: Callable[[int], None], least: int = _SEND) -> None:
        self._fd = fd
        self._part = part
        self._advance = advance
        self._least = least
        self._place = self._seen = 0

    def __len__(self) -> int:
        return self._part.size

    def __bool__(self) -> bool:
        return True  # without it one of no bytes would be taken for none

    def read(self, amount: int | None = None) -> bytes:
        """The next bytes: all if no amount is given, else more than asked for where there are more."""
        left = self._part.size - self._place
        wanted = left if amount is None or amount < 0 else min(left, max(amount, self._least))
        data = os.pread(self._fd, wanted, self._part.start + self._place)
        if len(data) < wanted:
            raise Direction.OUT.fault("it became shorter while it was copied", Trait.FATAL)
        self._place += len(data)
        fresh = max(0, self._place - self._seen)
        self._seen += fresh
        self._advance(fresh)  # also if it is none: a library that tries again is to hear that all is over
        return data

    def tell(self) -> int:
        """Place in the part, bytes."""
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere in the part."""
        self._place = place + {os.SEEK_CUR: self._place, os.SEEK_END: self._part.size}.get(whence, 0)
        return self._place


@contextmanager
def opened_output(path: Path) -> Iterator[tuple[int, int]]:
    """An output opened for reading, and its size in bytes.

    Raises:
        TransferError: it is not there, or no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise TransferError(Direction.OUT.missing, f"there is no {path}", Trait.FATAL) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise Direction.OUT.fault(f"{path} is not a regular file", Trait.NEXT)
        yield fd, info.st_size
    finally:
        os.close(fd)


@contextmanager
def new_input(path: Path) -> Iterator[int]:
    """A new file that gets the name `path` when all went well, and else is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as partial:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield fd
            partial.replace(path)
        finally:
            os.close(fd)


def sum_part(fd: int, part: Part, hashers: list[Hasher], check: Callable[[], None]) -> None:
    """Give the bytes of a part of an open file to all hashers."""
    place, buffer = part.start, memoryview(bytearray(min(BLOCK, part.size)))
    while place < part.end and (count := os.preadv(fd, [buffer[: part.end - place]], place)):
        check()
        for hasher in hashers:
            hasher.update(buffer[:count])
        place += count
    if place < part.end:
        raise OSError(f"a file became shorter while it was read: {place} bytes of {part.end}")


def receive(
    fd: int,
    part: Part,
    ask: Callable[[Part], Reader],
    advance: Callable[[int], None],
    passes: Callable[[Exception], bool],
) -> None:
    """Write a part that a server sends to its place in a file, asking again for the rest where a connection breaks.

    Args:
        fd: of the file.
        part: which bytes.
        ask: gives the stream of a part.
        advance: hears of the bytes.
        passes: whether an error may be gone when the rest is asked for. It is raised if nothing came before it.
    """
    place = part.start
    while place < part.end:
        begun = place
        try:
            for block in _blocks(ask(Part(part.number, place, part.end))):
                _write(fd, block[: part.end - place], place)
                place += len(block)
                if place > part.end:
                    raise Direction.IN.fault("more came than was asked for: the storage gives no ranges", Trait.NEXT)
                advance(len(block))
        except Exception as error:
            if place == begun or not passes(error):
                raise
        else:
            if place < part.end:
                raise Direction.IN.fault(f"it ended after {place} bytes of {part.end}")


def _blocks(stream: Reader) -> Iterator[bytes]:
    try:
        while block := stream.read(_TAKE):
            yield block
            del block  # or there are two of them in memory, and none of the size that was just freed
    finally:
        stream.close()


def _write(fd: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, place)
        view, place = view[count:], place + count


def content_type(fd: int, name: str) -> str:
    """What an open file is, as a browser wants to know it: a log is to be read there (PILOT3 4.6)."""
    if name.endswith(".json"):
        return "application/json"
    head = os.pread(fd, 8192, 0)
    if head.startswith(b"\x1f\x8b"):
        return "application/gzip"
    return "application/octet-stream" if b"\0" in head else "text/plain"
