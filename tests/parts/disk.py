"""A small file system, to be filled."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts import cannot


@contextmanager
def small_disk(place: Path, size: str = "1m", owner: str = "root") -> Iterator[Path]:
    """Mount one of so many bytes at a directory, which is made."""
    if os.geteuid() != 0:
        cannot("only root can mount a small file system")
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size},uid={pwd.getpwnam(owner).pw_uid}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        cannot(f"mounting a tmpfs: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
