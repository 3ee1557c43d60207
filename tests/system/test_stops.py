"""A pilot that is told to end does so in time, reports what it had exactly once, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pilot import journal
from pilot.processes import children, is_zombie
from tests.grid import Grid, Pilot, Scenarios, kill_all, processes_with, until

#: Seconds that a loaded machine may take longer.
SLACK = 3.0


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


def assert_gone(job_id: int) -> None:
    """Nothing of a job's payload lives."""
    assert processes_with(f"PandaID={job_id}") == []


# --- at any moment

MOMENTS = 30
#: A payload with a child and a grandchild, and what its files need.
COMMAND = "(sleep 600 & echo $!; wait) & sleep 0.2; cp {lfn} {lfn}.out; kill $(jobs -p)"


class Life:
    """One pilot with two jobs whose every phase takes a little while, stopped at a moment of its life or not at all."""

    def __init__(self, grid: Grid, number: int) -> None:
        self.grid = grid
        self.queue = f"LIFE{number}"
        grid.gated_queue(self.queue, is_open=True, seconds=0.08)
        lfns = [f"life{number}.{part}" for part in "ab"]
        jobs = (
            grid.job(COMMAND.format(lfn=lfn), inputs={lfn: b"x" * 1000}, outputs=[f"{lfn}.out"], queue=self.queue)
            for lfn in lfns
        )
        self.ids = grid.submit(*jobs)
        self.work = grid.top / f"work-{number}"
        self.seconds = 0.0

    def run(self, moment: float | None = None) -> Pilot:
        env = {"HARVESTER_ID": "h", "HARVESTER_WORKER_ID": "1"}
        pilot = self.grid.pilot("-a", str(self.work), queue=self.queue, env=env)
        pilot.says("command line")
        begun = time.monotonic()
        if moment is not None:
            time.sleep(moment)  # the subject of the test: any moment will do
            begun = pilot.signal() if pilot.process.poll() is None else begun
        pilot.wait()
        self.seconds = time.monotonic() - begun
        return pilot

    def check(self, pilot: Pilot) -> None:
        jobs = [self.grid.job_of(job_id) for job_id in self.ids]
        unfinished = [job for job in jobs if job.state != "finished"]
        assert pilot.process.returncode == (143 if unfinished else pilot.process.returncode), pilot.text
        assert pilot.process.returncode in (0, 143, -signal.SIGTERM)
        for job in jobs:
            if job.state == "activated":  # it was never given to the pilot
                continue
            assert job.reported_once(), (job.state, job.states, pilot.text)
            assert job.code == (0 if job.finals == ["finished"] else 1201), (job.diag, pilot.text)
            assert job.log()["journal.jsonl"], pilot.text
            assert_gone(job.id)
        assert list(self.work.iterdir()) == []


def test_at_any_moment_of_its_life_a_stop_leaves_exactly_one_final_report_and_nothing_else(grid: Grid) -> None:
    grid.server.fault("acquire_jobs:delay=0.08:0")
    grid.server.fault("update_job@finished:delay=0.08:0")
    whole = Life(grid, MOMENTS)
    whole.check(whole.run())
    assert [grid.job_of(job_id).state for job_id in whole.ids] == ["finished"] * 2
    dice = random.Random(20261122)
    moments = [dice.uniform(0, whole.seconds) for _ in range(MOMENTS)]
    lives = [Life(grid, number) for number in range(MOMENTS)]
    with ThreadPoolExecutor(6) as pool:
        pilots = list(pool.map(lambda pair: pair[0].run(pair[1]), zip(lives, moments, strict=True)))
    grid.server.clear_faults()
    for life, pilot in zip(lives, pilots, strict=True):
        life.check(pilot)
        assert life.seconds < 2 + SLACK, pilot.text


def test_a_stop_before_the_pilot_can_listen_leaves_nothing(grid: Grid) -> None:
    queue = grid.queue("EARLY")
    work = grid.top / "early"

    def early(delay: float) -> int:
        pilot = grid.pilot("-a", str(work), "-v", "50", queue=queue)
        time.sleep(delay)  # the subject of the test
        pilot.signal()
        return pilot.wait()

    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(early, [0.02 * step for step in range(16)]))
    assert set(codes) <= {143, -signal.SIGTERM}
    assert not work.exists() or list(work.iterdir()) == []


# --- who gets the signal


