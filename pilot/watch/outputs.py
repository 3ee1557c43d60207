"""Looks at what a payload writes: the size of its stdout and of its output files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.watch.look import Pace

logger = logging.getLogger(__name__)

#: Files of a payload that are its log (PILOT3 5.4), and where ours keeps its error output.
STDOUT_PATTERNS = ("payload.stdout", "payload.stderr", "log.*", "workDir/tmp.stdout.*")

_SHORTEST, _LONGEST = 1.0, 60.0


class StdoutSize:
    """STDOUTTOOBIG (1106) when a log file of the payload is larger than `limit` bytes.

    The file is left where it is: the log archive keeps its beginning and its end.
    """

    slow = False

    def __init__(self, workdir: Path, limit: int, skip: Iterable[str] = ()) -> None:
        self._workdir = workdir
        self._limit = limit
        self._skip = frozenset(skip)
        self._pace = Pace(_SHORTEST, _LONGEST)

    def look(self) -> float:
        """Every minute, down to every second near the limit."""
        largest = 0
        for path in self._files():
            size = _size(path)
            if size > self._limit:
                name = path.relative_to(self._workdir)
                raise PilotError(Code.STDOUTTOOBIG, f"{name} has {size} bytes, the limit is {self._limit} bytes")
            largest = max(largest, size)
        return self._pace.next(largest, self._limit)

    def _files(self) -> Iterator[Path]:
        for pattern in STDOUT_PATTERNS:
            yield from (path for path in self._workdir.glob(pattern) if path.name not in self._skip)


class OutputSize:
    """OUTPUTFILETOOLARGE (1124) for an output of `limit` bytes or more, EMPTYOUTPUTFILE (1350) for one left empty.

    Pilot 3 ended a job at the first sight of an empty output. A file is empty when it has just been created, so here it
    must have been empty, and untouched, for `patience` seconds; before that it is a line in the log.

    Args:
        workdir: the job directory.
        names: LFNs of the outputs.
        limit: bytes.
        patience: s.
    """

    slow = False

    def __init__(self, workdir: Path, names: Sequence[str], limit: int, patience: float) -> None:
        self._files = [workdir / name for name in names]
        self._limit = limit
        self._patience = patience
        self._noticed: set[Path] = set()
        self._pace = Pace(_SHORTEST, _LONGEST)

    def look(self) -> float:
        """Every minute, down to every second near the limit."""
        largest = 0
        for path in self._files:
            size = _size(path)
            largest = max(largest, size)
            if size == 0:
                self._empty(path)
            elif size >= self._limit:
                text = f"{path.name} has {size} bytes, the limit is {self._limit} bytes"
                raise PilotError(Code.OUTPUTFILETOOLARGE, text)
        return self._pace.next(largest, self._limit)

    def _empty(self, path: Path) -> None:
        try:
            age = time.time() - os.lstat(path).st_mtime
        except OSError:
            return
        if path not in self._noticed:
            self._noticed.add(path)
            logger.info("output %s is empty so far", path.name)
        if age > self._patience:
            text = f"{path.name} has been empty for {age:.0f} s, the limit is {self._patience:.0f} s"
            raise PilotError(Code.EMPTYOUTPUTFILE, text)


def _size(path: Path) -> int:
    """Bytes of a file, -1 if there is none."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1
