"""Opening what somebody else has left in a directory: a payload, or another pilot."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_left(path: Path) -> BinaryIO:
    """Open a file that a payload left in its directory, to read it.

    Only a regular one: to open a pipe would wait for somebody who writes, and what a link leads to, such as a token of
    the pilot, is not what the payload wrote.

    Raises:
        OSError: there is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")
