"""What `pilot.middleware` starts where the clients are: stages what the request says, and tells of it line by line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from pilot.assembly import Place, find_experiment, make_engine
from pilot.batch import BatchFacts
from pilot.middleware import EVENTS, REQUEST, Request
from pilot.node import read_node
from pilot.portable import Decoder, encoded
from pilot.processes import Processes
from pilot.signals import held, hold, listen
from pilot.staging.copytool import no_keys
from pilot.staging.engine import StagingEngine
from pilot.staging.faults import Direction
from pilot.staging.result import FailedFile, Progress, StagedFile, StagingObserver, StagingResult, Trial
from pilot.staging.services import make_catalogue
from pilot.stop import Stop

#: Seconds from a signal to the end: whoever sends it kills us after one.
GRACE = 0.6
#: Seconds between two words on the progress.
_TICK = 1.0


class Teller(StagingObserver):
    """Writes down what happens, for who has sent us."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        """A call begins."""
        self._progress = progress

    def tried(self, trial: Trial) -> None:
        """A try is over."""
        self.tell("tried", trial)

    def arrived(self, staged: StagedFile) -> None:
        """A file is where it should be."""
        self.tell("arrived", staged)

    def failed(self, failure: FailedFile) -> None:
        """A file is given up."""
        self.tell("failed", failure)

    def tell(self, name: str, what: object) -> None:
        """One line."""
        self._out.write(json.dumps({name: encoded(what)}) + "\n")
        self._out.flush()

    async def tick(self) -> None:
        """How far it is, for as long as somebody lets it run."""
        while True:
            await asyncio.sleep(_TICK)
            if progress := self._progress:
                self.tell("moved", [progress.moved, progress.linked, progress.bytes])


def main(folder: Path) -> None:
    """Carry out the request in a directory."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)-8s | %(message)s")
    request: Request = Decoder().decode(Request, json.loads((folder / REQUEST).read_text()))
    with open(folder / EVENTS, "a") as out, held():
        asyncio.run(_stage(request, folder, Teller(out)))


async def _stage(request: Request, folder: Path, teller: Teller) -> None:
    stop, processes = Stop(), Processes()
    listen(stop, lambda: GRACE, processes)
    ticking = asyncio.create_task(teller.tick())
    try:
        result = await _move(_engine(request, folder, processes, teller), request, stop)
        teller.tell("end", result.metrics)
    finally:
        ticking.cancel()
        hold()


async def _move(engine: StagingEngine, request: Request, stop: Stop) -> StagingResult:
    if request.direction is Direction.IN:
        return await engine.stage_in(request.files, request.workdir, stop, together=request.together)
    return await engine.stage_out(request.files, request.workdir, stop)


def _engine(request: Request, folder: Path, processes: Processes, teller: Teller) -> StagingEngine:
    settings, environ = request.settings, dict(os.environ)
    return make_engine(
        settings,
        request.info,
        request.job,
        Place(
            launch_dir=request.launch_dir,
            main_dir=folder,
            environ=environ,
            batch=BatchFacts.read({}),
            node=read_node(environ=environ),
        ),
        find_experiment(settings.pilot_user),
        processes,
        request.checksum_types,
        observer=teller,
        catalogue=make_catalogue(settings, environ, folder),
        keys=lambda info: no_keys,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
