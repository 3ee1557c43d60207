"""Putting a pilot together: from settings to the collaborators that jobs share."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot import plugins
from pilot.batch import BatchFacts
from pilot.bench import Bench
from pilot.cgroup import Nest
from pilot.contain import wants_container
from pilot.credentials import Keeper, find_key
from pilot.download import fetch_url
from pilot.errors import Code, PilotError
from pilot.experiment import KEPT, NOTE, Experiment
from pilot.job import Job
from pilot.jobreport import Speaker
from pilot.masking import Masker, Secret
from pilot.node import NodeFacts
from pilot.outcome import Progress, Shown
from pilot.pilotlog import PilotLog
from pilot.processes import Processes
from pilot.queuedata import Queue, QueueInfo, Sources
from pilot.removal import remove_tree
from pilot.server import Server
from pilot.server.client import PandaServer
from pilot.server.harvester import HarvesterServer
from pilot.server.tls import Tls
from pilot.settings import Settings
from pilot.staging.catalogue import Catalogue
from pilot.staging.copytool import KeyFinder, no_keys
from pilot.staging.engine import StagingEngine
from pilot.staging.keys import KeyRing
from pilot.staging.limits import input_cache, staging_limits
from pilot.staging.plan import Planner
from pilot.staging.result import Observers, StagingObserver
from pilot.staging.room import Room
from pilot.staging.services import make_catalogue, make_tracing
from pilot.staging.store import Store
from pilot.staging.toolbox import ToolBox
from pilot.stop import in_thread

if TYPE_CHECKING:
    from pilot.logship.shipper import LogShip

logger = logging.getLogger(__name__)

#: Seconds that fetching a transformation may take.
_FETCH_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and as whom a pilot runs."""

    launch_dir: Path
    main_dir: Path
    environ: Mapping[str, str]
    batch: BatchFacts
    node: NodeFacts


def make_main_dir(workdir: str, launch_dir: Path) -> Path:
    """The pilot's own directory below `workdir`; the launch directory itself if there is none (PILOT3 1.1).

    Raises:
        PilotError: MKDIR.
    """
    if not workdir:
        return launch_dir
    path = Path(workdir).absolute() / f"PanDA_Pilot3_{os.getpid()}_{int(time.time())}"
    try:
        path.mkdir(parents=True)
        path.chmod(0o770)  # whatever the umask: Pilot 3's mode, so that the group of a site can look in
    except OSError as error:
        raise PilotError(Code.MKDIR, f"{path}: {error.strerror}") from error
    return path


def find_experiment(name: str) -> Experiment:
    """The experiment of `--pilot-user`."""
    found: type[Experiment] = plugins.load("pilot.experiments", name, Experiment)
    return found()


def make_fetch(tls: Tls, allow_http: bool, environ: Mapping[str, str]) -> Callable[[str], bytes]:
    """What brings a document, with our trust, our client certificate and our proxies. Blocks."""

    def fetch(url: str) -> bytes:
        context = tls.context() if url.startswith("https:") else None
        return fetch_url(url, context=context, allow_http=allow_http, timeout=_FETCH_TIMEOUT, environ=environ)

    return fetch


def make_bench(
    settings: Settings,
    server: Server,
    info: QueueInfo,
    place: Place,
    *,
    experiment: Experiment,
    processes: Processes,
    masker: Masker,
    log: PilotLog,
    progress: Progress,
    fetch: Callable[[str], bytes],
    resource_types: Sequence[Mapping[str, Any]] | None = None,
    checksum_types: tuple[str, ...] = (),
) -> Bench:
    """Everything that the jobs of a slot share; files get `checksum_types`, the setting's one if none is named."""

    async def fetch_in_thread(url: str) -> bytes:
        return await in_thread(fetch, url)

    room, shared = Room(), make_catalogue(settings, place.environ, place.main_dir)
    keys = make_keys(server, masker)
    tracing = make_tracing(settings, info.queue.resource, place.environ, masker.mask)

    keeper = make_keeper(settings, server, info, place, masker)

    def place_of(of: QueueInfo, job: Job) -> Place:
        users = keeper.for_stage_out(job, of.queue) if keeper else {}
        return replace(place, environ={**place.environ, **users}) if users else place

    def engine(of: QueueInfo, job: Job) -> StagingEngine:
        show = Observers(Shown(progress, job), *([tracing.of(job)] if tracing else []))
        where = place_of(of, job)
        kind = middleware_engine(settings, of, job, where, checksum_types)
        make = partial(make_engine, settings, of, job, where, experiment, processes, checksum_types, kind=kind)
        return make(observer=show, room=room, catalogue=shared, keys=keys)

    return Bench(
        settings=settings,
        server=server,
        info=info,
        speaker=make_speaker(settings, info, place),
        experiment=experiment,
        processes=processes,
        nest=Nest(settings.cgroup),
        resource_types=resource_types,
        masker=masker,
        log=log,
        progress=progress,
        fetch=fetch_in_thread,
        environ=place.environ,
        engine=engine,
        catalogue=shared,
        tracing=tracing,
        store=lambda of, job: make_store(settings, of, job, place_of(of, job), experiment, processes, keys),
        logship=lambda of, job, workdir: make_logship(settings, of, job, workdir, place, masker),
        main_dir=place.main_dir,
        credentials=keeper,
    )


