"""Our submit file and template in a real pool of HTCondor: jobs run, are removed, held, preempted and limited in time.

However a slot ends, the server has the final state, the storage has the log, and the pilot's own log has come back.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grid import Grid, Job, Scenarios, until
from tests.parts.htcondor import UID, VACATE, Pool

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
#: JobStatus of HTCondor.
RUNNING, REMOVED, COMPLETED, HELD = 2, 3, 4, 5
#: Pilot error codes.
SIGTERM, MAX_TIME = 1201, 1213
#: A payload that ends when it is told to, and one of which no process does.
OBEYS = "echo begun; sleep 600"
IGNORES = "trap '' TERM; echo begun; setsid sleep 600 & sleep 600; sleep 600"

scenario = Scenarios(workers=12, given="site")


class Slot:
    """A pilot in the pool, submitted as a site does."""

    def __init__(self, site: Site, number: int, queue: str, file: str, *appended: str) -> None:
        self._pool = site.pool
        self.directory = site.top / f"site-{number}"
        shutil.copytree(site.top / "release", self.directory)
        os.chown(self.directory, UID, UID)
        path = self.directory / Path(file).name
        if not path.exists():
            shutil.copy(ROOT / "wrappers" / file, path)
        words = [word for line in appended for word in ("-append", line)]
        self.id = self._pool.submit(path, *words)
        self.queue = queue

    def condor(self, command: str) -> float:
        """Have something done to the job; when that was."""
        begun = time.monotonic()
        self._pool.run(command, self.id)
        return begun

    def ad(self, *names: str) -> dict[str, object]:
        """Attributes of the job in the pool."""
        return self._pool.ad(self.id, *names)

    def reaches(self, status: int, timeout: float = 60.0) -> None:
        """Wait for a JobStatus."""
        why = f"status {status} of {self.id}: {self.log[-2000:]}"
        until(lambda: self.ad("JobStatus").get("JobStatus") == status, timeout, why)

    @property
    def log(self) -> str:
        """What wrapper and pilot said, as HTCondor has brought it back."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("pilot.*.*.*")))

    def says(self, text: str) -> None:
        """Wait until the log that came back has a text."""
        until(lambda: text in self.log, 30, f"{self.id}: {text!r} in its log")


class Site:
    """A grid inside the shared directory of a pool."""

    def __init__(self, pool: Pool, grid: Grid) -> None:
        self.pool, self.grid, self.top = pool, grid, grid.top
        self._numbers = itertools.count()

    def options(self, queue: str) -> str:
        """What a pilot of this grid has to be told."""
        cache = f"{self.grid.server.url}/cache"
        where = f"-p {self.grid.port} --queuedata-url {cache}/{queue}.json --storagedata-url {cache}/storages.json"
        return f"{where} -t -b -v 1 --config {self.grid.settings}"

    def submit(self, queue: str, *appended: str) -> Slot:
        """Submit `pilot.sub` for a queue."""
        macros = {"PANDA_QUEUE": queue, "PANDA_URL": "http://127.0.0.1", "OPTIONS": self.options(queue)}
        macros |= {"MEMORY_MB": "200", "DISK_KB": "1000", "PILOT_FILES": "pilot3.tar.gz"}
        lines = [f"{name}={value}" for name, value in macros.items()]
        return Slot(self, next(self._numbers), queue, "htcondor/pilot.sub", *lines, *appended)

    def start(self, payload: str, *appended: str, jobs: int = 1) -> tuple[Slot, list[int]]:
        """A slot whose pilot runs the first of some jobs."""
        queue = self.grid.queue(f"Q{next(self._numbers)}")
        ids = self.grid.submit(*(self.grid.job(payload, queue=queue) for _ in range(jobs)))
        slot = self.submit(queue, *appended)
        until(lambda: self.running(ids[0]), 60, f"{slot.id} running: {slot.log}")
        return slot, ids

    def running(self, job_id: int) -> bool:
        """Whether a payload has begun."""
        return self.grid.job_of(job_id).state == "running"

    def ended(self, job_id: int, timeout: float = 40.0) -> Job:
        """A job that has come to its end."""
        until(lambda: self.grid.job_of(job_id).state in ("finished", "failed"), timeout)
        return self.grid.job_of(job_id)


