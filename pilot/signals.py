"""Signals to the pilot: each is a request to stop, and the second and third shorten the time for it.

SIGSEGV and SIGBUS are two things. Sent by `kill` they are a request like the others (PILOT3 5.5). Raised by the
processor, for a fault in a C library, they must end the process: whoever returned from a handler would fault again,
for ever. So these two are blocked for as long as the pilot lives. The kernel ends a process whose fault it cannot
deliver, as if nobody listened; one that was sent waits, and is read from a signalfd(2).
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pilot.errors import Code, PilotError
from pilot.processes import FAULTS, Processes
from pilot.stop import Stop

logger = logging.getLogger(__name__)

#: Signals by which batch systems and people end a pilot (PILOT3 5.5), and a terminal that goes away.
STOPPING = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),  # USR2 is Grid Engine's warning before the kill
)

#: Seconds that are left after the second and each further signal.
_IMPATIENT = (5.0, 1.0)

#: Seconds in which the same signal is one request: Slurm tells a pilot and its wrapper, which tells the pilot again.
_ECHO = 0.5

#: Bytes of a sigset_t (glibc and musl have 128) and of a signalfd_siginfo, whose first four are the number.
_SET_SIZE, _INFO_SIZE = 128, 128


@contextmanager
def held() -> Iterator[None]:
    """Keep stop signals waiting, but for the time from `listen` to `hold`.

    Between the first directory that is made and the moment when somebody listens, and again between then and the last
    directory that is removed, a signal would end the pilot on the spot and leave what it made.
    """
    before = hold()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold() -> set[int]:
    """Keep stop signals waiting from now on; the mask as it was."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, *FAULTS))


def listen(stop: Stop, grace: Callable[[], float], processes: Processes) -> None:
    """Turn signals into a stop, from now on, in the running event loop. Children that come back to us are reaped.

    Args:
        stop: to be requested.
        grace: seconds from the first signal to the end, asked when it comes.
        processes: reaps.
    """
    loop = asyncio.get_running_loop()
    impatient = iter(_IMPATIENT)
    last: dict[signal.Signals, float] = {}

    def heard(signum: signal.Signals) -> None:
        before, last[signum] = last.get(signum, -math.inf), loop.time()
        if last[signum] - before < _ECHO:
            return
        seconds = next(impatient, _IMPATIENT[-1]) if stop.requested else grace()
        logger.warning("received %s: ending within %.0f s", signum.name, seconds)
        stop.request(PilotError(Code.of_signal(signum), f"the pilot received {signum.name}"), seconds)

    for signum in STOPPING:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            loop.add_signal_handler(signum, lambda: None)  # wakes the loop; if it has no room to be told (below), this
            signal.signal(signum, lambda number, _: loop.call_soon_threadsafe(heard, signal.Signals(number)))
    loop.add_signal_handler(signal.SIGCHLD, _once_a_round(loop, processes.reap))
    _listen_for_faults(loop, heard)
    # A payload that leaves thousands of orphans a second fills the loop's socket with SIGCHLD (278 of them do). Python
    # would complain of that from within the C handler, by a lock that the interrupted code may hold: for ever.
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _once_a_round(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> Callable[[], None]:
    """Does `work` once for all that came since the last time."""
    waiting = False

    def run() -> None:
        nonlocal waiting
        waiting = False
        work()

    def soon() -> None:
        nonlocal waiting
        if not waiting:
            waiting = True
            loop.call_soon(run)

    return soon


def _listen_for_faults(loop: asyncio.AbstractEventLoop, heard: Callable[[signal.Signals], None]) -> None:
    """Hear SIGSEGV and SIGBUS that were sent. They are unblocked for no longer than it takes to start a process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FAULTS)
    fd = _signalfd(FAULTS)
    if fd < 0:
        logger.warning("signalfd: SIGSEGV and SIGBUS that are sent to the pilot are not heard")
        return

    def read() -> None:
        info = os.read(fd, _INFO_SIZE)
        heard(signal.Signals(int.from_bytes(info[:4], sys.byteorder)))

    loop.add_reader(fd, read)
    weakref.finalize(loop, os.close, fd)
    for signum in FAULTS:
        loop.add_signal_handler(signum, heard, signum)


def _signalfd(signals: tuple[signal.Signals, ...]) -> int:
    """A file descriptor from which signals that are pending can be read, -1 if the kernel gives none."""
    libc = ctypes.CDLL(None)
    wanted = ctypes.create_string_buffer(_SET_SIZE)
    libc.sigemptyset(wanted)
    for signum in signals:
        libc.sigaddset(wanted, signum)
    return int(libc.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC))
