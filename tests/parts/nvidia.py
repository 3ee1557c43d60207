"""The real `nvidia-smi` with its library, of Debian's non-free packages. No driver is here, so it tells of no GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.parts import CACHE, alone, cannot
from tests.parts.suites import fetch

_TOP = CACHE / "nvidia"


def nvidia_smi() -> Path:
    """The directory of the program, which finds its library."""
    program = _TOP / "bin" / "nvidia-smi"
    with alone("nvidia"):
        if not program.exists():
            if problem := fetch(_TOP, ["nvidia-smi", "libnvidia-ml1"], ["bookworm main", "bookworm non-free"]):
                cannot(f"nvidia-smi: {problem}")
            for package in _TOP.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, _TOP / "root"], check=True)
            real = _TOP / "root/usr/lib/nvidia/current/nvidia-smi"
            libraries = _TOP / "root/usr/lib/x86_64-linux-gnu/nvidia/current"
            program.parent.mkdir()
            program.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {real} "$@"\n')
            program.chmod(0o755)
    return program.parent
