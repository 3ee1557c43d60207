"""How much a payload uses: the meter interface, and the running maxima and averages that are reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from pilot.server.report import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a payload. Memory in kB, I/O in bytes since its start, cpu in seconds since its start."""

    seconds: float
    processes: int
    rss: int = 0
    pss: int = 0
    vmem: int = 0
    swap: int = 0
    rchar: int = 0
    wchar: int = 0
    rbytes: int = 0
    wbytes: int = 0
    cpu: float = 0.0


class Meter(ABC):
    """A way to measure a process tree.

    Attributes:
        name: as a queue or a setting names it.
        needs: modules to how to install them, for `pilot plugins`.
    """

    name: ClassVar[str]
    needs: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def attach(self, members: Callable[[], list[int]]) -> None:
        """Measure the processes that `members` tells, from now on."""

    @abstractmethod
    def sample(self) -> Sample:
        """Look now. Quick: a few milliseconds for a tree of ordinary size."""


class Tally:
    """Maxima and averages over the samples of one payload."""

    def __init__(self) -> None:
        self._count = 0
        self._sums = dict.fromkeys(_MEMORY, 0)
        self._peaks = dict.fromkeys(_MEMORY, 0)
        self.last: Sample | None = None

    def add(self, sample: Sample) -> None:
        """Take a sample into account; one that saw no process says nothing."""
        if not sample.processes:
            return
        self._count += 1
        self.last = sample
        for name in _MEMORY:
            value = getattr(sample, name)
            self._sums[name] += value
            self._peaks[name] = max(self._peaks[name], value)

    def peak(self, name: str) -> int:
        """The highest `rss`, `pss`, `vmem` or `swap` seen, kB."""
        return self._peaks[name]

    def usage(self) -> Usage:
        """What to report; nothing is known before the first sample."""
        last = self.last
        if last is None:
            return Usage()
        seconds = max(last.seconds, 1.0)
        memory = {f"max_{name}": self._peaks[name] for name in _MEMORY}
        memory |= {f"avg_{name}": self._sums[name] // self._count for name in _MEMORY}
        totals = {f"tot_{name}": getattr(last, name) for name in _IO}
        rates = {f"rate_{name}": int(getattr(last, name) / seconds) for name in _IO}
        cores = round(last.cpu / last.seconds, 2) if last.seconds >= 1 else None
        return replace(Usage(cpu_time=round(last.cpu), cores=cores), **memory, **totals, **rates)


_MEMORY = ("rss", "pss", "vmem", "swap")
_IO = ("rchar", "wchar", "rbytes", "wbytes")
