"""The payload of one job: made ready, started, watched, ended, explained.

    setup: the transformation fetched, the environment built -> payload: started under watch -> ended, to the last child

A job may bring commands that run before, beside and after it; one that optimises hyper-parameters (HPO) goes through
them again for each point, until its preprocess says that there are no more. Whatever happens, nothing of the payload is
left, and its true end is in the outcome.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilot.bench import Bench
from pilot.cgroup import Nest
from pilot.contain import Runtime, choose_runtime, failure_of, make_container, make_private, private_beside
from pilot.errors import Code, Fault, PilotError
from pilot.experiment import JOURNAL
from pilot.grace import Ledger
from pilot.job import Job, Limits
from pilot.maskfile import MASKS, MASKS_VARIABLE, MaskFile
from pilot.matchers import load_matchers
from pilot.option import words
from pilot.outcome import Outcome
from pilot.payload.command import prepare_command
from pilot.payload.container import Container, linked_directories, without_runtime
from pilot.payload.diagnose import diagnose
from pilot.payload.environment import payload_environment
from pilot.payload.process import Ended, PayloadProcess
from pilot.payload.utilities import (
    COUNT_VARIABLE,
    HOROVOD_VARIABLE,
    Utilities,
    allow_made_command,
    check_utility,
    ends_loop,
    prepare_utilities,
)
from pilot.processes import Spent
from pilot.queuedata import Queue
from pilot.removal import remove_tree
from pilot.server.report import State, Usage
from pilot.stop import Deadline, Stop
from pilot.watch.guard import Guard, Post
from pilot.watch.look import watch

logger = logging.getLogger(__name__)

#: Seconds that processes left behind by a payload get between TERM and KILL.
LEFTOVER_GRACE = 2.0
#: Seconds to ask a container runtime how a container ended, and to have it take away what is left.
CONTAINER_PATIENCE = 10.0
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
        variables: for the payload's environment, from hooks and services of the node; may grow until it starts.
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
    variables: Mapping[str, str] = field(default_factory=dict)


class PayloadRun:
    """Runs the payload of a job, once.

    Attributes:
        is_idle: True if the preprocess said that there is nothing to do: then there need not be outputs.
    """

    def __init__(self, scene: Scene) -> None:
        self.is_idle = False
        self._scene = scene
        self._guard: Guard | None = None
        self._watching: asyncio.Task[None] | None = None
        self._running: list[PayloadProcess] = []
        self._runtime: Runtime | None = None
        self._container: Container | None = None
        self._linked: list[Path] = []
        self._round = 0
        self._spent, self._seconds, self._killed = Spent(), 0.0, False
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
        try:
            await self._rounds(*await self._scene.stop.guard(self._prepare()))
        finally:
            await self._close()
            if self._runtime:
                remove_tree(private_beside(self._scene.workdir))

    def members(self) -> list[int]:
        """Pids of its living processes, parents first."""
        return list(dict.fromkeys(pid for process in self._running for pid in (*process.members(), *process.inside())))

    def _receivers(self) -> list[int]:
        return list(dict.fromkeys(pid for process in self._running for pid in process.receivers()))

    def tell_end(self, why: str) -> bool:
        """Send the signal that tells it that its time is nearly over; False if there is none, or it was sent before."""
        return self._guard is not None and self._guard.soft_stop.tell(why)

    async def remove(self) -> None:
        """Take away what measured it."""
        if self._guard:
            await self._guard.remove()

    async def _prepare(self) -> tuple[str, Utilities]:
        scene, bench = self._scene, self._scene.bench
        scene.enter("setup")
        self._runtime = choose_runtime(scene.job, scene.queue, bench)
        # Now: a payload that runs again could have led them elsewhere, and would find that in its container.
        self._linked = linked_directories(scene.workdir, [file.lfn for file in scene.job.inputs])
        text = await self._command()
        folder = make_private(scene.workdir, "programs") if self._runtime else scene.workdir
        utilities = await prepare_utilities(scene.job, folder, bench.fetch, self._bases())
        scene.enter("payload")
        return text, utilities

    async def _rounds(self, text: str, utilities: Utilities) -> None:
        """Preprocess, payload and postprocess; for HPO again and again."""
        many = self._scene.job.is_hpo and bool(utilities.preprocess)
        while await self._one_round(text, utilities) and many:
            self._round += 1

    async def _one_round(self, text: str, utilities: Utilities) -> bool:
        """One round; False if there shall be no other."""
        scene = self._scene
        if utilities.preprocess:
            ended = await self._utility("preprocess", utilities.preprocess)
            if ends_loop("preprocess", ended):
                self.is_idle = True  # the outputs of earlier rounds may be there
                return False
            allow_made_command(scene.job, scene.workdir)
        if not scene.bench.environ.get(HOROVOD_VARIABLE):
            payload = await scene.stop.guard(self.launch(text))
            scene.note("started", sync=True, pid=payload.pid)
            ended = await self._wait(payload, coprocess=utilities.coprocess)
            await self._judge(ended)
            if ends_loop("payload", ended):
                return False
        if utilities.postprocess:
            await self._utility("postprocess", utilities.postprocess)
        return True

    async def _utility(self, name: str, text: str) -> Ended:
        ended = await self._wait(self._start_utility(name, text))
        check_utility(name, ended, self._scene.workdir, self._scene.bench.masker.mask)
        return ended

    def _start_utility(self, name: str, text: str) -> PayloadProcess:
        """Start one with the variables and in the control group of the payload, but outside its container."""
        process = self._start_in_group(text, name)
        self._scene.note("utility", name=name, pid=process.pid)
        return process

    def _start_in_group(self, text: str, name: str, container: Container | None = None) -> PayloadProcess:
        scene = self._scene
        return PayloadProcess.start(
            text,
            workdir=scene.workdir,
            environment=container.environment if container else self._variables(),
            processes=scene.bench.processes,
            prefix=self._made_guard().prefix,
            name=name,
            again=self._round > 0,
            container=container,
        )

    async def launch(self, text: str) -> PayloadProcess:
        """Start the payload: environment, container and control group.

        Args:
            text: for `bash -c`, in the job directory.

        Raises:
            PilotError: why it could not be started.
        """
        if self._runtime:
            self._container = await self._contain(self._runtime, text)
        return self._start_in_group(text, "payload", self._container)

    async def _contain(self, runtime: Runtime, text: str) -> Container:
        scene = self._scene
        limit = self._made_guard().hard_limit
        container = make_container(
            runtime, scene.bench, scene.job, scene.queue, scene.workdir, text, self._variables(), limit, self._linked
        )
        await container.prepare()
        logger.info("container: %s, image %r", container.name, scene.job.container_image or scene.job.platform)
        return container

    def _variables(self) -> dict[str, str]:
        return self._environment() | {MASKS_VARIABLE: str(self._scene.workdir / MASKS)}

    def _made_guard(self) -> Guard:
        self._guard = self._guard or self._make_guard()
        return self._guard

    async def _command(self) -> str:
        """The payload's own shell text."""
        scene, bench = self._scene, self._scene.bench
        text = await prepare_command(scene.job, scene.workdir, bench.experiment, bench.fetch, self._bases())
        if self._runtime:  # an image brings its software, and ALRB sets it up itself
            return text
        setup = bench.experiment.release_setup(scene.job, scene.queue, contained=False)
        return "\n".join([*(f"{line} || exit" for line in setup.splitlines()), text])

    def _bases(self) -> list[str]:
        return list(words(self._scene.bench.settings.baseurls))

    def _environment(self) -> dict[str, str]:
        scene, bench = self._scene, self._scene.bench
        built = payload_environment(
            bench.environ,
            scene.job,
            queue_name=scene.queue.resource,
            queue_environ=scene.queue.environ,
            prefixes=bench.experiment.environment_prefixes,
            names=words(bench.settings.payload_variables),
            experiment=bench.experiment.environment(scene.job),
        )
        count = {COUNT_VARIABLE: str(self._round)} if scene.job.is_hpo or scene.job.preprocess else {}
        return built | count | dict(scene.variables)

    async def _wait(self, process: PayloadProcess, coprocess: str = "") -> Ended:
        """Wait for a process under watch; whatever happens, nothing of it is left and its true end is known."""
        stop = self._scene.stop
        self._running = [process]
        self._watch_over(process)
        try:
            if coprocess:
                self._running.append(self._start_utility("coprocess", coprocess))
            ended = await stop.guard(process.wait())
            if ended.status:  # perhaps for the signal that is about to reach us too: Slurm tells everybody
                await stop.wait(SIGNAL_PATIENCE)
            stop.check()
        except PilotError as error:
            if error.code is Code.RESOURCEUNAVAILABLE:  # too many processes: here no want of the node
                self._scene.outcome.fault = Fault.USER
            raise
        finally:
            await asyncio.gather(*map(self._end, self._running))
            self._masks.read()
            self._running = []
        return ended

    async def _judge(self, ended: Ended) -> None:
        scene, bench, outcome = self._scene, self._scene.bench, self._scene.outcome
        if self._container and (error := failure_of(self._container, ended, bench.masker.mask)):
            outcome.exe_code, outcome.fault = ended.status, Fault.SITE if error.code != Code.IMAGENOTFOUND else None
            raise error
        verdict = diagnose(
            scene.job,
            ended,
            scene.workdir,
            mask=bench.masker.mask,
            known=[*load_matchers(bench.settings.problem_matchers), *bench.experiment.matchers],
            trusts_report=bench.experiment.trusts_job_report,
        )
        outcome.exe_code, outcome.exe_diag = verdict.exe_code, verdict.exe_diag
        outcome.metrics |= verdict.metrics
        if verdict.error:
            await self._close()
            memory = self._guard and self._guard.out_of_memory
            outcome.fault = None if memory else verdict.fault
            raise memory or verdict.error

    def _watch_over(self, process: PayloadProcess) -> None:
        """Begin the watch with the first process; it goes on from one to the next."""
        if self._watching is None and self._guard:
            looks = self._guard.attach(process.pid, self.members, self._receivers)
            self._watching = asyncio.create_task(watch(looks, self._scene.stop, self._scene.bench.settings.grace))
            self._scene.announce(State.RUNNING)

    async def _close(self) -> None:
        """The end of the watch, and the numbers. May be called again."""
        watching, self._watching = self._watching, None
        if watching is None or self._guard is None:
            return
        watching.cancel()
        await asyncio.wait({watching})
        if not watching.cancelled() and watching.exception():
            logger.error("the watch over the payload broke", exc_info=watching.exception())
        try:
            deadline = self._scene.stop.deadline
            await self._guard.close(self._spent, self._seconds, deadline, killed=self._killed)
            self._scene.outcome.metrics |= await self._guard.metrics(deadline)
        except Exception:  # no job fails for what measures it
            logger.exception("the last look at the payload is left out")
        self._scene.outcome.usage = self._guard.usage

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
            # A container of podman or docker is in groups of its own: one of ours would measure the client alone.
            nest=Nest("off") if self._runtime and self._runtime.kind.own_group else bench.nest,
            slot_end=scene.slot_end,
            resource_types=bench.resource_types,
            started=scene.started,
        )
        return Guard(post)

    async def _end(self, process: PayloadProcess) -> None:
        scene = self._scene
        if scene.stop.requested and process.members():
            logger.info("ending the %s; %s", process.name, Ledger(scene.stop.deadline.remaining))
        await scene.stop.paced(lambda: process.stop(self._share(), self._grace()))
        try:
            ended = await asyncio.wait_for(process.wait(), timeout=1.0)
        except TimeoutError:
            logger.error("%s pid %d cannot be killed: %s", process.name, process.pid, process.members())
            return
        finally:
            if process.container:
                await self._leave(process.container)
        if process.name == "payload":
            scene.note("ended", exit_code=ended.exit_code, signum=ended.signum)
            scene.outcome.exit_code, scene.outcome.signum = ended.exit_code, ended.signum
        if process.name != "coprocess":  # its time is that of the payload, and orphans are counted there
            self._spent += ended.spent if not process.container else without_runtime(ended.spent)
            self._seconds += ended.seconds
            by_signal = ended.signum == signal.SIGKILL and not ended.stopped
            self._killed = by_signal or ended.exit_code == 128 + signal.SIGKILL

    async def _leave(self, container: Container) -> None:
        """Ask what only the runtime knows, and have nothing left of the container."""
        stop = self._scene.stop
        try:
            async with asyncio.timeout(CONTAINER_PATIENCE if not stop.requested else self._share().remaining + 1.0):
                if self._guard:
                    self._guard.contained(container.mark, out_of_memory=await container.out_of_memory())
                await container.close()
        except TimeoutError:
            logger.error("%s did not take its container away in time", container.name)

    def _share(self) -> Deadline:
        """By when nothing of the payload may be left."""
        ledger = Ledger(self._scene.stop.deadline.remaining)
        return Deadline(min(ledger.payload, self._scene.bench.settings.grace))

    def _grace(self) -> float | None:
        """Seconds between TERM and KILL, None for the usual part of the share."""
        return None if self._scene.stop.requested else LEFTOVER_GRACE
