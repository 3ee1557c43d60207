"""A real Harvester launches our release: on a real Slurm and a real HTCondor, pull and push.

However a worker ends, the job's final state at the server is that in Harvester's database, and the log is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grid import Grid, Job
from tests.parts.harvester import Harvester
from tests.parts.slurm import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid") / "grid") as grid:
        yield grid


@pytest.fixture(scope="module")
def on_slurm(
    slurm: Cluster, release: Path, grid: Grid, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harvester]:
    squeue = {"module": "pandaharvester.harvestermonitor.slurm_bulk_monitor", "name": "SlurmBulkMonitor"}
    monitor = {"use_squeue_monitor": True, **squeue}  # without the database of accounting that sacct needs
    one = {"monitor": monitor, "submitter": {"localQueueName": "test"}, "templateQueueName": "production.push"}
    queues = {"PUSH": one}
    for name in queues:
        grid.queue(name, type="production", corecount=1, maxrss=500, maxtime=300, timefloor=0)
    with Harvester(tmp_path_factory.mktemp("harvester") / "top", grid, release, queues, slurm.environ) as harvester:
        yield harvester


def ended(harvester: Harvester, job_id: int) -> Job:
    """A job that has come to its end at the server, whose worker has come to its end for Harvester."""
    job = harvester.grid.job_of
    harvester.waits(lambda: job(job_id).state in ("finished", "failed"), f"the end of {job_id}")
    harvester.waits(lambda: harvester.job(job_id).get("subStatus") == "done", f"Harvester sees the end of {job_id}")
    return job(job_id)


def test_a_job_is_pushed(on_slurm: Harvester) -> None:
    grid = on_slurm.grid
    (job_id,) = grid.submit(grid.job("echo x > out", outputs=["out"], queue="PUSH"))
    job = ended(on_slurm, job_id)
    assert job.state == on_slurm.job(job_id)["status"] == "finished"
