"""What HTCondor shall know of a job in its slot: attributes of the slot's own job, by `condor_chirp` (PILOT3 7.8).

Chirp works where the submit file says `+WantIOProxy = true`; elsewhere the program fails, which is no fault of ours.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

#: Seconds for one attribute; it takes milliseconds.
_TIMEOUT = 10.0


def find_chirp(environ: Mapping[str, str]) -> str | None:
    """The program, None outside of HTCondor or where it is not installed."""
    if not environ.get("_CONDOR_CHIRP_CONFIG") and not environ.get("_CONDOR_JOB_AD"):
        return None
    libexec = environ.get("_CONDOR_LIBEXEC", "")
    places = [str(Path(libexec, "condor_chirp"))] if libexec else []
    places += ["condor_chirp", "/usr/libexec/condor/condor_chirp"]
    return next((found for place in places if (found := shutil.which(place, path=environ.get("PATH")))), None)


def set_attributes(program: str, attributes: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Set texts in the ad of the slot's job. Blocks, for 10 s each at most; what fails is a line in the log."""
    for name, text in attributes.items():
        try:
            done = subprocess.run(
                [program, "set_job_attr", name, json.dumps(text)],  # a ClassAd quotes texts as JSON does
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            logger.info("condor_chirp: %s", error)
            return
        if done.returncode:
            logger.info("condor_chirp set_job_attr %s: %s", name, done.stderr.decode(errors="replace").strip()[:200])
            return
