"""Services beside the storages: the catalogue that knows replicas, and the server that is told of transfers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pilot import plugins
from pilot.download import is_loopback
from pilot.errors import ServerError
from pilot.job import Job
from pilot.server.tls import find_tls
from pilot.settings import Rank, Settings
from pilot.staging.catalogue import Catalogue, CatalogueContext
from pilot.staging.traces import TraceFacts, Tracer, TraceSender, trace_version

logger = logging.getLogger(__name__)

#: Longest wait for the last traces when a pilot ends, s, and their share of the time left after a stop.
CLOSE, CLOSE_SHARE = 1.0, 0.1

#: Plug-ins that are catalogues.
KIND = "pilot.catalogues"


def make_catalogue(settings: Settings, environ: Mapping[str, str], scratch: Path) -> Catalogue | None:
    """The catalogue of the setting `catalogue`; None if it names none.

    Raises:
        PilotError: there is no such plug-in.
    """
    if not settings.catalogue:
        return None
    found: type[Catalogue] = plugins.load(KIND, settings.catalogue, Catalogue)
    return found(
        CatalogueContext(
            host=settings.rucio_host,
            settings={"allow_http": settings.allow_http, "catalogue_close": settings.catalogue_close},
            environ=environ,
            scratch=scratch,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """The traces of a pilot's jobs."""

    sender: TraceSender
    facts: TraceFacts
    mask: Callable[[str], str]

    def of(self, job: Job) -> Tracer:
        """What makes those of one job."""
        return Tracer(job, self.facts, self.sender.send, self.mask)

    def close(self, left: float) -> None:
        """Wait for those that are under way, with a small share of the seconds that are left. Blocks."""
        self.sender.close(min(CLOSE, left * CLOSE_SHARE))


def make_tracing(
    settings: Settings, queue: str, environ: Mapping[str, str], mask: Callable[[str], str]
) -> Tracing | None:
    """What tells a server of each transfer; None if that is not wanted, or not possible."""
    if not settings.use_rucio_traces or not settings.rucio_traces_url or _is_trial(settings):
        return None
    from pilot.server.transport import Transport

    tls = find_tls(environ, capath=settings.capath)
    try:
        transport = Transport(settings.rucio_traces_url, tls, environ, allow_http=settings.allow_http)
    except (ServerError, ValueError) as error:  # what is wrong with traces is no business of a job's
        logger.warning("no traces are sent: rucio_traces_url: %s", error)
        return None
    facts = TraceFacts(
        queue=queue,
        site=environ.get("RUCIO_LOCAL_SITE_ID", ""),
        host=environ.get("PANDA_HOSTNAME") or os.uname().nodename,
        version=trace_version(),
        user_dn=settings.trace_user_dn,
    )
    return Tracing(sender=TraceSender(transport), facts=facts, mask=mask)


def _is_trial(settings: Settings) -> bool:
    """Whether an experiment's own server of traces is none of our business: nobody but a test has a server here."""
    origin = settings.origins.get("rucio_traces_url")
    if origin is None or origin.rank is not Rank.EXPERIMENT:
        return False
    return not settings.update_server or is_loopback(urlsplit(settings.server).hostname or "")
