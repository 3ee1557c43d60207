"""The PanDA client: neutral values, two codecs (v1, legacy), authentication, retries.

`Server` is what the rest of the pilot knows of it: `pilot.server.client.PandaServer` speaks to a real one,
`pilot.server.offline.NoServer` stands in where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pilot.server.report import JobRequest, RawJob, Reply, Report
from pilot.stop import Deadline, Stop


class Server(Protocol):
    """Where jobs come from and reports go to."""

    async def acquire(self, request: JobRequest) -> list[RawJob]:
        """Ask once for jobs: none is an empty list.

        Raises:
            ServerError: the server could not be reached or refused.
        """

    async def update(self, report: Report, deadline: Deadline, stop: Stop | None = None) -> Reply:
        """Deliver `report` before the deadline; give up early when `stop` is requested.

        Raises:
            ServerError: it was not delivered.
        """

    async def worker_status(self, status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> None:
        """Say that this worker `started` or `finished`; a failure is a warning."""

    async def update_worker_node(self, mapping: Mapping[str, Any]) -> None:
        """Send the map of the node; a failure is a warning."""

    async def update_worker_gpu(self, mapping: Mapping[str, Any]) -> None:
        """Send the map of its GPUs of one model; a failure is a warning."""

    async def get_job_status(self, job_ids: Iterable[int]) -> dict[int, tuple[str, int]]:
        """State and attempt number of jobs that the server knows.

        Raises:
            ServerError: the server could not be reached or refused.
        """

    async def resource_types(self) -> list[dict[str, Any]]:
        """The server's resource types with their core and memory ranges."""