def make_keeper(settings: Settings, server: Server, info: QueueInfo, place: Place, masker: Masker) -> Keeper | None:
    """Who looks after the pilot's credentials; nobody where there is no server to show them to."""
    panda = _panda(server)
    if panda is None:
        return None
    renews = settings.token_renewal and not info.queue.catchall_flag("no_token_renewal")
    named = place.environ.get("PANDA_AUTH_TOKEN_KEY", "") if renews else ""
    directories = [Path(place.environ.get("PANDA_AUTH_DIR") or "."), place.launch_dir, place.main_dir]
    return Keeper(
        panda,
        panda.auth,
        find_experiment(settings.pilot_user),
        scratch=place.main_dir,
        verify=settings.verify_proxy,
        enough=settings.proxy_limit,
        token_key=find_key(named, directories),
        payload_proxy=settings.payload_proxy,
        verify_payload_proxy=settings.verify_payload_proxy,
        tell=masker.add,
    )


def make_keys(server: Server, masker: Masker) -> Callable[[QueueInfo], KeyFinder]:
    """Who has the keys of object stores; nobody where there is no server to ask. Call it in the server's loop."""
    panda = _panda(server)
    if panda is None:
        return lambda info: no_keys
    loop = asyncio.get_running_loop()

    def ask(public: str, private: str) -> tuple[str, Secret]:
        return asyncio.run_coroutine_threadsafe(panda.get_key_pair(public, private), loop).result()

    return KeyRing(ask, masker.add).of


def _panda(server: Server) -> PandaServer | None:
    server = server.behind if isinstance(server, HarvesterServer) else server
    return server if isinstance(server, PandaServer) else None


def make_speaker(settings: Settings, info: QueueInfo, place: Place) -> Speaker:
    """Who reports."""
    batch, node = place.batch, place.node
    return Speaker(
        node=node.name,
        queue=info.queue.resource,
        scheduler_id=batch.scheduler_id,
        gtag=batch.gtag,
        batch_type=batch.system,
        batch_id=batch.job_id,
        version_tag=settings.version_tag,
        cpu_unit=node.cpu_consumption_unit,
        cpu_level=node.architecture_level,
        source_site=batch.schedd,
        destination_site=batch.glidein_site,
    )


def make_engine(
    settings: Settings,
    info: QueueInfo,
    job: Job,
    place: Place,
    experiment: Experiment,
    processes: Processes,
    checksum_types: tuple[str, ...] = (),
    *,
    observer: StagingObserver | None = None,
    room: Room | None = None,
    catalogue: Catalogue | None = None,
    keys: Callable[[QueueInfo], KeyFinder],
    kind: Callable[..., StagingEngine] = StagingEngine,
) -> StagingEngine:
    """What moves the files of a job."""
    tools = make_tools(settings, info.queue, place.launch_dir, place.environ, keys(info))
    plan = make_plan(settings, info, job, place, experiment, tools, catalogue)
    room = room or Room()
    return kind(
        plan=plan,
        tools=tools,
        look_up=plan.look_up,
        launcher=processes,
        limits=staging_limits(settings, info.queue, checksum_types),
        observer=observer,
        environment=place.environ,
        room=room,
        cache=input_cache(settings, room),
        confined=wants_container(job, info.queue, experiment),
    )


