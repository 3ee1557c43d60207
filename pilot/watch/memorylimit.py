"""How much memory a job may use: from its resource type, its queue and itself (PILOT3 5.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilot.job import Job, Limits
from pilot.queuedata import Queue
from pilot.watch.meter import Sample

#: MB for each core when the server tells nothing of its resource types (PILOT3 5.4), by the end of their names.
_MB_PER_CORE = {"LOMEM": 1000, "": 2000, "HIMEM": 3000}
_MB_UNKNOWN = 4001

#: The kernel ends a payload that grows faster than we look at so much more than its limit: before that it is ours to
#: say 1235, with numbers. The charge of a group is more than PSS, too: page tables, sockets, files in memory.
_SLACK = 0.1


def proportional(sample: Sample) -> int:
    """PSS, kB; RSS where that is not known."""
    return sample.pss or sample.rss


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """A limit of memory.

    Attributes:
        kb: of 1024 bytes, 0 for none.
        origin: where it comes from, in words.
        counts: what counts for it, in a word.
        used: what that is of a payload, kB.
        of_slot: it is the batch system's, and not the job's.
        slack: kB above it at which the kernel shall stop the payload if we do not.
    """

    kb: int = 0
    origin: str = ""
    counts: str = "PSS"
    used: Callable[[Sample], int] = proportional
    of_slot: bool = False
    slack: int = 0

    @property
    def hard(self) -> int:
        """Where that is, kB."""
        return self.kb + self.slack


NO_LIMIT = MemoryLimit()


def memory_limit(
    job: Job,
    queue: Queue,
    limits: Limits,
    resource_types: Sequence[Mapping[str, Any]] | None,
    *,
    pull: bool = True,
) -> MemoryLimit:
    """The memory a job may use, kB of PSS.

    The limit of a job file is taken as it is. Else it is what the resource type allows, times what the queue adds:
    `pilot_rss_grace` (100 % if it does not say) and `memkillgrace`.

    Args:
        job: the job.
        queue: its queue.
        limits: the job file's own.
        resource_types: as the server tells them, empty if it told none; None if this pilot does not end jobs for it.
        pull: the pilot fetches its jobs, which then were given `minRamCount` in steps of 1000 MB.
    """
    if limits.memory_mb:
        return _with_slack(limits.memory_mb * 1_000_000 // 1024, "limit of the job file")
    if resource_types is None:
        return NO_LIMIT
    megabytes, origin = _scaled(job, queue, resource_types, pull)
    factor = queue.rss_grace * queue.memkillgrace / 100
    if not megabytes or not factor:
        return NO_LIMIT
    return _with_slack(int(megabytes * factor * 1024), f"{origin}, times {factor:g} of the queue")


def _with_slack(kb: int, origin: str) -> MemoryLimit:
    return MemoryLimit(kb=kb, origin=origin, slack=int(kb * _SLACK))


def _scaled(job: Job, queue: Queue, resource_types: Sequence[Mapping[str, Any]], pull: bool) -> tuple[float, str]:
    """MB for all cores of the job, and what says so; 0 if nothing does."""
    name = job.resource_type
    if name.endswith("_VHIMEM") and queue.maxrss:
        whole = name.startswith("MCORE")
        megabytes = queue.maxrss if whole else queue.maxrss / queue.corecount * job.cores
        return megabytes, f"maxrss {queue.maxrss} MB of the queue"
    per_core = _per_core(name, resource_types)
    if per_core:
        return per_core * job.cores, f"{per_core:g} MB a core of {name or 'an unknown resource type'}"
    if job.min_ram:
        megabytes = math.ceil(job.min_ram / 1000) * 1000 if pull else job.min_ram
        return megabytes, f"minRamCount {job.min_ram} MB"
    return queue.maxrss, f"maxrss {queue.maxrss} MB of the queue"


def _per_core(name: str, resource_types: Sequence[Mapping[str, Any]]) -> float:
    """MB for each core; 0 when the job has no type, or one to which the server sets no maximum."""
    for entry in resource_types:
        if entry.get("resource_name") == name:
            maximum = entry.get("maxrampercore")
            return float(maximum) if isinstance(maximum, int | float) else 0.0
    kind, _, size = name.partition("_")
    known = _MB_PER_CORE if kind in ("SCORE", "MCORE") else {}
    return known.get(size, _MB_UNKNOWN) if name else 0.0
