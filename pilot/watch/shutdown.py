"""Look at when the machine will be shut down: `shutdowntime` of the machine and job features (HSF-TN-2016-02)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pilot.errors import Code, PilotError

logger = logging.getLogger(__name__)

#: Seconds before the shutdown by which a job is ended, so that it can still be reported (PILOT3 5.4).
MARGIN = 600.0

_PERIOD = 60.0

#: Variable to the keys that say when: the machine's, and the one for this job slot.
_KEYS = {"MACHINEFEATURES": "shutdowntime", "JOBFEATURES": "shutdowntime_job"}


class MachineShutdown:
    """REACHEDMAXTIME (1213) ten minutes before the machine goes down.

    A key that is missing, empty or no number says nothing: most nodes have none, and it may appear at any time.

    Args:
        environ: `MACHINEFEATURES` and `JOBFEATURES` in it are a directory with a file a key, or a URL of one.
        fetch: brings what is at a URL; blocks, and raises a `PilotError` or an OSError.
    """

    slow = True

    def __init__(self, environ: Mapping[str, str], fetch: Callable[[str], bytes]) -> None:
        self._places = {place: key for name, key in _KEYS.items() if (place := environ.get(name, "").strip())}
        self._fetch = fetch

    def look(self) -> float:
        """Every minute; never again on a node without features."""
        if not self._places:
            return math.inf
        end = min(self._times(), default=math.inf)
        left = end - MARGIN - time.time()
        if left <= 0:
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(end))
            raise PilotError(Code.REACHEDMAXTIME, f"the machine will be shut down at {when} (shutdowntime)")
        return max(1.0, min(_PERIOD, left))

    def _times(self) -> Iterator[float]:
        for place, key in self._places.items():
            try:
                yield float(self._read(place, key))
            except (OSError, ValueError, PilotError) as error:
                logger.debug("no %s in %s: %s", key, place, error)

    def _read(self, place: str, key: str) -> str:
        if "://" in place:
            return self._fetch(f"{place.rstrip('/')}/{key}").decode("ascii", "replace").strip()
        return (Path(place) / key).read_text().strip()