def test_nothing_but_the_payload_is_signalled(grid: Grid) -> None:
    queue = grid.queue("DECOY")
    started = grid.top / "decoy.pid"
    grid.submit(grid.job(f"setsid sleep 601 & (sleep 602 &) ; touch {started}; sleep 603", queue=queue))
    decoy = subprocess.Popen(["sleep", "600"], start_new_session=True)
    pilot = grid.pilot(queue=queue)
    try:
        until(started.exists)
        pilot.signal()
        assert pilot.wait() == 143
        assert decoy.poll() is None
        assert "received" in pilot.text
    finally:
        decoy.kill()
        decoy.wait()


@pytest.mark.parametrize("trap", ["", "trap 'exit 3' TERM; "], ids=["dies of it", "exits by itself"])
@pytest.mark.parametrize("first", ["pilot", "payload"])
def test_a_signal_to_everybody_as_slurm_sends_it_is_not_the_payloads_fault(grid: Grid, first: str, trap: str) -> None:
    queue = grid.queue(f"SLURM-{first}-{len(trap)}")
    started = grid.top / f"{queue}.pid"
    (job_id,) = grid.submit(
        grid.job(f"{trap}echo $$ > {started}.new; mv {started}.new {started}; sleep 600 & wait", queue=queue)
    )
    pilot = grid.pilot(queue=queue)
    until(started.exists)
    pids = [pilot.pid, int(started.read_text())]
    for pid in pids if first == "pilot" else reversed(pids):
        os.kill(pid, signal.SIGTERM)
    assert pilot.wait() == 143
    job = grid.job_of(job_id)
    assert (job.finals, job.code) == (["failed"], 1201), pilot.text
    assert_gone(job_id)


def test_ctrl_c_goes_to_the_group_and_the_payload_is_in_none_of_ours(grid: Grid) -> None:
    queue = grid.queue("GROUP")
    started = grid.top / "group.pid"
    (job_id,) = grid.submit(grid.job(f"echo $$ > {started}; sleep 600", queue=queue))
    pilot = grid.pilot(queue=queue, start_new_session=True)
    until(started.exists)
    os.killpg(pilot.pid, signal.SIGINT)
    assert pilot.wait() == 130
    assert grid.job_of(job_id).code == 1208
    assert_gone(job_id)


# --- servers that hang, and payloads that do not obey

scenario = Scenarios()


@scenario
def a_stop_does_not_wait_for_a_server_that_hangs(top: Path) -> None:
    with Grid(top, faults=["*:delay=60:0"]) as grid:
        local = ["--queuedata-url", str(grid.files / "Q.json"), "--storagedata-url", str(grid.files / "storages.json")]
        env = {"HARVESTER_ID": "h", "HARVESTER_WORKER_ID": "1"}
        quick = grid.pilot(*local, "--grace", "3", env=env)
        fetching = grid.pilot("--grace", "3")
        quick.says("read USER")
        fetching.says("no credential")
        for pilot in (quick, fetching):
            sent = pilot.signal()
            assert pilot.wait() == 143
            assert time.monotonic() - sent < 3 + SLACK


@scenario
def a_job_that_is_handed_out_while_the_pilot_is_told_to_stop_is_reported(top: Path) -> None:
    with Grid(top, faults=["acquire_jobs:delay=1:1:after"]) as grid:
        (job_id,) = grid.submit(grid.job())
        pilot = grid.pilot()
        until(lambda: grid.job_of(job_id).state == "sent")
        pilot.signal()
        assert pilot.wait() == 143
        job = grid.job_of(job_id)
        assert (job.finals, job.code) == (["failed"], 1201)
        assert job.log()["pilotlog.txt"]


@scenario
def a_stop_while_the_final_report_cannot_be_delivered_ends_within_the_grace(top: Path) -> None:
    with Grid(top, faults=["update_job@finished:503:0"]) as grid:
        (job_id,) = grid.submit(grid.job())
        pilot = grid.pilot("--grace", "2")
        pilot.says("503")
        sent = pilot.signal()
        assert pilot.wait() == 143
        assert time.monotonic() - sent < 2 + SLACK
        assert f"job {job_id}: the final report was not delivered" in pilot.text


def stubborn(pid_file: Path) -> str:
    """A payload that ignores TERM, with a child that does, too."""
    return f"trap '' TERM; echo $$ > {pid_file}; while :; do sleep 600; done"


