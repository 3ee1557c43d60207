"""A real Harvester launches our release on a real Slurm: push, with reports by the pilot or by Harvester, and pull.

However a worker ends, its job has one end at the server, the log is stored, and Harvester knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grid import Grid, Scenarios, until
from tests.parts.harvester import Harvester, needs_harvester
from tests.parts.slurm import Cluster

pytestmark = [needs_harvester, pytest.mark.slow, pytest.mark.timeout(300)]  # with the installation

#: Pilot error codes.
SIGTERM, SIGUSR1, PAYLOAD = 1201, 1207, 1305
PUSH = {"templateQueueName": "production.push", "submitter": {"localQueueName": "test"}}
#: Pilots that leave their reports to Harvester.
FILES = {"submitter": {"localQueueName": "test", "templateFile": "/opt/harvester/templates/files.sh"}}
MANY = PUSH | FILES | {"truePilot": False, "mapType": "ManyToOne", "workerMaker": {"nJobsPerWorker": 3}}
QUEUES: dict[str, dict[str, Any]] = {
    "PUSH": PUSH,
    "FILES": PUSH | FILES | {"truePilot": False},
    "MANY": MANY,
    "MANY_CANCELLED": MANY,
    "MORE": PUSH | {"maxWorkers": 1},
    "PULL": PUSH | {"mapType": "NoJob", "maxWorkers": 1, "submitter": {"localQueueName": "test", "submitMode": "PULL"}},
}

scenario = Scenarios(workers=12, given="site")


class Site(Harvester):
    """Harvester beside a cluster; a job that a pilot will pull is there from the beginning."""

    cluster: Cluster
    pulled: int

    def cancels(self, job_id: int) -> None:
        """Cancel a job's worker when its payload runs."""
        worker = self.sees_run(job_id)
        output = Path(worker["accessPoint"], "stdout.txt")
        self.waits(lambda: output.exists() and "payload started" in output.read_text(), f"the payload of {job_id}")
        self.cluster.run("scancel", worker["batchID"])


