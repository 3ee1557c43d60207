"""Who has finished a file in a directory: told by the kernel (inotify(7)), or found by looking where it does not tell.

Not below the directory: outputs are names, not paths.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

#: inotify.h: a file opened for writing was closed; a file was renamed to here; events were lost.
_CLOSE_WRITE, _MOVED_TO, _OVERFLOW = 0x8, 0x80, 0x4000

#: Watch descriptor, mask, cookie and length of the name that follows.
_EVENT = struct.Struct("iIII")

#: Bytes read at once: room for hundreds of events.
_BUFFER = 1 << 16

#: Seconds between two looks where there is no inotify: no instance left for this user, or a strange kernel.
LOOK = 5.0


class Directory:
    """Tells of finished files.

    Args:
        path: the directory.
        tell: called in the event loop with a name, and whether it was renamed into place, which says that it is whole.
        kernel: False to go by looking.
    """

    def __init__(self, path: Path, tell: Callable[[str, bool], None], *, kernel: bool = True) -> None:
        self._path = path
        self._tell = tell
        self._kernel = kernel
        self._fd: int | None = None
        self._looking: asyncio.Task[None] | None = None
        self._seen: dict[str, tuple[int, ...]] = {}

    def start(self) -> None:
        """From now on. Files that are there already are not told of, unless they change."""
        try:
            if not self._kernel:
                raise OSError("switched off")
            self._fd = _watch(self._path)
        except OSError as error:
            logger.info("no inotify for %s (%s): looking each %.0f s", self._path, error, LOOK)
            self._seen = self._found()
            self._looking = asyncio.create_task(self._look())
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def close(self) -> None:
        """No more."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        if self._looking is not None:
            self._looking.cancel()

    def _read(self) -> None:
        assert self._fd is not None  # noqa: S101 - a reader is added with it, and removed before
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        told: dict[str, bool] = {}
        place = 0
        while place < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size + length
            name = os.fsdecode(data[place - length : place].rstrip(b"\0"))
            if mask & _OVERFLOW:
                told = dict.fromkeys(self._found(), False) | told
            elif name:
                told[name] = bool(mask & _MOVED_TO)
        for name, moved in told.items():
            self._tell(name, moved)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            found = self._found()
            for name, facts in found.items():
                if self._seen.get(name) != facts:
                    self._tell(name, False)
            self._seen = found

    def _found(self) -> dict[str, tuple[int, ...]]:
        """The files that are there, with what changes when they are written to."""
        try:
            with os.scandir(self._path) as entries:
                files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
                infos = [(entry.name, entry.stat(follow_symlinks=False)) for entry in files]
        except OSError:
            return {}
        return {name: (info.st_ino, info.st_size, info.st_mtime_ns) for name, info in infos}


def _watch(path: Path) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    fd = int(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if library.inotify_add_watch(fd, os.fsencode(path), _CLOSE_WRITE | _MOVED_TO) < 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code))
    return fd
