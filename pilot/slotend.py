"""When the batch system takes the slot away, where it says so before it does."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pilot.classad import ClassAd
from pilot.stop import Deadline

logger = logging.getLogger(__name__)

#: Seconds for `squeue`.
_TIMEOUT = 10.0


class BatchEnd(NamedTuple):
    """Seconds since 1970, infinite if nobody says; and who says so."""

    time: float = math.inf
    what: str = ""


#: Nobody says.
NO_END = BatchEnd()


class SlotEnd(Deadline):
    """When a running job has to be stopped for its slot to end in time, and for whose limit, in words."""

    def __init__(self, seconds: float, what: str) -> None:
        super().__init__(seconds)
        self.what = what


def batch_end(environ: Mapping[str, str]) -> BatchEnd:
    """The earliest end that Slurm or HTCondor tell. Blocks, for 10 s at most; raises nothing."""
    return min((*slurm_end(environ), *_condor(environ)), default=BatchEnd())


def slurm_end(environ: Mapping[str, str]) -> Iterator[BatchEnd]:
    """The end of the Slurm job, if it is told. Blocks, for 10 s at most.

    `SLURM_JOB_END_TIME` of newer Slurm; where there is none (22.05 of Debian 12), `squeue` is asked once.
    """
    job = environ.get("SLURM_JOB_ID", "")
    text = environ.get("SLURM_JOB_END_TIME", "")
    if text.isascii() and text.isdecimal():
        yield BatchEnd(float(text), "the end of the Slurm job")
    elif job and (program := shutil.which("squeue", path=environ.get("PATH"))):
        try:
            asked = [program, "--noheader", f"--jobs={job}", "--format=%e"]
            text = _said(asked, environ)
            yield BatchEnd(time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")), "the end of the Slurm job")
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # `NONE` for no limit
            logger.info("squeue does not tell the end of the job: %s", error)


def _said(command: list[str], environ: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    return done.stdout.strip()


def _condor(environ: Mapping[str, str]) -> Iterator[BatchEnd]:
    """The end of a glidein, and the durations that a job was allowed (condor_submit(1))."""
    job, machine = ClassAd.of_job(environ), ClassAd.of_machine(environ)
    if to_die := machine.number("GLIDEIN_ToDie"):
        yield BatchEnd(to_die, "GLIDEIN_ToDie")
    for limit, start in (
        ("AllowedJobDuration", "JobCurrentStartDate"),
        ("AllowedExecuteDuration", "JobCurrentStartExecutingDate"),
    ):
        seconds, started = job.number(limit), job.number(start) or job.number("JobCurrentStartDate")
        if seconds and started:
            yield BatchEnd(started + seconds, f"{limit} of HTCondor")
