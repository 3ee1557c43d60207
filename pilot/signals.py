"""Signals to the pilot: each is a request to stop, and the second and third shorten the time for it."""

from __future__ import annotations

import asyncio
import logging
import signal

from pilot.errors import Code, PilotError
from pilot.processes import Processes
from pilot.stop import Stop

logger = logging.getLogger(__name__)

#: Signals by which batch systems and people end a pilot (PILOT3 5.5).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGXCPU)

#: Seconds that are left after the second and each further signal.
_IMPATIENT = (5.0, 1.0)


def listen(stop: Stop, grace: float, processes: Processes) -> None:
    """Turn signals into a stop, from now on, in the running event loop. Children that come back to us are reaped."""
    loop = asyncio.get_running_loop()
    graces = iter((grace, *_IMPATIENT))

    def heard(signum: signal.Signals) -> None:
        seconds = next(graces, _IMPATIENT[-1])
        logger.warning("received %s: ending within %.0f s", signum.name, seconds)
        stop.request(PilotError(Code.of_signal(signum), f"the pilot received {signum.name}"), seconds)

    for signum in STOPPING:
        loop.add_signal_handler(signum, heard, signum)
    loop.add_signal_handler(signal.SIGCHLD, processes.reap)
