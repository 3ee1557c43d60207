"""Opening what somebody else has left in a directory: a payload, or another pilot.

A payload can put a link, a pipe or a device in the place of any file of its directory, also while the pilot looks. So
what was opened is looked at, never a name before that; nothing here waits for a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class LedOutError(OSError):
    """A link that leads out of the directory that it must stay in; the text says where to."""


def open_left(path: Path) -> BinaryIO:
    """Open a file that a payload left in its directory, to read it.

    Only a regular one: to open a pipe would wait for somebody who writes, and what a link leads to, such as a token of
    the pilot, is not what the payload wrote.

    Raises:
        OSError: there is none.
    """
    return open(path, "rb", opener=lambda name, flags: regular(name, flags | os.O_NOFOLLOW))


def regular(path: str | Path, flags: int) -> int:
    """An opener for `open`, where a link may be followed: a regular file, or nothing.

    Raises:
        OSError: there is none.
    """
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    os.set_blocking(fd, True)  # file systems above tapes answer EAGAIN else, where they should bring the bytes
    return fd


def followed(path: Path, within: Path | None) -> os.stat_result:
    """What a name leads to.

    Args:
        path: of an output, which may be a link: to another disk of the node, for example.
        within: a directory that it must not lead out of: that of a payload in a container, which must not get by us
            what it cannot get itself. None for one that could.

    Raises:
        LedOutError: it does.
        OSError: there is nothing.
    """
    if within is None:
        return path.stat()
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")
        if not Path(real).is_relative_to(os.path.realpath(within)):
            raise LedOutError(errno.EPERM, f"a link out of the job directory, to {real}", str(path))
        return os.fstat(fd)
    finally:
        os.close(fd)