@pytest.fixture(scope="module")
def site(htcondor: Pool, release: Path) -> Iterator[Site]:
    top = htcondor.top / "shared" / "grid"
    with Grid(top) as grid:
        grid.storage.chmod(0o777)  # the pool's user is not ours
        shutil.copytree(release, top / "release")
        yield Site(htcondor, grid)


def assert_stopped(job: Job, code: int = SIGTERM) -> None:
    """The server has the final state, once, and the storage has the log with the payload's output."""
    assert (job.state, job.code) == ("failed", code), job.fields
    assert job.reported_once()
    assert job.log()["payload.stdout"].startswith(b"begun")


@scenario
def a_job_runs_and_is_seen_in_the_queue_of_the_pool(site: Site) -> None:
    slot, (job_id,) = site.start("until [ -e go ]; do sleep 0.1; [ $((++n)) -lt 40 ] || break; done; echo $n > out.txt")
    until(lambda: "PandaPilotId" in slot.ad(), 10)
    ad = slot.ad("PandaID", "PandaPilotId", "JobStatus", "GlobalJobId")
    assert (ad["PandaID"], ad["JobStatus"]) == (str(job_id), RUNNING)
    assert str(ad["PandaPilotId"]).startswith("unknown|Condor|PR|")
    job = site.ended(job_id)
    slot.reaches(COMPLETED)

    assert job.state == "finished"
    assert job.fields["batch_id"] == ad["GlobalJobId"]
    assert job.fields["node"].startswith("slot1_")
    assert job.fields["destination_site"] == "TEST_SITE"
    assert job.fields["source_site"].startswith("pilot@")
    assert slot.ad("ExitCode")["ExitCode"] == 0
    slot.says(f"pandaids: {job_id}")
    assert (
        f"grace after a stop signal: {VACATE * 5 // 6} s (MachineMaxVacateTime of HTCondor is {VACATE} s)" in slot.log
    )


@scenario
def a_job_that_is_removed_is_reported_in_time(site: Site) -> None:
    slot, (job_id,) = site.start(OBEYS)
    removed = slot.condor("condor_rm")
    job = site.ended(job_id)

    assert time.monotonic() - removed < 6
    assert_stopped(job)
    slot.reaches(REMOVED)
    slot.says("==== pilot ended with status 143 ====")


@scenario
def a_payload_that_does_not_end_is_killed_within_the_grace_that_the_job_asked_for(site: Site) -> None:
    slot, (job_id,) = site.start(IGNORES, "job_max_vacate_time=8")
    removed = slot.condor("condor_rm")
    job = site.ended(job_id)

    assert time.monotonic() - removed < 8
    assert_stopped(job)
    slot.reaches(REMOVED)
    assert (
        "grace after a stop signal: 6.66667 s (JobMaxVacateTime of HTCondor is 8 s)"
        in job.log()["pilotlog.txt"].decode()
    )


@scenario
def a_job_that_is_held_is_reported_and_may_be_released(site: Site) -> None:
    slot, (job_id,) = site.start(OBEYS)
    slot.condor("condor_hold")
    assert_stopped(site.ended(job_id))
    slot.reaches(HELD)
    slot.says("pilot ends after")
    slot.condor("condor_release")
    slot.reaches(COMPLETED)
    slot.says("no more jobs")


@scenario
def a_slot_that_is_taken_away_begins_again_with_another_job(site: Site) -> None:
    slot, (first, second) = site.start("[ -e {0} ] && exit; touch {0}; {1}".format("FLAG", OBEYS), jobs=2)
    slot.condor("condor_vacate_job")
    assert_stopped(site.ended(first))
    until(lambda: site.running(second), 40)
    site.grid.server.kill(second)
    slot.reaches(COMPLETED)
    assert slot.ad("NumJobStarts")["NumJobStarts"] == 2


@scenario
def a_limit_on_time_is_known_before_it_is_reached(site: Site) -> None:
    slot, (job_id,) = site.start(OBEYS, "allowed_job_duration=30")
    assert_stopped(site.ended(job_id), MAX_TIME)
    assert "AllowedJobDuration of HTCondor is near" in site.grid.job_of(job_id).diag
    slot.reaches(COMPLETED)


running = scenario.fixture()
test_scenario = scenario.test()
