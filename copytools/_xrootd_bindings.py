"""XRootD by its Python bindings: one connection for all files of a server, bytes summed up as they pass.

Every call is asynchronous and waited for here, so that a transfer ends at once when it must, also while a server hangs.
A file object is kept alive until its close has been answered: its destructor closes an open file and waits for the
answer, with the interpreter's lock in its hands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from copytools._remote import checksum_types
from copytools._xrootd import CLIENT_SETTINGS, DATA, LONG, XrootdError, is_directory, parse_checksum, split
from pilot.errors import Trait
from pilot.left import regular
from pilot.staging.checksum import Hasher
from pilot.staging.copytool import Handle, Transfer
from pilot.staging.faults import Direction
from pilot.staging.result import shown

#: Bytes of a request, and requests under way at once for a file: 6 MiB in flight fill 500 Mbit/s at 100 ms. The library
#: and Python have each block once, so twice that is what a transfer takes of the memory.
BLOCK, AHEAD = 1 << 20, 6

#: Seconds between two looks whether a transfer must end.
_LOOK = 0.2

Answer = SimpleQueue[tuple[Any, Any]]


class Bindings:
    """Speaks to XRootD servers from this process."""

    def __init__(self) -> None:
        self._client: Any = import_module("XRootD.client")
        self._flags: Any = import_module("XRootD.client.flags")
        for name, value in CLIENT_SETTINGS.items():
            self._client.EnvPutInt(name, value)

    def download(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Read a file block by block."""
        hasher = Hasher(checksum_types(transfer))
        file = self._client.File()
        talk = _Talk(handle, Direction.IN, url)
        talk.ask(file.open, url, self._flags.OpenFlags.READ, timeout=LONG)
        try:
            size = int(talk.ask(file.stat).size)
            with open(path, "xb", buffering=0) as target:
                for block in talk.blocks(file, size):
                    hasher.update(block)
                    _write(target.write, block)
        finally:
            _close(file)
        return hasher.digests()

    def upload(self, url: str, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Write a file block by block."""
        hasher = Hasher(checksum_types(transfer))
        wanted = self._flags.OpenFlags
        file = self._client.File()
        talk = _Talk(handle, Direction.OUT, url)
        with open(transfer.path, "rb", buffering=0, opener=regular) as source:
            talk.ask(file.open, url, wanted.NEW | wanted.MAKEPATH | wanted.POSC, timeout=LONG)
            try:
                talk.send(file, source.read, hasher)
            except BaseException:
                _close(file)
                raise
        talk.ask(file.close, timeout=LONG)
        return hasher.digests()

    def size(self, url: str, handle: Handle) -> int | None:
        """Bytes of a file."""
        server, path, opaque = split(url)
        try:
            seen = _Talk(handle, Direction.OUT, url).ask(self._client.FileSystem(server).stat, path + opaque)
        except XrootdError as error:
            if error.missing:
                return None
            raise
        if seen.flags & self._flags.StatInfoFlags.IS_DIR:
            raise is_directory(url)
        return int(seen.size)

    def probe(self, url: str, handle: Handle) -> int | None:
        """Bytes of a file that can be read."""
        file = self._client.File()
        talk = _Talk(handle, Direction.IN, url)
        try:
            talk.ask(file.open, url, self._flags.OpenFlags.READ, timeout=LONG)
            talk.ask(file.read, 0, 1)
            return int(talk.ask(file.stat).size)
        except XrootdError as error:
            if error.missing:
                return None
            raise
        finally:
            _close(file)

    def checksum(self, url: str, kind: str, handle: Handle) -> dict[str, str]:
        """What the server says."""
        server, path, opaque = split(url)
        asked = f"{path}{opaque}{'&' if opaque else '?'}cks.type={kind}"
        talk = _Talk(handle, Direction.OUT, url)
        query, code = self._client.FileSystem(server).query, self._flags.QueryCode.CHECKSUM
        try:
            return parse_checksum(bytes(talk.ask(query, code, asked, timeout=LONG)).decode(errors="replace"))
        except XrootdError as error:
            if error.number:
                return {}
            raise

    def rename(self, url: str, to: str, handle: Handle) -> None:
        """Rename a file."""
        server, path, opaque = split(url)
        _Talk(handle, Direction.OUT, url).ask(self._client.FileSystem(server).mv, path + opaque, split(to)[1])

    def remove(self, url: str, handle: Handle) -> None:
        """Delete a file."""
        server, path, opaque = split(url)
        try:
            _Talk(handle, Direction.OUT, url).ask(self._client.FileSystem(server).rm, path + opaque)
        except XrootdError as error:
            if not error.missing:
                raise


class _Talk:
    """Calls about one URL."""

    def __init__(self, handle: Handle, direction: Direction, url: str) -> None:
        self._handle = handle
        self._direction = direction
        self._url = url

    def ask(self, call: Callable[..., Any], *args: object, **named: object) -> Any:
        """Call and wait for the answer."""
        return self._answer(self._start(call, *args, **named))

    def blocks(self, file: Any, size: int) -> Iterator[memoryview]:
        """The bytes of an open file, in order, `AHEAD` requests before those that are looked at."""
        starts = iter(range(0, size, BLOCK))
        waiting = deque((start, self._read(file, start, size)) for start in islice(starts, AHEAD))
        while waiting:
            start, answer = waiting.popleft()
            block = memoryview(self._answer(answer))
            if len(block) != min(BLOCK, size - start):
                at = start + len(block)
                raise self._direction.fault(f"{shown(self._url)} ends after {at} of {size} bytes", Trait.NEXT)
            waiting.extend(
                (start, self._read(file, start, size)) for start in (next(starts, None),) if start is not None
            )
            self._handle.advance(len(block))
            yield block

    def send(self, file: Any, read: Callable[[int], bytes | None], hasher: Hasher) -> None:
        """Write what `read` gives to an open file."""
        waiting: deque[tuple[int, Answer]] = deque()
        position = 0
        while block := read(BLOCK):
            hasher.update(memoryview(block))
            waiting.append((len(block), self._start(file.write, block, position, kept=block, timeout=DATA)))
            position += len(block)
            if len(waiting) >= AHEAD:
                self._written(*waiting.popleft())
        while waiting:
            self._written(*waiting.popleft())

    def _written(self, count: int, answer: Answer) -> None:
        self._answer(answer)
        self._handle.advance(count)

    def _read(self, file: Any, start: int, size: int) -> Answer:
        return self._start(file.read, start, min(BLOCK, size - start), timeout=DATA)

    def _start(self, call: Callable[..., Any], *args: object, kept: object = None, **named: object) -> Answer:
        """Call, and have the answer put into a queue. `kept` lives until then: the library sends from its memory."""
        self._handle.check()
        answer: Answer = SimpleQueue()

        def told(status: Any, response: Any, _hosts: Any, _kept: object = kept) -> None:
            answer.put((status, response))

        try:
            status = call(*args, callback=told, **named)
        except ValueError as error:  # the binding's word for a file whose server has gone
            raise XrootdError(str(error), self._direction, self._url) from error
        if not status.ok:
            raise XrootdError(status.message, self._direction, self._url)
        return answer

    def _answer(self, answer: Answer) -> Any:
        while True:
            self._handle.check()
            try:
                status, response = answer.get(timeout=_LOOK)
            except Empty:
                continue
            if not status.ok:
                raise XrootdError(status.message, self._direction, self._url)
            return response


def _close(file: Any) -> None:
    """Close without waiting; the file lives until that is answered."""

    def closed(_status: Any, _response: Any, _hosts: Any, _file: Any = file) -> None:
        pass

    file.close(callback=closed)


def _write(write: Callable[[memoryview], int | None], data: memoryview) -> None:
    while data:
        data = data[write(data) or 0 :]
