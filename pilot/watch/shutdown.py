"""Look at when machine and slot will be taken away, as machine and job features tell it (HSF-TN-2016-02)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pilot.download import fetch_url
from pilot.errors import Code, PilotError
from pilot.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds before a shutdown by which a job is ended, so that it can still be reported (PILOT3 5.4).
MARGIN = 600.0

#: The same before the slot's own end: as before that of the pilot's lifetime, and a tenth of a short slot at most.
_SLOT_MARGIN = 180.0

_PERIOD = 60.0

#: Seconds for one key at a URL.
_TIMEOUT = 5.0

#: Variable to the keys that say when: the machine's, and the one for this job slot.
_KEYS = {"MACHINEFEATURES": "shutdowntime", "JOBFEATURES": "shutdowntime_job"}


class MachineShutdown:
    """REACHEDMAXTIME (1213) ten minutes before the machine goes down, three before the slot's wall time is over.

    A key that is missing, empty, 0 or no number says nothing: most nodes have none, and it may appear at any time.

    Args:
        environ: `MACHINEFEATURES` and `JOBFEATURES` in it are a directory with a file a key, or a URL of one.
        fetch: brings what is at a URL; blocks, and raises a `PilotError` or an OSError.
    """

    slow = True

    def __init__(self, environ: Mapping[str, str], fetch: Callable[[str], bytes]) -> None:
        self._places = {name: place for name in _KEYS if (place := environ.get(name, "").strip())}
        self._fetch = fetch
        self._end = math.inf

    @property
    def left(self) -> float:
        """Seconds until the job will be ended, as of the last look."""
        return max(0.0, self._end - time.time())

    def look(self) -> float:
        """Every minute; never again on a node without features."""
        if not self._places:
            return math.inf
        self._end, text = min(self._ends(), default=(math.inf, ""))
        if self._end <= time.time():
            raise PilotError(Code.REACHEDMAXTIME, text)
        return max(1.0, min(_PERIOD, self.left))

    def _ends(self) -> Iterator[tuple[float, str]]:
        """When the job has to be ended, and why."""
        for name, key in _KEYS.items():
            if (end := self._number(name, key)) is not None:
                yield end - MARGIN, f"the machine will be shut down at {_utc(end)} (shutdowntime)"
        limit, start = self._number("JOBFEATURES", "wall_limit_secs"), self._number("JOBFEATURES", "jobstart_secs")
        if limit and start:
            text = f"the slot ends at {_utc(start + limit)} (wall_limit_secs {limit:.0f} s)"
            yield start + limit - min(_SLOT_MARGIN, limit / 10), text

    def _number(self, name: str, key: str) -> float | None:
        place = self._places.get(name)
        if place is None:
            return None
        try:
            value = float(self._read(place, key))
        except (OSError, ValueError, PilotError) as error:
            logger.debug("no %s in %s: %s", key, place, error)
            return None
        return value if math.isfinite(value) and value > 0 else None

    def _read(self, place: str, key: str) -> str:
        if "://" in place:
            return self._fetch(f"{place.rstrip('/')}/{key}").decode("ascii", "replace").strip()
        return (Path(place) / key).read_text().strip()


def machine_shutdown(environ: Mapping[str, str], settings: Settings) -> MachineShutdown:
    """The look for a node where features may be at a URL."""
    return MachineShutdown(environ, partial(fetch_url, allow_http=settings.allow_http, timeout=_TIMEOUT))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
