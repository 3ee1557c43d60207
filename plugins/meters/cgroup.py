"""Meter that reads the control group of a payload: what the kernel counts for all that ever ran in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pilot.cgroup import Group
from pilot.watch.meter import Sample, Subject
from plugins.meters.procfs import Procfs


class Cgroup(Procfs):
    """CPU time and disk I/O from the group, which misses nothing; memory of the processes, which it does not tell.

    A group's own memory has the page cache in it, so it is no RSS or PSS: it is kept as what was charged, and is in
    the text of a job that ran out of memory.
    """

    name = "cgroup"

    def __init__(self) -> None:
        super().__init__()
        self._group: Group | None = None

    @classmethod
    def problem(cls, group: Group | None, environ: Mapping[str, str]) -> str:
        """It needs a group of the payload's own."""
        return "" if group else "there is no control group for the payload"

    def attach(self, subject: Subject) -> None:
        """Start the clock."""
        super().attach(subject)
        self._group = subject.group

    def sample(self) -> Sample:
        """One pass over the processes, then the counters of the group."""
        sample = super().sample()
        group = self._group
        if group is None:
            return sample
        read, written = group.io_bytes or (sample.rbytes, sample.wbytes)
        cpu = group.cpu_seconds
        charged = (group.memory_peak or group.memory_current or 0) >> 10
        return replace(
            sample,
            cpu=sample.cpu if cpu is None else cpu,
            rbytes=max(read, sample.rbytes),
            wbytes=max(written, sample.wbytes),
            charged=charged,
        )
