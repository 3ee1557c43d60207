"""What an experiment (collaboration) may do differently: the few questions the engine asks it.

The methods here are the behaviour of `generic`. Another experiment derives from this class or from `Generic`, gives its
`name`, and overrides what it does differently; a new one is under 100 lines and copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pilot.job import File, Job


class Experiment:
    """Answers for a collaboration.

    Attributes:
        name: as in `--pilot-user`.
        base_urls: places to look for a transformation that its own URL does not give, before `--baseurls`.
        mv_to_final_destination: True if `mv` writes outputs to their storage path; False if it leaves them in the
            launch directory for the batch system (ARC) to upload.
        environment_prefixes: variables that a payload of this experiment needs from the node, beside the usual ones.
        redundant_files: patterns of files in the job directory that are not worth keeping in the log.
        settings: defaults of this experiment, names of `pilot.settings` to values; files, queues and flags win.
        storages_prefer_cache: True if the storage JSON beside the pilot wins over the one given on the command line.
    """

    name: ClassVar[str]
    base_urls: ClassVar[tuple[str, ...]] = ()
    mv_to_final_destination: ClassVar[bool] = False
    environment_prefixes: ClassVar[tuple[str, ...]] = ()
    redundant_files: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[Mapping[str, Any]] = {}
    storages_prefer_cache: ClassVar[bool] = False

    def uses_time_floor(self, submit_mode: str) -> bool:
        """Whether `timefloor` of the queue is honoured for a pilot submitted in this mode (`PULL` or `PUSH`)."""
        return True

    def before_clean_up(self, parameters: str) -> str:
        """Change jobPars before the pilot takes out what was meant for itself."""
        return parameters

    def after_clean_up(self, parameters: str) -> str:
        """Change jobPars after that."""
        return parameters

    def verify(self, job: Job) -> None:
        """Raise a `PilotError` for a job that this experiment does not accept."""

    def command(self, job: Job, transformation: str) -> str:
        """The payload's own shell text.

        Args:
            job: the job.
            transformation: how to call it: `./name` of the fetched file, or text as the job gave it.
        """
        return f"{transformation} {job.parameters}".strip()

    def environment(self, job: Job) -> Mapping[str, str]:
        """Variables to set for the payload, beside those of the engine."""
        return {}

    def outputs(self, job: Job, workdir: Path) -> tuple[File, ...]:
        """The output files of a payload that has ended; patterns may be turned into the files that are there."""
        return job.outputs

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
        """Text of the payload's own job report for the server, empty if none is sent."""
        return ""

    def sends_node_map(self) -> bool:
        """Whether the server gets the map of the worker node."""
        return False


def words(metrics: Mapping[str, str], limit: int = 500) -> str:
    """`key=value` words separated by blanks, cut at a word so that the server's limit holds (PILOT3 2.7)."""
    text = " ".join(f"{key}={'_'.join(value.split())}" for key, value in metrics.items())
    return text if len(text) <= limit else text[: limit + 1].rpartition(" ")[0]
