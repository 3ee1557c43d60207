"""Look at the payload's memory: it samples the meter, and stops a job that uses more than it may."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from pilot.errors import Code, PilotError
from pilot.watch.look import Pace
from pilot.watch.memorylimit import MemoryLimit
from pilot.watch.meter import Meter, Sample, Tally

logger = logging.getLogger(__name__)

#: Seconds between samples: the first ones while a payload grows, then never more often than `_STEADY` or more seldom
#: than once a minute, as Pilot 3 did (PILOT3 5.4). Near the limit every `_FIRST`.
_FIRST, _STEADY, _LONGEST = 0.25, 4.0, 60.0

#: Seconds between samples where there is a limit: of what would be over it before the next, and of what is far from it.
#: The kill of a slot comes at once.
_URGENT, _LIMITED = 0.05, 15.0

#: A sample of so many CPU seconds is worth a pause of so many times as long: 0.05 % of a core.
_PAUSE = 2000

#: Share of the limit at which there is a line in the log.
_WARN = 0.9


class Memory:
    """Samples the payload into a `Tally`; memory over one of the limits is PAYLOADEXCEEDMAXMEM (1235).

    Args:
        meter: attached to the payload.
        tally: where samples go.
        limits: of the job and of the slot.
        also: gets each sample too, such as a time line.
    """

    slow = False

    def __init__(
        self, meter: Meter, tally: Tally, limits: Sequence[MemoryLimit] = (), *also: Callable[[Sample], None]
    ) -> None:
        self._meter = meter
        self._tally = tally
        self._limits = {limit: Pace(_FIRST, _LIMITED, urgent=_URGENT) for limit in limits if limit.kb}
        self._also = also
        self._period = _FIRST / 2
        self._warned: set[MemoryLimit] = set()

    def look(self) -> float:
        """Sample. The period doubles until sampling costs next to nothing, and shrinks on the way to a limit."""
        before = time.thread_time()
        sample = self._meter.sample()
        self._tally.add(sample)
        for take in self._also:
            take(sample)
        periods = [pace.next(self._checked(sample, limit), limit.kb) for limit, pace in self._limits.items()]
        price = (time.thread_time() - before) * _PAUSE
        self._period = min(self._period * 2, max(_STEADY, min(price, _LONGEST)))
        return min([self._period, *periods])

    def _checked(self, sample: Sample, limit: MemoryLimit) -> int:
        """What is used of it, kB."""
        used = limit.used(sample)
        if used <= limit.kb * _WARN:
            return used
        text = (
            f"{used} kB ({limit.counts}) in {sample.processes} processes, the limit is {limit.kb} kB ({limit.origin})"
        )
        if used > limit.kb:
            raise PilotError(Code.PAYLOADEXCEEDMAXMEM, text)
        if limit not in self._warned:
            self._warned.add(limit)
            logger.warning("the payload is near its memory limit: %s", text)
        return used
