"""The time line of a payload in the formats of prmon (github.com/HSF/prmon, 3.x), which existing tools read.

A table with a line for each moment, and a summary with maxima and averages. Pilot 3 knows both by these names (PILOT3
5.3), and its users plot the one and fit a memory leak to it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, TextIO

from pilot.watch.meter import Sample, Tally

logger = logging.getLogger(__name__)

TABLE, SUMMARY = "memory_monitor_output.txt", "memory_monitor_summary.json"

#: Files that a meter leaves in the job directory, none of which is the payload's work.
FILES = (TABLE, SUMMARY, f"{SUMMARY}_snapshot", f"{SUMMARY}_tmp")

_COLUMNS = (
    *("Time", "wtime", "nprocs", "nthreads", "utime", "stime", "pss", "rss", "swap", "vmem"),
    *("rchar", "read_bytes", "wchar", "write_bytes"),
)
_MEMORY = ("pss", "rss", "swap", "vmem")
_IO = {"rchar": "rchar", "wchar": "wchar", "read_bytes": "rbytes", "write_bytes": "wbytes"}

#: Between two lines, s: a sixtieth of the run, so that short and long ones have as many; then prmon's interval.
_PARTS, _LONGEST = 60, 60.0


class Timeline:
    """Writes both files. A disk that is full, or a file of the payload in their place, ends the writing, not the job.

    Args:
        workdir: the job directory.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._table: TextIO | None = None
        self._next = 0.0
        self._peaks = {"nprocs": 0, "nthreads": 0}
        self._failed = False

    def add(self, sample: Sample) -> None:
        """Write a line unless the last one is recent."""
        self._peaks["nprocs"] = max(self._peaks["nprocs"], sample.processes)
        self._peaks["nthreads"] = max(self._peaks["nthreads"], sample.threads)
        if sample.processes and sample.seconds >= self._next and not self._failed:
            self._next = sample.seconds + min(sample.seconds / _PARTS, _LONGEST)
            self._guarded(lambda: self._line(sample))

    def close(self, tally: Tally) -> None:
        """Write the summary; nothing for a payload that was never seen."""
        if tally.last is not None and not self._failed:
            text = json.dumps(self._summary(tally, tally.last), indent=1)
            self._guarded(lambda: _write(self._workdir / SUMMARY, text))
        if self._table is not None:
            self._guarded(self._table.close)  # it may hold a line that the disk did not take

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            logger.warning("no time line of the payload: %s", error)
            self._failed = True

    def _line(self, sample: Sample) -> None:
        if self._table is None:
            self._table = _create(self._workdir / TABLE)
            self._table.write("\t".join(_COLUMNS) + "\n")
        values = {
            "Time": int(time.time()),
            "wtime": int(sample.seconds),
            "nprocs": sample.processes,
            "nthreads": sample.threads,
            "utime": int(sample.utime),
            "stime": int(sample.stime),
            **{name: getattr(sample, name) for name in _MEMORY},
            **{name: getattr(sample, attribute) for name, attribute in _IO.items()},
        }
        self._table.write("\t".join(str(values[name]) for name in _COLUMNS) + "\n")
        self._table.flush()

    def _summary(self, tally: Tally, last: Sample) -> dict[str, Any]:
        usage = tally.usage()
        totals = tally.totals()
        most = {name: tally.peak(name) for name in _MEMORY} | self._peaks
        most |= {"utime": int(last.utime), "stime": int(last.stime), "wtime": int(last.seconds)}
        most |= {name: totals[attribute] for name, attribute in _IO.items()}
        mean: dict[str, Any] = {name: tally.average(name) for name in _MEMORY}
        mean |= {name: getattr(usage, f"rate_{attribute}") for name, attribute in _IO.items()}
        return {"Max": most, "Avg": mean, "HW": {}, "prmon": {"Version": "pilot"}}


def _create(path: Path) -> TextIO:
    """A file of our own: what the payload may have put there, such as a link, is not followed."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w")


def _write(path: Path, text: str) -> None:
    with _create(path) as file:
        file.write(text + "\n")
