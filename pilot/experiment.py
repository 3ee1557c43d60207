"""What an experiment (collaboration) may do differently: the few questions the engine asks it.

The methods here are the behaviour of `generic`. Another experiment derives from this class or from `Generic`, gives its
`name`, and overrides what it does differently; a new one is under 100 lines and copies nothing.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pilot.errors import PilotError
from pilot.job import File, Job
from pilot.left import open_left
from pilot.maskfile import MASKS
from pilot.matchers import Matcher
from pilot.patterns import check_patterns, expanded
from pilot.queuedata import Queue

logger = logging.getLogger(__name__)

#: Files of the pilot's own in a job directory, which no file of a job may be called like.
JOURNAL, SECRETS, NOTE = "journal.jsonl", "panda_secrets.json", "delivery.json"
OWN_NAMES = (
    *(JOURNAL, SECRETS, NOTE, "pilotlog.txt", "payload.stdout", "payload.stderr"),
    *("memory_monitor_output.txt", "memory_monitor_summary.json", MASKS),
    *("container_script.sh", "my_release_setup.sh", ".container_started"),
)

#: Marks a job directory that the server said shall be kept (`nocleanup`).
KEPT = ".nocleanup"

#: The report that a payload may leave for the server.
JOB_REPORT = "jobReport.json"

#: Bytes of a report that are sent at most; ATLAS' have about 100 kB.
JOB_REPORT_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of the node that runs beside a job from before its stage-in to its end, such as a cache.

    Attributes:
        name: its output is in `NAME_start_stdout.txt`, `NAME_kill_stdout.txt` and so on.
        start, stop: shell text, fixed by the experiment: nothing of a job belongs in there but its number.
        variables: name to a regular expression, whose first group in the output of `start` is its value, for the
            payload and for `stop`.
        directory: in the job directory, removed at the end; empty for none.
    """

    name: str
    start: str
    stop: str
    variables: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""


