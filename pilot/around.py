"""What runs around the phases of a job and is not the job's: hooks of the site, and services of the experiment."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pilot.bench import Bench
from pilot.errors import Code, Fault, PilotError
from pilot.experiment import Service
from pilot.hooks import DEFAULT_CODES, Hooks, JobHooks
from pilot.job import File, Job
from pilot.option import words
from pilot.outcome import Outcome
from pilot.payload.environment import payload_environment
from pilot.payload.process import PayloadProcess, output_paths, tail
from pilot.processes import descendants, send
from pilot.queuedata import Queue
from pilot.removal import remove_tree
from pilot.stop import Deadline, Stop, in_thread, time_box

logger = logging.getLogger(__name__)

#: Seconds that a service may take to start, and to stop.
_START, _STOP = 300.0, 30.0

#: Share of the time that is left after a stop for the last hooks and for services to stop.
_LAST_SHARE = 0.1


class Around:
    """Runs them for one job.

    Args:
        bench: what all jobs of the slot share.
        job: the job.
        workdir: its directory.
        stop: the job's.
        outcome: what became of it; gets the metrics of hooks.

    Attributes:
        variables: for the payload's environment.
    """

    def __init__(self, bench: Bench, job: Job, workdir: Path, stop: Stop, outcome: Outcome) -> None:
        self._bench = bench
        self._job = job
        self._workdir = workdir
        self._stop = stop
        self._outcome = outcome
        self._queue = Queue()
        self._services: list[Service] = []
        self._hooks: JobHooks | None = None
        self.variables: dict[str, str] = {}

    async def begin(self, queue: Queue) -> None:
        """The job has its directory: the hooks of its start, then the services.

        Raises:
            PilotError: a hook failed, or the reason of the stop.
        """
        self._queue = queue
        settings = self._bench.settings
        hooks = Hooks(
            directory=settings.hooks,
            timeout=settings.hook_timeout,
            processes=self._bench.processes,
            environ=self._environment(),
        )
        self._hooks = JobHooks(hooks=hooks, workdir=self._workdir)
        await self._run_hooks("start", self._stop)
        for service in self._bench.experiment.services(self._job, queue):
            await self._stop.guard(self._start(service))

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """The hooks before a phase, and those after it if it went well.

        Raises:
            PilotError: as `begin`. A stop after the stage-out is none: all is delivered.
        """
        await self._run_hooks(f"pre-{name}", self._stop)
        yield
        try:
            await self._run_hooks(f"post-{name}", self._stop)
        except PilotError as error:
            if name != "stageout" or error is not self._stop.reason:
                raise
            logger.warning("a stop left no time for the hooks of post-stageout")

    async def end(self) -> None:
        """The last hooks, also of a job that failed or was stopped, and the end of services. May be called once.

        Raises:
            PilotError: a hook failed.
        """
        late = PilotError(Code.COMMANDTIMEDOUT, "a stop left no more time for the last hooks and services")
        try:
            async with time_box(self._stop, late, lambda: self._stop.deadline.remaining * _LAST_SHARE) as box:
                while self._services:
                    await self._end(self._services.pop(), box)
                await self._run_hooks("end", box)
        except PilotError as error:
            if error is not late:
                raise
            logger.warning("%s", late.detail)  # no good job fails for that
        finally:
            self._sweep()

    def _sweep(self) -> None:
        """Nothing that was begun here stays: a hook after the payload may have left a daemon."""
        processes = self._bench.processes
        processes.keep([])
        send(descendants(processes.adopted()), signal.SIGKILL)

    # ----------------------------------------------------------------------------------------------------------- hooks

    async def _run_hooks(self, phase: str, stop: Stop) -> None:
        hooks = self._hooks
        if hooks is None or not hooks.hooks.directory:
            return
        try:
            await hooks.run(phase, _masked(self._description(), self._bench.masker.mask), stop)
        except PilotError as error:
            if self._outcome.error is None and error.code in DEFAULT_CODES:  # of a payload the user's fault, here not
                self._outcome.fault = Fault.SITE
            raise
        finally:
            self.variables |= hooks.environment
            self._outcome.metrics |= hooks.metrics

    def _description(self) -> dict[str, Any]:
        """The job for a hook; its secrets stay with it, and what looks like one in other fields is masked."""
        job, outcome = self._job, self._outcome
        return {
            "job_id": job.job_id, "attempt": job.attempt, "task_id": job.task_id, "name": job.name, "label": job.label,
            "user": job.user, "transformation": job.transformation, "parameters": job.parameters,
            "platform": job.platform, "release": job.release, "container_image": job.container_image,
            "cores": job.cores, "min_ram_mb": job.min_ram, "max_walltime_s": job.max_walltime,
            "resource_type": job.resource_type, "queue": self._queue.name, "directory": str(self._workdir),
            "inputs": [_file(file) for file in job.inputs], "outputs": [_file(file) for file in job.outputs],
            "exit_code": outcome.exit_code, "signal": outcome.signum,
            "error_code": outcome.code, "error_diag": outcome.error.diag if outcome.error else "",
        }  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """What a payload gets: the pilot's own credentials stay with the pilot, unless the site names them."""
        bench = self._bench
        names = words(bench.settings.payload_variables)
        return payload_environment(bench.environ, self._job, queue_name=self._queue.resource, names=names)

    # -------------------------------------------------------------------------------------------------------- services

    async def _start(self, service: Service) -> None:
        """Start a service; the job goes on without one that does not."""
        processes = self._bench.processes
        self._services.append(service)
        before = set(processes.adopted())
        process = self._launch(f"{service.name}_start", service.start)
        ended = None
        try:
            async with asyncio.timeout(_START):
                ended = await process.wait()
        except TimeoutError:
            logger.warning("service %s did not start in %g s", service.name, _START)
        finally:
            if ended is None:
                await process.stop(Deadline(2.0))
            processes.keep([pid for pid in processes.adopted() if pid not in before])
        told = dict(_variables(service, tail(output_paths(self._workdir, process.name)[0], 65536)))
        self.variables |= told
        status = ended.status if ended else None
        logger.info("service %s: exit status %s, sets %s", service.name, status, ", ".join(told) or "nothing")

    async def _end(self, service: Service, stop: Stop) -> None:
        process = self._launch(f"{service.name}_kill", service.stop)
        try:
            async with asyncio.timeout(_STOP):
                await stop.guard(process.wait())
        except TimeoutError:
            logger.warning("service %s did not stop in %.1f s", service.name, _STOP)
        finally:
            self._bench.processes.keep([])
            await process.stop(Deadline(2.0))
        if service.directory:
            await in_thread(remove_tree, self._workdir / service.directory)

    def _launch(self, name: str, text: str) -> PayloadProcess:
        return PayloadProcess.start(
            text,
            workdir=self._workdir,
            environment=self._environment() | self.variables,
            processes=self._bench.processes,
            name=name,
        )


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _masked(inner, mask) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, mask) for inner in value]
    return mask(value) if isinstance(value, str) else value


def _variables(service: Service, output: str) -> list[tuple[str, str]]:
    """What a service says in its output."""
    found = ((name, re.search(pattern, output, re.MULTILINE)) for name, pattern in service.variables.items())
    return [(name, match[1].strip()) for name, match in found if match]


def _file(file: File) -> dict[str, Any]:
    return {"lfn": file.lfn, "scope": file.scope, "size": file.size, "endpoint": file.endpoint}
