"""Look at how many processes a payload has."""

from __future__ import annotations

from collections.abc import Callable

from pilot.errors import Code, PilotError
from pilot.watch.look import Pace


class ProcessCount:
    """RESOURCEUNAVAILABLE (1344) when a payload has more than `limit` processes: before the node runs out of them."""

    slow = False

    def __init__(self, members: Callable[[], list[int]], limit: int) -> None:
        self._members = members
        self._limit = limit
        self._pace = Pace(1.0, 30.0)

    def look(self) -> float:
        """Every 30 s, down to every second near the limit."""
        count = len(self._members())
        if count > self._limit:
            text = f"the payload has {count} processes, the limit is {self._limit}"
            raise PilotError(Code.RESOURCEUNAVAILABLE, text)
        return self._pace.next(count, self._limit)