@scenario
def a_payload_that_ignores_sigterm_is_killed_within_the_grace_and_its_log_is_kept(top: Path) -> None:
    with Grid(top) as grid:
        started = top / "stubborn.pid"
        (job_id,) = grid.submit(grid.job(stubborn(started)))
        pilot = grid.pilot("--grace", "6")
        until(started.exists)
        sent = pilot.signal()
        assert pilot.wait() == 143
        assert time.monotonic() - sent < 6
        job = grid.job_of(job_id)
        assert (job.finals, job.code, job.reported_once()) == (["failed"], 1201, True)
        assert job.fields["trans_exit_code"] == 137
        assert "payload.stdout" in job.log()
        assert_gone(job_id)


@scenario.for_each(two=(2, 5.0), three=(3, 2.0))
def further_signals_shorten_the_time_that_is_left(top: Path, signals: int, seconds: float) -> None:
    with Grid(top) as grid:
        started = top / "impatient.pid"
        (job_id,) = grid.submit(grid.job(stubborn(started)))
        pilot = grid.pilot("--grace", "60")
        until(started.exists)
        for number in range(signals):
            sent = pilot.signal()
            until(lambda number=number: pilot.text.count("received SIGTERM") > number)
            time.sleep(0.6)  # what comes sooner is an echo
        assert pilot.wait() == 143
        assert time.monotonic() - sent < seconds + 1
        job = grid.job_of(job_id)
        assert (job.finals, job.code) == (["failed"], 1201)
        assert_gone(job_id)


@scenario
def a_signal_and_its_echo_are_one(top: Path) -> None:
    """Slurm tells every process, and a wrapper passes on what it was told."""
    with Grid(top) as grid:
        started = top / "echo.pid"
        (job_id,) = grid.submit(grid.job(stubborn(started)))
        pilot = grid.pilot("--grace", "12")
        until(started.exists)
        sent = pilot.signal()
        time.sleep(0.1)
        pilot.signal()
        assert pilot.wait() == 143
        assert pilot.text.count("received SIGTERM: ending") == 1
        assert time.monotonic() - sent > 4  # TERM has 4.8 s of a grace of 12 s, and 2 s after a second signal
        assert grid.job_of(job_id).code == 1201


running = scenario.fixture()
test_scenario = scenario.test()


# --- SIGKILL


def test_a_pilot_that_was_killed_leaves_a_journal_that_tells_of_the_payload_it_left(grid: Grid) -> None:
    """SIGKILL of the pilot alone: the payload lives on, until whoever killed the pilot kills the rest of its job.

    Nothing short of a namespace of its own would take it along (PR_SET_PDEATHSIG reaches one process, not its
    children), and batch systems kill the whole cgroup.
    """
    queue = grid.queue("KILLED")
    started = grid.top / "killed.pid"
    (job_id,) = grid.submit(grid.job(f"echo $$ > {started}; sleep 600", queue=queue))
    pilot = grid.pilot("-a", str(grid.top / "killed"), queue=queue)
    until(started.exists)
    pilot.says("payload started")
    pilot.signal(signal.SIGKILL)
    assert pilot.wait() == -signal.SIGKILL
    (path,) = (grid.top / "killed").glob(f"*/PanDA_Pilot-{job_id}/journal.jsonl")
    state = journal.state(path)
    left = processes_with(f"PandaID={job_id}")
    try:
        assert (state.job_id, state.phase, state.ended, state.reported) == (job_id, "payload", False, False)
        assert state.left == ("payload", "stageout", "log", "report")
        assert state.pid in left
        assert not is_zombie(state.pid)
    finally:
        kill_all(left)


def test_while_a_payload_runs_the_pilot_has_no_zombies(grid: Grid) -> None:
    queue = grid.queue("ZOMBIES")
    started = grid.top / "zombies"
    command = f"for n in 1 2 3 4 5; do (true &); (setsid sleep 0.01 &); done; sleep 0.3; touch {started}; sleep 600"
    (job_id,) = grid.submit(grid.job(command, queue=queue))
    pilot = grid.pilot(queue=queue)
    until(started.exists)
    until(lambda: len(children(pilot.pid)) == 1, why="only the payload's first process is a child")
    pilot.signal()
    assert pilot.wait() == 143
    assert_gone(job_id)
