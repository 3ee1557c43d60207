"""Our batch script and template in a real cluster of Slurm: several pilots a node, cancelled, short of time or memory.

However a slot ends, the server has the final state and the storage has the log.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from tests.grid import Grid, Job, Scenarios, until
from tests.parts.slurm import KILL_WAIT, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # with the installation

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "wrappers" / "slurm" / "pilot.sbatch"
#: Pilot error codes.
SIGTERM, SIGUSR1, MAX_TIME, MEMORY = 1201, 1207, 1213, 1235
#: A payload that ends when it is told to, and one of which no process does.
OBEYS = "echo begun; sleep 600"
IGNORES = "trap '' TERM USR1; echo begun; setsid sleep 600 & sleep 600; sleep 600"
#: A payload that takes 20 MB each 0.1 s.
GROWS = f"""echo begun; exec {sys.executable} -c 'import time
kept = []
while True:
    kept.append(bytearray(b"x" * 20_000_000))
    time.sleep(0.1)'"""

#: What Harvester fills in, beside the names of the queue and the access point.
FILLED = {
    "workerID": 7, "harvesterID": "harv", "computingSite": "SITE", "localQueueName": "test", "nCoreTotal": 1,
    "requestRam": 500, "requestWalltimeMinute": 5, "submitMode": "PUSH",
}  # fmt: skip

scenario = Scenarios(workers=12, given="site")


class Slot:
    """A job of Slurm with one or more pilots."""

    def __init__(self, cluster: Cluster, directory: Path, options: list[str], script: Path, words: list[str]) -> None:
        directory.mkdir(exist_ok=True)
        self._cluster, self.directory = cluster, directory
        self.id = cluster.run("sbatch", "--parsable", *options, str(script), *words, cwd=directory)

    def cancel(self) -> float:
        """Cancel it; when that was."""
        begun = time.monotonic()
        self._cluster.run("scancel", self.id)
        return begun

    def ends_in(self, seconds: int) -> None:
        """Let it end so many seconds from now, once it runs."""
        until(lambda: self._cluster.job(self.id).get("JobState") == "RUNNING", 30, self.story)
        self._cluster.run("scontrol", "update", f"JobId={self.id}", f"EndTime=now+{seconds}seconds")

    def ended(self, timeout: float = 90.0) -> str:
        """Wait for its end; its state."""
        running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
        until(lambda: self._cluster.job(self.id).get("JobState") not in running, timeout, self.story)
        return self._cluster.job(self.id)["JobState"]

    def story(self) -> str:
        """What became of it, for a test that fails."""
        return f"{self._cluster.job(self.id)}\n{self.log[-5000:]}"

    @property
    def log(self) -> str:
        """What the script, the wrappers and the pilots have said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("*.out")))


class Site:
    """A grid beside a cluster."""

    def __init__(self, cluster: Cluster, grid: Grid, release: Path) -> None:
        self.cluster, self.grid, self.release = cluster, grid, release
        self.scratch = grid.top / "scratch"
        self.scratch.mkdir()
        self._numbers = itertools.count()

    def arguments(self, queue: str) -> list[str]:
        """What a pilot of this grid has to be told."""
        words = self.grid.options(queue=queue)
        del words[words.index("-a") : words.index("-a") + 2]
        return words

    @property
    def environ(self) -> str:
        """What a site would write into the script."""
        return f"--export=PILOT_RELEASE={self.release},PILOT_SCRATCH={self.scratch},PILOT_PYTHON={sys.executable}"

    def submit(
        self, payload: str, *options: str, jobs: int = 1, setup: str = "", **queue: object
    ) -> tuple[Slot, list[int]]:
        """A slot with a pilot for each of some jobs, whose set-up file has a text."""
        name = self.grid.queue(f"Q{next(self._numbers)}", **queue)
        extra = {"resource_type": "SCORE_LOMEM"} if "params" in queue else {}
        ids = self.grid.submit(*(self.grid.job(payload, queue=name, **extra) for _ in range(jobs)))
        (self.grid.top / f"setup-{name}.sh").write_text(setup)
        words = [self.environ, f"--ntasks={jobs}", "--mem-per-cpu=300", "--time=5", *options]
        arguments = [*self.arguments(name), "--setup", str(self.grid.top / f"setup-{name}.sh")]
        return Slot(self.cluster, self.grid.top / f"slot-{name}", words, SCRIPT, arguments), ids

    def start(self, payload: str, *options: str, **more: Any) -> tuple[Slot, list[int]]:
        """The same, when the jobs run."""
        slot, ids = self.submit(payload, *options, **more)
        until(lambda: all(self.grid.job_of(i).state == "running" for i in ids), 60, slot.story)
        return slot, ids

    def dispatched(self, queue: str) -> str:
        """The job of a queue as Harvester gets it from the server and hands it on."""
        url = f"{self.grid.server.url}/api/v1/pilot/acquire_jobs"
        body = json.dumps({"site_name": queue, "prod_source_label": "managed", "n_jobs": 1}).encode()
        with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=10) as answer:
            (job,) = json.load(answer)["data"]["jobs"]
        return urlencode(job)

    def harvester_script(self, queue: str, access: Path) -> str:
        """Harvester's template, with what a site changes in it."""
        options = " ".join(word for word in self.arguments(queue)[self.arguments(queue).index("-p") :])
        text = (ROOT / "wrappers" / "harvester" / "slurm.sh").read_text()
        text = text.replace("/opt/harvester/pilot", str(self.release))
        text = text.replace("https://pandaserver.example.org", f"http://127.0.0.1 {options}")
        return text.format_map(FILLED | {"pandaQueueName": queue, "accessPoint": str(access)})

    def ended(self, job_id: int, timeout: float = 90.0) -> Job:
        """A job that has come to its end."""
        until(lambda: self.grid.job_of(job_id).state in ("finished", "failed"), timeout)
        return self.grid.job_of(job_id)


