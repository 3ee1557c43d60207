"""How a pilot answers who asks whether it is alive: on a Unix socket, from its own event loop.

A file's age tells that somebody wrote to it. An answer tells that the loop turns: without it no report can be sent and
no limit is watched. Nothing runs as long as nobody asks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

from pilot.job import Job
from pilot.outcome import Outcome, Progress

logger = logging.getLogger(__name__)


class Alive(Progress):
    """Remembers what the pilot does, and tells who connects: one JSON object on one line.

    Its keys: `state` (`starting`, `waiting`, `running`, `idle`), `phase` and `job` of a job that runs, `jobs` that are
    over, `since` (s in this state or phase), `up` (s since the start).

    Args:
        path: of the socket; at most 107 bytes long, as the kernel wants it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = self._since = time.monotonic()
        self._state, self._phase = "starting", ""
        self._job = 0
        self._jobs = 0

    async def serve(self) -> None:
        """Answer until cancelled. A socket that cannot be made is no reason for a pilot to end: the log says it."""
        try:
            server = await asyncio.start_unix_server(self._answer, self._path)
            self._path.chmod(0o600)
        except OSError as error:
            logger.warning("nobody can ask whether the pilot is alive: %s: %s", self._path, error)
            return
        inode = self._path.stat().st_ino
        try:
            await server.serve_forever()
        finally:
            server.close()
            self._remove(inode)

    def _remove(self, inode: int) -> None:
        """The socket, unless a later pilot has made its own by the same name."""
        try:
            if self._path.stat().st_ino == inode:
                os.unlink(self._path)
        except OSError:
            pass

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((json.dumps(self.status()) + "\n").encode())
        try:
            await writer.drain()
        except OSError:  # who asked has gone
            pass
        finally:
            writer.close()

    def status(self) -> dict[str, str | int | float]:
        """What is told."""
        now = time.monotonic()
        times = {"since": round(now - self._since, 1), "up": round(now - self._started, 1)}
        running: dict[str, str | int | float] = {"phase": self._phase, "job": self._job}
        return {"state": self._state, **(running if self._job else {}), "jobs": self._jobs, **times}

    def _enter(self, state: str, phase: str = "", job: int = 0) -> None:
        self._state, self._phase, self._job, self._since = state, phase, job, time.monotonic()

    # What the pilot does, told by those who do it (`Progress`).

    def job(self, job: Job) -> None:  # noqa: D102
        self._enter("running", "acquired", job.job_id)

    def phase(self, job: Job, phase: str) -> None:  # noqa: D102
        self._enter("running", phase, job.job_id)

    def ended(self, outcome: Outcome) -> None:  # noqa: D102
        self._jobs += 1
        self._enter("idle")

    def waiting(self, what: str, seconds: float) -> None:  # noqa: D102
        self._enter("waiting")
