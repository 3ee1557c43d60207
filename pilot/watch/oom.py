"""Out of memory: whether the kernel killed a process of the payload for it. Known from its own counts, not guessed."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pilot.cgroup import Group
from pilot.errors import Code, PilotError
from pilot.watch.memorylimit import NO_LIMIT, MemoryLimit

logger = logging.getLogger(__name__)

_KERNEL_LOG = Path("/dev/kmsg")

#: The kernel's log has pids of the first namespace (PROC_PID_INIT_INO of linux/proc_ns.h): in another one, such as a
#: container's, those of a stranger may be numbers of ours.
_NAMESPACE, _FIRST_NAMESPACE = Path("/proc/self/ns/pid"), "pid:[4026531836]"

#: `Memory cgroup out of memory: Killed process 123 (python3) total-vm:...`, and without a group `Out of memory: ...`;
#: mm/oom_kill.c, since Linux 2.6.36, with ` or sacrifice child` behind `Kill` before 5.1.
_KILLED = re.compile(r"[Oo]ut of memory: Kill(?:ed)? process (\d+) \((.*)\),? (?:total-vm|UID)")

#: Line of a kill since Linux 4.20: names the group of the one killed, `...,task_memcg=/a/b,task=python3,pid=123,uid=0`.
_GROUP = re.compile(r"oom-kill:.*task_memcg=(\S*?),task=(.*),pid=(\d+),uid=")

#: Records of the kernel's log that are read at most; a ring of 1 MiB has some 10,000.
_RECORDS = 20_000


class OutOfMemory:
    """Tells after a payload's end whether it ran out of memory.

    Three sources, the surest first: the count of our own group; the kernel's log, where it names one of our processes;
    the count of the slot's group, which other processes may share, so it only says why a SIGKILL came.

    Args:
        group: made for the payload, None for none.
        slot: the one we are in.
        log: of the kernel; often not readable.
        namespace: of our pids.
    """

    def __init__(self, group: Group | None, slot: Group, log: Path = _KERNEL_LOG, namespace: Path = _NAMESPACE) -> None:
        self._group = group
        self._slot = slot
        self._slot_kills = slot.oom_kills or 0
        self._log = _open_at_end(log)
        self._knows_pids = namespace.is_symlink() and os.readlink(namespace) == _FIRST_NAMESPACE

    def close(self) -> None:
        """Stop listening to the kernel. May be called again."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def error(
        self,
        pids: Iterable[int],
        *,
        killed: bool,
        peak_kb: int = 0,
        mark: str = "",
        told: bool = False,
        limit: MemoryLimit = NO_LIMIT,
    ) -> PilotError | None:
        """PAYLOADOUTOFMEMORY (1212) if it did, with the peak, the limit and the process killed.

        Args:
            pids: processes of the payload that were seen.
            killed: SIGKILL ended it, or a child of it, and we did not send one.
            peak_kb: the largest memory that was measured.
            mark: of the groups of a container, in their paths.
            told: the runtime of the container says so.
            limit: of the payload's group or container.
        """
        victim = self._victim(set(pids), mark)
        ours = self._group.oom_kills or 0 if self._group else 0
        slots = (self._slot.oom_kills or 0) - self._slot_kills
        if not (ours or victim or told or (killed and slots > 0)):
            return None
        text = "the kernel killed " + (victim or "a process") + self._numbers(peak_kb, limit, contained=bool(mark))
        return PilotError(Code.PAYLOADOUTOFMEMORY, text)

    def _numbers(self, peak_kb: int, limit: MemoryLimit, *, contained: bool) -> str:
        """Peak and limit. What was charged to a group is what the kernel goes by; the slot's is not this payload's."""
        group = self._group
        peak = (group.memory_peak or 0) >> 10 if group else 0
        peak = peak or peak_kb
        own = (group.memory_limit if group else None) or (limit.hard << 10 if contained else 0)
        slots = self._slot.memory_bound or 0
        parts = [f"peak {peak} kB"] if peak else []
        if own and not 0 < slots < own:
            parts.append(f"limit {own >> 10} kB" + (f" ({limit.origin})" if limit.of_slot else ""))
        elif slots:
            parts.append(f"limit {slots >> 10} kB of the slot")
        return f": {', '.join(parts)}" if parts else ""

    def _victim(self, pids: set[int], mark: str) -> str:
        """The process that was killed, `python3 (pid 123)`, as far as the kernel's log is readable and names ours."""
        name = self._group.path_in("memory") if self._group else ""
        for line in _lines(self._log):
            by_group = _GROUP.search(line)
            if by_group and (mark in by_group[1] if mark else name and name in by_group[1].split("/")):
                return f"{by_group[2]} (pid {by_group[3]})"
            by_pid = _KILLED.search(line)
            if by_pid and self._knows_pids and int(by_pid[1]) in pids:
                return f"{by_pid[2]} (pid {by_pid[1]})"
        return ""


def _open_at_end(path: Path) -> int | None:
    """The kernel's log from now on (Documentation/ABI/testing/dev-kmsg), None if it is not for us to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.lseek(fd, 0, os.SEEK_END)
    except OSError:
        os.close(fd)
        return None
    return fd


def _lines(fd: int | None) -> Iterator[str]:
    """Lines that the kernel has written since; one record a read."""
    for _ in range(_RECORDS if fd is not None else 0):
        try:
            data = os.read(fd or 0, 8192)
        except BrokenPipeError:  # records were overwritten before we read them: go on with the oldest there is
            continue
        except OSError:  # no more
            return
        if not data:
            return
        yield from data.decode(errors="replace").splitlines()
