"""Signals to the pilot: each is a request to stop, and the second and third shorten the time for it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pilot.errors import Code, PilotError
from pilot.processes import Processes
from pilot.stop import Stop

logger = logging.getLogger(__name__)

#: Signals by which batch systems and people end a pilot (PILOT3 5.5), and a terminal that goes away.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGXCPU, signal.SIGHUP)

#: Seconds that are left after the second and each further signal.
_IMPATIENT = (5.0, 1.0)


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
    return signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def listen(stop: Stop, grace: Callable[[], float], processes: Processes) -> None:
    """Turn signals into a stop, from now on, in the running event loop. Children that come back to us are reaped.

    Args:
        stop: to be requested.
        grace: seconds from the first signal to the end, asked when it comes.
        processes: reaps.
    """
    loop = asyncio.get_running_loop()
    impatient = iter(_IMPATIENT)

    def heard(signum: signal.Signals) -> None:
        seconds = next(impatient, _IMPATIENT[-1]) if stop.requested else grace()
        logger.warning("received %s: ending within %.0f s", signum.name, seconds)
        stop.request(PilotError(Code.of_signal(signum), f"the pilot received {signum.name}"), seconds)

    for signum in STOPPING:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            loop.add_signal_handler(signum, heard, signum)
    loop.add_signal_handler(signal.SIGCHLD, processes.reap)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
