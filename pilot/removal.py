"""Removing a directory tree that somebody else has filled."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


def remove_tree(top: Path) -> None:
    """Remove a directory and all below it; links are not followed. What stays is told to the log. Blocks.

    A payload may have taken our own rights on its directories away (`chmod 000`), so these are put back if need be. It
    may have made them deeper than Python goes, too: `rm` goes to any depth.
    """
    with suppress(OSError, RecursionError):
        if top.is_symlink():  # it would be walked through below
            top.unlink()
            return
        shutil.rmtree(top, ignore_errors=True)
        if not os.path.lexists(top):
            return
        _make_usable(top)
        for folder, names, _ in os.walk(top):
            for name in names:
                _make_usable(Path(folder, name))
    with suppress(OSError):
        subprocess.run(["rm", "-rf", "--", top], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if os.path.lexists(top):
        logger.warning("%s could not be removed", top)


def _make_usable(directory: Path) -> None:
    with suppress(OSError):  # another user's, gone, or a link
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