def middleware_engine(
    settings: Settings, info: QueueInfo, job: Job, place: Place, checksum_types: tuple[str, ...]
) -> Callable[..., StagingEngine]:
    """What an engine is made by: most queues have their files moved here, so nothing is loaded for the others."""
    if not info.queue.has_middleware:
        return StagingEngine
    from pilot.middleware import MiddlewareEngine, Request

    launch_dir = place.launch_dir
    request = Request(settings=settings, info=info, job=job, launch_dir=launch_dir, checksum_types=checksum_types)
    return partial(MiddlewareEngine, request, place.main_dir, place.environ)


def make_plan(
    settings: Settings,
    info: QueueInfo,
    job: Job,
    place: Place,
    experiment: Experiment,
    tools: ToolBox,
    catalogue: Catalogue | None = None,
) -> Planner:
    """What finds the places of a job's files."""
    return Planner(
        info=info,
        tools=tools,
        experiment=experiment,
        launch_dir=place.launch_dir,
        input_dir=Path(settings.input_dir) if settings.input_dir else None,
        output_dir=Path(settings.output_dir) if settings.output_dir else None,
        job=job,
        catalogue=catalogue,
    )


def make_store(
    settings: Settings,
    info: QueueInfo,
    job: Job,
    place: Place,
    experiment: Experiment,
    processes: Processes,
    keys: Callable[[QueueInfo], KeyFinder],
) -> Store:
    """What does more with the places of outputs than send files there."""
    tools = make_tools(settings, info.queue, place.launch_dir, place.environ, keys(info))
    plan = make_plan(settings, info, job, place, experiment, tools)
    return Store(plan.destinations, tools, processes, place.environ)


def make_tools(
    settings: Settings, queue: Queue, launch_dir: Path, environ: Mapping[str, str], keys: KeyFinder = no_keys
) -> ToolBox:
    """The copy tools, with what the queue and the settings say of them."""
    return ToolBox(
        options=queue.options,
        launch_dir=launch_dir,
        settings={
            "allow_http": settings.allow_http,
            "mv_stagein": settings.mv_stagein,
            "mv_stageout": _mv_stageout(settings),
            "mv_replace": settings.mv_replace,
        },
        environ=environ,
        keys=keys,
    )


def _mv_stageout(settings: Settings) -> str:
    """How `mv` takes outputs out, where it cannot be as it was asked to."""
    if settings.early_stageout != "off":
        return "copy"  # a file that is moved, or linked, while the payload runs may still be written to by its new name
    if settings.keep_undelivered and settings.mv_stageout == "move":
        return "link"  # a pilot that is killed before it can note that a file is out leaves both, for the next one
    return settings.mv_stageout


def make_sources(settings: Settings, experiment: Experiment) -> Sources:
    """Where the queue and its storages are described."""
    return Sources(
        queuedata_url=settings.queuedata_url,
        queuedata_cvmfs=settings.queuedata_cvmfs,
        schedconf_file=settings.schedconf_file,
        queues_cvmfs=settings.queues_cvmfs,
        queues_url=settings.queues_url,
        storagedata_url=settings.storagedata_url,
        storages_cvmfs=settings.storages_cvmfs,
        storages_url=settings.storages_url,
        cvmfs_base=settings.cvmfs_base,
        storages_prefer_cache=experiment.storages_prefer_cache,
    )


def make_logship(
    settings: Settings, info: QueueInfo, job: Job, workdir: Path, place: Place, masker: Masker
) -> LogShip | None:
    """What sends the job's log while it runs; None if nobody asks for it: most do not, and nothing is loaded then."""
    if not (settings.use_realtime_logging or info.queue.catchall_value("logging") or job.debug):
        return None
    from pilot.livelog import live_log

    spool = place.main_dir / f"logship-{job.job_id}"
    return live_log(settings, info.queue, job, workdir, spool, masker=masker, environ=place.environ, batch=place.batch)


def remove_main_dir(place: Place, cleanup: bool) -> None:
    """Remove what `make_main_dir` made; never the launch directory, nor the directory of a job that shall be kept."""
    kept = any(any(place.main_dir.glob(f"*/{name}")) for name in (KEPT, NOTE))
    if cleanup and place.main_dir != place.launch_dir and not kept:
        remove_tree(place.main_dir)
