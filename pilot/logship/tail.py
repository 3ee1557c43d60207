"""Follow a log file by its name: through creation, growth, truncation and rotation."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import NamedTuple, Protocol

#: Longest line that is sent whole, bytes; a longer one is cut and marked.
LINE_LIMIT = 64 << 10

#: Bytes read at once and in one turn, so that a payload that writes fast cannot keep the event loop.
_BLOCK, _TURN = 256 << 10, 1 << 20

#: Files that are found by a pattern; a payload could make many. And s in which a directory may change unseen again.
_MOST, _SETTLED = 10, 1.0

CUT_MARK = " [... line cut]"

#: Control characters, but for tab, as escapes: a terminal that shows the log must not obey it.
_PRINTABLE = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code != 9}
#: Bytes of lines that need no change: printable ASCII, tabs, line ends.
_PLAIN = bytes([9, 10, *range(32, 127)])


class Line(NamedTuple):
    """A line of a file: its number from 1 since the file was found, and its text without the end."""

    number: int
    text: str


class Mask(Protocol):
    """Hides secrets in bytes that come in pieces: `pilot.masking.MaskingStream`."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes, give those that can be shown."""

    def finish(self) -> bytes:
        """What is left."""


class Search:
    """Files whose names are not known beforehand.

    Args:
        pattern: where they come, with `*` in the name.
    """

    def __init__(self, pattern: Path) -> None:
        self.pattern = pattern
        self._changed, self._since = 0, 0.0

    def look(self) -> list[Path]:
        """Those that are there; none if nothing came since the last time, which one call tells."""
        try:
            changed = os.stat(self.pattern.parent).st_mtime_ns
        except OSError:
            return []
        if changed != self._changed:
            self._changed, self._since = changed, time.monotonic()
        elif time.monotonic() - self._since > _SETTLED:
            return []
        return sorted(self.pattern.parent.glob(self.pattern.name))[:_MOST]


class Tail:
    """The new lines of one file.

    Args:
        path: its name. The file need not exist yet, and only regular files are read: no pipe can hang us, and no link
            leads out of the job directory.
        mask: hides secrets.
        start: bytes of the file, as it is now, that are passed over.
        top: the job directory: on the way from there to the file no link is followed. None for a file of our own.
    """

    def __init__(self, path: Path, mask: Mask, start: int = 0, top: Path | None = None) -> None:
        self.path = path
        self._real = os.path.join(os.path.realpath(top), path.relative_to(top)) if top else ""
        self._mask = mask
        self._start = start
        self._fd: int | None = None
        self._inode = (0, 0)
        self._offset = 0
        self._number = 0
        self._rest = b""
        self._cutting = False

    def read(self) -> list[Line]:
        """Lines that were completed since the last time, at most 1 MiB of them; none if the file cannot be read."""
        if (self._fd is None and not self._open()) or self._is_quiet():
            return []
        try:
            data = self._new_bytes()
        except OSError:  # such as a handle that a file server does not know any more
            data = b""
        lines = self._lines(self._mask.feed(data)) if data else []
        if len(data) < _TURN and self._was_replaced():
            lines += self._last()
            self._close()
        return lines

    def finish(self) -> list[Line]:
        """All that is left, also a last line without an end. The file is closed."""
        lines: list[Line] = []
        while found := self.read():
            lines += found
        lines += self._last()
        self._close()
        return lines

    def _open(self) -> bool:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        status = os.fstat(fd)
        led_away = self._real and os.readlink(f"/proc/self/fd/{fd}") != self._real
        if led_away or not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return False
        self._inode = status.st_dev, status.st_ino
        self._fd, self._offset, self._start = fd, self._start, 0
        return True

    def _is_quiet(self) -> bool:
        """True if nothing has happened, which one call tells; most looks end here."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (there.st_dev, there.st_ino, there.st_size) == (*self._inode, self._offset)

    def _new_bytes(self) -> bytes:
        assert self._fd is not None  # noqa: S101 - told to mypy
        if os.fstat(self._fd).st_size < self._offset:  # truncated: it begins anew
            self._offset = 0
        data = b""
        while len(data) < _TURN and (block := os.pread(self._fd, _BLOCK, self._offset)):
            data += block
            self._offset += len(block)
        return data

    def _was_replaced(self) -> bool:
        """True if the name belongs to another file by now, or to none."""
        assert self._fd is not None  # noqa: S101
        try:
            return not os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        except OSError:
            return True

    def _lines(self, data: bytes) -> list[Line]:
        data = self._rest + data
        *whole, rest = data.split(b"\n")
        if whole and not self._cutting and len(max(whole, key=len)) <= LINE_LIMIT and not data.translate(None, _PLAIN):
            first = self._number + 1
            self._number += len(whole)
            lines = list(map(Line, range(first, self._number + 1), data.decode("ascii").split("\n")))
        else:
            lines = [line for piece in whole if (line := self._line(piece)) is not None]
        if len(rest) > LINE_LIMIT:
            if not self._cutting:
                lines.append(self._numbered(rest[:LINE_LIMIT], cut=True))
            self._cutting, rest = True, b""
        self._rest = rest
        return lines

    def _line(self, piece: bytes) -> Line | None:
        if self._cutting:  # the end of a line whose beginning was sent
            self._cutting = False
            return None
        return self._numbered(piece[:LINE_LIMIT], cut=len(piece) > LINE_LIMIT)

    def _numbered(self, piece: bytes, *, cut: bool) -> Line:
        self._number += 1
        text = piece.rstrip(b"\r").decode("utf-8", "backslashreplace").translate(_PRINTABLE)
        return Line(self._number, text + (CUT_MARK if cut else ""))

    def _last(self) -> list[Line]:
        lines = self._lines(self._mask.finish())
        if self._rest and not self._cutting:
            lines.append(self._numbered(self._rest[:LINE_LIMIT], cut=len(self._rest) > LINE_LIMIT))
        self._rest, self._cutting = b"", False
        return lines

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