@pytest.fixture(scope="module")
def site(slurm: Cluster, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Grid(tmp_path_factory.mktemp("grid") / "grid") as grid:
        yield Site(slurm, grid, release)


def assert_stopped(job: Job, code: int = SIGTERM) -> None:
    """The server has the final state, once, and the storage has the log with the payload's output."""
    assert (job.state, job.code) == ("failed", code), job.fields
    assert job.reported_once()
    assert job.log()["payload.stdout"].startswith(b"begun")


@scenario
def the_end_of_a_slot_is_known_from_the_scheduler(site: Site) -> None:
    gate = site.grid.top / "gate"
    slot, (job_id,) = site.submit(OBEYS, "--signal=USR1@0", setup=f"until [ -e {gate} ]; do sleep 0.1; done")
    slot.ends_in(30)
    gate.touch()
    job = site.ended(job_id)
    assert_stopped(job, MAX_TIME)
    assert "the end of the Slurm job is near" in job.diag
    assert slot.ended() == "COMPLETED"


@scenario
def a_soft_stop_comes_before_the_end(site: Site) -> None:
    slot, (job_id,) = site.start(IGNORES, "--signal=USR1@20")
    slot.ends_in(45)  # Slurm looks each 30 s, and does not wait for the last look
    assert_stopped(site.ended(job_id), SIGUSR1)
    slot.ended()
    assert "received SIGUSR1" in slot.log


@scenario
def several_pilots_share_a_node_and_each_has_a_step(site: Site) -> None:
    slot, ids = site.start("sleep 3; echo $SLURM_STEP_ID > step.txt", jobs=3)
    jobs = [site.ended(job_id) for job_id in ids]
    assert [job.state for job in jobs] == ["finished"] * 3
    assert {job.fields["batch_id"] for job in jobs} == {slot.id}
    assert slot.ended() == "COMPLETED"
    logs = [path.read_text() for path in sorted(slot.directory.glob(f"pilot-{slot.id}.*.out"))]
    assert sorted(log.partition("pandaids: ")[2].split()[0] for log in logs) == sorted(map(str, ids))


@scenario
def a_job_that_is_cancelled_is_reported_at_once(site: Site) -> None:
    slot, ids = site.start(OBEYS, jobs=2)
    cancelled = slot.cancel()
    for job_id in ids:
        assert_stopped(site.ended(job_id))
    assert time.monotonic() - cancelled < 6
    assert slot.ended() == "CANCELLED"
    assert slot.log.count("received SIGTERM: ending within") == 2  # Slurm's and the wrapper's are one


@scenario
def a_payload_that_does_not_end_is_killed_within_the_grace(site: Site) -> None:
    slot, (job_id,) = site.start(IGNORES)
    cancelled = slot.cancel()
    assert_stopped(site.ended(job_id))
    assert time.monotonic() - cancelled < KILL_WAIT
    assert f"grace after a stop signal: 8.33333 s (KillWait of Slurm is {KILL_WAIT} s)" in slot.log


@scenario
def a_payload_that_grows_is_ended_by_its_pilot_first(site: Site) -> None:
    limited = {"pilot_kill_for_memory": True, "pilot_rss_grace": 0}
    slot, (job_id,) = site.start(GROWS, "--mem-per-cpu=3000", params=limited)
    assert_stopped(site.ended(job_id), MEMORY)
    assert slot.ended() == "COMPLETED"


@scenario
def a_payload_that_outgrows_its_step_is_ended_before_slurm_kills_it_with_its_pilot(site: Site) -> None:
    """Nor takes it the other along that runs beside it."""
    queue = site.grid.queue("MIXED")
    grows = GROWS.replace("sleep(0.1)", "sleep(0.4)")  # Slurm looks each second
    ids = site.grid.submit(site.grid.job(grows, queue=queue), site.grid.job("sleep 8", queue=queue))
    words = [site.environ, "--ntasks=2", "--mem-per-cpu=300", "--time=5"]
    slot = Slot(site.cluster, site.grid.top / "slot-MIXED", words, SCRIPT, site.arguments(queue))
    assert_stopped(site.ended(ids[0]), MEMORY)
    diag = site.grid.job_of(ids[0]).diag
    assert re.search(
        r"\(RSS\) in \d+ processes, the limit is \d+ kB \(300 MB of Slurm: 307200 kB, less \d+ kB of", diag
    )
    assert site.ended(ids[1]).state == "finished"
    assert slot.ended() == "COMPLETED"
    assert "; slot Memory=300" in slot.log


@scenario
def a_worker_of_harvester_gets_its_job_as_a_file(site: Site) -> None:
    """With the placeholders that Harvester's SlurmSubmitter fills in."""
    queue = site.grid.queue("HARVESTER", timefloor=0)
    access = site.grid.top / "access"
    access.mkdir()
    (job_id,) = site.grid.submit(site.grid.job("echo x > out.txt", outputs=["out.txt"], queue=queue))
    (access / "pandaJobData.out").write_text(site.dispatched(queue))
    script = access / "worker_submit.sh"
    script.write_text(site.harvester_script(queue, access))
    slot = Slot(site.cluster, access, ["-D", str(access)], script, [])

    assert site.ended(job_id).state == "finished"
    assert slot.ended() == "COMPLETED"
    told = [notice["arguments"] for notice in site.grid.server.notices("update_worker_status")]
    assert [(words["worker_id"], words["harvester_id"]) for words in told] == [("7", "harv")] * 2
    assert "pandaids:" in (access / "stdout.txt").read_text()


running = scenario.fixture()
test_scenario = scenario.test()


def test_nothing_is_left_of_the_pilots(site: Site) -> None:
    """Their scratch directories go."""
    until(lambda: not list(site.scratch.iterdir()))


@pytest.mark.parametrize("name", ["slurm/pilot.sbatch", "harvester/slurm.sh"])
def test_the_script_is_clean_to_shellcheck(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    text = (ROOT / "wrappers" / name).read_text()
    filled = FILLED | {"pandaQueueName": "Q", "accessPoint": "/access"}
    script.write_text(text.format_map(filled) if name.startswith("harvester") else text)
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
