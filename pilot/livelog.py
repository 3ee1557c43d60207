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
from pilot.maskfile import MaskFile
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
        sinks = make_sinks(wanted(settings, queue, debug=is_debugged(job)), context)
    except PilotError as error:
        logger.warning("no live log: %s", error)
        return None
    if not sinks:  # debug mode where nothing says where to
        return None
    masks = MaskFile(workdir, masker)
    ship = LogShip(_origin(job, batch, queue), workdir, masks, sinks, spool, rate=settings.realtime_rate)
    for name in log_files(settings, queue, *tailed(job)):
        ship.follow(workdir / name)
    if job.is_analysis:  # their transformations keep the user's own output there
        ship.follow_matching(workdir / "workDir" / "tmp.stdout.*")
    return ship


def is_debugged(job: Job) -> bool:
    """Whether debug mode of a job wants its live log: alone, or with a `tail`, not with `ps` or `gdb` (PILOT3 6)."""
    return job.debug and (job.debug_command.strip() in ("", "debug") or bool(tailed(job)))


def tailed(job: Job) -> tuple[str, ...]:
    """The file that a debug command `tail NAME` names."""
    words = job.debug_command.split()
    return tuple(words[-1:]) if job.debug and len(words) > 1 and words[0] == "tail" else ()


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