class Experiment:
    """Answers for a collaboration.

    Attributes:
        name: as in `--pilot-user`.
        base_urls: places to look for a transformation that its own URL does not give, after `--baseurls`.
        mv_to_final_destination: True if `mv` writes outputs to their storage path; False if it leaves them in the
            launch directory for the batch system (ARC) to upload.
        environment_prefixes: variables that a payload of this experiment needs from the node, beside the usual ones.
        redundant_files: patterns of files in the job directory that are not worth keeping in the log.
        kept_files: texts; a file with one of them in its path is kept for all that.
        matchers: what in the output of its payloads means which error, before what holds for everybody.
        trusts_job_report: True if an error in `jobReport.json` fails a payload that exits with 0, and what it counted
            belongs into jobMetrics.
        settings: defaults of this experiment, names of `pilot.settings` to values; files, queues and flags win.
        cvmfs_paths: files and directories below CVMFS without which no job is taken where the queue has CVMFS.
        storages_prefer_cache: True if the storage JSON beside the pilot wins over the one given on the command line.
    """

    name: ClassVar[str]
    base_urls: ClassVar[tuple[str, ...]] = ()
    mv_to_final_destination: ClassVar[bool] = False
    environment_prefixes: ClassVar[tuple[str, ...]] = ()
    redundant_files: ClassVar[tuple[str, ...]] = ()
    kept_files: ClassVar[tuple[str, ...]] = ()
    matchers: ClassVar[tuple[Matcher, ...]] = ()
    trusts_job_report: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Any]] = {}
    storages_prefer_cache: ClassVar[bool] = False
    cvmfs_paths: ClassVar[tuple[str, ...]] = ()

    def uses_time_floor(self, submit_mode: str) -> bool:
        """Whether the queue's `timefloor` counts for a pilot submitted in this mode (`PULL` or `PUSH`).

        Without a time floor a pilot runs one job.
        """
        return True

    def before_clean_up(self, parameters: str) -> str:
        """Change jobPars before the pilot takes out what was meant for itself."""
        return parameters

    def after_clean_up(self, parameters: str) -> str:
        """Change jobPars after that."""
        return parameters

    def verify(self, job: Job) -> None:
        """Raise a `PilotError` for a job that this experiment does not accept."""
        check_patterns(job)

    def needs_container(self, job: Job, queue: Queue) -> bool:
        """Whether the payload runs in a container: the job names an image, or a platform where the queue has these."""
        return bool(job.container_image or ((job.platform or job.user_platform) and queue.container_type.get("pilot")))

    def services(self, job: Job, queue: Queue) -> tuple[Service, ...]:
        """Services of the node that this job wants."""
        return ()

    def inputs_ready(self, job: Job, workdir: Path, variables: Mapping[str, str]) -> Job:
        """The job as its payload gets it; files that the payload wants beside its inputs are written.

        Args:
            job: with the inputs as they were staged: those that the payload reads over the network have a `turl`.
            workdir: the job directory.
            variables: of the node, and of services that were started for the job.
        """
        return job

    def release_setup(self, job: Job, queue: Queue, *, contained: bool) -> str:
        """Shell text that sets up the software release of a job, before its payload; empty for none.

        Args:
            job: the job.
            queue: as the job sees it.
            contained: True for the inside of a container that the experiment's own wrapper makes.
        """
        return ""

    def command(self, job: Job, transformation: str) -> str:
        """The payload's own shell text.

        Args:
            job: the job.
            transformation: how to call it: `./name` of the fetched file, or text as the job gave it.
        """
        return f"{transformation} {job.parameters}".strip()

    def environment(self, job: Job) -> Mapping[str, str | None]:
        """Variables to set for the payload, beside those of the engine; None takes one away."""
        return {}

    def outputs(self, job: Job, workdir: Path) -> tuple[File, ...]:
        """The output files that there are now; patterns are turned into the files that match.

        Raises:
            JobDefinitionError: BADOUTPUTFILENAME, a file that matches has a name that no storage takes.
        """
        return expanded(job, workdir, OWN_NAMES)

    def redundant(self, error: PilotError | None) -> tuple[str, ...]:
        """Patterns of files not worth keeping in the log of a job that ended with `error`."""
        return self.redundant_files

    def storage_path(self, scope: str, lfn: str) -> str | None:
        """Path of a file below the storage's prefix, None for the hash layout of deterministic Rucio endpoints."""
        return None

    def metrics(self, job: Job, measured: Mapping[str, str]) -> Mapping[str, str]:
        """`jobMetrics` of a job: what was measured, in the order and with the names to report."""
        return measured

    def pilot_id(self, gtag: str, job_id: int) -> str:
        """The first part of `pilotID`: the URL of the batch log."""
        return gtag or "unknown"

    def payload_metadata(self, workdir: Path) -> str:
        """Text of the payload's own job report for the server (`metaData`), empty if none is sent."""
        try:
            return _read_report(workdir / JOB_REPORT)
        except FileNotFoundError:
            return ""
        except OSError as error:
            logger.warning("%s is not sent: %s", JOB_REPORT, error.strerror)
            return ""

    def proxy_role(self, job: Job | None) -> str:
        """The VOMS role to ask the server for: for a user's job or for the pilot itself; empty for none from there.

        Args:
            job: whose payload gets it; None for the pilot.
        """
        return ""

    def sends_node_map(self) -> bool:
        """Whether the server gets the map of the worker node."""
        return False


def _read_report(path: Path) -> str:
    with open_left(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > JOB_REPORT_LIMIT:
            raise OSError(errno.EFBIG, f"it has {size} bytes, the limit is {JOB_REPORT_LIMIT}")
        return file.read(JOB_REPORT_LIMIT).decode(errors="replace")


def words(metrics: Mapping[str, str], limit: int = 500) -> str:
    """`key=value` words separated by blanks, cut at a word so that the server's limit holds (PILOT3 2.7)."""
    text = " ".join(f"{key}={'_'.join(value.split())}" for key, value in metrics.items())
    return text if len(text) <= limit else text[: limit + 1].rpartition(" ")[0]
