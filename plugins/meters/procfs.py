"""Meter that reads /proc of every process of a payload: proc(5), no library, no privilege."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from pilot.watch.meter import Meter, Sample, Subject

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024

#: A PSS pass walks all page tables, which the kernel needs 0.2 ms for with a small process and 100 ms with a large
#: tree: it is done when RSS has moved by a twentieth since the last one, or so many passes of the same price have gone.
_PSS_CHANGE = 0.05
_PSS_EVERY = 20

#: Below this many processes it always is.
_SMALL_TREE = 8


@dataclass(slots=True)
class _Used:
    """What one process has used: its parent, CPU seconds (user, system), I/O bytes in the order of proc(5)."""

    parent: int
    cpu: tuple[float, float]
    io: tuple[int, int, int, int]


class Procfs(Meter):
    """Sums of /proc/PID/stat, statm, io and smaps_rollup over the payload's processes.

    What a process used that has ended is in its parent's numbers once that has waited for it. What came to the pilot
    as an orphan is kept here. A process that lived and ended between two samples, and was not waited for by its
    parent (SIGCHLD ignored), is not seen; nor is a peak between two samples.
    """

    name = "procfs"

    def __init__(self) -> None:
        self._members: Callable[[], list[int]] = list
        self._started = time.monotonic()
        self._seen: dict[tuple[int, bytes], _Used] = {}
        self._orphans: list[_Used] = []
        self._passes = 0
        self._pss = self._swap = self._held = self._rss_then = 0
        self._highest = [0.0] * 6

    def attach(self, subject: Subject) -> None:
        """Start the clock."""
        self._members = subject.members
        self._started = time.monotonic()

    def sample(self) -> Sample:
        """One pass over all processes; those that end meanwhile are passed over."""
        pids = list(self._members())
        seen: dict[tuple[int, bytes], _Used] = {}
        rss = vmem = threads = alive = 0
        for place, pid in enumerate(pids):
            fields = _stat(pid)
            if not fields:
                continue
            threads += int(fields[17])
            seen[pid, fields[19]] = _used(pid, fields)
            if fields[0] == b"Z" and int(fields[17]) > 1:  # memory is told of its other threads alone, as /proc/TID
                pids[place] = _living_thread(pid)
                fields = _stat(pids[place]) or fields
            vmem += int(fields[20]) >> 10
            rss += int(fields[21]) * _PAGE_KB
            alive += fields[21] != b"0"  # one that has just ended has no memory left: it is no measure of the payload
        self._keep_orphans(seen)
        self._measure_pss(pids, rss)
        utime, stime, *io = self._totals()
        return Sample(
            seconds=time.monotonic() - self._started,
            processes=alive,
            threads=threads,
            rss=rss,
            pss=min(self._pss, rss) if rss else 0,
            vmem=vmem,
            swap=self._swap,
            held=self._held if rss else 0,
            rchar=int(io[0]),
            wchar=int(io[1]),
            rbytes=int(io[2]),
            wbytes=int(io[3]),
            cpu=utime + stime,
            utime=utime,
            stime=stime,
        )

    def _keep_orphans(self, seen: dict[tuple[int, bytes], _Used]) -> None:
        """Those that have ended since, and whose parent was the pilot: no process of the payload counts them."""
        pilot = os.getpid()
        ended = (used for key, used in self._seen.items() if key not in seen)
        self._orphans += [used for used in ended if used.parent == pilot]
        self._seen = seen

    def _totals(self) -> list[float]:
        """User, system, and the four of I/O: never less than before, since nothing that was used is given back."""
        every = [*self._seen.values(), *self._orphans]
        now = [sum(column) for column in zip(*((*used.cpu, *used.io) for used in every), strict=True)] or [0.0] * 6
        self._highest = [max(old, new) for old, new in zip(self._highest, now, strict=True)]
        return self._highest

    def _measure_pss(self, pids: list[int], rss: int) -> None:
        self._passes += 1
        moved = abs(rss - self._rss_then) > self._rss_then * _PSS_CHANGE
        if moved or len(pids) <= _SMALL_TREE or self._passes >= _PSS_EVERY:
            found = [_pss(pid) for pid in pids]
            self._pss, self._swap, self._held = (sum(column) for column in zip((0, 0, 0), *found, strict=True))
            self._rss_then, self._passes = rss, 0


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the state on; empty if there is no such process."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _living_thread(pid: int) -> int:
    """A thread of a process whose first one has ended; the pid if there is none."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task") if name != str(pid)]
    except OSError:
        return pid
    return next((thread for thread in threads if _stat(thread)[21:22] not in ([], [b"0"])), pid)


def _used(pid: int, fields: list[bytes]) -> _Used:
    """CPU and I/O of a process, with those of its children that it has waited for."""
    utime, stime, cutime, cstime = map(int, fields[11:15])
    words = _read(pid, "io").split()
    rchar, wchar, rbytes, wbytes = (int(words[at]) for at in (1, 3, 9, 11)) if len(words) > 11 else (0, 0, 0, 0)
    cpu = ((utime + cutime) / _TICKS, (stime + cstime) / _TICKS)
    return _Used(int(fields[1]), cpu, (rchar, wchar, rbytes, wbytes))


def _pss(pid: int) -> tuple[int, int, int]:
    """Proportional set size, which counts shared pages once over the tree; swap; what is held of both, kB."""
    found: dict[bytes, int] = {}
    for line in _read(pid, "smaps_rollup").splitlines():
        name, *value = line.split()
        if name in (b"Pss:", b"Swap:", b"SwapPss:", b"Pss_File:"):
            found[name] = int(value[0])
    pss, swap, files = (found.get(name, 0) for name in (b"Pss:", b"Swap:", b"Pss_File:"))
    held = pss - files + found[b"SwapPss:"] if b"Pss_File:" in found else 0  # it is told since Linux 5.3
    return pss, swap, held


def _read(pid: int, name: str) -> bytes:
    """A file of /proc in one read: pathlib and text would double what a sample costs."""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    except OSError:  # it ended, or runs as another user now
        return b""
    try:
        return os.read(fd, 8192)
    except OSError:
        return b""
    finally:
        os.close(fd)
