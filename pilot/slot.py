"""One pilot in one slot: ask for a job, run it, ask for the next, until the time, the jobs or the patience are over."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pilot.bench import Bench
from pilot.chirp import find_chirp, set_attributes
from pilot.errors import Code, JobDefinitionError, PilotError, ServerError
from pilot.job import Job
from pilot.jobdef import job_identity, parse_job
from pilot.jobfields import Fields
from pilot.jobrun import JobRun
from pilot.nodechecks import busy, check_cvmfs, space_limit
from pilot.outcome import Outcome, internal_error
from pilot.server.harvester import HarvesterServer
from pilot.server.report import JobRequest, RawJob
from pilot.slotend import NO_END, BatchEnd, SlotEnd
from pilot.stop import Deadline, Stop, in_thread
from pilot.watch.shutdown import machine_shutdown
from pilot.watch.walltime import slot_seconds

logger = logging.getLogger(__name__)

#: Wait after the first request that failed, s; after the next ones `getjob_retry_wait`. A reset is over at once.
_FIRST_RETRY_WAIT = 5.0

#: Longest wait for the answer to a request for a job when a stop came meanwhile, s: the server has counted it as given.
_ANSWER_PATIENCE = 5.0

#: Seconds before the end of the slot when a running job is stopped, so that it can still be reported (PILOT3 5.4).
_END_MARGIN = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Facts of the node and the batch system that go into a request for a job.

    Attributes:
        tries, wait: how often to ask and s between, where it is not the settings that say it.
    """

    request: JobRequest
    ids_file: Path | None = None
    batch_end: BatchEnd = NO_END
    tries: int = 0
    wait: float = 0.0


