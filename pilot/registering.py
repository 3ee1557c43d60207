"""Outputs that are in their storage become known to the catalogue.

Usually the PanDA server does that, from the final report. Where it does not, `register` (a setting of the pilot or its
queue) or the word `register` in the queue's catchall, which a job can bring in its queue data, make the pilot do it:
the outputs together after the stage-out, then the log. A failure is the job's: who reads from the catalogue would not
find the files. The journal says what remained; registering again is no error.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial

from pilot.errors import Code, PilotError
from pilot.outcome import FileOutcome
from pilot.queuedata import Queue
from pilot.settings import Settings
from pilot.staging.catalogue import Catalogue, Registration
from pilot.staging.handle import Launcher, TransferHandle
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

#: Seconds that one try may take; a server that is well registers a hundred files in one.
TIMEOUT = 300.0

#: Tries as long as the server cannot be reached, and seconds before the second one, doubled before the third.
TRIES, PAUSE = 3, 4.0

#: Faults that pass.
PASSING = {Code.RUCIOSERVICEUNAVAILABLE, Code.COMMANDTIMEDOUT, Code.STAGEOUTTIMEOUT}


class Registrar:
    """Registers the outputs of one job.

    Args:
        catalogue: to register in; None if the PanDA server does it.
        launcher: starts programs.
        note: writes a step with its facts into the job's journal.
        pause: seconds before the second try.
    """

    def __init__(
        self, catalogue: Catalogue | None, launcher: Launcher, note: Callable[..., None], pause: float = PAUSE
    ) -> None:
        self._catalogue = catalogue
        self._launcher = launcher
        self._note = note
        self._pause = pause
        self._tries = TRIES

    async def register(self, files: Sequence[FileOutcome], stop: Stop) -> None:
        """Register files.

        Raises:
            PilotError: the catalogue's, with what remains; the stop's reason.
        """
        if self._catalogue is None or not files:
            return
        lfns = [one.file.lfn for one in files]
        try:
            await self._persist(self._catalogue, [as_registration(one) for one in files], stop)
        except PilotError as error:
            if error.code in PASSING:
                self._tries = 1  # the log must not wait as long again for a server that is down
            self._note("unregistered", sync=True, lfns=list(getattr(error, "remaining", lfns)), diag=error.diag)
            raise
        self._note("registered", sync=True, lfns=lfns)
        logger.info("registered in %s: %s", self._catalogue.name, ", ".join(lfns))

    async def _persist(self, catalogue: Catalogue, files: Sequence[Registration], stop: Stop) -> None:
        for number in range(1, self._tries):
            try:
                await self._once(catalogue, files, stop)
            except PilotError as error:
                stop.check()
                if error.code not in PASSING:
                    raise
                logger.warning("registration, try %d: %s", number, error)
                await stop.wait(self._pause * 2 ** (number - 1) * random.uniform(0.5, 1.5))
                stop.check()
            else:
                return
        await self._once(catalogue, files, stop)

    async def _once(self, catalogue: Catalogue, files: Sequence[Registration], stop: Stop) -> None:
        late = PilotError(Code.STAGEOUTTIMEOUT, f"{catalogue.name} has not registered within {TIMEOUT:.0f} s")
        handle = TransferHandle(stop, self._launcher, TIMEOUT, late, {})
        try:
            async with asyncio.timeout(TIMEOUT):
                await stop.guard(in_thread(partial(catalogue.register, files, handle)))
        except TimeoutError:
            raise late from None
        finally:
            handle.terminate()


def wants_registration(settings: Settings, queue: Queue) -> bool:
    """Whether the pilot registers outputs.

    Raises:
        PilotError: BADQUEUECONFIGURATION (1341): it shall, and has no catalogue; better told before the payload runs.
    """
    if settings.output_dir or not (settings.register or queue.catchall_flag("register")):
        return False  # what is left in a directory is for others to take to a storage
    if not settings.catalogue:
        raise PilotError(Code.BADQUEUECONFIGURATION, "outputs shall be registered, but no catalogue is set")
    return True


def as_registration(done: FileOutcome) -> Registration:
    """For the catalogue."""
    return Registration(file=done.file, url=done.url, size=done.size, checksums=done.checksums)