@pytest.fixture(scope="module")
def site(slurm: Cluster, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("harvester")
    with Grid(top / "grid") as grid:
        site = Site(top / "top", grid, release, QUEUES, slurm.environ)
        grid.queue("MORE", type="production", corecount=1, maxrss=500, maxtime=300, timefloor=1)
        site.change_template("slurm.sh", "files.sh", (" -j managed", " -z -j managed"))
        site.cluster, site.pulled = slurm, site.submit("echo x > out", "PULL", outputs=["out"])
        with site:
            yield site


@scenario
def a_job_is_pushed(site: Site) -> None:
    job_id = site.submit("cat in > out", "PUSH", inputs={"in": b"x\n"}, outputs=["out"])
    job, here, worker = site.sees_end(job_id)
    assert (job.state, here, worker) == ("finished", "finished", "finished")
    assert job.path("out").read_text() == "x\n"
    assert job.reported_once()
    assert job.log()


@scenario
def a_job_fails(site: Site) -> None:
    """The pilot tells the server; to Harvester the worker has done its work."""
    job, here, worker = site.sees_end(site.submit("exit 3", "PUSH"))
    assert (job.state, job.code, job.fields["trans_exit_code"]) == ("failed", PAYLOAD, 3)
    assert (here, worker) == ("finished", "finished")
    assert job.reported_once()


@scenario
def a_worker_is_cancelled(site: Site) -> None:
    """The pilot's word of it comes first, so Harvester's changes nothing."""
    job_id = site.submit("sleep 600", "PUSH")
    site.cancels(job_id)
    job, here, worker = site.sees_end(job_id)
    assert (job.state, job.code) == ("failed", SIGTERM)
    assert (here, worker) == ("cancelled", "cancelled")
    assert job.log()


@scenario
def a_job_is_killed_at_the_server(site: Site) -> None:
    site.sees_kill()


@scenario
def the_time_is_over(site: Site) -> None:
    job_id = site.submit("sleep 600", "PUSH")
    batch = site.sees_run(job_id)["batchID"]
    site.cluster.run("scontrol", "update", f"JobId={batch}", "EndTime=now+40seconds")
    job, here, worker = site.sees_end(job_id)
    assert (job.state, job.code) == ("failed", SIGUSR1)
    assert (here, worker) == ("failed", "failed")
    assert job.log()


@scenario
def harvester_reports_what_it_finds(site: Site) -> None:
    payload = "cat in > out; echo '{\"a\": 1}' > jobReport.json"
    job_id = site.submit(payload, "FILES", inputs={"in": b"x\n"}, outputs=["out"])
    job, here, worker = site.sees_end(job_id)
    assert (job.state, here, worker) == ("finished", "finished", "finished")
    assert job.fields["meta_data"] == '{"a": 1}'
    assert job.fields["start_time"][:4].isdigit()
    assert job.files["out"]["fsize"] == "2"
    assert set(job.files) == {"out", job.known["definition"]["logFile"]}


@scenario
def harvester_reports_that_a_job_failed(site: Site) -> None:
    job, here, worker = site.sees_end(site.submit("exit 3", "FILES"))
    assert (job.state, job.code, here, worker) == ("failed", PAYLOAD, "failed", "finished")


@scenario
def harvester_reports_of_a_worker_that_is_cancelled(site: Site) -> None:
    job_id = site.submit("sleep 600", "FILES")
    site.cancels(job_id)
    job, here, worker = site.sees_end(job_id)
    assert (job.state, job.code, here, worker) == ("failed", SIGTERM, "failed", "cancelled")


@scenario
def a_worker_has_several_jobs(site: Site) -> None:
    jobs = [site.grid.job(f"echo x > {name}; exit {status}", outputs=[name], queue="MANY") for name, status in
            (("a", 0), ("b", 0), ("c", 3))]  # fmt: skip
    ids = site.grid.submit(*jobs)
    ended = [site.sees_end(job_id) for job_id in ids]
    assert [job.state for job, _, _ in ended] == [here for _, here, _ in ended] == ["finished", "finished", "failed"]
    assert len({site.worker(job_id)["workerID"] for job_id in ids}) == 1


@scenario
def the_worker_of_several_jobs_is_cancelled(site: Site) -> None:
    """Those that were not begun have failed, too."""
    ids = site.grid.submit(*(site.grid.job("sleep 600", queue="MANY_CANCELLED") for _ in range(3)))
    site.cancels(ids[0])
    for job_id in ids:
        job, here, worker = site.sees_end(job_id)
        assert (job.state, job.code, here, worker) == ("failed", SIGTERM, "failed", "cancelled")


@scenario
def a_pilot_asks_for_another_job(site: Site) -> None:
    """Harvester gives it to the worker that runs, since there may be one alone."""
    first = site.submit("sleep 3", "MORE")
    site.sees_run(first)
    second = site.submit("echo x > out", "MORE", outputs=["out"])
    for job_id in (first, second):
        site.waits(lambda job_id=job_id: site.grid.job_of(job_id).state == "finished", f"the end of {job_id}")
    assert site.worker(first)["workerID"] == site.worker(second)["workerID"]


@scenario
def a_pilot_pulls(site: Site) -> None:
    """The server hears of its worker, by one number, from both."""
    site.waits(lambda: site.grid.job_of(site.pulled).state == "finished", "the end of the job that was pulled")
    first = site.workers("PULL")[0]["workerID"]
    site.waits(lambda: site.workers("PULL")[0]["status"] == "finished", "the end of its worker")
    notices = site.grid.server.notices("update_worker_status")
    told = [notice["arguments"] for notice in notices if notice["arguments"]["worker_id"] == str(first)]
    assert [words["status"] for words in told] == ["started", "finished"]

    def told_by_harvester() -> list[str]:
        notices = site.grid.server.notices("update_workers")
        workers = [worker for notice in notices for worker in notice["arguments"]["workers"]]
        return [worker["status"] for worker in workers if worker["workerID"] == first]

    until(lambda: "finished" in told_by_harvester())


running = scenario.fixture()
test_scenario = scenario.test()
