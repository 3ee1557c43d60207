"""Look at the clock: the job's own limit, and the end of the slot."""

from __future__ import annotations

import math

from pilot.errors import Code, PilotError
from pilot.stop import Deadline


class Walltime:
    """REACHEDMAXTIME (1213) when time is up.

    Args:
        deadline: when it is.
        what: whose limit it is, for the text: `queue maxtime 3600 s`.
    """

    slow = False

    def __init__(self, deadline: Deadline, what: str) -> None:
        self._deadline = deadline
        self._what = what

    def look(self) -> float:
        """One look now and one at the end."""
        if self._deadline.expired:
            raise PilotError(Code.REACHEDMAXTIME, self._what)
        return self._deadline.remaining * 1.1 if math.isfinite(self._deadline.at) else math.inf
