"""A real Harvester launches our release in a real pool of HTCondor, pull and push (see `test_harvester_daemon.py`)."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grid import Grid, Scenarios
from tests.parts.harvester import Harvester, needs_harvester
from tests.parts.htcondor import Pool

pytestmark = [needs_harvester, pytest.mark.slow, pytest.mark.timeout(300)]  # with the installation

#: Pilot error codes.
SIGTERM, PANDA_KILL = 1201, 1144
#: A queue that has one pilot at a time.
PULL = {"templateQueueName": "production.pull", "maxWorkers": 1, "nQueueLimitWorker": 1}
QUEUES: dict[str, dict[str, Any]] = {
    "PULL": PULL,
    "REMOVED": PULL,
    "HELD": PULL,
    "PUSH": {
        "templateQueueName": "production.pull",
        "mapType": "OneToOne",
        "nQueueLimitJob": 100,
        "submitter": {"templateFile": "/opt/harvester/templates/push.sdf"},
    },
}
#: What makes the template one for pushed jobs: their file goes along.
TO_PUSH = (
    ("--harvester-submit-mode PULL", "--harvester-submit-mode PUSH"),
    ("pilot3.tar.gz\n", "pilot3.tar.gz, {accessPoint}/{jobSpecFileName}\n"),
)

scenario = Scenarios(workers=12, given="site")


class Site(Harvester):
    """Harvester beside a pool; jobs for pilots that pull are there from the beginning."""

    pool: Pool
    jobs: dict[str, int]

    def stopped(self, queue: str, command: str) -> None:
        """Stop a worker while its job runs: the pilot tells the server, and Harvester sees it."""
        job_id, job = self.jobs[queue], self.grid.job_of
        self.waits(lambda: job(job_id).state == "running", f"{job_id} runs")
        self.pool.run(command, self.workers(queue)[0]["batchID"])
        self.waits(lambda: job(job_id).state == "failed", f"the end of {job_id}")
        assert job(job_id).code == SIGTERM
        assert job(job_id).log()
        self.waits(lambda: self.workers(queue)[0]["status"] == "cancelled", "the end of its worker")


@pytest.fixture(scope="module")
def site(htcondor: Pool, release: Path) -> Iterator[Site]:
    """Harvester asks the pool by its library; the program that submits is inside."""
    shared = htcondor.top / "shared" / "harvester"
    with Grid(shared / "grid") as grid:
        grid.storage.chmod(0o777)  # the pool's user is not ours
        shutil.copytree(release, shared / "release")
        (shared / "release").chmod(0o755)
        submit = shared / "bin" / "condor_submit"
        submit.parent.mkdir()
        inside = shlex.join([*htcondor.enter(), "condor_submit"])
        submit.write_text(f'#!/bin/sh\nfor last; do :; done\nchmod a+r "$last"\nexec {inside} "$@"\n')
        submit.chmod(0o755)
        environ = {"PATH": f"{submit.parent}:/usr/bin:/bin", "TMPDIR": str(shared)}
        environ["CONDOR_CONFIG"] = str(htcondor.top / "condor_config")
        site = Site(shared / "top", grid, shared / "release", QUEUES, environ)
        site.change_template("htcondor.sdf", "push.sdf", *TO_PUSH)
        site.pool, site.jobs = htcondor, {name: site.submit("sleep 600", name) for name in ("REMOVED", "HELD")}
        site.jobs["PULL"] = site.submit("echo x > out", "PULL", outputs=["out"])
        with site:
            yield site


@scenario
def a_pilot_pulls(site: Site) -> None:
    job = site.grid.job_of
    site.waits(lambda: job(site.jobs["PULL"]).state == "finished", "the end of the job that was pulled")
    assert job(site.jobs["PULL"]).path("out").read_text() == "x\n"
    site.waits(lambda: site.workers("PULL")[0]["status"] == "finished", "the end of its worker")
    assert site.workers("PULL")[0]["nativeExitCode"] == 0
    assert "pilot ends" in "".join(path.read_text() for path in site.top.glob("data/logs/*/*.out"))


@scenario
def a_worker_is_removed(site: Site) -> None:
    site.stopped("REMOVED", "condor_rm")


@scenario
def a_worker_is_held(site: Site) -> None:
    """The template has it removed."""
    site.stopped("HELD", "condor_hold")


@scenario
def a_job_is_pushed(site: Site) -> None:
    job_id = site.submit("echo x > out", "PUSH", outputs=["out"])
    job, here, worker = site.sees_end(job_id)
    assert (job.state, here, worker) == ("finished", "finished", "finished")
    assert job.path("out").read_text() == "x\n"
    assert job.reported_once()


@scenario
def a_pushed_job_fails(site: Site) -> None:
    job, here, worker = site.sees_end(site.submit("exit 3", "PUSH"))
    assert (job.state, job.fields["trans_exit_code"], here, worker) == ("failed", 3, "finished", "finished")


@scenario
def a_pushed_job_is_killed_at_the_server(site: Site) -> None:
    site.sees_kill()


@scenario
def the_worker_of_a_pushed_job_is_removed(site: Site) -> None:
    """Harvester tells the server, too, and the first word counts: the pool says "removed" while the pilot ends."""
    job_id = site.submit("sleep 600", "PUSH")
    site.pool.run("condor_rm", site.sees_run(job_id)["batchID"])
    job, here, worker = site.sees_end(job_id)
    assert (job.state, here, worker) == ("failed", "cancelled", "cancelled")
    assert job.code in (SIGTERM, PANDA_KILL)


running = scenario.fixture()
test_scenario = scenario.test()
