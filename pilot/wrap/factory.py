"""Messages to the monitor of pilot factories (APFmon): one UDP datagram each, as Pilot 3's wrapper sends them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

#: Where APFmon listens (PILOT3 9.1); `APFMON_UDP=HOST:PORT` names another place.
DEFAULT = "148.88.96.15:28527"


class Factory:
    """Who sent us. Silent unless a factory gave its ids (`APFFID`, `APFCID`).

    Args:
        environ: the wrapper's environment.
        queue: PanDA queue.
        version: of the wrapper.
        mute: True to send nothing.
    """

    def __init__(self, environ: Mapping[str, str], queue: str, version: str, mute: bool) -> None:
        self._environ = environ
        self._queue = queue
        self._version = version
        self._speaks = not mute and bool(environ.get("APFFID")) and bool(environ.get("APFCID"))

    def running(self) -> None:
        """The wrapper has begun."""
        self._tell("running", 0)

    def ended(self, status: int, seconds: float) -> None:
        """The wrapper ends."""
        self._tell("fault" if status else "exiting", int(seconds))

    def _tell(self, state: str, seconds: int) -> None:
        if not self._speaks:
            return
        environ = self._environ
        who = f"{environ['APFFID']}:{environ['APFCID']}"
        facts = (environ.get(name, "unknown") for name in ("HARVESTER_ID", "HARVESTER_WORKER_ID", "GTAG"))
        words = [self._version, who, state, str(seconds), self._queue, self._computing_element(), *facts]
        host, _, port = environ.get("APFMON_UDP", DEFAULT).rpartition(":")
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.sendto(" ".join(words).encode(), (host, int(port)))

    def _computing_element(self) -> str:
        environ = self._environ
        collector = environ.get("CONDORCE_COLLECTOR_HOST", "").split(":")[0]
        return environ.get("GRID_GLOBAL_JOBHOST") or environ.get("SCHEDD_NAME") or collector or "unknown"
