"""A payload is told once that its time is nearly over, whatever ends it."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.errors import Code, PilotError
from pilot.settings import Settings, SettingsError
from pilot.watch.shutdown import MachineShutdown
from pilot.watch.softstop import SoftStop


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    found = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def test_all_processes_get_the_signal_once(processes: list[subprocess.Popen[bytes]]) -> None:
    left = 100.0
    soft = SoftStop("USR1", 30, lambda: left, lambda: [process.pid for process in processes])
    assert soft.look() == 1
    left = 31.5
    assert soft.look() == 1.5
    assert all(process.poll() is None for process in processes)
    left = 30.0
    assert math.isinf(soft.look())
    assert [process.wait(5) for process in processes] == [-signal.SIGUSR1] * 2
    assert not soft.tell("again")
    assert math.isinf(soft.look())


def test_a_payload_whose_container_is_not_there_yet_is_told_later(processes: list[subprocess.Popen[bytes]]) -> None:
    there: list[int] = []
    soft = SoftStop("USR1", 30, lambda: 20.0, lambda: there)
    assert soft.look() == 1
    there.append(processes[0].pid)
    assert math.isinf(soft.look())
    assert processes[0].wait(5) == -signal.SIGUSR1


def test_without_a_signal_nothing_is_sent(processes: list[subprocess.Popen[bytes]]) -> None:
    soft = SoftStop("", 30, lambda: 0.0, lambda: [process.pid for process in processes])
    assert math.isinf(soft.look())
    assert not soft.tell("softkill")
    assert all(process.poll() is None for process in processes)


def test_an_end_that_is_far_is_looked_at_again_since_a_nearer_one_may_be_announced() -> None:
    soft = SoftStop("TERM", 30, lambda: math.inf, list)
    assert [soft.look() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("text", ["USR1", "sigusr1", "10", "SIGUSR1"])
def test_a_signal_has_many_names(text: str) -> None:
    assert Settings().with_queue({"pilot_soft_stop_signal": text}).soft_stop_signal == "USR1"


@pytest.mark.parametrize("text", ["USR9", "999", "-1"])
def test_a_name_of_no_signal_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="the name of a signal"):
        Settings().with_queue({"pilot_soft_stop_signal": text})


def features(folder: Path, **values: float) -> MachineShutdown:
    for key, value in values.items():
        (folder / key).write_text(f"{value:.0f}\n")
    return MachineShutdown({"MACHINEFEATURES": str(folder), "JOBFEATURES": str(folder)}, lambda url: b"")


def test_the_wall_time_of_the_slot_ends_the_job_before_it_is_over(tmp_path: Path) -> None:
    now = time.time()
    look = features(tmp_path, jobstart_secs=now - 3000, wall_limit_secs=3600)
    assert look.look() == 60
    assert look.left == pytest.approx(600 - 180, abs=2)
    look = features(tmp_path, wall_limit_secs=3100)
    with pytest.raises(PilotError, match=r"the slot ends at .* \(wall_limit_secs 3100 s\)") as caught:
        look.look()
    assert caught.value.code is Code.REACHEDMAXTIME


def test_a_short_slot_keeps_a_tenth_of_its_time(tmp_path: Path) -> None:
    look = features(tmp_path, jobstart_secs=time.time(), wall_limit_secs=300)
    look.look()
    assert look.left == pytest.approx(270, abs=2)


def test_a_shutdown_that_is_announced_later_counts_from_then_on(tmp_path: Path) -> None:
    look = features(tmp_path)
    assert (look.look(), look.left) == (60, math.inf)
    (tmp_path / "shutdowntime").write_text("nan")
    assert look.look() == 60
    (tmp_path / "shutdowntime").write_text(str(int(time.time() + 630)))
    assert look.look() <= 30
    assert look.left == pytest.approx(30, abs=2)
