"""The live log of a job, put together: which sinks, whose lines, which files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pilot.batch import BatchFacts
from pilot.errors import PilotError
from pilot.job import Job
from pilot.logship.choose import log_files, make_sinks, wanted
from pilot.logship.record import Origin
from pilot.logship.shipper import LogShip
from pilot.logship.sink import SinkContext
from pilot.masking import Masker
from pilot.queuedata import Queue
from pilot.server.tls import find_tls
from pilot.settings import Settings

logger = logging.getLogger(__name__)


def live_log(
    settings: Settings,
    queue: Queue,
    job: Job,
    workdir: Path,
    spool: Path,
    *,
    masker: Masker,
    environ: Mapping[str, str],
    batch: BatchFacts,
) -> LogShip | None:
    """What sends the job's log while it runs; None if it cannot be had: no job fails for its log.

    Args:
        settings: say where to, and which files.
        queue: may say so, too.
        job: whose log it is; its pilotSecrets may have the login.
        workdir: the job's directory.
        spool: directory for lines that wait.
        masker: hides secrets.
        environ: for sinks with variables of their own.
        batch: who submitted the pilot.
    """
    context = SinkContext(
        log_name=settings.realtime_logname,
        environ=environ,
        secrets=job.pilot_secrets,
        allow_http=settings.allow_http,
        tls=find_tls(environ, capath=settings.capath).context,
    )
    try:
        sinks = make_sinks(wanted(settings, queue), context)
    except PilotError as error:
        logger.warning("no live log: %s", error)
        return None
    ship = LogShip(_origin(job, batch, queue), workdir, masker, sinks, spool, rate=settings.realtime_rate)
    for name in log_files(settings, queue):
        ship.follow(workdir / name)
    return ship


def _origin(job: Job, batch: BatchFacts, queue: Queue) -> Origin:
    return Origin(
        task_id="" if job.task_id is None else str(job.task_id),
        job_id=str(job.job_id),
        worker_id="" if batch.worker_id is None else str(batch.worker_id),
        harvester_id=batch.harvester_id,
        request_id=job.request_id,
        host=batch.node,
        queue=queue.name,
    )
