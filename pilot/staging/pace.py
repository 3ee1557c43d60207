"""Whether a transfer is worth waiting for: one that hangs or trickles is ended long before its whole time is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pilot.errors import Trait, TransferError
from pilot.staging.faults import Direction

#: Looks in a window: so the speed is that of at least 9 tenths of it.
_LOOKS = 10

#: Seconds between two looks, at least and at most.
_SOONEST, _LATEST = 0.05, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceLimits:
    """What a transfer must keep up from its first byte to its last.

    Before the first byte a tape may have to be mounted, after the last a storage sums up what it has: there only the
    time-out of the whole transfer counts, and what the tools themselves wait for.

    Attributes:
        idle: seconds without a byte; 0 for no limit.
        speed: bytes per second on the average of a window; 0 for no limit.
        window: seconds.
    """

    idle: float = 300.0
    speed: float = 10 << 10
    window: float = 300.0

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        spans = [span for span, counts in ((self.idle, self.idle), (self.window, self.speed)) if counts]
        return min(_LATEST, max(_SOONEST, min(spans, default=_LATEST * _LOOKS) / _LOOKS))


class Pace:
    """The pace of one transfer.

    Args:
        limits: to be kept.
        direction: for the code of the table.
        size: bytes in all, None if unknown.
        clock: seconds.
    """

    def __init__(
        self,
        limits: PaceLimits,
        direction: Direction,
        size: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._direction = direction
        self._size = size
        self._clock = clock
        self._last = (clock(), 0)
        self._seen: deque[tuple[float, int]] = deque()

    def fault(self, moved: int) -> TransferError | None:
        """Why the transfer should end, now that so many bytes have moved; None if it is well."""
        now = self._clock()
        if moved != self._last[1]:
            self._last = (now, moved)
        if not moved or (self._size is not None and moved >= self._size):
            self._seen.clear()
            return None
        return self._hangs(now, moved) or self._trickles(now, moved)

    def _hangs(self, now: float, moved: int) -> TransferError | None:
        """Another try may have another connection, so it is worth one."""
        idle = now - self._last[0]
        if not 0 < self._limits.idle <= idle:
            return None
        return self._late(f"no byte for {idle:.0f} s, after {moved}", Trait.RETRY)

    def _trickles(self, now: float, moved: int) -> TransferError | None:
        """The same again would be as slow: another replica may not be."""
        limit, window = self._limits.speed, self._limits.window
        while self._seen and self._seen[0][0] < now - window:
            self._seen.popleft()
        self._seen.append((now, moved))
        since, before = self._seen[0]
        if not limit or now - since < window * (1 - 1 / _LOOKS):
            return None
        speed = (moved - before) / (now - since)
        if speed >= limit:
            return None
        return self._late(f"{speed:.0f} bytes/s for {now - since:.0f} s, the limit is {limit:.0f}", Trait.NEXT)

    def _late(self, why: str, trait: Trait) -> TransferError:
        return TransferError(self._direction.timed_out, f"too slow: {why}", trait)
