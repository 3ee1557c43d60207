"""Look at the payload's memory: it samples the meter, and stops a job that uses more than it may."""

from __future__ import annotations

from pilot.errors import Code, PilotError
from pilot.watch.look import nearness
from pilot.watch.meter import Meter, Tally

#: Seconds between samples: often at first, when payloads grow, then once a minute as Pilot 3 did (PILOT3 5.4).
_FIRST, _LONGEST = 1.0, 60.0


class Memory:
    """Samples the payload into a `Tally`; PSS over the limit is PAYLOADEXCEEDMAXMEM (1235).

    Args:
        meter: attached to the payload.
        tally: where samples go.
        limit: kB, 0 for none.
    """

    slow = False

    def __init__(self, meter: Meter, tally: Tally, limit: int = 0) -> None:
        self._meter = meter
        self._tally = tally
        self._limit = limit
        self._period = _FIRST / 2

    def look(self) -> float:
        """Sample; the period doubles up to a minute and shrinks near the limit."""
        sample = self._meter.sample()
        self._tally.add(sample)
        used = sample.pss or sample.rss
        if self._limit and used > self._limit:
            raise PilotError(
                Code.PAYLOADEXCEEDMAXMEM,
                f"{used} kB (PSS) in {sample.processes} processes, the limit is {self._limit} kB",
            )
        self._period = min(self._period * 2, _LONGEST)
        return min(self._period, nearness(used, self._limit, _FIRST, _LONGEST))
