"""The payload of one job: made ready, started, watched, ended, explained.

    setup: the transformation fetched, the environment built -> payload: started under watch -> ended, to the last child

Whatever happens, nothing of the payload is left, and its true end is in the outcome.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilot.bench import Bench
from pilot.experiment import JOURNAL
from pilot.grace import Ledger
from pilot.job import Job, Limits
from pilot.maskfile import MASKS, MASKS_VARIABLE, MaskFile
from pilot.option import words
from pilot.outcome import Outcome
from pilot.payload.command import prepare_command
from pilot.payload.diagnose import diagnose
from pilot.payload.environment import payload_environment
from pilot.payload.process import Ended, PayloadProcess
from pilot.queuedata import Queue
from pilot.server.report import State, Usage
from pilot.stop import Deadline, Stop
from pilot.watch.guard import Guard, Post
from pilot.watch.look import watch

logger = logging.getLogger(__name__)

#: Seconds that processes left behind by a payload get between TERM and KILL.
LEFTOVER_GRACE = 2.0
#: Seconds that a signal to us may come after the same signal to the payload.
SIGNAL_PATIENCE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The job around its payload.

    Attributes:
        bench: what all jobs of the slot share.
        job: the job.
        queue: as the job sees it.
        workdir: its directory.
        stop: stopping it ends the payload.
        outcome: learns how the payload ended.
        limits: beside those of the queue.
        slot_end: when the slot is over.
        started: when the job was acquired (`time.monotonic`).
        enter: begins a phase of the job.
        note: writes a step with its facts into the journal.
        announce: tells the server of a state.
    """

    bench: Bench
    job: Job
    queue: Queue
    workdir: Path
    stop: Stop
    outcome: Outcome
    limits: Limits
    slot_end: Deadline
    started: float
    enter: Callable[[str], None]
    note: Callable[..., None]
    announce: Callable[[State], None]


class PayloadRun:
    """Runs the payload of a job, once."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._guard: Guard | None = None
        self._masks = MaskFile(scene.workdir, scene.bench.masker)

    @property
    def usage(self) -> Usage | None:
        """What it used until now; None before it was started."""
        return self._guard.usage if self._guard else None

    async def run(self) -> None:
        """All of it.

        Raises:
            PilotError: why it could not be started, why it failed, or the reason of the stop.
        """
        payload = await self._scene.stop.guard(self._start())
        ended = await self._wait(payload)
        self._judge(ended)

    async def remove(self) -> None:
        """Take away what measured it."""
        if self._guard:
            await self._guard.remove()

    async def _start(self) -> PayloadProcess:
        scene = self._scene
        scene.enter("setup")
        text = await self._command()
        scene.enter("payload")
        payload = await self.launch(text)
        scene.note("started", sync=True, pid=payload.pid)
        scene.announce(State.RUNNING)
        return payload

    async def launch(self, text: str, name: str = "payload") -> PayloadProcess:
        """Start shell text of this job, as its payload is started: environment, container and control group.

        Args:
            text: for `bash -c`, in the job directory.
            name: of the process; its output is in `NAME.stdout` and `NAME.stderr` of the job directory.

        Raises:
            PilotError: why it could not be started.
        """
        scene = self._scene
        self._guard = self._guard or self._make_guard()
        return PayloadProcess.start(
            text,
            workdir=scene.workdir,
            environment=self._environment() | {MASKS_VARIABLE: str(scene.workdir / MASKS)},
            processes=scene.bench.processes,
            prefix=self._guard.prefix,
            name=name,
        )

    async def _command(self) -> str:
        """The payload's own shell text."""
        scene, bench = self._scene, self._scene.bench
        bases = words(bench.settings.baseurls)
        return await prepare_command(scene.job, scene.workdir, bench.experiment, bench.fetch, bases)

    def _environment(self) -> dict[str, str]:
        scene, bench = self._scene, self._scene.bench
        return payload_environment(
            bench.environ,
            scene.job,
            queue_name=scene.queue.resource,
            queue_environ=scene.queue.environ,
            prefixes=bench.experiment.environment_prefixes,
            names=words(bench.settings.payload_variables),
            experiment=bench.experiment.environment(scene.job),
        )

    async def _wait(self, payload: PayloadProcess) -> Ended:
        """Wait for the payload under watch; whatever happens, nothing of it is left and its true end is known."""
        stop = self._scene.stop
        watching = asyncio.create_task(self._watch_over(payload))
        try:
            ended = await stop.guard(payload.wait())
            if ended.status:  # perhaps for the signal that is about to reach us too: Slurm tells everybody
                await stop.wait(SIGNAL_PATIENCE)
            stop.check()
        finally:
            watching.cancel()
            await self._end(payload)
            self._masks.read()
            await asyncio.wait({watching})
            if not watching.cancelled() and watching.exception():
                logger.error("the watch over the payload broke", exc_info=watching.exception())
        return ended

    def _judge(self, ended: Ended) -> None:
        scene = self._scene
        verdict = diagnose(scene.job, ended, scene.workdir, mask=scene.bench.masker.mask)
        scene.outcome.exe_code, scene.outcome.exe_diag = verdict.exe_code, verdict.exe_diag
        if verdict.error:
            raise (self._guard and self._guard.out_of_memory) or verdict.error

    async def _watch_over(self, payload: PayloadProcess) -> None:
        if self._guard:
            looks = self._guard.attach(payload.pid, payload.members)
            await watch(looks, self._scene.stop, self._scene.bench.settings.grace)

    def _make_guard(self) -> Guard:
        scene, bench = self._scene, self._scene.bench
        post = Post(
            job=scene.job,
            queue=scene.queue,
            settings=bench.settings,
            limits=scene.limits,
            workdir=scene.workdir,
            main_dir=bench.main_dir,
            own_files=(JOURNAL, "pilotlog.txt"),
            processes=bench.processes,
            environ=bench.environ,
            nest=bench.nest,
            slot_end=scene.slot_end,
            resource_types=bench.resource_types,
            started=scene.started,
        )
        return Guard(post)

    async def _end(self, payload: PayloadProcess) -> None:
        scene = self._scene
        if scene.stop.requested and payload.members():
            logger.info("ending the payload; %s", Ledger(scene.stop.deadline.remaining))
        await scene.stop.paced(lambda: payload.stop(self._share(), self._grace()))
        try:
            ended = await asyncio.wait_for(payload.wait(), timeout=1.0)
        except TimeoutError:
            logger.error("payload pid %d cannot be killed: %s", payload.pid, payload.members())
            return
        scene.note("ended", exit_code=ended.exit_code, signum=ended.signum)
        scene.outcome.exit_code, scene.outcome.signum = ended.exit_code, ended.signum
        if self._guard:
            await self._close_guard(self._guard, ended)

    async def _close_guard(self, guard: Guard, ended: Ended) -> None:
        killed = (ended.signum == signal.SIGKILL and not ended.stopped) or ended.exit_code == 128 + signal.SIGKILL
        try:
            await guard.close(ended.spent, ended.seconds, killed=killed)
        except Exception:  # no job fails for what measures it
            logger.exception("the last look at the payload is left out")
        self._scene.outcome.usage = guard.usage

    def _share(self) -> Deadline:
        """By when nothing of the payload may be left."""
        ledger = Ledger(self._scene.stop.deadline.remaining)
        return Deadline(min(ledger.payload, self._scene.bench.settings.grace))

    def _grace(self) -> float | None:
        """Seconds between TERM and KILL, None for the usual part of the share."""
        return None if self._scene.stop.requested else LEFTOVER_GRACE
