"""What a payload wants hidden: a file in the job directory where it writes secrets that it came by, one a line.

The pilot reads it before it shows a byte of what the payload wrote: a secret that is in the file before it is printed
is in no live log, no error text and no log archive.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pilot.masking import Masker, MaskingStream

#: Name of the file, and the variable that tells a payload its path.
MASKS, MASKS_VARIABLE = "pilot_masks.txt", "PILOT_MASK_FILE"
#: Bytes of the file that are read, and of all lines that it ever had: some hundred secrets, each of which makes a dozen
#: forms to look for, and is looked for until the pilot ends.
_LIMIT = 64 << 10


class MaskFile:
    """Adds what a payload's file names to a masker.

    Args:
        workdir: the job directory.
        masker: told of each line. Short ones are not hidden, as everywhere (`pilot.masking.SHORTEST`).
    """

    def __init__(self, workdir: Path, masker: Masker) -> None:
        self._path = workdir / MASKS
        self._masker = masker
        self._seen = (0, 0, 0)
        self._lines: set[bytes] = set()
        self._left = _LIMIT

    def read(self) -> None:
        """Read the file if it changed; one that is missing, or no regular file, names nothing."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
            mark = (found.st_ino, found.st_size, found.st_mtime_ns)
            if mark == self._seen or not stat.S_ISREG(found.st_mode):
                return
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                data = file.read(_LIMIT)
        except OSError:
            return
        self._seen = mark
        for line in data.splitlines():
            if line not in self._lines and len(line) <= self._left:
                self._lines.add(line)
                self._left -= len(line)
                self._masker.add(line.decode("utf-8", "surrogateescape"))

    def stream(self) -> PayloadMask:
        """A masker for bytes that come in pieces, which reads the file first."""
        return PayloadMask(self, self._masker.stream())


class PayloadMask:
    """As `MaskingStream`, with what the payload named until now."""

    def __init__(self, masks: MaskFile, stream: MaskingStream) -> None:
        self._masks = masks
        self._stream = stream

    def feed(self, data: bytes) -> bytes:
        """Take bytes that were read just now, give those that can be shown."""
        self._masks.read()
        return self._stream.feed(data)

    def finish(self) -> bytes:
        """What is left."""
        self._masks.read()
        return self._stream.finish()
