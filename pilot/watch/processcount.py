"""Look at how many processes a payload has."""

from __future__ import annotations

import time
from collections.abc import Callable

from pilot.errors import Code, PilotError
from pilot.watch.look import Pace

#: Looks that find that the kernel has refused processes since the last one, with so many quiet seconds between them at
#: most. A build that is too parallel gets over it, or fails by itself; a fork bomb in a shell tries again for ever.
_HELD, _QUIET = 5, 30.0


class ProcessCount:
    """RESOURCEUNAVAILABLE (1344) when a payload has too many processes: before the node runs out of them.

    Where a control group holds it to the limit it never has more: then it is one that wants more again and again.

    Args:
        members: its pids.
        limit: how many there may be.
        refused: how many more the kernel has refused.
        clock: seconds.
    """

    slow = False

    def __init__(
        self,
        members: Callable[[], list[int]],
        limit: int,
        refused: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = members
        self._limit = limit
        self._refused = refused
        self._clock = clock
        self._pace = Pace(1.0, 30.0)
        self._last = self._held = 0
        self._at = 0.0

    def look(self) -> float:
        """Every 30 s, down to every second near the limit."""
        count = len(self._members())
        if count > self._limit:
            text = f"the payload has {count} processes, the limit is {self._limit}"
            raise PilotError(Code.RESOURCEUNAVAILABLE, text)
        self._look_at_refused()
        return 1.0 if self._held else self._pace.next(count, self._limit)

    def _look_at_refused(self) -> None:
        refused, now = self._refused(), self._clock()
        if refused > self._last:
            self._held, self._last, self._at = self._held + 1, refused, now
        elif now - self._at > _QUIET:
            self._held = 0
        if self._held >= _HELD:
            text = (
                f"the payload tries to have more than the {self._limit} processes that it may: {refused} were refused"
            )
            raise PilotError(Code.RESOURCEUNAVAILABLE, text)
