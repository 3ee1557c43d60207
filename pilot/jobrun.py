r"""One job, from acquired to reported: read this file to know what a pilot does.

    acquired -> stagein -> setup -> payload -> stageout -> log -> report
        \________\_________\_________\__________ any failure or stop: keep the first error, still do log and report

Each arrow is a line in the job's journal before it is an act, so whoever finds the job directory can tell what is left
to do. A stop cancels the running phase and leaves a budget of seconds: the payload gets its share first, then the log,
and the final report has the rest for itself; nothing cancels it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot.around import Around
from pilot.bench import Bench
from pilot.contain import JOB_DIRECTORY, choose_runtime
from pilot.debugcommands import Place, answer
from pilot.debugmode import DebugMode
from pilot.errors import Code, JobDefinitionError, PilotError, ServerError
from pilot.experiment import JOURNAL, KEPT, OWN_NAMES, SECRETS
from pilot.features import benchmark_share
from pilot.grace import SETTLE, SHIP_PATIENCE, Ledger
from pilot.job import File, Job, Kind, Limits
from pilot.jobreport import Reporter
from pilot.journal import Journal
from pilot.logarchive import archive_folder, make_log_archive
from pilot.maskfile import MASKS
from pilot.nodemap import GPU_MAP, NODE_MAP, copy_maps
from pilot.outcome import FileOutcome, Outcome, Stopwatch, internal_error
from pilot.outputs import Outputs
from pilot.payload.extract import last_words
from pilot.payloadrun import PayloadRun, Scene
from pilot.plainlog import send_plain_log
from pilot.podmode import show_job_dir
from pilot.registering import Registrar, wants_registration
from pilot.removal import remove_tree
from pilot.reserve import Reserve
from pilot.server.report import Reply, Report, State
from pilot.staging.result import StagingResult
from pilot.stop import Deadline, Stop, in_thread, time_box
from pilot.watch.heartbeat import Heartbeat

if TYPE_CHECKING:
    from pilot.logship.shipper import LogShip

logger = logging.getLogger(__name__)

#: Longest time to pack and upload the log of a job that nothing hurries, s.
LOG_TIMEOUT = 3600.0
#: Longest wait for the end of a file that debug mode shows with an update, s.
SHOW_TIMEOUT = 5.0


class JobRun:
    """The run of one job.

    Args:
        bench: what all jobs of the slot share.
        job: the job.
        slot_stop: stopping it stops the job.
        limits: beside those of the queue.
        slot_end: when the slot is over.
        getjob_seconds: how long it took to get the job, for the report.
        log_start: where the job's part of the pilot's log begins; here and now if not said.
    """

    def __init__(
        self,
        bench: Bench,
        job: Job,
        slot_stop: Stop,
        *,
        limits: Limits | None = None,
        slot_end: Deadline | None = None,
        getjob_seconds: float = 0.0,
        log_start: int | None = None,
    ) -> None:
        self.bench = bench
        self.job = job
        self.stop = Stop(slot_stop)
        self.outcome = Outcome(job)
        self.workdir = bench.main_dir / f"{JOB_DIRECTORY}{job.job_id}"
        self._limits = limits or Limits()
        self._slot_end = slot_end or Deadline()
        self._slot_stop = slot_stop
        self._watch = Stopwatch()
        self._journal: Journal | None = None
        self._payload: PayloadRun | None = None
        self._outputs: Outputs | None = None
        self._registrar: Registrar | None = None
        self._ship: LogShip | None = None
        self._phase = ""
        self._last_command = ""
        self._kept = False
        self._info = bench.info
        self._log_start = bench.log.position() if log_start is None else log_start
        self._reserve = Reserve(bench.main_dir / f"reserve-{job.job_id}")
        self._around = Around(bench, job, self.workdir, self.stop, self.outcome)
        self._reporter = Reporter(bench.speaker, bench.experiment, self.outcome, getjob_seconds)
        self._heartbeat = Heartbeat(
            self._beat,
            self._heard,
            self.stop,
            interval=bench.settings.heartbeat,
            lost=bench.settings.lost_heartbeat,
        )
        beat = self._heartbeat
        self._debug = DebugMode(self._show, beat.hurry, beat.again, bench.settings.debug_heartbeat)

    async def run(self) -> Outcome:
        """Do all of it. Never raises for what can go wrong with a job: that is in the outcome."""
        self.bench.masker.add([self.job.secrets, self.job.pilot_secrets])
        self.bench.progress.job(self.job)
        beating = asyncio.create_task(self._heartbeat.run())
        try:
            await self._attempt(self._work)
            if self._outputs:
                await _beside(self._outputs.give_up())
            await self._attempt(self._around.end)
            if self._payload:
                await _beside(self._payload.remove())
            shipping = asyncio.create_task(_beside(self._finish_ship()))
            await self._attempt(self._keep_log)
            await shipping
            await self._heartbeat.settle(self._ledger.settle)
        finally:
            beating.cancel()
        await _beside(self._debug.close())
        if self._outputs:
            await _beside(self._outputs.hold(self._ledger.settle))
        await self._report()
        if self._outputs:
            await _beside(self._outputs.hold_unreported(self._ledger.settle))
        self.bench.progress.ended(self.outcome)
        await self._clean_up()
        self._slot_stop.detach(self.stop)
        return self.outcome

    async def _clean_up(self) -> None:
        """Remove the job directory, in the time that is left after a stop: a file system may hang."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        removing = asyncio.create_task(_beside(in_thread(self._remove_workdir)))
        await self.stop.paced(lambda: asyncio.wait({removing}, timeout=self._ledger.removal))

    def _remove_workdir(self) -> None:
        self._reserve.release()
        if self.bench.credentials:
            self.bench.credentials.forget(self.job)
        kept = self._outputs is not None and self._outputs.put_away()
        if self.bench.settings.cleanup and not kept and not self._kept:
            remove_tree(self.workdir)

    @property
    def _ledger(self) -> Ledger:
        """What there is to divide of the time after a stop."""
        return Ledger(self.stop.deadline.remaining)

    async def _work(self) -> None:
        """The phases that make a job; the first that fails ends it."""
        self._make_workdir()
        self._heartbeat.announce(State.STARTING)
        if self.job.debug:
            self._debug.told(f"debug,{self.job.debug_command.removeprefix('debug')}")
        self.outcome.metrics |= benchmark_share(self.bench.environ, self.job.cores)
        _refuse_own_names(self.job)
        self._info = self.bench.info.overlaid(self.job.queue_overrides, self.job.storage_overrides)
        _refuse_missing_features(self.job)
        choose_runtime(self.job, self._info.queue, self.bench)  # before inputs are fetched for nothing
        if wants_registration(self.bench.settings, self._info.queue):
            self._registrar = Registrar(self.bench.catalogue, self.bench.processes, self._note)
        self._start_ship(self.job)
        self.bench.experiment.verify(self.job)
        await self._around.begin(self._info.queue)
        async with self._around.phase("stagein"):
            await self._stage_in()
        async with self._around.phase("payload"):
            await self._run_payload()
        async with self._around.phase("stageout"):
            await self._stage_out()

    async def _attempt(self, phases: Callable[[], Awaitable[None]]) -> None:
        """Run phases; what they raise is the job's error if it is the first."""
        try:
            await phases()
        except PilotError as error:
            self._fail(error)
        except Exception as error:  # the door: a bug of ours must end in a report, not in a lost job
            logger.exception("internal error in job %d", self.job.job_id)
            self._fail(internal_error(error))

    def _fail(self, error: PilotError) -> None:
        error = PilotError(error.code, self.bench.masker.mask(error.detail))  # it goes to the server, too
        logger.error("job %d: %s", self.job.job_id, error)
        self.outcome.fail(error)
        self.outcome.metrics["fault"] = self.outcome.blame
        self._note("failed", code=int(error.code), diag=error.diag)

    def _enter(self, phase: str, *, sync: bool = False, **facts: Any) -> None:
        """Begin a phase: the journal has it first."""
        self._note(phase, sync=sync, **facts)
        self._watch.enter(phase)
        self.outcome.timings = self._watch.timings
        self._phase = phase
        if self._ship:
            self._ship.enter(phase)
        self.bench.progress.phase(self.job, phase)
        logger.info("job %d: %s", self.job.job_id, phase)

    def _note(self, step: str, *, sync: bool = False, **facts: Any) -> None:
        if self._journal is not None:
            self._journal.record(step, sync=sync, **facts)

    def _make_workdir(self) -> None:
        try:
            self.workdir.mkdir()
            self.workdir.chmod(0o770)
            self._reserve.take()
            self._journal = Journal(self.workdir / JOURNAL)
            if self.job.secrets is not None:
                _write_private(self.workdir / SECRETS, self.job.secrets.reveal())
        except OSError as error:
            raise PilotError(Code.MKDIR, f"{self.workdir}: {error.strerror}") from error
        self._note("acquired", sync=True, job_id=self.job.job_id, attempt=self.job.attempt)
        self.bench.log.link_into(self.workdir)
        if self.bench.settings.pod:
            show_job_dir(self.workdir, self.bench.environ)

    def _start_ship(self, job: Job) -> None:
        """Let people read the job's log while it runs, if queue, option or debug mode want that."""
        self._ship = self.bench.logship(self._info, job, self.workdir)
        if self._ship:
            self._ship.enter(self._phase)
            if self.bench.log.path:
                self._ship.follow(self.bench.log.path, self._log_start)
            self._ship.start()

    async def _finish_ship(self) -> None:
        """The last lines, in their share of the time; what did not arrive is in the metrics."""
        self._phase = ""
        if self._ship:
            ship = self._ship
            await self.stop.paced(lambda: ship.finish(Deadline(self._ledger.ship), SHIP_PATIENCE))
            lost = sum(ship.losses().values())
            self.outcome.metrics |= {"logLinesLost": str(lost)} if lost else {}

    # ---------------------------------------------------------------------------------------------------------- inputs

    async def _stage_in(self) -> None:
        self._enter("stagein")
        self._keep(await self.bench.engine(self._info, self.job).stage_in(self.job.inputs, self.workdir, self.stop))

    def _keep(self, result: StagingResult) -> None:
        """Note the files that arrived; raise for those that did not."""
        self.outcome.metrics |= result.metrics
        self.outcome.story += map(self.bench.masker.mask, result.story)
        for staged in result.staged:
            done = FileOutcome(file=staged.file, url=staged.url, size=staged.size, checksums=staged.checksums)
            self.outcome.files.append(done)
            self._note("moved", sync=done.file.kind is not Kind.INPUT, **done.as_dict(), endpoint=done.file.endpoint)
            self.bench.progress.moved(self.job, done)
        for failure in result.failed:
            if failure.file.kind is not Kind.INPUT:
                tried = [str(attempt) for attempt in failure.attempts]
                self._note("unstored", kind=failure.file.kind.value, lfn=failure.file.lfn, tried=tried)
        if result.error:
            raise result.error

    # --------------------------------------------------------------------------------------------------------- payload

    async def _run_payload(self) -> None:
        if self.bench.credentials:
            given = self.bench.credentials.for_payload(self.job, self._info.queue)
            self._around.variables |= await self.stop.guard(given)
        scene = Scene(
            bench=self.bench,
            job=self._payload_job(),
            queue=self._info.queue,
            workdir=self.workdir,
            stop=self.stop,
            outcome=self.outcome,
            limits=self._limits,
            slot_end=self._slot_end,
            started=self._watch.started,
            enter=self._enter,
            note=self._note,
            announce=self._heartbeat.announce,
            variables=self._around.variables,
        )
        self._payload = PayloadRun(scene)
        self._outputs = self._make_outputs()
        async with self._outputs:
            await self._payload.run()
        self._outputs.is_idle = self._payload.is_idle

    def _payload_job(self) -> Job:
        variables = {**self.bench.environ, **self._around.variables}
        return self.bench.experiment.inputs_ready(self.outcome.staged_job, self.workdir, variables)

    def _make_outputs(self) -> Outputs:
        return Outputs(
            self.bench,
            self.job,
            self._info,
            self.workdir,
            self.stop,
            self.outcome,
            keep=self._keep,
            note=self._note,
            register=partial(self._register, Kind.OUTPUT) if self._registrar else None,
        )

    # -------------------------------------------------------------------------------------------------- outputs and log

    async def _stage_out(self) -> None:
        self._enter("stageout")
        if self._outputs:
            self._keep(await self._outputs.stage_out(self._final))
        await self._register(Kind.OUTPUT, self.stop)

    async def _register(self, kind: Kind, stop: Stop) -> None:
        """Let the catalogue know what is stored, where the PanDA server does not."""
        if self._registrar:
            await self._registrar.register([one for one in self.outcome.files if one.file.kind is kind], stop)

    async def _keep_log(self) -> None:
        """Pack the job directory and take it out, in the time that is left."""
        log = self.job.log
        if log is None or self._journal is None:
            return
        self._enter("log")
        self._revive_workdir()
        late = PilotError(Code.LOGCREATIONTIMEOUT, "the time for the log is over")
        async with time_box(self.stop, late, lambda: self._ledger.log, LOG_TIMEOUT) as box:
            await box.guard(in_thread(self._pack, log, box, self._moved()))
            self._keep(await self._take_log(log, box))
            await self._register(Kind.LOG, box)

    async def _take_log(self, log: File, box: Stop) -> StagingResult:
        """As an archive, or file by file where the storage shows logs to people."""
        plain = await send_plain_log(self.bench, self._info, self.job, self.workdir, self._log_start, box)
        if plain is None:
            return await self.bench.engine(self._info, self.job).stage_out([log], self.workdir, box)
        self._reporter.gtag = plain.url
        return plain.result

    def _revive_workdir(self) -> None:
        """A payload that removed its directory, or took our rights on it away, leaves a log with the pilot's part."""
        with suppress(OSError):
            if self.workdir.is_symlink() or not self.workdir.is_dir():
                self.workdir.unlink(missing_ok=True)  # a file or a link in its place
                self.workdir.mkdir()
            self.workdir.chmod(0o770)

    def _moved(self) -> list[File]:
        """What has a place of its own, and is not packed into the log."""
        moved = [*self.job.inputs, *self.job.outputs]
        with suppress(PilotError):  # of files that fail the job; the log shall tell it
            moved += self.bench.experiment.outputs(self.job, self.workdir)
        return moved

    def _pack(self, log: File, box: Stop, moved: list[File]) -> None:
        experiment = self.bench.experiment
        copy_maps(self.bench.main_dir, self.workdir)
        make = partial(
            make_log_archive,
            self.workdir,
            self.workdir / log.lfn,
            folder=archive_folder(self.job.job_id, self._info.queue.name),
            exclude=[*(file.lfn for file in moved), log.lfn, SECRETS],
            redundant=experiment.redundant(self.outcome.error),
            keep=experiment.kept_files,
            masker=self.bench.masker,
            pilot_log=self.bench.log.part(self._log_start),
            extra=self._client_log(),
            check=box.check,
        )
        self._reserve.pack(lambda limit: make(file_limit=limit))

    def _client_log(self) -> list[Path]:
        """What XRootD's client writes of our transfers, if the site wants that; a payload may have one of its own."""
        path = Path(self.bench.environ.get("XRD_LOGFILE", "")).absolute()
        return [path] if os.path.isfile(path) and not os.path.lexists(self.workdir / path.name) else []

    # ---------------------------------------------------------------------------------------------------------- reports

    async def refuse(self, error: PilotError) -> Outcome:
        """Report a job failed without trying it."""
        self._fail(error)
        await self._report()
        self._slot_stop.detach(self.stop)
        return self.outcome

    async def _report(self) -> None:
        """The final report: tried until the server took it, or until there is no time left."""
        report = replace(self._final(), stdout=await self._shown(SETTLE))
        self._enter("report", sync=True, state=report.state.value, code=report.error_code)
        sending = asyncio.create_task(
            self.bench.server.update(report, Deadline(self.bench.settings.final_report_timeout))
        )
        await self.stop.paced(lambda: asyncio.wait({sending}, timeout=self._ledger.report))
        try:
            await asyncio.wait_for(sending, 0)
        except Exception as error:  # the door: whatever is wrong with one report, the slot has other jobs to report
            bug = not isinstance(error, ServerError | TimeoutError)
            reason = getattr(error, "detail", "") or str(error) or "no time left"
            logger.error("job %d: the final report was not delivered: %s", self.job.job_id, reason, exc_info=bug)
            self._note("unreported", sync=True)
        else:
            self.outcome.reported = True
            self._note("reported", sync=True)
        self._watch.enter("")

    def _final(self) -> Report:
        mask = self.bench.masker.mask
        error = self.outcome.error
        extract = last_words(self.workdir, error.code, mask) if error else ""
        extract = "\n".join(filter(None, [extract, *self.outcome.story]))
        if self.bench.tracing and (code := self.bench.tracing.sender.trouble()):
            self.outcome.metrics["rucioTraceError"] = str(code)
        try:
            metadata = mask(self.bench.experiment.payload_metadata(self.workdir))
            return self._reporter.report(self.outcome.state, pilot_log=extract, metadata=metadata)
        except Exception as error:  # the door of the experiment: what it adds to a report must not keep it back
            logger.exception("the experiment's part of the report is left out")
            self._fail(internal_error(error))
            return self._reporter.report(self.outcome.state, pilot_log=extract, metrics="")

    async def _beat(self, state: State, deadline: Deadline) -> Reply:
        if self._payload and (usage := self._payload.usage):
            self.outcome.usage = usage
        report = replace(self._reporter.report(state), stdout=await self._shown(deadline.remaining))
        return await self.bench.server.update(report, deadline, self.stop)

    async def _shown(self, seconds: float) -> str:
        """What debug mode has to show; a file system that hangs must not hold up the report."""
        try:
            async with asyncio.timeout(min(seconds, SHOW_TIMEOUT)):
                return await self._debug.stdout()
        except TimeoutError:
            return ""

    def _show(self, command: str) -> str:
        """Carry out a command of debug mode. Blocks."""
        place = Place(
            workdir=self.workdir,
            pids=self._payload.members if self._payload else list,
            hidden=(SECRETS, MASKS),
            own=(*(name for name in OWN_NAMES if not name.startswith("payload.")), NODE_MAP, GPU_MAP),
            pilot_log=self.bench.log.path,
            path=self.bench.environ.get("PATH"),
        )
        return answer(command, place, self.bench.masker.mask)

    def _heard(self, reply: Reply) -> None:
        """Do what the server answers to a heartbeat."""
        for secret in reply.secrets.values():
            self.bench.masker.add(secret)
        self._debug.sent()
        command = reply.command
        if "tobekilled" in command or command == "badattemptnr":
            reason = PilotError(Code.PANDAKILL, f"the server answered {command!r}")
            self.stop.request(reason, math.inf)  # the payload has its grace; the slot goes on
        elif command and command != self._last_command:
            self._obey(command)
        self._last_command = command

    def _obey(self, command: str) -> None:
        """Do what a new command of the server says (PILOT3 2.8)."""
        if command == "nocleanup":
            self._kept = True
            with suppress(OSError):  # the payload may have removed the directory
                open(self.workdir / KEPT, "x").close()  # a new file: a payload's link there leads to somebody else's
            logger.info("the job directory will be kept: %s", self.workdir)
        elif command == "softkill":
            told = self._payload.tell_end("the server said softkill") if self._payload else False
            logger.info("softkill: %s", "told the payload" if told else "no signal is set for this payload")
        elif self._debug.told(command):
            self._show_live(command.removeprefix("debug").strip(" ,"))
        else:
            logger.warning("command of the server that this pilot does not carry out: %r", command[:200])

    def _show_live(self, command: str) -> None:
        """Debug mode has a live log, where one is named: it begins, or what a `tail` names joins it (PILOT3 6)."""
        if self._ship and command.startswith("tail "):
            self._ship.follow_name(command.split()[-1])
        elif not self._ship and self._phase:
            self._start_ship(replace(self.job, debug=True, debug_command=command))


async def _beside(work: Awaitable[None]) -> None:
    """Do what no job fails for: a bug in it must not keep back the report."""
    try:
        await work
    except Exception:
        logger.exception("left out")


def _refuse_own_names(job: Job) -> None:
    for file in (*job.inputs, *job.outputs, *([job.log] if job.log else [])):
        if file.lfn in OWN_NAMES:
            field = "inFiles" if file.kind is Kind.INPUT else "outFiles"
            raise JobDefinitionError(field, f"{file.lfn!r} is the name of a file of the pilot in the job directory")


def _refuse_missing_features(job: Job) -> None:
    """Better no result than a wrong one: a job that needs what this pilot cannot do yet is not run without it."""
    wishes = {
        "event service (eventService)": job.event_service or job.event_service_merge,
    }
    missing = [wish for wish, wanted in wishes.items() if wanted]
    if missing:
        raise PilotError(Code.NOTIMPLEMENTED, f"the job wants {', '.join(missing)}")


def _write_private(path: Path, text: str) -> None:
    """A new file that only its owner may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
