"""What the jobs of a slot share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot.cgroup import Nest
from pilot.credentials import Keeper
from pilot.experiment import Experiment
from pilot.job import Job
from pilot.jobreport import Speaker
from pilot.masking import Masker
from pilot.outcome import Progress
from pilot.payload.command import Fetch
from pilot.pilotlog import PilotLog
from pilot.processes import Processes
from pilot.queuedata import QueueInfo
from pilot.server import Server
from pilot.settings import Settings
from pilot.staging.catalogue import Catalogue
from pilot.staging.engine import StagingEngine
from pilot.staging.services import Tracing
from pilot.staging.store import Store

if TYPE_CHECKING:
    from pilot.logship.shipper import LogShip


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Each of these is made once, by the command that starts the slot."""

    settings: Settings
    server: Server
    info: QueueInfo
    speaker: Speaker
    experiment: Experiment
    processes: Processes
    nest: Nest
    resource_types: Sequence[Mapping[str, Any]] | None
    masker: Masker
    log: PilotLog
    progress: Progress
    fetch: Fetch
    environ: Mapping[str, str]
    engine: Callable[[QueueInfo, Job], StagingEngine]
    catalogue: Catalogue | None
    tracing: Tracing | None
    store: Callable[[QueueInfo, Job], Store]
    logship: Callable[[QueueInfo, Job, Path], LogShip | None]
    main_dir: Path
    credentials: Keeper | None = None
