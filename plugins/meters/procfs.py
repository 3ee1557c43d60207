"""Meter that reads /proc of every process of a payload: proc(5), no library, no privilege."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from pilot.watch.meter import Meter, Sample

_TICKS = os.sysconf("SC_CLK_TCK")

#: A PSS pass walks all page tables (about 0.2 ms a small process): on larger trees only every n-th sample does it.
_PSS_EVERY = 5
_SMALL_TREE = 20


class Procfs(Meter):
    """Sums of /proc/PID/stat, status, smaps_rollup and io over the payload's processes."""

    name = "procfs"

    def __init__(self) -> None:
        self._members: Callable[[], list[int]] = list
        self._started = time.monotonic()
        self._io: dict[tuple[int, str], list[int]] = {}
        self._cpu = 0.0
        self._count = 0
        self._pss = 0

    def attach(self, members: Callable[[], list[int]]) -> None:
        """Start the clock."""
        self._members = members
        self._started = time.monotonic()

    def sample(self) -> Sample:
        """One pass over all processes; those that end meanwhile are passed over."""
        pids = self._members()
        memory = dict.fromkeys(("VmRSS", "VmSize", "VmSwap"), 0)
        cpu = 0.0
        for pid in pids:
            cpu += self._process(pid, memory)
        if len(pids) <= _SMALL_TREE or self._count % _PSS_EVERY == 0:
            self._pss = sum(map(_pss, pids))
        self._count += 1
        self._cpu = max(self._cpu, cpu)
        rchar, wchar, rbytes, wbytes = map(sum, zip((0, 0, 0, 0), *self._io.values(), strict=True))
        return Sample(
            seconds=time.monotonic() - self._started,
            processes=len(pids),
            rss=memory["VmRSS"],
            pss=self._pss,
            vmem=memory["VmSize"],
            swap=memory["VmSwap"],
            rchar=rchar,
            wchar=wchar,
            rbytes=rbytes,
            wbytes=wbytes,
            cpu=self._cpu,
        )

    def _process(self, pid: int, memory: dict[str, int]) -> float:
        """Add one process to `memory` and to the I/O table; its CPU seconds, with those of its ended children."""
        fields = _read(pid, "stat").rpartition(")")[2].split()
        if not fields:
            return 0.0
        for line in _read(pid, "status").splitlines():
            key, _, value = line.partition(":")
            if key in memory:
                memory[key] += int(value.split()[0])
        io = dict(line.split(": ") for line in _read(pid, "io").splitlines() if ": " in line)
        if io:
            # Kept after the process has ended, under its start time: /proc forgets it, the totals must not.
            self._io[pid, fields[19]] = [int(io[key]) for key in ("rchar", "wchar", "read_bytes", "write_bytes")]
        return sum(map(int, fields[11:15])) / _TICKS


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (OSError, UnicodeDecodeError):  # it ended, or runs as another user now
        return ""


def _pss(pid: int) -> int:
    """Proportional set size, kB: shared pages counted once over the tree."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0
