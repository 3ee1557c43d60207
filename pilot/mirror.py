"""Private copies of credentials from volumes, kept fresh while the volume changes.

Kubernetes gives files of a secret to the group of a pod that does not run as root, with mode 0440 at least; grid
libraries refuse a key that more than its owner can read. And what is mounted cannot be renewed in its place.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pilot.server.expiry import secret_end

#: Seconds between two looks: the kubelet itself takes a minute to bring a changed secret.
_LOOK = 60.0

_Version = tuple[int, int, int]


def is_shown(path: Path) -> bool:
    """Whether others than its owner may read a file. Raises `OSError`."""
    return bool(path.stat().st_mode & 0o077)


def is_fixed(path: Path) -> bool:
    """Whether nothing can take the place of a file: where it is we may not write, or it is mounted by itself."""
    return not (os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)) or os.path.ismount(path)


class Mirror:
    """Use as a context manager; files are followed until its end, and the copies removed then.

    Args:
        top: directory for the copies; made when there is one.
        needed: whether a file has to be copied.
        look: seconds between two looks at the files.
    """

    def __init__(self, top: Path, needed: Callable[[Path], bool] = is_shown, look: float = _LOOK) -> None:
        self._top = top
        self._needed = needed
        self._look = look
        self._copies: dict[Path, tuple[Path, _Version]] = {}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        shutil.rmtree(self._top, ignore_errors=True)

    def add(self, name: str) -> str:
        """The name of a private copy, with mode 0600; the name itself if none is needed, or there is no file."""
        source = Path(name)
        try:
            if not self._needed(source):
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
        shutil.rmtree(self._top, ignore_errors=True)  # perhaps the last copy came after the end

    def _refresh(self, source: Path, copy: Path) -> None:
        """Copy it, unless the copy was renewed since and lasts longer."""
        version = _version(source)
        ours = source in self._copies and copy.exists()  # a killed pilot may have left that of an old secret
        if not (ours and (secret_end(copy) or 0) > (secret_end(source) or float("inf"))):
            fresh = copy.with_name(f".{copy.name}.new")
            fresh.unlink(missing_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(source.read_bytes())
            fresh.replace(copy)
        self._copies[source] = (copy, version)


def _version(path: Path) -> _Version:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
