"""The processes of this pilot: those it started, and those that came to it when their parents died.

The pilot is a *subreaper* (prctl(2), PR_SET_CHILD_SUBREAPER): a payload that double-forks a daemon away does not lose
it to PID 1, it comes back as a child of the pilot. So "what is left of the payload" is a question that the kernel
answers, and nothing is ever found by name or by user.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilot.stop import in_thread

logger = logging.getLogger(__name__)

PR_SET_CHILD_SUBREAPER = 36

#: Signals that the pilot keeps blocked (see `pilot.signals`), and no process that it starts may inherit so: a program's
#: own handler for its faults would never be called.
FAULTS = (signal.SIGSEGV, signal.SIGBUS)

#: Places of `ppid`, `num_threads` and `starttime` among the fields that `_stat` gives: the 4th, 20th, 22nd of proc(5).
_PARENT, _NUM_THREADS, _START_TIME = 1, 17, 19

#: Seconds that a process's start is known to.
TICK = 1 / os.sysconf("SC_CLK_TCK")

#: Children that are collected between two looks at our own counters. A look costs as much as ten of them; what our
#: threads read and write meanwhile is taken for theirs.
_AT_ONCE = 64

#: How /proc says that there is no such process, or that it is another user's and hidden (`hidepid` of proc(5)).
_UNSEEN = (FileNotFoundError, ProcessLookupError, PermissionError)

#: False on kernels built without CONFIG_PROC_CHILDREN.
_HAS_CHILDREN_FILE = Path(f"/proc/self/task/{os.getpid()}/children").exists()


class Processes:
    """Starts processes, knows which children are whose, and reaps those that were adopted."""

    def __init__(self) -> None:
        # A shell that became us by `exec` may have left children: they are no payload's and not for us to end.
        self._own = set(children())
        self._kept: set[int] = set()
        self._lock = threading.Lock()
        self._own_peak = 0
        self.adopted_usage = Spent()
        _become_subreaper()

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a session of its own; options as for `subprocess.Popen`."""
        with self._lock, _faults_unblocked():
            process = subprocess.Popen(argv, start_new_session=True, **options)
            self._own.add(process.pid)
        return process

    def forget(self, process: subprocess.Popen[Any]) -> None:
        """A process started here has ended and was waited for."""
        with self._lock:
            self._own.discard(process.pid)

    def adopted(self) -> list[int]:
        """Children that we did not start: left behind by a payload.

        Those of our own session are not: a payload has sessions of its own and no process can join another. They are
        of some library that starts a program by itself, and waits for it.
        """
        with self._lock:
            others, session = self._own | self._kept, os.getsid(0)
            return [pid for pid in children() if pid not in others and not _is_in(session, pid)]

    def keep(self, pids: Sequence[int]) -> None:
        """Adopted children that are no payload's, such as a service of the node; those kept before are so no longer."""
        with self._lock:
            self._kept = set(pids)

    def reap(self) -> None:
        """Collect adopted children that have ended, and count what they spent into `adopted_usage`.

        A payload may leave thousands of them a second: those that nobody collects take the pids of the node away.
        """
        pids = self.adopted()
        for start in range(0, len(pids), _AT_ONCE):
            before = _own_io()
            ended = [usage for pid in pids[start : start + _AT_ONCE] if (usage := _usage_of_ended(pid))]
            if ended:
                self.adopted_usage += self._spent(ended, before)

    def _spent(self, ended: Sequence[resource.struct_rusage], io_before: tuple[int, ...]) -> Spent:
        largest = max(usage.ru_maxrss for usage in ended)
        if largest > self._own_peak:  # what it was at the last look is enough for all that are smaller
            self._own_peak = _own_peak()
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in ended)
        return Spent(cpu, largest if largest > self._own_peak else 0, _io_since(io_before))


@dataclass(frozen=True, slots=True)
class Spent:
    """What processes used that were waited for, each with all of its own descendants that it waited for.

    Attributes:
        cpu: CPU seconds, user and system.
        max_rss: kB of the largest of them, 0 if it was no larger than the pilot itself: a new process begins as a copy
            of the pilot, and the kernel counts that.
        io: bytes rchar, wchar, read_bytes and write_bytes of proc(5).
    """

    cpu: float = 0.0
    max_rss: int = 0
    io: tuple[int, ...] = (0, 0, 0, 0)

    def __add__(self, other: Spent) -> Spent:
        """Both together."""
        io = tuple(map(sum, zip(self.io, other.io, strict=True)))
        return Spent(self.cpu + other.cpu, max(self.max_rss, other.max_rss), io)

    def since(self, before: Spent) -> Spent:
        """What came to it since it was `before`."""
        io = tuple(now - then for now, then in zip(self.io, before.io, strict=True))
        return Spent(self.cpu - before.cpu, self.max_rss if self.max_rss > before.max_rss else 0, io)


