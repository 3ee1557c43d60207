"""From a job as it stands to what the server is told of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pilot.experiment import Experiment, words
from pilot.job import Kind
from pilot.outcome import Outcome
from pilot.server.report import Report, State, Timings
from pilot.version import __version__

#: Longest `pilotLog` that is sent, characters (PILOT3 2.6).
PILOT_LOG_LIMIT = 1024

#: Longest `pilotID` that the server stores, characters.
PILOT_ID_LIMIT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Who reports: facts of the pilot that go into every update, texts may be empty.

    Attributes:
        node: worker node, `slot@host`. queue: the PanDA resource. scheduler_id: `PANDA_JSID`.
        gtag: URL of the batch log. batch_type, batch_id: as the batch system calls itself and this slot.
        version_tag: PR, RC, ALRB.
        cpu_unit: `cpuConsumptionUnit`. cpu_level: such as `x86_64-v3`.
        source_site, destination_site: where the pilot was submitted from and to, where the node tells.
    """

    node: str
    queue: str
    scheduler_id: str = "unknown"
    gtag: str = ""
    batch_type: str = ""
    batch_id: str = ""
    version_tag: str = "PR"
    cpu_unit: str = ""
    cpu_level: str = ""
    source_site: str = ""
    destination_site: str = ""

    def pilot_id(self, first: str) -> str:
        """`<url of the batch log>|<batch type>|<version tag>|<version>`, as the monitor takes it apart.

        The server stores 200 characters: of a URL that is too long its end goes, not the version.
        """
        rest = "|".join(filter(None, [self.batch_type if self.batch_id else "", self.version_tag, __version__]))
        return "|".join(filter(None, [first[: PILOT_ID_LIMIT - 1 - len(rest)], rest]))


class Reporter:
    """Makes the updates of one job.

    Attributes:
        gtag: URL of the job's own log, once it can be read there; stands for the speaker's.
    """

    def __init__(self, speaker: Speaker, experiment: Experiment, outcome: Outcome, getjob_seconds: float = 0.0) -> None:
        self.gtag = ""
        self._speaker = speaker
        self._experiment = experiment
        self._outcome = outcome
        self._getjob = getjob_seconds
        self._started = time.time()

    def report(self, state: State, *, pilot_log: str = "", metadata: str = "", metrics: str | None = None) -> Report:
        """An update with this state; a final one carries errors, files and timings.

        Args:
            state: of the job.
            pilot_log: extract of a log, for a final one.
            metadata: the payload's job report, for a final one.
            metrics: instead of those of the experiment.
        """
        outcome, speaker = self._outcome, self._speaker
        job = outcome.job
        final = state.final
        return Report(
            job_id=job.job_id,
            attempt=job.attempt,
            state=state,
            node=speaker.node,
            queue=speaker.queue,
            scheduler_id=speaker.scheduler_id,
            pilot_id=speaker.pilot_id(self._experiment.pilot_id(self.gtag or speaker.gtag, job.job_id)),
            batch_id=speaker.batch_id[:80],
            start_time=self._started,
            end_time=time.time() if final else None,
            core_count=job.cores,
            cpu_unit=speaker.cpu_unit,
            cpu_level=speaker.cpu_level,
            error_code=outcome.code if final else 0,
            error_diag=outcome.error.diag if final and outcome.error else "",
            exe_code=outcome.exe_code,
            exe_diag=outcome.exe_diag,
            trans_exit_code=self._status() if final else None,
            files=tuple(done.reported for done in outcome.stored()) if final else (),
            timings=self._timings() if final else None,
            usage=outcome.usage,
            n_input_files=sum(1 for done in outcome.files if done.file.kind is Kind.INPUT) or None,
            metrics=words(self._experiment.metrics(job, outcome.metrics)) if metrics is None else metrics,
            pilot_log=pilot_log[-PILOT_LOG_LIMIT:] if final else "",
            metadata=metadata if final else "",
            source_site=speaker.source_site,
            destination_site=speaker.destination_site,
        )

    def _status(self) -> int:
        outcome = self._outcome
        return 128 + outcome.signum if outcome.signum else outcome.exit_code or 0

    def _timings(self) -> Timings:
        spent = self._outcome.timings
        return Timings(
            getjob=self._getjob,
            stagein=spent.get("stagein", 0.0),
            payload=spent.get("payload", 0.0),
            stageout=spent.get("stageout", 0.0) + spent.get("log", 0.0),
            setup=spent.get("setup", 0.0),
        )
