"""Commands that a job brings beside its payload: preprocess, postprocess and coprocess (PILOT3 5.1, 5.3).

They run outside the payload's container, in the job directory and with the payload's variables, as in Pilot 3. Their
output is in `NAME_stdout.txt` and `NAME_stderr.txt`, one run after the other.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.job import Job, Utility
from pilot.payload.command import Fetch, transformation
from pilot.payload.diagnose import HPO_ENDS
from pilot.payload.process import Ended, output_paths, signal_name, tail

logger = logging.getLogger(__name__)

#: What the ends of the loop over hyper-parameter points mean (`errorcodes.json`, payload_special_exit_codes).
_ENDS = dict(
    zip(
        HPO_ENDS,
        ("there are no more points", "there are no more points, some were done", "the loop is at its limit"),
        strict=True,
    )
)

#: Number of the run, for programs that count points; from 0, as in Pilot 3.
COUNT_VARIABLE = "PILOT_EXEC_ITERATION_COUNT"

#: Set by Harvester where Horovod's own launcher runs what would be the payload: only its neighbours are left to us.
HOROVOD_VARIABLE = "HARVESTER_HOROVOD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilities:
    """Shell text of each, empty for none."""

    preprocess: str = ""
    postprocess: str = ""
    coprocess: str = ""


async def prepare_utilities(job: Job, folder: Path, fetch: Fetch, base_urls: Sequence[str]) -> Utilities:
    """Fetch those that are URLs, once for all runs.

    Args:
        job: that brings them.
        folder: where they go. They run outside of a container, whose payload must not change them.
        fetch: brings the bytes of a URL.
        base_urls: other places that have it.

    Raises:
        PilotError: TRFDOWNLOADFAILURE, one cannot be had.
    """

    async def text(utility: Utility | None) -> str:
        if utility is None:
            return ""
        return f"{await transformation(utility.command, folder, fetch, base_urls, folder)} {utility.args}".strip()

    return Utilities(
        preprocess=await text(job.preprocess),
        postprocess=await text(job.postprocess),
        coprocess=await text(job.coprocess),
    )


def ends_loop(name: str, ended: Ended) -> bool:
    """True for an exit status that says that there is nothing more to do, which is no failure."""
    meaning = _ENDS.get(ended.exit_code or 0)
    if meaning:
        logger.info("%s ended with exit status %d: %s", name, ended.exit_code, meaning)
    return meaning is not None


def check_utility(name: str, ended: Ended, workdir: Path, mask: Callable[[str], str]) -> None:
    """Raise PREPROCESSFAILURE or POSTPROCESSFAILURE for one that failed, with the last line that it wrote."""
    if ended.exit_code == 0 or ended.exit_code in _ENDS:
        return
    how = f"killed by {signal_name(ended.signum)}" if ended.signum else f"exit status {ended.exit_code}"
    out, err = (mask(tail(path)).split("\n") for path in output_paths(workdir, name))
    said = next((line.strip() for lines in (err, out) for line in reversed(lines) if line.strip()), "")
    code = Code.PREPROCESSFAILURE if name == "preprocess" else Code.POSTPROCESSFAILURE
    raise PilotError(code, f"{how}: {said}" if said else how)


def allow_made_command(job: Job, workdir: Path) -> None:
    """A preprocess may write the program that its payload calls (`containerExec`): make it executable."""
    name = job.container_options.get("containerExec", "")
    if not name or name != os.path.basename(name):
        return
    with suppress(OSError):
        fd = os.open(workdir / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.fchmod(fd, 0o755)
        finally:
            os.close(fd)
