"""A server and a network at their worst: no result of a job is lost, and no job is reported twice in two ways."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilot import journal
from tests.grid import SETTINGS, Grid, Job, Pilot, Scenarios, until


def settings(grid: Grid, text: str) -> None:
    """More settings for the pilots of a grid."""
    grid.settings.write_text(SETTINGS + text)


class Worker:
    """A pilot that goes on asking for jobs, over one API."""

    def __init__(self, grid: Grid, api: str) -> None:
        self.grid = grid
        self.queue = grid.queue(f"WORKER-{api}")
        endless = ["-v", "100000", "-x", "100000", "--server-api", api]
        self.pilot = grid.pilot(*endless, queue=self.queue)

    def job(self, *faults: str) -> Job:
        """Run a job while faults are there; everything known of it once it has ended."""
        self.grid.server.clear_faults()
        for fault in faults:
            self.grid.server.fault(fault)
        (job_id,) = self.grid.submit(self.grid.job(queue=self.queue))
        try:
            until(lambda: self.grid.server.states()[job_id] in ("finished", "failed"), 30)
        except TimeoutError:
            raise AssertionError(f"{faults}: {self.grid.job_of(job_id).states}\n{self.pilot.text[-3000:]}") from None
        assert self.pilot.process.poll() is None
        return self.grid.job_of(job_id)


@contextmanager
def worker(top: Path, api: str = "v1") -> Iterator[Worker]:
    with Grid(top / "grid") as grid:
        worker = Worker(grid, api)
        yield worker
        worker.pilot.signal()
        assert worker.pilot.wait() == 143
        assert "Traceback" not in worker.pilot.text


KINDS = ("503", "403", "reset", "garbage", "delay=0.3")
scenario = Scenarios()


@scenario.for_each(acquire_jobs=("acquire_jobs",), starting=("update_job@starting",), running=("update_job@running",))
def a_call_that_fails_once_is_made_good(top: Path, call: str) -> None:
    with worker(top) as pilot:
        for kind in KINDS:
            if (call, kind) == ("acquire_jobs", "403"):  # how a server says that it does not have the method
                continue
            job = pilot.job(f"{call}:{kind}")
            assert (job.finals, job.states[-1]) == (["finished"], "finished"), kind


@scenario.for_each(v1=("v1",), legacy=("legacy",))
def a_final_report_that_was_not_taken_is_repeated(top: Path, api: str) -> None:
    with worker(top, api) as pilot:
        for kind in KINDS:
            if kind != "403":
                job = pilot.job(f"update_job@finished:{kind}")
                assert (job.state, job.finals) == ("finished", ["finished"]), kind


@scenario.for_each(v1=("v1",), legacy=("legacy",))
def a_final_report_whose_answer_was_lost_is_repeated_and_already_done(top: Path, api: str) -> None:
    with worker(top, api) as pilot:
        jobs = [pilot.job(f"update_job@finished:{kind}:after") for kind in ("reset", "503", "garbage")]
        pilot.job("update_job@holding:reset")  # one more, so that the last of them is over
        for job in jobs:
            assert set(pilot.grid.job_of(job.id).finals) == {"finished"}


@scenario
def a_job_whose_handing_out_was_lost_is_the_only_one_lost(top: Path) -> None:
    """The server counts it as sent and gives it to somebody else after some time; nobody can know here."""
    with worker(top) as pilot:
        pilot.grid.server.fault("acquire_jobs:reset:0:after")
        (lost,) = pilot.grid.submit(pilot.grid.job(queue=pilot.queue))
        until(lambda: pilot.grid.server.states()[lost] == "sent")
        assert pilot.job("update_job@starting:delay=0").state == "finished"
        assert pilot.grid.job_of(lost).states == []


@scenario
def several_faults_in_a_row_are_survived(top: Path) -> None:
    with worker(top) as pilot:
        faults = ("update_job:reset", "update_job:500", "update_job:garbage", "update_job@finished:503")
        job = pilot.job("acquire_jobs:reset", *faults)
        assert (job.state, set(job.finals)) == ("finished", {"finished"})


@scenario
def an_update_that_hangs_does_not_hold_up_the_job_nor_come_after_its_final_report(top: Path) -> None:
    with Grid(top, faults=["update_job@starting:delay=20", "update_job@running:delay=20"]) as grid:
        (job_id,) = grid.submit(grid.job())
        begun = time.monotonic()
        assert grid.pilot().wait() == 0
        assert time.monotonic() - begun < 15
        assert grid.job_of(job_id).states == ["finished"]


@scenario
def a_final_report_that_hangs_is_tried_again(top: Path) -> None:
    with Grid(top, faults=["update_job@finished:delay=20"]) as grid:
        settings(grid, "http_maxtime = 1\n")
        (job_id,) = grid.submit(grid.job())
        assert grid.pilot().wait() == 0
        assert grid.job_of(job_id).finals == ["finished"]


def gone_at_the_end(grid: Grid, *options: str) -> tuple[int, Pilot]:
    """A job whose server goes away while its payload runs; the job, and the pilot as it tries to report it."""
    go = grid.top / "go"
    (job_id,) = grid.submit(grid.job(f"until [ -e {go} ]; do sleep 0.02; done"))
    pilot = grid.pilot("--grace", "5", *options)
    until(lambda: grid.job_of(job_id).state == "running")
    grid.server.close()
    go.touch()
    pilot.says(f"update of job {job_id} (finished): http://127.0.0.1:{grid.port}: Failed to establish a new connection")
    return job_id, pilot


@scenario
def a_server_that_comes_back_has_the_report(top: Path) -> None:
    with Grid(top, state=top / "state.db") as grid:
        job_id, pilot = gone_at_the_end(grid)
        until(lambda: pilot.text.count("(finished): http") >= 3)
        grid.restart()
        assert pilot.wait() == 0
        job = grid.job_of(job_id)
        assert (job.state, job.finals) == ("finished", ["finished"])


@scenario
def a_server_that_is_gone_for_good_is_exit_code_79_and_the_journal_knows_what_is_left(top: Path) -> None:
    with Grid(top, state=top / "state.db") as grid:
        settings(grid, "final_report_timeout = 2\n")
        job_id, pilot = gone_at_the_end(grid, "--cleanup", "False")
        assert pilot.wait() == 79
        assert f"the final report was not delivered of job {job_id}" in pilot.text
        (path,) = grid.work.glob("*/*/journal.jsonl")
        state = journal.state(path)
        assert (state.final_state, state.reported, state.log_stored) == ("finished", False, True)
        assert state.left == ("report",)


@scenario
def a_token_that_runs_out_while_the_job_runs_does_not_lose_its_result(top: Path) -> None:
    with Grid(top, token="token-that-is-valid", origin="vo.production") as grid:
        token, go = top / "token", top / "go"
        token.write_text("token-that-is-valid")
        (job_id,) = grid.submit(grid.job(f"until [ -e {go} ]; do sleep 0.02; done"))
        env = {"PANDA_AUTH_TOKEN": str(token), "PANDA_AUTH_ORIGIN": "vo.production"}
        pilot = grid.pilot(env=env)
        until(lambda: grid.job_of(job_id).state == "running")
        token.write_text("token-that-has-expired")
        go.touch()
        until(lambda: pilot.text.count(f"update of job {job_id} (finished)") >= 3)
        assert pilot.process.poll() is None
        token.write_text("token-that-is-valid")
        assert pilot.wait() == 0
        assert grid.job_of(job_id).finals == ["finished"]


@scenario
def a_job_of_which_the_server_hears_nothing_for_too_long_is_given_up(top: Path) -> None:
    with Grid(top, faults=["update_job@starting:503:0", "update_job@running:503:0"]) as grid:
        settings(grid, "lost_heartbeat = 2\n")
        (job_id,) = grid.submit(grid.job("sleep 600"))
        assert grid.pilot("--heartbeat", "1").wait() == 0
        job = grid.job_of(job_id)
        assert (job.finals, job.code) == (["failed"], 1317)
        assert "lost heartbeat" in job.diag


@scenario.for_each(status=("503",), reset=("reset",), garbage=("garbage",), slow=("delay=1",))
def a_worker_status_that_fails_changes_nothing_else(top: Path, kind: str) -> None:
    with Grid(top, faults=[f"update_worker_status:{kind}:0"]) as grid:
        (job_id,) = grid.submit(grid.job())
        pilot = grid.pilot(env={"HARVESTER_ID": "h", "HARVESTER_WORKER_ID": "1"})
        assert pilot.wait() == 0
        assert grid.job_of(job_id).state == "finished"
        assert "Traceback" not in pilot.text


@scenario.for_each(status=("503",), reset=("reset",), garbage=("garbage",))
def the_queues_description_is_asked_for_again(top: Path, kind: str) -> None:
    with Grid(top, faults=[f"cache:{kind}"]) as grid:
        (job_id,) = grid.submit(grid.job())
        assert grid.pilot().wait() == 0
        assert grid.job_of(job_id).state == "finished"


def test_a_description_of_the_queue_that_makes_no_sense_is_told_in_one_line(tmp_path: Path) -> None:
    with Grid(tmp_path) as grid:
        for body in ("[]", "5", '{"Q": []}', '{"Q": {"maxwdir": "much"}}', '{"Q": {"copytools": 5}}'):
            path = tmp_path / "queue.json"
            path.write_text(body)
            pilot = grid.pilot("--queuedata-url", str(path))
            assert pilot.wait() in (71, 72, 78), body
            assert "Traceback" not in pilot.text


@scenario
def what_a_server_sends_along_is_hidden_and_what_it_wants_and_we_cannot_is_said_once(top: Path) -> None:
    with Grid(top) as grid:
        secret = json.dumps({"logstash_password": "word-of-the-server-1"})
        (job_id,) = grid.submit(grid.job("sleep 2.5; echo word-of-the-server-1", pilotSecrets=secret))
        pilot = grid.pilot("--heartbeat", "1")
        until(lambda: grid.job_of(job_id).state == "running")
        grid.server.command(job_id, "dance")
        assert pilot.wait() == 0
        assert pilot.text.count("dance") == 1
        job = grid.job_of(job_id)
        assert job.state == "finished"
        assert job.log()["payload.stdout"] == b"*" * len("word-of-the-server-1") + b"\n"


running = scenario.fixture()
test_scenario = scenario.test()
