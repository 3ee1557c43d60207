"""A pilot in a Kubernetes pod (`--pod`): what of the queue does not hold there, and where a job's directory is seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pilot.nodechecks import space_limit
from pilot.queuedata import QueueInfo

logger = logging.getLogger(__name__)

#: Name of the link to the directory of the job that runs, in the directory `SHARED_DIR` (pilot/control/job.py of
#: Pilot 3): another container of the pod looks there.
LINK = "payload_workdir"

#: Share of the pod's disk that the directory of a job may have: the kubelet counts the logs and all volumes, too.
_SHARE = 0.95


def in_pod(info: QueueInfo, environ: Mapping[str, str]) -> QueueInfo:
    """The queue for a pod: the pilot's lifetime counts instead of `maxtime` (PILOT3 5.4), and the pod's disk.

    A pod that writes more than its limit of ephemeral storage is evicted with two seconds of grace at most: a job must
    be ended before that, so its directory may have somewhat less.

    Args:
        info: as it was read.
        environ: `storageLimitMiB` is that limit, in MiB.
    """
    changes = {"maxtime": 0}
    if limit := space_limit(environ):
        most = max(1, int(limit * _SHARE / info.queue.maxwdir_grace))
        changes["maxwdir"] = min(info.queue.maxwdir or most, most)
    queue = replace(info.queue, **changes)  # type: ignore[arg-type]  # all of them are numbers
    return replace(info, queue=queue, record={**info.record, **changes})


def show_job_dir(workdir: Path, environ: Mapping[str, str]) -> None:
    """Let `SHARED_DIR/payload_workdir` be a link to a job's directory, for other containers of the pod."""
    shared = environ.get("SHARED_DIR")
    if not shared:
        return
    link = Path(shared, LINK)
    fresh = link.with_name(f".{LINK}.{workdir.name}")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(workdir)
        fresh.replace(link)
    except OSError as error:  # nobody but the pod's author wants it
        logger.warning("%s: %s", link, error.strerror)
