"""Looks at the disk: space left on the node, and the size of the job directory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.job import Job, Limits
from pilot.queuedata import Queue
from pilot.watch.look import Pace

#: Seconds between looks: often at first, since a payload that unpacks its software does it first; then once a minute as
#: Pilot 3 (PILOT3 5.4), unless it grows fast.
_SHORTEST, _LONGEST = 1.0, 60.0

#: A walk over a tree is worth a pause of so many times as long: 1 % of a core at most.
_PAUSE = 100


class FreeSpace:
    """NOLOCALSPACE (1098) when the file system of the job directory has less than `limit` bytes left."""

    slow = True  # on a network file system whose server is away it takes for ever

    def __init__(self, workdir: Path, limit: int) -> None:
        self._workdir = workdir
        self._limit = limit
        self._pace = Pace(_SHORTEST, _LONGEST)

    def look(self) -> float:
        """Every minute, down to every second near the limit."""
        total, _, free = shutil.disk_usage(self._workdir)
        if free <= self._limit:
            text = f"{free >> 20} MiB left in {self._workdir}, {self._limit >> 20} MiB needed"
            raise PilotError(Code.NOLOCALSPACE, text)
        # Half of a large disk is as far off as all of it: what is near is some gigabytes.
        near = min(total, 8 * max(self._limit, 1 << 30))
        return self._pace.next(near - min(free, near), near - self._limit)


class WorkdirSize:
    """USERDIRTOOLARGE (1104) when the job directory holds more than `limit` bytes; links are not followed."""

    slow = True

    def __init__(self, workdir: Path, limit: int) -> None:
        self._workdir = workdir
        self._limit = limit
        self._pace = Pace(_SHORTEST, _LONGEST)
        self.peak = 0

    def look(self) -> float:
        """Every minute, down to every second near the limit; a large tree takes its time to look at, and has it."""
        started = time.monotonic()
        size = tree_size(self._workdir)
        self.peak = max(self.peak, size)
        if self._limit and size > self._limit:
            raise PilotError(Code.USERDIRTOOLARGE, f"{size} bytes in {self._workdir}, the limit is {self._limit} bytes")
        took = time.monotonic() - started
        return max(self._pace.next(size, self._limit), min(_LONGEST, _PAUSE * took))


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
