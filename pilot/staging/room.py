"""Room on disks that somebody counts on: what one call of the engine has reserved is not there for another.

The reservation of a call is what its files have still to write; what they have written is no longer free anyway.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pilot.errors import Code, Trait, TransferError


def free_space(directory: Path) -> int:
    """Bytes that we may still write there."""
    info = os.statvfs(directory)
    return info.f_bavail * info.f_frsize


class Room:
    """The reservations of a pilot; those of other pilots nobody knows. Any thread may ask.

    Args:
        free: bytes that may be written below a directory.
    """

    def __init__(self, free: Callable[[Path], int] = free_space) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._held: dict[object, tuple[int, Callable[[], int]]] = {}

    @contextmanager
    def reserved(self, what: str, size: int, directory: Path, written: Callable[[], int]) -> Iterator[None]:
        """Reserve until the end.

        Args:
            what: needs it, for a person: "the inputs".
            size: bytes in all.
            directory: on the disk.
            written: how many of them are on the disk by now.

        Raises:
            TransferError: NOLOCALSPACE (1098).
        """
        key = object()
        self._reserve(key, what, size, directory, written)
        try:
            yield
        finally:
            with self._lock:
                del self._held[key]

    def left(self, directory: Path) -> int:
        """Bytes that are free and that nobody counts on."""
        with self._lock:
            return self._left(directory)

    def _reserve(self, key: object, what: str, size: int, directory: Path, written: Callable[[], int]) -> None:
        disk = directory.stat().st_dev
        with self._lock:
            left = self._left(directory)
            if size > left:
                detail = f"{what} have {size} bytes, {directory} has room for {left}"
                raise TransferError(Code.NOLOCALSPACE, detail, Trait.FATAL)
            self._held[key] = (disk, lambda: max(0, size - written()))

    def _left(self, directory: Path) -> int:
        disk = directory.stat().st_dev
        held = sum(rest() for other, rest in self._held.values() if other == disk)
        return max(0, self._free(directory) - held)