class Slot:
    """Runs jobs one after the other.

    Args:
        bench: what its jobs share.
        seat: what the slot says of itself when it asks for a job.
        stop: requested by signals.
        started: when the pilot was started, on the monotonic clock.
    """

    def __init__(self, bench: Bench, seat: Seat, stop: Stop, started: float) -> None:
        self._bench = bench
        self._seat = seat
        self._stop = stop
        self._started = started
        self._batch_end = Deadline(seat.batch_end.time - time.time())
        self._batch_margin = min(_END_MARGIN, self._batch_end.remaining / 10)
        lifetime = self._lifetime() - (time.monotonic() - started)
        self._end = Deadline(min(lifetime, self._batch_end.remaining))
        self._task: int | None = None
        self._chirping: asyncio.Future[None] | None = None
        self._silence: ServerError | None = None
        self._done = 0
        self._lost: list[int] = []

    async def run(self) -> None:
        """Run jobs until there is a reason to end; the reason is in the log.

        Raises:
            PilotError: the slot cannot go on: no disk left, or it was told to stop; or the server never answered or
                does not know what became of a job; or there was no job on an HPC, where the batch system is to know.
        """
        while await self._goes_on():
            asked = time.monotonic()
            raw = await self._acquire()
            if raw is None:
                break
            await self._run(raw, time.monotonic() - asked)
        self._stop.check()
        if self._lost:
            raise ServerError(f"the final report was not delivered of job {', '.join(map(str, self._lost))}")
        if self._silence and not self._done:
            raise self._silence
        if not self._done and self._bench.info.queue.resource_type.lower().startswith("hpc"):
            raise PilotError(Code.NOJOBSINPANDA, f"queue {self._bench.settings.queue}")

    async def _goes_on(self) -> bool:
        given = await self._is_given_more()  # what is here will be reported, whatever becomes of it
        return self._wants_another(given=given) and (given or not await self._is_taken_away())

    async def _is_given_more(self) -> bool:
        server = self._bench.server
        return isinstance(server, HarvesterServer) and await server.is_given_more()

    def _wants_another(self, *, given: bool) -> bool:
        """Whether the slot has the time for another job; `timefloor` 0 means one job only, and all that were given."""
        if self._stop.requested:
            return False
        if self._batch_end.expired:
            logger.info("%s has passed: no further job", self._seat.batch_end.what)
            return False
        if not self._done:
            return True
        age = time.monotonic() - self._started
        floor = self._bench.info.queue.timefloor
        if not self._bench.experiment.uses_time_floor(self._bench.settings.harvester_submitmode):
            floor = 0
        if age >= floor and not given:
            logger.info("the time floor of %.0f s has passed: no further job", floor)
            return False
        if self._end.remaining <= _END_MARGIN:
            logger.info("%.0f s are left of the slot: no further job", self._end.remaining)
            return False
        logger.info("ready for new job")
        return True

    async def _is_taken_away(self) -> bool:
        """Whether the machine goes down, or the slot ends, so soon that a job would be ended as it begins."""
        try:
            await self._stop.guard(in_thread(machine_shutdown(self._bench.environ, self._bench.settings).look))
        except PilotError as error:
            self._stop.check()
            logger.warning("no further job: %s", error.detail)
            return True
        return False

    def _lifetime(self) -> float:
        """Seconds a pilot may live here: the queue's maxtime if it has one, else its own setting."""
        return slot_seconds(self._bench.info.queue, self._bench.settings.lifetime)[0]

    async def _acquire(self) -> RawJob | None:
        """Ask until there is a job, at most as often as the settings say; every wait ends at once on a stop."""
        settings = self._bench.settings
        await self._check_software()
        if self._bench.credentials:
            await self._stop.guard(self._bench.credentials.check())
        tries = max(1, min(settings.getjob_requests, settings.getjob_failures)) if settings.update_server else 1
        tries = self._seat.tries or tries
        for attempt in range(tries):
            free = self._check_space()
            try:
                jobs, self._silence = await self._ask(free), None
                wait = self._seat.wait or random.uniform(settings.no_job_wait_min, settings.no_job_wait_max)
            except ServerError as error:
                logger.warning("no answer to the request for a job: %s", error.detail)
                jobs, self._silence = [], error
                wait = settings.getjob_retry_wait if attempt else min(_FIRST_RETRY_WAIT, settings.getjob_retry_wait)
            if jobs and _is_named(jobs[0]):
                return jobs[0]
            if attempt + 1 == tries or await self._pause(wait):
                break
        logger.info("no more jobs")
        return None

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next request. True if there will be none."""
        seconds = min(seconds, self._end.remaining)
        logger.info("no job; asking again in %.0f s", seconds)
        self._bench.progress.waiting("no job yet", seconds)
        return await self._stop.wait(seconds) or self._end.expired

    async def _ask(self, free: int) -> list[RawJob]:
        """One request. A job that arrives while we are told to stop is taken, since the server counts it as ours."""
        if reason := self._busy():
            logger.info("no job is asked for: %s", reason)
            return []
        space = min(free, self._bench.info.queue.maxwdir or free, space_limit(self._bench.environ) or free)
        request = replace(self._seat.request, disk=space, task_id=self._task)
        asking = asyncio.ensure_future(self._bench.server.acquire(request))
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({asking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            await asyncio.wait({asking}, timeout=min(_ANSWER_PATIENCE, self._stop.deadline.remaining / 3))
        stopped.cancel()
        if not asking.done():
            asking.cancel()
            return []
        return asking.result()

    def _busy(self) -> str:
        settings = self._bench.settings
        return busy(settings.load_factor) if settings.enable_delay_to_get_job else ""

    async def _check_software(self) -> None:
        """Raise CVMFSISNOTALIVE if the experiment's software is not there; nobody else's jobs need it."""
        bench = self._bench
        wanted = bench.settings.cvmfs and bench.info.queue.is_cvmfs and not bench.environ.get("NO_CVMFS_OK")
        if wanted and bench.experiment.cvmfs_paths:
            base = bench.settings.cvmfs_base
            await self._stop.guard(check_cvmfs(base, bench.experiment.cvmfs_paths))

    def _check_space(self) -> int:
        """Free MB; raises NOLOCALSPACE if there is not enough for another job."""
        import shutil

        limit = self._bench.settings.free_space_limit
        free = shutil.disk_usage(self._bench.main_dir).free
        if free < limit:
            text = f"{free >> 20} MiB free in {self._bench.main_dir}, {limit >> 20} MiB are needed to ask for a job"
            raise PilotError(Code.NOLOCALSPACE, text)
        return free >> 20

    async def _run(self, raw: RawJob, getjob_seconds: float) -> None:
        log_start = self._bench.log.position()
        self._note_id(job_identity(raw)[0])
        try:
            job = self._parse(raw)
        except JobDefinitionError as error:
            await self._refuse(raw, error)
            return
        except Exception as error:  # the door: a bug of ours must end in a report, not in a lost job
            logger.exception("internal error in a job definition")
            await self._refuse(raw, internal_error(error))
            return
        self._tell_batch(job)
        run = JobRun(
            self._bench,
            job,
            self._stop,
            slot_end=self._run_end(),
            getjob_seconds=getjob_seconds,
            log_start=log_start,
        )
        self._count(await run.run())
        if self._bench.settings.allow_same_user:
            self._task = job.task_id or self._task

    def _tell_batch(self, job: Job) -> None:
        """HTCondor's users look for PanDA's jobs in its own queue. Nobody waits for it."""
        bench = self._bench
        if program := find_chirp(bench.environ):
            pilot_id = bench.speaker.pilot_id(bench.experiment.pilot_id(bench.speaker.gtag, job.job_id))
            attributes = {"PandaID": str(job.job_id), "PandaPilotId": pilot_id}
            self._chirping = asyncio.ensure_future(in_thread(set_attributes, program, attributes, bench.environ))

    def _parse(self, raw: RawJob) -> Job:
        Fields(raw).check_sizes()  # before it is looked through for secrets and put into the log
        for key in ("secrets", "pilotSecrets"):
            self._bench.masker.add(raw.get(key))
        shown = {key: "********" if key in ("secrets", "pilotSecrets") and raw[key] else raw[key] for key in raw}
        logger.info("job definition = %s", shown)
        environ = dict(self._bench.environ)
        if self._bench.info.queue.catchall_flag("HPC_HPC"):  # the cores of a job there are its own, as for Pilot 3
            environ.pop("ATHENA_PROC_NUMBER", "")
        return parse_job(raw, environ=environ, filters=self._bench.experiment)

    async def _refuse(self, raw: RawJob, error: PilotError) -> None:
        """A definition that cannot be used is reported failed."""
        job_id, attempt = job_identity(raw)
        run = JobRun(self._bench, Job(job_id=job_id, attempt=attempt), self._stop)
        self._count(await run.refuse(error))

    def _count(self, outcome: Outcome) -> None:
        """Keep what the end of the slot needs to know; the outcomes of thousands of jobs would be many MB."""
        self._done += 1
        if not outcome.reported:
            self._lost.append(outcome.job.job_id)

    def _run_end(self) -> SlotEnd:
        """When a running job is stopped: the queue may allow it more time than it takes to begin another."""
        lifetime, what = slot_seconds(self._bench.info.queue, self._bench.settings.lifetime)
        whole = lifetime * self._bench.info.queue.walltime_grace
        left = whole - (time.monotonic() - self._started) - min(_END_MARGIN, lifetime / 10)
        batch_left = self._batch_end.remaining - self._batch_margin
        if batch_left < left:
            left, what = batch_left, f"{self._seat.batch_end.what} is near"
        return SlotEnd(max(0.0, left), what)

    def _note_id(self, job_id: int) -> None:
        """`pandaIDs.out`, one id a line, which wrappers read."""
        if self._seat.ids_file is not None:
            try:
                with open(self._seat.ids_file, "a") as file:
                    file.write(f"{job_id}\n")
            except OSError as error:
                logger.warning("%s: %s", self._seat.ids_file, error.strerror)


def _is_named(raw: RawJob) -> bool:
    """Whether a definition says which job it is: one that does not can be neither run nor reported."""
    try:
        job_identity(raw)
    except JobDefinitionError as error:
        logger.error("a job that cannot be reported: %s", error.detail)
        return False
    return True
