"""A pilot on a worker node, from its settings to its exit code: what `pilot run` does."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pilot.assembly import (
    Place,
    find_experiment,
    make_bench,
    make_fetch,
    make_main_dir,
    make_sources,
    remove_main_dir,
)
from pilot.batch import BatchFacts
from pilot.bench import Bench
from pilot.credentials import with_copies
from pilot.download import fetch_url
from pilot.errors import Code, PilotError, ServerError
from pilot.exchange import WAIT, speaks_by_files, tries, with_exchange
from pilot.features import read_features
from pilot.grace import node_grace
from pilot.masking import Masker
from pilot.mirror import Mirror, is_fixed
from pilot.node import read_node
from pilot.nodemap import tell_node
from pilot.outcome import Progress
from pilot.pilotlog import PilotLog
from pilot.podmode import in_pod
from pilot.processes import Processes
from pilot.queuedata import QueuedataLoader, QueueInfo, check_active
from pilot.server import Server
from pilot.server.client import PandaServer
from pilot.server.harvester import HarvesterServer
from pilot.server.report import JobRequest
from pilot.server.tls import find_tls
from pilot.settings import Settings, SettingsError
from pilot.signals import held, hold, listen
from pilot.slot import Seat, Slot
from pilot.slotend import batch_end
from pilot.stop import Stop, in_thread
from pilot.surroundings import describe
from pilot.version import __version__

logger = logging.getLogger(__name__)

#: Seconds that the last worker status gets even when no time is left: a server that is well answers in milliseconds.
FAREWELL_LEAST = 1.0

#: Seconds to wait for the server's resource types: there is a table to do without.
_RESOURCE_TYPES_PATIENCE = 10.0

#: Seconds that the last job may have to wait for the map of the node to be sent.
_MAP_PATIENCE = 1.0

#: Seconds for one key of machine features at a URL.
_FEATURE_TIMEOUT = 5.0

#: What a site may have set for Pilot 3 in vain: words of catchall, variables (docs/migration.md).
_IDLE_WORDS = ("nopenfiles", "setdebugmode")
_IDLE_VARIABLES = (
    *("HARVESTER_CONTAINER_RELEASE_SETUP_FILE", "HARVESTER_LD_LIBRARY_PATH", "HARVESTER_PYTHONPATH"),
    *("PILOT_QUEUE", "PILOT_WORKDIR"),
)

#: Seconds between two signs of life in the log: a payload may be silent for longer than the hour that wrappers wait.
SIGN_OF_LIFE = 60.0

Tick = Callable[[], Awaitable[None]]


class PilotRun:
    """One pilot process.

    Args:
        settings: what it was told.
        environ: its environment.
        progress: who watches.
        console: False to log to the file only.
        argv: the command line, for the log.
        deliver: where outputs of earlier pilots are, to be delivered instead of running jobs; empty for where they
            commonly are, None to run jobs.

    Attributes:
        reason: why the slot ended, None if nothing was wrong.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        progress: Progress | None = None,
        console: bool = True,
        argv: Sequence[str] = (),
        deliver: Sequence[Path] | None = None,
    ) -> None:
        self._started = time.monotonic()
        self._environ = environ
        self._progress = progress or Progress()
        self._console = console
        self._argv = argv
        self._deliver = deliver
        self._experiment = find_experiment(settings.pilot_user)
        self._settings = settings.with_experiment(self._experiment.settings, self._experiment.name)
        if told := node_grace(environ):
            self._settings = self._settings.with_node("grace", *told)
        self._cacert = settings.cacert
        self._masker = Masker()
        self.reason: PilotError | None = None

    def run(self, tick: Tick | None = None) -> int:
        """Run jobs until the slot is over; 0, or the exit code of what ended it.

        Args:
            tick: runs beside, such as a live display.
        """
        with held():
            place = self._place()
            try:
                with self._open_log(place) as log:
                    return asyncio.run(self._guarded(place, log, tick))
            finally:
                remove_main_dir(place, self._settings.cleanup)

    def _place(self) -> Place:
        launch_dir = Path.cwd()
        return Place(
            launch_dir=launch_dir,
            main_dir=make_main_dir(self._settings.workdir, launch_dir),
            environ=self._environ,
            batch=BatchFacts.read(self._environ),
            node=read_node(environ=self._environ),
        )

    def _open_log(self, place: Place) -> PilotLog:
        settings = self._settings
        return PilotLog.open(
            place.main_dir,
            self._masker,
            debug=settings.debug,
            quiet=not self._console,
            file=not settings.nopilotlog,
            redirect_stdout=settings.redirectstdout,
        )

    async def _guarded(self, place: Place, log: PilotLog, tick: Tick | None) -> int:
        beside = [asyncio.ensure_future(tick())] if tick else []
        try:
            with self._copies(place) as place:
                await self._run(place, log)
        except PilotError as error:
            logger.error("%s", error)
            self.reason = error
            exit_code = error.code.exit_code
        except Exception:  # the last door: what is wrong with us is for the log, and has an exit code too
            logger.exception("internal error")
            exit_code = Code.UNKNOWNEXCEPTION.exit_code
        else:
            exit_code = 0
        finally:
            for task in beside:
                task.cancel()
        logger.info("pilot ends after %.1f s with exit code %d", time.monotonic() - self._started, exit_code)
        hold()
        return exit_code

    @contextmanager
    def _copies(self, place: Place) -> Iterator[Place]:
        """The place with copies of credentials that could not be renewed where they are."""
        with Mirror(place.main_dir / f"credentials-{os.getpid()}", is_fixed) as mirror:
            directories = [place.launch_dir, place.main_dir]
            environ, self._cacert = with_copies(
                place.environ, self._settings.cacert, directories, self._experiment, mirror
            )
            yield replace(place, environ=environ)

    async def _run(self, place: Place, log: PilotLog) -> None:
        stop = Stop()
        processes = Processes()
        listen(stop, lambda: self._settings.grace, processes)
        self._say_hello(place)
        server = self._server(place)
        greeting = asyncio.ensure_future(self._worker_status(server, place, "started"))
        try:
            info = await stop.guard(self._queuedata(place, stop))
            info = in_pod(info, place.environ) if self._settings.pod else info
            check_active(info.queue)
            settings = self._settings = self._with_queue(info)
            bench = make_bench(
                settings,
                server,
                info,
                place,
                experiment=self._experiment,
                processes=processes,
                masker=self._masker,
                log=log,
                progress=self._progress,
                fetch=self._fetch,
                resource_types=await self._resource_types(server, stop) if settings.kill_for_memory else None,
            )
            log.end_header()
            end = await stop.guard(in_thread(batch_end, place.environ))
            seat = replace(self._seat(info, place), batch_end=end)
            beside = [asyncio.ensure_future(self._tell_node(info, place, server))]
            beside.append(asyncio.ensure_future(_show_life(log)))
            if isinstance(server, HarvesterServer):
                beside.append(asyncio.ensure_future(server.show_life()))
            if bench.credentials:
                beside.append(asyncio.ensure_future(bench.credentials.keep(stop)))
            logger.info("%s", describe(place.environ, place.batch, bench.nest.slot))
            if idle := _without_effect(info, place.environ):
                logger.warning("Pilot 3 knows this, here it has no effect: %s", ", ".join(idle))
            try:
                await self._work(bench, Slot(bench, seat, stop, self._started), place, stop)
            finally:
                bench.nest.close()
                await asyncio.wait({beside[0]}, timeout=min(_MAP_PATIENCE, stop.deadline.remaining / 10))
                for task in beside:
                    task.cancel()
                if bench.tracing:
                    await in_thread(bench.tracing.close, stop.deadline.remaining)
        finally:
            reason = stop.reason or sys.exception()
            farewell = asyncio.ensure_future(self._farewell(greeting, server, place, reason))
            await stop.paced(lambda: asyncio.wait({farewell}, timeout=_seconds_for_farewell(stop)))
            farewell.cancel()
        stop.check()

    async def _work(self, bench: Bench, slot: Slot, place: Place, stop: Stop) -> None:
        """Jobs, and what earlier ones left to deliver beside them; or that alone."""
        delivering = asyncio.ensure_future(self._deliver_all(bench, self._undelivered(place), stop))
        try:
            if self._deliver is None:
                await slot.run()
        finally:
            await asyncio.wait({delivering})  # a stop ends it at once
        if self._deliver is not None and delivering.result():
            raise PilotError(Code.STAGEOUTFAILED, f"{delivering.result()} jobs are still not delivered")

    async def _deliver_all(self, bench: Bench, places: Sequence[Path], stop: Stop) -> int:
        """How many are left."""
        if not places:
            return 0
        from pilot.undelivered import deliver_all

        return await deliver_all(bench, places, stop)

    def _undelivered(self, place: Place) -> list[Path]:
        """Where to look for what earlier pilots could not deliver."""
        if self._deliver:
            return [path.absolute() for path in self._deliver]
        kept = self._settings.keep_undelivered
        if not kept and self._deliver is None:
            return []
        above = Path(self._settings.workdir).absolute() if self._settings.workdir else place.launch_dir
        return [*([Path(kept).absolute()] if kept else []), above]

    async def _tell_node(self, info: QueueInfo, place: Place, server: Server) -> None:
        told = server if self._experiment.sends_node_map() else None
        fetch = partial(fetch_url, allow_http=self._settings.allow_http, timeout=_FEATURE_TIMEOUT)
        try:
            if features := await in_thread(read_features, place.environ, fetch):
                logger.info("features: %s", " ".join(f"{key}={value}" for key, value in features.items()))
            await tell_node(place.node, info.queue, place.main_dir, place.environ, told)
        except Exception:  # the door: no job fails for a map of its node
            logger.exception("the map of the node is left out")

    async def _farewell(
        self, greeting: asyncio.Future[None], server: Server, place: Place, reason: BaseException | None
    ) -> None:
        if isinstance(server, HarvesterServer):
            await server.finish(reason if isinstance(reason, PilotError) else None)
        await greeting
        await self._worker_status(server, place, "finished")

    def _with_queue(self, info: QueueInfo) -> Settings:
        try:
            return self._settings.with_queue(info.queue.params)
        except SettingsError as error:
            raise PilotError(Code.QUEUEDATANOTOK, str(error)) from error

    def _say_hello(self, place: Place) -> None:
        logger.info("pilot %s, Python %s on %s", __version__, platform.python_version(), platform.platform())
        logger.info("command line: %s", shlex.join([sys.argv[0], *self._argv]))
        logger.info("node %s, main directory %s", place.node, place.main_dir)
        grace = self._settings.explained("grace")
        logger.info("grace after a stop signal: %s s (%s)", grace.value, grace.source)
        for warning in self._settings.warnings():
            logger.warning("%s", warning)

    def _server(self, place: Place) -> Server:
        settings = self._settings
        if not settings.update_server:
            return with_exchange(settings, place, None)
        server = PandaServer.at(
            settings.server,
            None,
            environ=place.environ,
            api=settings.server_api,
            cacert=self._cacert,
            capath=settings.capath,
            allow_http=settings.allow_http,
            directories=[place.launch_dir, place.main_dir],
            timeout=settings.http_timeout,
            connect_timeout=settings.http_connect_timeout,
            tell=self._masker.add,
        )
        return with_exchange(settings, place, server)

    async def _worker_status(self, server: Server, place: Place, status: str) -> None:
        batch = place.batch
        if batch.from_harvester and self._settings.workerpilotstatusupdate:
            await server.worker_status(
                status, str(batch.worker_id), batch.harvester_id, place.node.name, self._settings.queue
            )

    async def _resource_types(self, server: Server, stop: Stop) -> list[dict[str, Any]]:
        """What the server says of memory by resource type; if nothing, the pilot's own table counts."""
        try:
            return await stop.guard(asyncio.wait_for(server.resource_types(), _RESOURCE_TYPES_PATIENCE))
        except (ServerError, TimeoutError) as error:
            logger.warning("the server did not tell its resource types: %s", error)
            return []

    async def _queuedata(self, place: Place, stop: Stop) -> QueueInfo:
        settings = self._settings
        sources = make_sources(settings, self._experiment)
        cache = Path(settings.cache_dir) if settings.cache_dir else place.main_dir
        return await QueuedataLoader(settings.queue, cache, self._fetch, sources).load(stop)

    def _fetch(self, url: str) -> bytes:
        tls = find_tls(self._environ, capath=self._settings.capath)
        return make_fetch(tls, self._settings.allow_http, self._environ)(url)

    def _seat(self, info: QueueInfo, place: Place) -> Seat:
        settings, node, batch = self._settings, place.node, place.batch
        request = JobRequest(
            queue=info.queue.resource,
            computing_element=settings.queue,
            label=job_label(settings, info),
            node=node.name,
            memory=node.memory,
            cpu_speed=node.cpu_mhz or None,
            working_group=settings.working_group,
            country_group=settings.country_group,
            allow_other_country=settings.allow_other_country,
            job_type=settings.jobtype,
            resource_type=settings.resource_type,
            harvester_id=batch.harvester_id,
            worker_id="" if batch.worker_id is None else str(batch.worker_id),
        )
        ids = place.launch_dir / (self._environ.get("PANDA_PILOT_SOURCE") or "pilot3")  # Rubin's wrapper names it
        by_files = speaks_by_files(settings, place)
        return Seat(
            request=request,
            ids_file=ids / "pandaIDs.out" if ids.is_dir() else None,
            tries=tries(settings) if by_files else 0,
            wait=WAIT if by_files else 0.0,
        )


def _without_effect(info: QueueInfo, environ: Mapping[str, str]) -> list[str]:
    words = [f"{word} in catchall" for word in _IDLE_WORDS if info.queue.catchall_flag(word)]
    return [*words, *(name for name in _IDLE_VARIABLES if environ.get(name))]


async def _show_life(log: PilotLog) -> None:
    while True:
        log.show_life()
        await asyncio.sleep(SIGN_OF_LIFE)


def _seconds_for_farewell(stop: Stop) -> float | None:
    left = stop.deadline.remaining
    return None if math.isinf(left) else max(left, FAREWELL_LEAST)


def job_label(settings: Settings, info: QueueInfo) -> str:
    """The `prodSourceLabel` to ask for (PILOT3 2.2): test pilots and test queues take test jobs."""
    label, tag = settings.job_label, settings.version_tag
    special = {("RC", "rc_test2"): "rc_test2", ("RC", "ptest"): "ptest", ("RCM", "ptest"): "rcm_test2"}
    if (tag, label) in special:
        return special[tag, label]
    if tag == "ALRB":
        return "rc_alrb"
    return "test" if info.queue.status == "test" and label != "ptest" else label
