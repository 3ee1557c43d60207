"""The software of ATLAS for a job that names a release: `asetup` with the options of production (PILOT3 5.1)."""

from __future__ import annotations

import re
import shlex

from pilot.job import Job
from pilot.queuedata import Queue

#: Sets up ATLASLocalRootBase on a node; in ALRB's own container that is done.
ALRB = (
    "export ATLAS_LOCAL_ROOT_BASE=${ATLAS_LOCAL_ROOT_BASE:-/cvmfs/atlas.cern.ch/repo/ATLASLocalRootBase}; "
    "source $ATLAS_LOCAL_ROOT_BASE/user/atlasLocalSetup.sh --quiet"
)
#: Where `asetup` is after that.
_ASETUP = "source $AtlasSetup/scripts/asetup.sh"


def release_setup(job: Job, queue: Queue, *, contained: bool) -> str:
    """Shell text that sets up the release of a job; empty if it has none, or brings its software along.

    A job of which `noExecStrCnv` says that its parameters are the whole command calls `asetup` itself.

    Args:
        job: the job.
        queue: as the job sees it.
        contained: for the inside of ALRB's container.
    """
    if not job.release or job.container_image or not (queue.is_cvmfs or not queue.container_type):
        return ""
    own = job.no_exec_str_conv and "asetup.sh" in job.parameters
    asetup = "" if own else f"{_ASETUP} {asetup_options(job)}"
    return asetup if contained else "\n".join(filter(None, (ALRB, asetup)))


def asetup_options(job: Job) -> str:
    """What `asetup` is asked for: project and release, as words of a shell."""
    words = [shlex.quote(",".join([*_projects(job.release, job.homepackage), "notest"]))]
    if job.platform:
        words += ["--platform", shlex.quote(job.platform)]
    return " ".join([*words, "--makeflags='$MAKEFLAGS'"])  # literally: asetup would set its own


def _projects(release: str, package: str) -> list[str]:
    """Home package and release: `Athena/25.0.1`, or `AnalysisTransforms-AthAnalysis_25.2.1` of users."""
    release = release.removeprefix("Atlas-")
    if "AnalysisTransforms" in package:
        rest = re.sub(r"^AnalysisTransforms-*", "", package)
        needed = bool(release) and not (rest and re.fullmatch(r"\d+\.\d+\.\d+", release))
        return [*([release] if needed else []), *(rest.split("_") if rest else [])]
    parts = [part for part in package.split("/") if part]
    return parts if release in package else [*parts, release]
