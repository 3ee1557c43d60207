"""How much a payload uses: the meter interface, and the running maxima and averages that are reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pilot.cgroup import Group
from pilot.processes import Processes, Spent
from pilot.server.report import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a payload. Memory in kB, I/O in bytes since its start, CPU in seconds since its start.

    Attributes:
        rss, pss, vmem, swap: sums over the processes; RSS counts a shared page for each, PSS once.
        held: what the kernel cannot take back: PSS without pages of files, and what is swapped out, shared pages once;
            0 if it is not known.
        rchar, wchar: through system calls, page cache or not. rbytes, wbytes: from and to disks.
        cpu: user and system; utime, stime: the same one by one, where they are known.
        charged: memory of the payload's control group, page cache included.
    """

    seconds: float
    processes: int
    threads: int = 0
    rss: int = 0
    pss: int = 0
    vmem: int = 0
    swap: int = 0
    held: int = 0
    rchar: int = 0
    wchar: int = 0
    rbytes: int = 0
    wbytes: int = 0
    cpu: float = 0.0
    utime: float = 0.0
    stime: float = 0.0
    charged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a meter is to measure.

    Attributes:
        pid: of the payload's first process.
        members: tells the pids of all its living processes, parents first.
        workdir: the job directory.
        processes: to start a program beside the payload.
        environ: for such a program.
        group: the control group made for the payload, None if there is none.
    """

    pid: int
    members: Callable[[], list[int]]
    workdir: Path
    processes: Processes
    environ: Mapping[str, str]
    group: Group | None = None


class Meter(ABC):
    """A way to measure a process tree.

    Attributes:
        name: as a queue or a setting names it.
        needs: modules to how to install them, for `pilot plugins`.
        writes_timeline: True as long as it leaves `memory_monitor_output.txt` and its summary by itself.
    """

    name: ClassVar[str]
    needs: ClassVar[Mapping[str, str]] = {}
    writes_timeline: bool = False

    @classmethod
    def problem(cls, group: Group | None, environ: Mapping[str, str]) -> str:
        """Why it cannot measure here, empty if it can."""
        return ""

    @abstractmethod
    def attach(self, subject: Subject) -> None:
        """Measure a payload that has just been started, from now on."""

    @abstractmethod
    def sample(self) -> Sample:
        """Look now. Quick: a few milliseconds for a tree of ordinary size."""

    async def close(self, patience: float) -> None:  # noqa: B027  # most meters have nothing to end
        """The payload has ended.

        Args:
            patience: seconds that a program may take to write its summary; infinite if nothing hurries.
        """


class Tally:
    """Maxima and averages over the samples of one payload."""

    def __init__(self) -> None:
        self._areas = dict.fromkeys(_COUNTED, 0.0)
        self._span = 0.0
        self._peaks = dict.fromkeys(_COUNTED, 0)
        self._rss_at_pss = 0
        self._spent = Spent()
        self._seconds = 0.0
        self.charged_peak = 0
        self.last: Sample | None = None

    def add(self, sample: Sample) -> None:
        """Take a sample into account; one that saw no process says nothing."""
        if not sample.processes:
            return
        last, self.last = self.last or sample, sample
        seconds = max(0.0, sample.seconds - (last.seconds if last is not sample else 0.0))
        self._span += seconds
        self.charged_peak = max(self.charged_peak, sample.charged)
        if sample.pss > self._peaks["pss"]:
            self._rss_at_pss = sample.rss
        for name in _COUNTED:
            value = getattr(sample, name)
            self._areas[name] += (getattr(last, name) + value) / 2 * seconds
            self._peaks[name] = max(self._peaks[name], value)

    def end(self, spent: Spent, seconds: float) -> None:
        """The payload has ended: what the kernel counted is surer than samples, which miss what is between them."""
        self._spent, self._seconds = spent, seconds
        grown = spent.max_rss - self._peaks["rss"]
        if grown > 0:  # a process was larger than all of them together at any sample
            self._peaks["rss"] += grown
            # What grows that fast is a process' own memory, not shared: without this a payload that takes all at once
            # and dies has the PSS of its shell, by which the server finds memory for the next try. PSS is measured more
            # seldom than RSS: what came since then counts.
            self._peaks["pss"] += spent.max_rss - self._rss_at_pss if self.last else 0

    def peak(self, name: str) -> int:
        """The highest `rss`, `pss`, `vmem` or `swap` known, kB, or number of `processes` or `threads`."""
        return self._peaks[name]

    def average(self, name: str) -> int:
        """The mean over time, not over samples, which are closer near a limit, of what `peak` knows."""
        return int(self._areas[name] / self._span) if self._span else getattr(self.last, name, 0)

    def totals(self) -> dict[str, int]:
        """`rchar`, `wchar`, `rbytes` and `wbytes` so far."""
        return {name: max(getattr(self.last, name, 0), spent) for name, spent in zip(_IO, self._spent.io, strict=True)}

    def usage(self) -> Usage:
        """What to report; nothing is known before the first sample or the end."""
        last = self.last
        if last is None and not self._seconds:
            return Usage()
        seconds = self._seconds or (last.seconds if last else 0.0)
        cpu = max(last.cpu if last else 0.0, self._spent.cpu)
        numbers = self._memory() if last or self._spent.max_rss else {}
        for name, value in self.totals().items():
            numbers[f"tot_{name}"] = value
            numbers[f"rate_{name}"] = int(value / max(seconds, 1.0))
        cores = round(cpu / seconds, 2) if seconds >= 1 else None
        return replace(Usage(cpu_time=round(cpu), cores=cores), **numbers)

    def _memory(self) -> dict[str, int]:
        """Without a sample only the largest process is known, which is all that there is to say."""
        if self.last is None:
            return {"max_rss": self._peaks["rss"]}
        return {f"max_{name}": self._peaks[name] for name in _MEMORY} | {
            f"avg_{name}": self.average(name) for name in _MEMORY
        }


_MEMORY = ("rss", "pss", "vmem", "swap")
_COUNTED = (*_MEMORY, "processes", "threads")
_IO = ("rchar", "wchar", "rbytes", "wbytes")
