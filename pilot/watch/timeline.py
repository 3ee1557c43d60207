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

from pilot.node import read_node
from pilot.watch.gpu import GpuLook
from pilot.watch.meter import Sample, Tally

logger = logging.getLogger(__name__)

TABLE, SUMMARY = "memory_monitor_output.txt", "memory_monitor_summary.json"

#: Files that a meter leaves in the job directory, none of which is the payload's work.
FILES = (TABLE, SUMMARY)

_MEMORY = ("pss", "rss", "swap", "vmem")
_COUNTS = {"nprocs": "processes", "nthreads": "threads"}
_IO = {"rchar": "rchar", "read_bytes": "rbytes", "wchar": "wchar", "write_bytes": "wbytes"}

#: Between two lines, s: a sixtieth of the run, so that short and long ones have as many; then prmon's interval. Never
#: less than a second: tools take `Time`, which is whole seconds, for the name of a line.
_PARTS, _SHORTEST, _LONGEST = 60, 1.0, 60.0


class Timeline:
    """Writes both files. A disk that is full, or a file of the payload in their place, ends the writing, not the job.

    Args:
        workdir: the job directory.
        gpu: looks at GPUs; None, or without a program to ask, there is nothing of them in the files.
    """

    def __init__(self, workdir: Path, gpu: GpuLook | None = None) -> None:
        self._workdir = workdir
        self._gpu = gpu if gpu is not None and gpu.works else None
        self._table: TextIO | None = None
        self._next = 0.0
        self._began = 0.0
        self._failed = False

    def add(self, sample: Sample) -> None:
        """Write a line unless the last one is recent."""
        if sample.processes and sample.seconds >= self._next and not self._failed:
            self._next = sample.seconds + max(_SHORTEST, min(sample.seconds / _PARTS, _LONGEST))
            self._guarded(lambda: self._line(sample))

    def close(self, tally: Tally) -> None:
        """Write the summary; nothing for a payload that was never seen."""
        if tally.last is not None and not self._failed:
            text = json.dumps(self._summary(tally, tally.last), indent=1)
            self._guarded(lambda: write_new(self._workdir / SUMMARY, text + "\n"))
        if self._table is not None:
            self._guarded(self._table.close)  # it may hold a line that the disk did not take

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            logger.warning("no time line of the payload: %s", error)
            self._failed = True

    def _line(self, sample: Sample) -> None:
        self._began = self._began or time.time() - sample.seconds
        values: dict[str, int] = {
            "Time": int(self._began + sample.seconds),
            "wtime": int(sample.seconds),
            **{name: getattr(sample, name) for name in _MEMORY},
            **{name: getattr(sample, attribute) for name, attribute in _IO.items()},
            "stime": int(sample.stime),
            "utime": int(sample.utime),
            **{name: getattr(sample, attribute) for name, attribute in _COUNTS.items()},
        }
        values |= self._gpu.now() if self._gpu else {}
        if self._table is None:
            self._table = _create(self._workdir / TABLE)
            self._table.write("\t".join(values) + "\n")
        self._table.write("\t".join(map(str, values.values())) + "\n")
        self._table.flush()

    def _summary(self, tally: Tally, last: Sample) -> dict[str, Any]:
        usage = tally.usage()
        totals = tally.totals()
        levels = {name: name for name in _MEMORY} | _COUNTS
        most = {name: tally.peak(attribute) for name, attribute in levels.items()}
        most |= {"utime": int(last.utime), "stime": int(last.stime), "wtime": int(last.seconds)}
        most |= {name: totals[attribute] for name, attribute in _IO.items()}
        mean: dict[str, Any] = {name: tally.average(attribute) for name, attribute in levels.items()}
        mean |= {name: getattr(usage, f"rate_{attribute}") for name, attribute in _IO.items()}
        hardware = _hardware()
        if self._gpu:
            most |= self._gpu.most()
            mean |= self._gpu.mean()
            hardware |= self._gpu.hardware()
        return {"Max": most, "Avg": mean, "HW": hardware, "prmon": {"Version": "pilot"}}


def _hardware() -> dict[str, Any]:
    node = read_node()
    cpu = {
        "CPUs": node.logical_cpus,
        "CoresPerSocket": node.cores_per_socket,
        "ModelName": node.cpu_model,
        "Sockets": node.sockets,
        "ThreadsPerCore": node.threads_per_core,
    }
    return {"cpu": cpu, "mem": {"MemTotal": node.memory << 10}}


def _create(path: Path) -> TextIO:
    """A file of our own: what the payload may have put there, such as a link, is not followed."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w")


def write_new(path: Path, text: str) -> None:
    """Write a file of our own, in the place of what is there."""
    with _create(path) as file:
        file.write(text)
