"""The outputs of one job: which files they are, sent as they appear or at the end, and kept if nothing takes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pilot.bench import Bench
from pilot.errors import PilotError
from pilot.job import File, Job
from pilot.outcome import Outcome
from pilot.queuedata import QueueInfo
from pilot.server.report import Report
from pilot.staging.result import StagingResult
from pilot.stop import Stop, in_thread

if TYPE_CHECKING:
    from pilot.earlyout import EarlyOut
    from pilot.undelivered import Custody

logger = logging.getLogger(__name__)


class Outputs:
    """Takes the outputs of a job out. Entered while the payload runs.

    Args:
        bench: what all jobs of the slot share.
        job: the job.
        info: the queue as the job sees it.
        workdir: the job's directory.
        stop: the job's.
        outcome: what became of the job.
        keep: notes files that arrived; raises for those that did not.
        note: writes a step with its facts into the journal.
        register: lets the catalogue know of the outputs that are stored; None if the pilot does not.

    Attributes:
        is_idle: True if there was nothing to do for the payload: each output may be missing then.
    """

    def __init__(
        self,
        bench: Bench,
        job: Job,
        info: QueueInfo,
        workdir: Path,
        stop: Stop,
        outcome: Outcome,
        keep: Callable[[StagingResult], None],
        note: Callable[..., None],
        register: Callable[[Stop], Awaitable[None]] | None = None,
    ) -> None:
        self._bench = bench
        self._job = job
        self._info = info
        self._workdir = workdir
        self._stop = stop
        self._outcome = outcome
        self._keep = keep
        self._note = note
        self._register = register
        self._engine = bench.engine(info, job)
        self._custody: Custody | None = None
        self._place: Path | None = None
        self._links: dict[str, str] = {}
        self.is_idle = False
        self._manifest = bench.settings.early_manifest if bench.settings.early_stageout == "manifest" else ""
        self._early = self._make_early()

    def _make_early(self) -> EarlyOut | None:
        settings = self._bench.settings
        if settings.early_stageout == "off" or not self._job.outputs:
            return None
        from pilot.earlyout import EarlyOut

        return EarlyOut(
            self._workdir,
            self._now,
            self._engine,
            self._bench.store(self._info, self._job),
            self._stop,
            self._keep,
            register=self._register,
            manifest=self._manifest,
            quiet=settings.early_quiet,
        )

    async def __aenter__(self) -> Self:
        """The payload is about to run."""
        if self._job.zip_map:
            from pilot.zipmap import linked_inputs

            self._links = linked_inputs(self._job, self._workdir)
        if self._early:
            await self._early.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The payload is over."""
        if self._early:
            await self._early.__aexit__(kind, error, trace)

    async def give_up(self) -> None:
        """End what was not waited for, since the job has failed. May be called of a good one, too."""
        if self._early:
            await self._early.give_up()

    async def stage_out(self, report: Callable[[], Report]) -> StagingResult:
        """Take out what is not out yet.

        Args:
            report: makes the final report as it stands, for a later run that has to deliver.

        Raises:
            PilotError: the outputs are not what they must be.
        """
        if self._job.zip_map:
            from pilot.zipmap import make_archives

            make = in_thread(make_archives, self._job, self._workdir, self._stop.check, self._links)
            made = await self._stop.guard(make)
            logger.info("archives made of outputs: %s", ", ".join(made) or "none")
        outputs = self._now()
        if self._early:  # before the note is there: a later run takes what the journal has as stored
            await self._early.recall(outputs, self._forget)
        if self._bench.settings.keep_undelivered:
            await self._take_custody(outputs, report())
        left = await self._early.rest(outputs, self._forget) if self._early else outputs
        return await self._engine.stage_out(left, self._workdir, self._stop)

    async def _take_custody(self, outputs: Sequence[File], report: Report) -> None:
        """A disk that takes no note takes away only the second chance."""
        from pilot.undelivered import Custody, Note

        files = (*outputs, *([self._job.log] if self._job.log else []))
        note = Note(job=self._job, files=files, report=report, queue=self._info.queue.name)
        try:
            self._custody = await in_thread(Custody, self._workdir, note)
        except PilotError as error:
            logger.error("what is not delivered will not be kept: %s", error.detail)

    async def hold(self, patience: float) -> None:
        """After outputs and log were tried: what a later run can deliver is kept, and the job is not lost.

        Args:
            patience: seconds that the place to keep them may take to answer.
        """
        error, reason = self._outcome.error, self._stop.reason
        stopped = bool(self._register and error and reason and error.code is reason.code)
        if not (self._custody and error and self._custody.is_worth_it(self._outcome.stored(), error, stopped)):
            return
        if await self._find_place(self._custody, patience):
            self._outcome.kept = True

    async def hold_unreported(self, patience: float) -> None:
        """After the report was tried: a good job that the server has not heard of is kept for that."""
        if self._custody and not self._place and not self._outcome.error and not self._outcome.reported:
            await self._find_place(self._custody, patience)

    async def _find_place(self, custody: Custody, patience: float) -> bool:
        folder = Path(self._bench.settings.keep_undelivered)
        try:
            place = await asyncio.wait_for(in_thread(custody.place, folder), patience)
        except (OSError, TimeoutError) as problem:
            logger.error("nothing is kept in %s: %s", folder, problem or "no answer")
            return False
        self._place = place
        self._note("kept", sync=True, where=str(place))
        logger.warning("job %d is kept in %s, to be delivered later", self._job.job_id, place)
        return True

    def put_away(self) -> bool:
        """True if the job directory is kept, and is not to be removed. Blocks."""
        if self._custody is None:
            return False
        if self._place is None:
            self._custody.end()
            return False
        self._custody.move(self._place)
        return True

    def _now(self) -> Sequence[File]:
        """The outputs there are; one that is missing is left out if it may miss."""
        found = self._bench.experiment.outputs(self._job, self._workdir)
        return [file for file in found if file.lfn != self._manifest and not self._may_miss(file)]

    def _may_miss(self, file: File) -> bool:
        allowed = self.is_idle or any(fnmatchcase(file.lfn, pattern) for pattern in self._job.allow_no_output)
        return allowed and not (self._workdir / file.lfn).exists()

    def _forget(self, file: File) -> None:
        """A file that was noted as stored is not stored any more."""
        self._outcome.files = [done for done in self._outcome.files if done.file is not file]
        self._note("removed", sync=True, kind=file.kind.value, lfn=file.lfn)
