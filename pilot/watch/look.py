"""The watch over a running payload: small looks, each in its own rhythm, any of which can end the job.

A look is a question (`is there still disk?`) with a limit. It says itself when it wants to look again: seldom while far
from the limit, often when near. The first look that finds its limit passed stops the job with its error.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pilot.errors import Code, PilotError
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

#: Seconds to the next look when one was not possible.
_BLIND = 60.0


class Look(Protocol):
    """One question about a running job."""

    def look(self) -> float:
        """Look once, in a thread if `slow`.

        Returns:
            Seconds until the next look, infinite for never again.

        Raises:
            PilotError: the limit is passed; the job is to be stopped with this error.
        """

    @property
    def slow(self) -> bool:
        """True if a look may take more than a few milliseconds."""


async def watch(looks: Sequence[Look], stop: Stop, grace: float) -> None:
    """Run all looks until the stop; request it for the first that raises. Cancel this to end the watch.

    Args:
        looks: what to ask.
        stop: of the job.
        grace: seconds that are left for all that follows when the time of the slot is up. For any other reason only
            the payload has to hurry: its log may take as long as that of a good job.
    """
    async with asyncio.TaskGroup() as group:
        for look in looks:
            group.create_task(_repeat(look, stop, grace))


async def _repeat(look: Look, stop: Stop, grace: float) -> None:
    while not stop.requested:
        try:
            period = await in_thread(look.look) if look.slow else look.look()
        except PilotError as error:
            logger.warning("%s", error)
            stop.request(error, grace if error.code is Code.REACHEDMAXTIME else math.inf)
            return
        except OSError as error:  # the payload may have removed what we look at: that is no limit passed
            logger.warning("%s: %s", type(look).__name__, error)
            period = _BLIND
        except Exception:  # the door: a bug in one look, or in a stranger's meter, must not end all others
            logger.exception("%s is broken", type(look).__name__)
            period = _BLIND
        await stop.wait(period * random.uniform(0.9, 1.0))  # never later than it wanted


def nearness(value: float, limit: float, shortest: float, longest: float) -> float:
    """A period between `shortest` and `longest` seconds, the shorter the nearer `value` is to `limit`."""
    if limit <= 0:
        return longest
    room = max(0.0, 1.0 - value / limit)
    return max(shortest, min(longest, longest * room))


class Pace:
    """Periods of looks at something that grows towards a limit, 0 for none.

    Frequent at first, since nothing is known yet; then the longer the farther off the limit is, and always so short
    that at the speed of the last period half of the way to it is left at the next look; never twice as long as the last
    one, since what grows by steps seems to rest between them.

    Args:
        shortest, longest: period, s.
        clock: seconds.
        urgent: shortest period for what grows so fast that it would be over the limit within `shortest`.
    """

    def __init__(
        self,
        shortest: float,
        longest: float,
        clock: Callable[[], float] = time.monotonic,
        urgent: float | None = None,
    ) -> None:
        self._shortest = shortest
        self._urgent = shortest if urgent is None else urgent
        self._longest = longest
        self._clock = clock
        self._most = shortest
        self._last: tuple[float, float] | None = None

    def next(self, value: float, limit: float) -> float:
        """Seconds until the next look at what is now `value`."""
        if limit <= 0:
            return self._longest
        now, period = self._clock(), min(self._most, nearness(value, limit, self._shortest, self._longest))
        if self._last is not None and value > self._last[1]:
            speed = (value - self._last[1]) / max(now - self._last[0], 0.001)
            period = min(period, max(self._urgent, (limit - value) / speed / 2))
        self._most = min(period * 2, self._longest)
        self._last = now, value
        return period
