"""A person looks at a running job through the server, tells it to end softly, or has its directory kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grid import Grid, Pilot, until

COMMAND = "echo first; touch {0}; while [ ! -e {0}.end ]; do sleep 0.05; done; echo last"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


class Case:
    """A job that runs until it is let go, and its pilot, which beats each second."""

    def __init__(self, grid: Grid, name: str, command: str = COMMAND, *options: str, **fields: Any) -> None:
        self.grid = grid
        self.queue = grid.queue(name)
        self.mark = grid.top / f"{name}.started"
        (self.job_id,) = grid.submit(grid.job(command.format(self.mark), queue=self.queue, **fields))
        self.pilot: Pilot = grid.pilot("--heartbeat", "1", *options, queue=self.queue)
        until(self.mark.exists)

    def shown(self) -> list[str]:
        """What debug mode has shown until now."""
        updates = self.grid.job_of(self.job_id).known["updates"]
        return [update["fields"]["stdout"] for update in updates if update["fields"].get("stdout")]

    def send(self, command: str) -> None:
        self.grid.server.command(self.job_id, command)

    def end(self) -> None:
        Path(f"{self.mark}.end").touch()
        assert self.pilot.wait() == 0, self.pilot.text


def test_commands_are_carried_out_once_each_and_nothing_comes_after_debugoff(grid: Grid) -> None:
    case = Case(grid, "DEBUG")
    case.send("debug")
    until(lambda: any(text.startswith("payload.stdout\nfirst") for text in case.shown()))
    case.send("ps aux")
    until(lambda: any("PID" in text for text in case.shown()))
    case.send("debug,ps aux")
    case.send("ls")
    until(lambda: any("journal.jsonl" in text.split() for text in case.shown()))
    case.send("tail pilotlog.txt")
    until(lambda: any(text.startswith("pilotlog.txt\n") for text in case.shown()))
    assert sum("PID" in text for text in case.shown()) == 1
    case.send("rm -rf .")
    case.pilot.says("does not carry out: 'rm -rf .'")
    case.send(" debugoff")  # as a server sends it; the bare word switches the mode of this one
    case.pilot.says("debug mode is off")
    count = len(case.shown())
    case.end()
    assert len(case.shown()) == count
    assert grid.job_of(case.job_id).state == "finished"


def test_a_job_may_be_debugged_from_its_start_and_shows_its_last_lines(grid: Grid) -> None:
    case = Case(grid, "START", COMMAND, debug="True", debug_command="tail payload.stdout")
    until(case.shown)
    case.end()
    assert case.shown()[-1] == "payload.stdout\nfirst\nlast\n"


def test_a_job_directory_is_kept_when_the_server_says_so(grid: Grid) -> None:
    work = grid.top / "kept"
    case = Case(grid, "KEEP", COMMAND, "-a", str(work))
    case.send("nocleanup")
    case.pilot.says("will be kept")
    case.end()
    (stdout,) = work.glob(f"*/PanDA_Pilot-{case.job_id}/payload.stdout")
    assert stdout.read_text() == "first\nlast\n"


SOFT = "trap 'echo saved; exit 0' USR1; touch {0}; for n in $(seq 200); do sleep 0.1 & wait $!; done; exit 3"


def test_softkill_sends_the_soft_signal_where_there_is_one(grid: Grid) -> None:
    case = Case(grid, "SOFT", SOFT, "--soft-stop-signal", "USR1")
    case.send("softkill")
    assert case.pilot.wait() == 0
    job = grid.job_of(case.job_id)
    assert (job.state, job.log()["payload.stdout"]) == ("finished", b"saved\n")


def test_a_payload_is_told_before_the_end_of_its_slot_by_the_signal_of_its_queue(grid: Grid) -> None:
    grid.queue("LEAD", params={"pilot_soft_stop_signal": "SIGUSR1", "pilot_soft_stop_lead": 5}, maxtime=8)
    mark = grid.top / "lead.started"
    (job_id,) = grid.submit(grid.job(SOFT.format(mark), queue="LEAD"))
    pilot = grid.pilot(queue="LEAD")
    assert pilot.wait() == 0, pilot.text
    job = grid.job_of(job_id)
    assert (job.state, job.log()["payload.stdout"]) == ("finished", b"saved\n")
    assert "s are left: SIGUSR1 to" in pilot.text


def test_a_shutdown_that_is_announced_while_the_payload_runs_is_told_to_it_and_then_ends_it(
    grid: Grid, tmp_path: Path
) -> None:
    queue = grid.queue("FEATURES")
    (tmp_path / "shutdowntime").write_text(str(int(time.time()) + 608))
    command = "trap 'echo told' USR1; touch {0}; while :; do sleep 0.1 & wait $!; done"
    (job_id,) = grid.submit(grid.job(command.format(grid.top / "features"), queue=queue))
    options = ("--soft-stop-signal", "USR1", "--soft-stop-lead", "4")
    pilot = grid.pilot(*options, queue=queue, env={"MACHINEFEATURES": str(tmp_path)})
    pilot.wait()
    job = grid.job_of(job_id)
    assert (job.finals, job.code) == (["failed"], 1213), pilot.text
    assert "shutdowntime" in job.diag
    assert job.log()["payload.stdout"] == b"told\n"


def test_no_job_is_taken_on_a_machine_that_is_about_to_go_down(grid: Grid, tmp_path: Path) -> None:
    queue = grid.queue("DOWN")
    (tmp_path / "shutdowntime").write_text(str(int(time.time()) + 599))
    (job_id,) = grid.submit(grid.job("true", queue=queue))
    pilot = grid.pilot(queue=queue, env={"MACHINEFEATURES": str(tmp_path)})
    assert pilot.wait() == 0
    assert "no further job: the machine will be shut down at " in pilot.text
    assert grid.server.states()[job_id] == "activated"


def test_the_end_of_a_slurm_job_ends_the_payload_in_time_to_report_it(grid: Grid) -> None:
    queue = grid.queue("SLURMEND")
    (job_id,) = grid.submit(grid.job("sleep 60", queue=queue))
    end = str(int(time.time()) + 6)
    pilot = grid.pilot(queue=queue, env={"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": end})
    pilot.wait()
    job = grid.job_of(job_id)
    assert (job.finals, job.code) == (["failed"], 1213), pilot.text
    assert "the end of the Slurm job is near" in job.diag
