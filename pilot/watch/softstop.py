"""Look whether the payload should be told that its time is nearly over, so that it can save what it has."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable

from pilot.processes import send

logger = logging.getLogger(__name__)

_LONGEST, _SHORTEST = 60.0, 0.1

#: Seconds until the next try while the container of the payload is still being made.
_AGAIN = 1.0


class SoftStop:
    """Sends a signal of the queue's or the job's choice to the payload, once; it ends nothing by itself.

    Args:
        name: of the signal, such as `USR1`; empty for none.
        lead: seconds before the payload will be stopped.
        left: tells how many seconds the payload has until that.
        members: living processes of the payload.
    """

    slow = False

    def __init__(self, name: str, lead: float, left: Callable[[], float], members: Callable[[], list[int]]) -> None:
        self._signal = signal.Signals[f"SIG{name}"] if name else None
        self._lead = lead
        self._left = left
        self._members = members
        self._pause = 0.5  # the looks that learn the end of the slot begin beside this one

    def look(self) -> float:
        """When the time has come, and every minute, since a shutdown may be announced meanwhile."""
        if self._signal is None:
            return math.inf
        left = self._left()
        if left <= self._lead:
            return math.inf if self.tell(f"{left:.0f} s are left") else _AGAIN
        self._pause = min(2 * self._pause, _LONGEST)
        return max(_SHORTEST, min(self._pause, left - self._lead))

    def tell(self, why: str) -> bool:
        """Send the signal now; False if there is none, if it was sent before, or if nobody is there to hear it yet."""
        signum, pids = self._signal, self._members()
        if signum is None or not pids:
            return False
        self._signal = None
        logger.info("%s: %s to %d processes of the payload", why, signum.name, len(pids))
        send(pids, signum)
        return True
