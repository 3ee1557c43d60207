"""Whom a pilot speaks to: the PanDA server, Harvester's files, or nobody (PILOT3 7.1, 7.2)."""

from __future__ import annotations

from pathlib import Path

from pilot.assembly import Place
from pilot.server import Server
from pilot.server.client import PandaServer
from pilot.server.harvester import JOB_FILES, Exchange, FileJobs, HarvesterServer
from pilot.settings import Settings

#: How often a pilot asks Harvester for a job, and s between two requests (PILOT3 2.2): it may look once in 5 minutes.
_TRIES, WAIT = 60, 10.0
#: `--getjobfailures` as nobody chose it.
_UNCHOSEN = 5


def tries(settings: Settings) -> int:
    """How often to ask Harvester for a job: `--getjobfailures` if that was chosen, as with Pilot 3."""
    chosen = settings.getjob_failures
    return _TRIES if chosen == _UNCHOSEN else max(1, min(_TRIES, chosen))


def with_exchange(settings: Settings, place: Place, server: PandaServer | None) -> Server:
    """The server for the jobs of a slot.

    Args:
        settings: what the pilot was told.
        place: where it runs.
        server: None with `-z`.
    """
    by_files = speaks_by_files(settings, place)
    lies_there = (place.launch_dir / JOB_FILES[0]).is_file()
    nobody = FileJobs(list(dict.fromkeys((place.launch_dir, place.main_dir))), place.main_dir / "heartbeat.json")
    if by_files or (server is not None and lies_there):
        return HarvesterServer(_exchange(settings, place, pulls=not by_files), server or nobody)
    return server or nobody


def speaks_by_files(settings: Settings, place: Place) -> bool:
    """Whether Harvester gives jobs, and takes reports with `-z`, as files."""
    named = settings.harvester_workdir or settings.harvester_datadir
    named = named or settings.harvester_eventstatusdump or settings.harvester_workerattributes
    is_worker = bool(place.batch.harvester_id) or place.batch.worker_id is not None
    return bool(named and not settings.update_server) or (settings.harvester_submitmode == "PUSH" and is_worker)


def _exchange(settings: Settings, place: Place, *, pulls: bool) -> Exchange:
    workdir = settings.harvester_workdir or place.batch.harvester_workdir
    named = [Path(text).absolute() for text in (settings.harvester_datadir, workdir) if text]
    access = Path(workdir).absolute() if workdir else place.main_dir
    return Exchange(
        inboxes=tuple(dict.fromkeys([*named, place.launch_dir, place.main_dir])),
        access=None if pulls else access,
        attributes=_below(access, settings.harvester_workerattributes),
        outputs=_below(access, settings.harvester_eventstatusdump),
        copies=place.main_dir,
        reports=not settings.update_server,
        pulls=pulls,
    )


def _below(access: Path, name: str) -> Path | None:
    return access / name if name else None