def _wait(pid: int) -> tuple[int, Spent]:
    """wait4(2). The kernel adds the I/O of a child to its parent's when it is waited for: so ours grows by it."""
    before = _own_io()
    _, status, usage = os.wait4(pid, 0)
    max_rss = usage.ru_maxrss if usage.ru_maxrss > _own_peak() else 0
    return status, Spent(usage.ru_utime + usage.ru_stime, max_rss, _io_since(before))


def _usage_of_ended(pid: int) -> resource.struct_rusage | None:
    """Collect a child if it has ended."""
    try:
        ended, _, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return usage if ended else None


def _own_peak() -> int:
    """The most memory that we ever had, kB: a child's `ru_maxrss` begins there, since it starts as a copy of us.

    Not our own `ru_maxrss`, which began at that of whoever started us: a large parent would hide small payloads.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _own_io() -> tuple[int, ...]:
    try:
        words = Path("/proc/self/io").read_bytes().split()
    except OSError:  # a kernel without CONFIG_TASK_IO_ACCOUNTING
        return (0, 0, 0, 0)
    return tuple(int(words[at]) for at in (1, 3, 9, 11))


def _io_since(before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(now - then for now, then in zip(_own_io(), before, strict=True))


async def wait_exit(process: subprocess.Popen[Any]) -> Spent | None:
    """Wait until a process has ended; its `returncode` is set then.

    Returns:
        What the process and those of its descendants that were waited for have used; None if only a thread could
        wait, or if somebody else has collected it first.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except (OSError, AttributeError):  # kernels before 5.3
        await in_thread(process.wait)
        return None
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return _collect(process)


def _collect(process: subprocess.Popen[Any]) -> Spent | None:
    """The exit status of a process that has ended goes to its `returncode`, its usage to the first who asks."""
    if process.returncode is not None:
        return None
    status, spent = _wait(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    return spent


def children(pid: int | None = None) -> list[int]:
    """Direct children of a process (our own by default), of all its threads."""
    pid = pid or os.getpid()
    if not _HAS_CHILDREN_FILE:
        return _all_children().get(pid, [])
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += _children_of_thread(pid, task)
    except _UNSEEN:  # it has just ended
        pass
    return found


def _children_of_thread(pid: int, task: str) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    except _UNSEEN:  # the thread has just ended
        return []


def descendants(roots: Sequence[int]) -> list[int]:
    """The processes `roots` and all below them, parents first."""
    found = list(dict.fromkeys(roots))
    known = None if _HAS_CHILDREN_FILE else _all_children()  # one look at all processes, not one for each
    for pid in found:
        below = children(pid) if known is None else known.get(pid, [])
        found += [child for child in below if child not in found]
    return found


def ancestors(pid: int) -> Iterator[int]:
    """The parent of a process, its parent, and so on."""
    while pid := _parent(pid):
        yield pid


def _parent(pid: int) -> int:
    """0 if there is none."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else 0


def send(pids: Sequence[int], signum: signal.Signals) -> None:
    """Send a signal to processes; those that have just ended are passed over."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
        except PermissionError:
            logger.warning("may not send %s to pid %d: it runs as another user now", signum.name, pid)


def is_zombie(pid: int) -> bool:
    """True if a process has ended but was not waited for, or is gone or hidden.

    One whose first thread has ended looks like a zombie too, but lives on in its other threads.
    """
    fields = _stat(pid)
    return not fields or (fields[0] in (b"Z", b"X") and int(fields[_NUM_THREADS]) <= 1)


def began(pid: int) -> float:
    """When a process began, seconds since boot in steps of `TICK`; infinite if there is none."""
    fields = _stat(pid)
    return int(fields[_START_TIME]) * TICK if fields else math.inf


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on (proc(5)); empty if there is no such process.

    Bytes, since the name of the program in front of them may be any bytes, parentheses and line ends among them.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except _UNSEEN:
        return []


def _is_in(session: int, pid: int) -> bool:
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:  # another thread has just waited for it
        return True


def _all_children() -> dict[int, list[int]]:
    """The children of every process, where the kernel has no `children` files."""
    found: dict[int, list[int]] = {}
    for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]:
        found.setdefault(_parent(pid), []).append(pid)
    return found


@contextmanager
def _faults_unblocked() -> Iterator[None]:
    """In this thread, for half a millisecond: a child gets the mask of the thread that starts it."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become_subreaper() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        logger.warning("prctl(PR_SET_CHILD_SUBREAPER): %s", os.strerror(ctypes.get_errno()))
