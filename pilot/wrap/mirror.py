"""Private copies of credentials that a volume shows to others too, kept fresh while the volume changes.

Kubernetes gives files of a secret to the group of a pod that does not run as root, with mode 0440 at least; grid
libraries refuse a key that more than its owner can read.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

#: Seconds between two looks: the kubelet itself takes a minute to bring a changed secret.
_LOOK = 60.0


class Mirror:
    """Use as a context manager; files are followed until its end.

    Args:
        top: directory for the copies; made when there is one.
    """

    def __init__(self, top: Path, look: float = _LOOK) -> None:
        self._top = top
        self._look = look
        self._copies: dict[Path, tuple[Path, tuple[int, int, int]]] = {}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def add(self, name: str) -> str:
        """The name of a private copy, with mode 0600; the name itself if others cannot read it, or there is no file."""
        source = Path(name)
        try:
            status = source.stat()
            if not status.st_mode & 0o077:
                return name
            self._top.mkdir(mode=0o700, exist_ok=True)
            copy = self._top / f"{len(self._copies)}-{source.name}"
            self._refresh(source, copy)
        except OSError:  # the pilot says what it misses
            return name
        if len(self._copies) == 1:
            threading.Thread(target=self._follow, daemon=True).start()
        return str(copy)

    def _follow(self) -> None:
        while not self._over.wait(self._look):
            for source, (copy, before) in list(self._copies.items()):
                try:
                    if _version(source) != before:
                        self._refresh(source, copy)
                except OSError:  # between two versions
                    continue

    def _refresh(self, source: Path, copy: Path) -> None:
        version = _version(source)
        fresh = copy.with_name(f".{copy.name}.new")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(source.read_bytes())
        fresh.replace(copy)
        self._copies[source] = (copy, version)


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
