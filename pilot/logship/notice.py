"""Learn from the kernel that files grew or came (inotify), so that quiet files cost nothing."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path

# Of <sys/inotify.h>.
_MODIFY, _ATTRIB, _MOVED_TO, _CREATE, _DELETE_SELF, _MOVE_SELF = 0x2, 0x4, 0x80, 0x100, 0x400, 0x800
_DONT_FOLLOW = 0x0200_0000
#: What happens to a log file: it grows or shrinks, loses its name, goes; and to its directory: one of that name comes.
_OF_FILE = _MODIFY | _ATTRIB | _DELETE_SELF | _MOVE_SELF | _DONT_FOLLOW
_OF_FOLDER = _CREATE | _MOVED_TO
#: Bytes of events read at once; all of them say the same: look.
_EVENTS = 65536


class Notice:
    """Tells when something happened to files. For one event loop.

    Raises:
        OSError: the kernel or the user's limits (`fs.inotify.max_user_instances`) do not allow it.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watched: dict[Path, int] = {}
        self._event = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._take)

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch files, by the name they have now, and for their coming.

        Raises:
            OSError: a limit is reached (`fs.inotify.max_user_watches`).
        """
        for path in paths:
            self._add(path, _OF_FILE)
            self._add(path.parent, _OF_FOLDER)

    async def wait(self, seconds: float) -> bool:
        """Wait until something happens; False if nothing did for so long."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def poke(self) -> None:
        """Something happened that the kernel does not know of."""
        self._event.set()

    def clear(self) -> None:
        """Forget what happened so far."""
        self._event.clear()

    def close(self) -> None:
        """No more."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        try:
            os.read(self._fd, _EVENTS)
        except BlockingIOError:
            pass
        self._event.set()

    def _add(self, path: Path, events: int) -> None:
        """Watch what has this name now; what had it before is not watched any more."""
        found: int = self._libc.inotify_add_watch(self._fd, os.fsencode(path), events)
        if found < 0 and (number := ctypes.get_errno()) not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            raise OSError(number, f"inotify_add_watch {path}")
        before = self._watched.pop(path, found)
        if before != found:
            self._libc.inotify_rm_watch(self._fd, before)
        if found >= 0:
            self._watched[path] = found
