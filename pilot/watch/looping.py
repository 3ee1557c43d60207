"""Look for a payload that does nothing any more: no file of the job has been written for a long time."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pilot.errors import Code, PilotError

#: A look that comes so much later than it was asked for, s, was not late: the machine or the slot was suspended.
_LATE = 30.0

#: Shortest time between two looks, s.
_SHORTEST = 1.0


class Looping:
    """LOOPINGJOB (1150) when the newest file below the job directory is older than `limit` seconds.

    Time in which nobody could run (a laptop's lid, a suspended virtual machine, a batch system that stopped the whole
    slot) does not count: it shows as a look that comes much too late, as does a clock that was set forward. A payload
    that is stopped alone, while the pilot runs, is looping.

    Args:
        workdir: the job directory.
        limit: s.
        period: longest time between two looks, s.
        own: names of the pilot's own files in the job directory, which do not count.
        explain: called before the job is ended, to leave in the log what the payload was doing.
        clock: seconds since 1970, as the times of files.
    """

    slow = True

    def __init__(
        self,
        workdir: Path,
        limit: float,
        period: float,
        *,
        own: tuple[str, ...] = (),
        explain: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._workdir = workdir
        self._limit = limit
        self._period = period
        self._own = own
        self._explain = explain
        self._clock = clock
        self._written_at = self._asked = clock()
        self._newest = 0.0
        self._suspended = 0.0

    def look(self) -> float:
        """Look when the limit would be reached if nothing is written from now on, and every `period` seconds."""
        now = self._clock()
        late = now - self._asked
        self._suspended += late if late > _LATE else 0.0
        newest, name = max(self._written(), default=(0.0, ""))
        if newest > self._newest:
            # A time in the future says no more than that it was written by now; one before the start says nothing.
            self._newest, written_at = newest, min(newest, now)
            if written_at > self._written_at:
                self._written_at, self._suspended = written_at, 0.0
        quiet = now - self._written_at - self._suspended
        if quiet >= self._limit:
            self._explain()
            last = f", the last one {name}" if name else ""
            text = f"no file was written for {quiet:.0f} s{last}; the limit is {self._limit:.0f} s"
            raise PilotError(Code.LOOPINGJOB, text)
        period = max(_SHORTEST, min(self._period, self._limit - quiet))
        self._asked = now + period
        return period

    def _written(self) -> Iterator[tuple[float, str]]:
        """When each file was written; links are not followed, directories and the pilot's own files do not count."""
        pending = [str(self._workdir)]
        while pending:
            folder = pending.pop()
            own = self._own if folder == str(self._workdir) else ()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        elif entry.name not in own:
                            found = entry.stat(follow_symlinks=False)
                            if stat.S_ISREG(found.st_mode):
                                yield _changed_at(found), entry.name
            except OSError:  # it went away while we looked, or is not ours to read
                continue


def _changed_at(found: os.stat_result) -> float:
    """When a file was written. Not its mtime: who unpacks an archive sets that, perhaps to years ago or ahead.

    But a name more or less, as jobs that share an input in a cache have, changes the inode and writes nothing.
    """
    return found.st_ctime if found.st_nlink == 1 else found.st_mtime
