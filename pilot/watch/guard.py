"""All that watches one payload: its control group, its meter and time line, the looks, and what the kernel knows."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot import plugins
from pilot.cgroup import Group, Nest, OwnGroup
from pilot.errors import Code, PilotError
from pilot.job import Job, Limits
from pilot.processes import Processes, Spent
from pilot.queuedata import Queue
from pilot.server.report import Usage
from pilot.settings import Settings, SettingsError
from pilot.slotend import SlotEnd
from pilot.stop import Deadline, in_thread
from pilot.watch.disk import FreeSpace, WorkdirSize, tree_size, workdir_limit
from pilot.watch.gpu import GpuLook
from pilot.watch.killfile import KillFile
from pilot.watch.look import Look
from pilot.watch.looping import Looping
from pilot.watch.memory import Memory
from pilot.watch.memorylimit import NO_LIMIT, MemoryLimit, memory_limit
from pilot.watch.meter import Meter, Sample, Subject, Tally
from pilot.watch.metrics import payload_metrics
from pilot.watch.oom import OutOfMemory
from pilot.watch.outputs import OutputSize, StdoutSize
from pilot.watch.processcount import ProcessCount
from pilot.watch.shutdown import machine_shutdown
from pilot.watch.slotmemory import slot_limits
from pilot.watch.softstop import SoftStop
from pilot.watch.stacks import log_stacks
from pilot.watch.timeline import FILES, Timeline
from pilot.watch.walltime import Walltime, job_seconds, slot_seconds

logger = logging.getLogger(__name__)

#: Longest time for the size of the job directory at the end, s; the share of what is left for that, and for the meter.
_PATIENCE, _SHARE = 1.0, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What a guard has to know.

    Attributes:
        limits: of the job file.
        workdir, main_dir: of the job and of the pilot.
        own_files: names of the pilot's own files in the job directory.
        slot_end: when the slot is over; infinite where there is no slot, as in `pilot local`.
        started: when the job was started, on the monotonic clock.
        resource_types: as the server tells them; None if this pilot does not end jobs for their memory.
    """

    job: Job
    queue: Queue
    settings: Settings
    limits: Limits
    workdir: Path
    main_dir: Path
    own_files: tuple[str, ...]
    processes: Processes
    environ: Mapping[str, str]
    nest: Nest
    slot_end: Deadline
    resource_types: Sequence[Mapping[str, Any]] | None = None
    started: float = field(default_factory=time.monotonic)


