"""Our submit file and template in a real pool of HTCondor: jobs run, are removed, held, preempted and limited in time.

However a slot ends, the server has the final state, the storage has the log, and the pilot's own log has come back.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grid import Grid, Job, Scenarios, until
from tests.parts.htcondor import UID, VACATE, Pool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # with the installation

ROOT = Path(__file__).resolve().parents[2]
#: JobStatus of HTCondor.
RUNNING, REMOVED, COMPLETED, HELD = 2, 3, 4, 5
#: Pilot error codes.
SIGTERM, MAX_TIME = 1201, 1213
#: A payload that ends when it is told to, and one of which no process does.
OBEYS = "echo begun; sleep 600"
IGNORES = "trap '' TERM; echo begun; setsid sleep 600 & sleep 600; sleep 600"

#: What Harvester fills in, beside the names of the queue and of directories; what it has not is an error, as there.
FILLED = {
    "executableFile": "pilot-wrapper.sh", "computingSite": "SITE", "prodSourceLabel": "managed", "pilotType": "PR",
    "pilotResourceTypeOption": "", "harvesterID": "harv", "workerID": 7, "gtag": "http://logs.example.org/7.out",
    "nCoreTotal": 1, "requestRam": 200, "requestDisk": 1000, "sdfPath": "/access/7_submit.sdf", "x509UserProxy": "",
    "ceHostname": "", "ceEndpoint": "", "ceQueueName": "",
}  # fmt: skip

scenario = Scenarios(workers=12, given="site")


class Slot:
    """A pilot in the pool, submitted as a site does."""

    def __init__(self, site: Site, directory: Path, text: str, *appended: str) -> None:
        self._pool, self.directory = site.pool, directory
        shutil.copytree(site.top / "release", directory)
        os.chown(directory, UID, UID)
        (directory / "pilot.sub").write_text(text)
        words = [word for line in appended for word in ("-append", line)]
        self.id = self._pool.submit(directory / "pilot.sub", *words)

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
        until(lambda: self.ad("JobStatus").get("JobStatus") == status, timeout, self.story)

    def story(self) -> str:
        """What became of it, for a test that fails."""
        return f"{self.ad('JobStatus', 'HoldReason', 'NumJobStarts')}\n{self.events}\n{self.log[-5000:]}"

    @property
    def log(self) -> str:
        """What wrapper and pilot said, as HTCondor has brought it back."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("*.*.*.*")))

    @property
    def events(self) -> str:
        """HTCondor's own log of the job."""
        return "".join(path.read_text() for path in self.directory.glob("*.log"))

    def says(self, text: str) -> None:
        """Wait until the log that came back has a text."""
        until(lambda: text in self.log, 30, self.story)


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
        text = (ROOT / "wrappers" / "htcondor" / "pilot.sub").read_text()
        return Slot(self, self.top / f"site-{next(self._numbers)}", text, *lines, *appended)

    def submit_by_harvester(self, queue: str) -> Slot:
        """Submit Harvester's template as its HTCondorSubmitter fills it, with what a site changes in it."""
        directory = self.top / f"site-{next(self._numbers)}"
        text = (ROOT / "wrappers" / "harvester" / "htcondor.sdf").read_text()
        text = text.replace("/opt/harvester/pilot/", "")
        text = text.replace("https://pandaserver.example.org", f"http://127.0.0.1 {self.options(queue)}")
        names = {"pandaQueueName": queue, "accessPoint": str(directory), "logDir": str(directory), "logSubdir": "."}
        return Slot(self, directory, text.format(**FILLED | names))

    def start(self, payload: str, *appended: str, then: tuple[str, ...] = ()) -> tuple[Slot, list[int]]:
        """A slot whose pilot runs a job; then come others."""
        queue = self.grid.queue(f"Q{next(self._numbers)}")
        ids = self.grid.submit(*(self.grid.job(command, queue=queue) for command in (payload, *then)))
        slot = self.submit(queue, *appended)
        until(lambda: self.running(ids[0]), 60, slot.story)
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
    assert re.search(r"; slot Cpus=1 Memory=\d+ Disk=", slot.log)
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
    told = b"grace after a stop signal: 6.66667 s (JobMaxVacateTime of HTCondor is 8 s)"
    assert told in job.log()["pilotlog.txt"]


@scenario
def a_job_that_is_held_is_reported_and_may_be_released(site: Site) -> None:
    slot, (job_id,) = site.start(OBEYS)
    slot.condor("condor_hold")
    assert_stopped(site.ended(job_id))
    slot.reaches(HELD)
    until(lambda: "Job was held" in slot.events, 30, slot.story)  # before that its first run is not over
    assert "pilot ends after" in slot.log
    slot.condor("condor_release")
    slot.reaches(COMPLETED)
    slot.says("no more jobs")


@scenario
def a_slot_that_is_taken_away_begins_again_with_another_job(site: Site) -> None:
    slot, (first, second) = site.start(OBEYS, then=("true",))
    slot.condor("condor_vacate_job")
    assert_stopped(site.ended(first))
    assert site.ended(second, 60).state == "finished"
    slot.reaches(COMPLETED)
    assert slot.ad("NumJobStarts")["NumJobStarts"] == 2


@scenario
def a_limit_on_time_is_known_before_it_is_reached(site: Site) -> None:
    slot, (job_id,) = site.start(OBEYS, "allowed_job_duration=30")
    assert_stopped(site.ended(job_id), MAX_TIME)
    assert "AllowedJobDuration of HTCondor is near" in site.grid.job_of(job_id).diag
    slot.reaches(COMPLETED)


@scenario
def a_worker_of_harvester_is_told_to_the_server(site: Site) -> None:
    queue = site.grid.queue("HARVESTER")
    (job_id,) = site.grid.submit(site.grid.job(queue=queue))
    slot = site.submit_by_harvester(queue)
    slot.reaches(COMPLETED)

    job = site.ended(job_id)
    assert job.state == "finished"
    assert job.fields["pilot_id"].startswith("http://logs.example.org/7.out|Condor|PR|")
    assert job.fields["scheduler_id"] == "harvester-harv"
    told = [notice["arguments"] for notice in site.grid.server.notices("update_worker_status")]
    assert [(words["worker_id"], words["status"]) for words in told] == [("7", "started"), ("7", "finished")]
    assert slot.ad("harvesterWorkerID")["harvesterWorkerID"] == "7"


running = scenario.fixture()
test_scenario = scenario.test()
