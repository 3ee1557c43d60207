"""Looks at the disk: space left on the node, and the size of the job directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.job import Job, Limits
from pilot.queuedata import Queue
from pilot.watch.look import nearness

#: Seconds between looks at the size of a directory: a payload that unpacks its software does it first. Then once a
#: minute as Pilot 3 (PILOT3 5.4).
_FIRST, _SHORTEST, _LONGEST = 1.0, 5.0, 60.0


class FreeSpace:
    """NOLOCALSPACE (1098) when the file system of the job directory has less than `limit` bytes left."""

    slow = False

    def __init__(self, workdir: Path, limit: int) -> None:
        self._workdir = workdir
        self._limit = limit

    def look(self) -> float:
        """Every minute, every 5 s when less than twice the limit is left."""
        free = shutil.disk_usage(self._workdir).free
        if free <= self._limit:
            text = f"{free >> 20} MiB left in {self._workdir}, {self._limit >> 20} MiB needed"
            raise PilotError(Code.NOLOCALSPACE, text)
        return 60.0 if free > 2 * self._limit else 5.0


class WorkdirSize:
    """USERDIRTOOLARGE (1104) when the job directory holds more than `limit` bytes; links are not followed."""

    slow = True

    def __init__(self, workdir: Path, limit: int) -> None:
        self._workdir = workdir
        self._limit = limit
        self._period = _FIRST / 2
        self.peak = 0

    def look(self) -> float:
        """Often while young, then every minute, down to 5 s near the limit."""
        size = tree_size(self._workdir)
        self.peak = max(self.peak, size)
        if self._limit and size > self._limit:
            raise PilotError(Code.USERDIRTOOLARGE, f"{size} bytes in {self._workdir}, the limit is {self._limit} bytes")
        self._period = min(self._period * 2, _LONGEST)
        return min(self._period, nearness(size, self._limit, _SHORTEST, _LONGEST))


def workdir_limit(queue: Queue, job: Job, limits: Limits) -> int:
    """Bytes a job directory may hold, 0 for no limit: the job file's own, else the queue's `maxwdir` (PILOT3 5.4).

    A job on one core gets its share of a queue that is made for several; the queue's grace factor comes on top.
    """
    if limits.disk_mb:
        return limits.disk_mb * 1_000_000
    share = queue.corecount if job.cores == 1 else 1
    return int((queue.maxwdir << 20) // share * queue.maxwdir_grace)


def tree_size(top: Path) -> int:
    """Bytes that the files below `top` occupy as `du` counts them: by their blocks, one with several names once."""
    blocks = 0
    known: set[tuple[int, int]] = set()
    for status in _files(top):
        place = (status.st_dev, status.st_ino)
        if place not in known:
            blocks += status.st_blocks
        if status.st_nlink > 1:
            known.add(place)
    return blocks * 512


def _files(top: Path) -> Iterator[os.stat_result]:
    """All but directories; what goes away while we look, or is not ours to read, is passed over."""
    pending = [str(top)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)