class Guard:
    """Watches one payload, from before its start until after its end.

    Attributes:
        prefix: of the command that starts the payload, so that it begins in its control group; may be empty.
        soft_stop: tells the payload that its time is nearly over.
        out_of_memory: 1212 after `close`, if the kernel killed a process of the payload for want of memory.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        pull = post.settings.harvester_submitmode == "PULL"
        limit = memory_limit(post.job, post.queue, post.limits, post.resource_types, pull=pull)
        self._limits = [*([limit] if limit.kb else []), *slot_limits(post.environ, post.nest.slot)]
        self._group = self._make_group()
        self.prefix = self._group.prefix if self._group else ()
        self.out_of_memory: PilotError | None = None
        self._oom = OutOfMemory(self._group, post.nest.slot)
        self._tally = Tally()
        self._gpu = GpuLook(lambda: self._receivers(), post.environ)
        self._timeline = Timeline(post.workdir, self._gpu)
        self._meter = choose_meter(post.settings.meter, self._group, post.environ)
        self._members: Callable[[], list[int]] = list
        self._receivers: Callable[[], list[int]] = list
        self._seen: set[int] = set()
        self._size: WorkdirSize | None = None
        self._mark, self._told = "", False
        self._left: Callable[[], float] = lambda: math.inf
        self.soft_stop = self._make_soft_stop()

    def attach(
        self, pid: int, members: Callable[[], list[int]], receivers: Callable[[], list[int]] | None = None
    ) -> list[Look]:
        """The payload was started: what to look at while it runs; `receivers` are those of it that get signals."""
        self._members, self._receivers = members, receivers or members
        self._seen.add(pid)
        words = "; ".join(f"{limit.kb} kB ({limit.origin})" for limit in self._limits) or "none"
        logger.info("meter: %s; memory limit: %s", self._meter.name, words)
        self._meter.attach(
            Subject(
                pid=pid,
                members=self._living,
                workdir=self._post.workdir,
                processes=self._post.processes,
                environ=self._post.environ,
                group=self._group,
            )
        )
        memory = Memory(self._meter, self._tally, self._limits, self._add_line)
        gpu = [self._gpu] if self._gpu.works and not self._meter.writes_timeline else []
        return [memory, *gpu, *self._disk(), *self._clock(), *self._behaviour()]

    @property
    def hard_limit(self) -> int:
        """kB, 0 for none: where the kernel shall stop the payload if we do not."""
        return self._lowest.hard

    @property
    def _lowest(self) -> MemoryLimit:
        return min(self._limits, key=lambda limit: limit.hard, default=NO_LIMIT)

    def contained(self, mark: str, *, out_of_memory: bool) -> None:
        """The payload has ended that ran in a container.

        Args:
            mark: the paths of its control groups contain that; empty if it had none of its own.
            out_of_memory: the container's runtime says that it ran out of memory.
        """
        self._mark, self._told = mark, out_of_memory

    @property
    def usage(self) -> Usage:
        """What the payload has used so far."""
        return self._tally.usage()

    async def metrics(self, deadline: Deadline) -> dict[str, str]:
        """Words of jobMetrics, after `close`; a directory that takes longer to look at is as large as it was seen."""
        patience = min(_PATIENCE, deadline.remaining * _SHARE)
        post, gpus = self._post, self._gpu.hardware()["gpu"]
        size = self._size.peak if self._size else 0
        with suppress(TimeoutError):
            size = max(size, await asyncio.wait_for(in_thread(tree_size, post.workdir), patience))
        return payload_metrics(post.job, self.usage, post.workdir, size, gpus)

    async def close(self, spent: Spent, seconds: float, deadline: Deadline, *, killed: bool) -> None:
        """The payload has ended: complete the numbers and the time line, hear the kernel, take the group away.

        Args:
            spent: what the kernel counted.
            seconds: how long it ran.
            deadline: of all that follows.
            killed: SIGKILL ended it, or a child of it, and the pilot did not send one.
        """
        cpu = self._group.cpu_seconds if self._group else None
        self._tally.end(Spent(max(spent.cpu, cpu or 0.0), spent.max_rss, spent.io), seconds)
        peak = max(self._tally.peak("pss"), self._tally.peak("rss"))
        self.out_of_memory = self._oom.error(
            self._seen, killed=killed, peak_kb=peak, mark=self._mark, told=self._told, limit=self._lowest
        )
        if self.out_of_memory:
            logger.warning("%s", self.out_of_memory.detail)
        await self._meter.close(deadline.remaining * _SHARE)
        if not self._meter.writes_timeline:
            self._timeline.close(self._tally)
        await self.remove()

    async def remove(self) -> None:
        """Take the control group away, with whatever should be left in it. May be called again."""
        self._oom.close()
        group, self._group = self._group, None
        if group is not None:
            await in_thread(group.remove)

    def _make_group(self) -> OwnGroup | None:
        post = self._post
        # Pilots that share a group may have jobs of one id, such as those of `pilot local`, and pids of one number.
        group = post.nest.make(f"payload-{post.job.job_id}-{post.job.attempt}-{os.urandom(4).hex()}")
        if group is not None:
            high, lowest = min((limit.kb for limit in self._limits), default=0), self._lowest
            group.limit(high, lowest.hard, post.settings.max_processes, swap=lowest.of_slot)
        return group

    def _living(self) -> list[int]:
        """What is measured: not what only runs a container. All that were ever seen are known in the kernel's log."""
        pids = self._receivers()
        self._seen.update(pids)
        return pids

    def _add_line(self, sample: Sample) -> None:
        if not self._meter.writes_timeline:
            self._timeline.add(sample)

    def _disk(self) -> list[Look]:
        post, settings = self._post, self._post.settings
        outputs = [file.lfn for file in post.job.outputs]
        patience = settings.looping_limit or math.inf
        self._size = WorkdirSize(post.workdir, workdir_limit(post.queue, post.job, post.limits))
        return [
            FreeSpace(post.workdir, settings.free_space_limit_running),
            self._size,
            StdoutSize(post.workdir, settings.local_size_limit_stdout, skip=outputs),
            OutputSize(post.workdir, outputs, settings.maximum_output_file_size, patience),
        ]

    def _clock(self) -> list[Look]:
        """What ends the payload at some time; and what tells it so before the first of them does."""
        post, settings = self._post, self._post.settings
        shutdown = machine_shutdown(post.environ, settings)
        times: list[Walltime] = []
        if math.isfinite(post.slot_end.at):
            known = post.slot_end.what if isinstance(post.slot_end, SlotEnd) else ""
            times.append(Walltime(post.slot_end, known or slot_seconds(post.queue, settings.lifetime)[1]))
            seconds, what = job_seconds(post.job, post.queue, settings.lifetime)
            times.append(Walltime(Deadline(seconds - (time.monotonic() - post.started)), what))
        if post.limits.walltime_s:
            times.append(Walltime(Deadline(post.limits.walltime_s), f"the job may run {post.limits.walltime_s} s"))
        self._left = lambda: min(shutdown.left, *(one.left for one in times), math.inf)
        return [shutdown, *times, self.soft_stop]

    def _make_soft_stop(self) -> SoftStop:
        """With what the job itself or the queue chose, in this order."""
        post = self._post
        try:
            settings = post.settings.with_queue(post.queue.params)
        except SettingsError as error:  # those of the queue were checked: it is the job's
            raise PilotError(Code.BADQUEUECONFIGURATION, str(error)) from error
        name, lead = settings.soft_stop_signal, settings.soft_stop_lead
        return SoftStop(name, lead, lambda: self._left(), lambda: self._receivers())

    def _behaviour(self) -> list[Look]:
        post, settings = self._post, self._post.settings
        looks: list[Look] = [KillFile(post.main_dir, post.workdir)]
        if settings.max_processes:
            looks.append(ProcessCount(self._members, settings.max_processes, self._forks_refused))
        if settings.looping_limit and post.job.looping_check:
            looks.append(
                Looping(
                    post.workdir,
                    settings.looping_limit,
                    settings.looping_verification_time,
                    own=(*post.own_files, *FILES),
                    explain=self._explain,
                )
            )
        return looks

    def _forks_refused(self) -> int:
        return (self._group.forks_refused if self._group else None) or 0

    def _explain(self) -> None:
        log_stacks(self._members(), self._post.environ.get("PATH"))


def choose_meter(name: str, group: Group | None, environ: Mapping[str, str]) -> Meter:
    """The meter called `name`; where it cannot work, or for `auto`, the best that can."""
    wanted = ("cgroup" if group else "procfs") if name == "auto" else name
    try:
        found: type[Meter] = plugins.load("pilot.meters", wanted, Meter)
        problem = found.problem(group, environ)
    except plugins.PluginError as error:
        problem = error.detail
    if problem:
        logger.warning("meter %s cannot be used: %s; procfs instead", wanted, problem)
        found = plugins.load("pilot.meters", "procfs", Meter)
    return found()
