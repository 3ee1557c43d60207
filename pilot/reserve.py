"""Disk kept back for the log of a job: a payload that fills the disk shall not take the explanation with it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pilot.errors import PilotError
from pilot.logarchive import FILE_LIMIT

logger = logging.getLogger(__name__)

#: Bytes kept back: a log of some hundred files of which only the ends are kept, compressed.
_SIZE = 2 << 20

#: Bytes kept of one file when there is no room for more.
_SMALL = 64 << 10

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """A file that takes room, until it is needed.

    Args:
        path: the file; not in the job directory, where a payload could remove it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Take the room. Where that is not possible there is none."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, _SIZE)
        except OSError as error:
            logger.info("no disk can be kept back for the log: %s", error.strerror)
            self.release()
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give it back. May be called again."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def pack(self, make: Callable[[int], object]) -> None:
        """Make a log; if the disk is full, once more with the room that was kept back.

        Args:
            make: gets the bytes to keep of one file.

        Raises:
            PilotError: it cannot be made all the same.
        """
        try:
            make(FILE_LIMIT)
        except PilotError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _FULL:
                raise
            logger.warning("the disk is full: the log has only the ends of large files")
            self.release()
            make(_SMALL)
