"""No server: `pilot local` and `-z`. Reports are kept, and written to a file if someone reads them there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pilot.server.legacy import update_fields
from pilot.server.report import JobRequest, RawJob, Reply, Report
from pilot.stop import Deadline, Stop, in_thread

log = logging.getLogger(__name__)


class NoServer:
    """Stands in for a server that nobody asks.

    Args:
        heartbeat: file (`heartbeat.json`) for the last report, in the words of the legacy API as Pilot 3 writes it
            (PILOT3.md 1.5); ARC's control tower reads it. Written by rename, so that no reader sees half of it.

    Attributes:
        last: the last report.
    """

    def __init__(self, heartbeat: Path | None = None) -> None:
        self.last: Report | None = None
        self._heartbeat = heartbeat

    async def acquire(self, request: JobRequest) -> list[RawJob]:
        """There are no jobs here."""
        return []

    async def update(self, report: Report, deadline: Deadline, stop: Stop | None = None) -> Reply:
        """Keep the report. One that comes after a final one of the same job is left out."""
        last = self.last
        if last is not None and last.job_id == report.job_id and last.state.final and not report.state.final:
            return Reply()
        self.last = report
        if self._heartbeat is not None:
            await in_thread(_write, self._heartbeat, report)
        return Reply()

    async def worker_status(self, status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> None:
        """Nobody wants to know."""

    async def update_worker_node(self, mapping: Mapping[str, Any]) -> None:
        """Nobody wants to know."""

    async def update_worker_gpu(self, mapping: Mapping[str, Any]) -> None:
        """Nobody wants to know."""

    async def get_job_status(self, job_ids: Iterable[int]) -> dict[int, tuple[str, int]]:
        """Nothing is known."""
        return {}

    async def resource_types(self) -> list[dict[str, Any]]:
        """Nobody tells."""
        return []


def _write(path: Path, report: Report) -> None:
    """Replace the file. A full disk is a warning: the job must not fail for it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(update_fields(report)) + "\n")
        temporary.replace(path)
    except OSError as error:
        log.warning("%s is not written: %s", path, error.strerror or error)
        temporary.unlink(missing_ok=True)
