"""A signal that is sent to the pilot is a request to end; a fault of the pilot itself ends it on the spot."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.errors import Code
from tests.grid import Grid, until

STARTED = "echo $$ > {0}.new; mv {0}.new {0}; sleep 600 & wait"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


@pytest.mark.parametrize(
    ("signum", "code", "exit_code"),
    [
        (signal.SIGTERM, 1201, 143),
        (signal.SIGQUIT, 1202, 131),
        (signal.SIGSEGV, 1203, 139),
        (signal.SIGXCPU, 1204, 152),
        (signal.SIGBUS, 1206, 135),
        (signal.SIGUSR1, 1207, 138),
        (signal.SIGUSR2, 1200, 137),
        (signal.SIGINT, 1208, 130),
    ],
)
def test_each_signal_that_is_sent_ends_the_job_with_its_code(
    grid: Grid, signum: signal.Signals, code: int, exit_code: int
) -> None:
    queue = grid.queue(signum.name)
    started = grid.top / f"{queue}.pid"
    (job_id,) = grid.submit(grid.job(STARTED.format(started), queue=queue))
    pilot = grid.pilot(queue=queue)
    until(started.exists)
    pilot.signal(signum)
    assert pilot.wait() == exit_code, pilot.text
    job = grid.job_of(job_id)
    assert (job.finals, job.code, job.reported_once()) == (["failed"], code, True)
    assert Code(code).exit_code == exit_code
    assert job.log()["pilotlog.txt"]


def test_a_second_and_third_segv_shorten_the_time_too(grid: Grid) -> None:
    queue = grid.queue("SEGVS")
    started = grid.top / "segvs.pid"
    grid.submit(grid.job(f"trap '' TERM; touch {started}; while :; do sleep 600; done", queue=queue))
    pilot = grid.pilot("--grace", "60", queue=queue)
    until(started.exists)
    for number in range(3):
        pilot.signal(signal.SIGSEGV)
        until(lambda number=number: pilot.text.count("received SIGSEGV") > number)
        time.sleep(0.6)  # what comes sooner is an echo
    assert pilot.wait(8) == 139


FAULT = """
    import asyncio, ctypes, os, signal, sys
    from pilot.processes import Processes
    from pilot.signals import held, listen
    from pilot.stop import Stop

    async def main():
        stop = Stop()
        processes = Processes()
        listen(stop, lambda: 9.0, processes)
        await asyncio.sleep(0)
        {act}

    with held():
        asyncio.run(main())
"""


def run_with_signals(act: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(FAULT).format(act=act)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    "act",
    [
        "ctypes.string_at(8)",
        "from pilot.stop import in_thread; await in_thread(ctypes.string_at, 8)",
    ],
    ids=["in the main thread", "in another thread"],
)
def test_a_real_fault_in_a_library_kills_the_pilot_at_once(act: str) -> None:
    assert run_with_signals(act).returncode == -signal.SIGSEGV


def test_a_program_that_the_pilot_starts_has_no_signal_blocked(tmp_path: Path) -> None:
    act = "process = processes.start(['grep', '^SigBlk', '/proc/self/status']); process.wait()"
    done = run_with_signals(act)
    assert done.stdout.split() == ["SigBlk:", "0" * 16], done.stderr


def test_a_segv_that_arrives_while_a_process_is_started_is_heard() -> None:
    act = (
        "from pilot.processes import _faults_unblocked; os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    with _faults_unblocked(): pass\n"
        "    await stop.wait(5); print(stop.reason.code.value, stop.deadline.remaining > 5)"
    )
    done = run_with_signals(act)
    assert done.stdout.split() == ["1203", "True"], done.stderr


def test_a_flood_of_ended_children_neither_hangs_the_pilot_nor_hides_a_stop() -> None:
    act = (
        "for _ in range(3000): os.kill(os.getpid(), signal.SIGCHLD)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await stop.wait(5); print(stop.reason.code.value, stop.deadline.remaining > 5)"
    )
    done = run_with_signals(act)
    assert (done.stdout.split(), done.stderr.count("wakeup")) == (["1201", "True"], 0), done.stderr


def test_payloads_can_handle_their_own_faults(grid: Grid) -> None:
    queue = grid.queue("HANDLER")
    (job_id,) = grid.submit(grid.job("trap 'echo caught' SEGV BUS; kill -SEGV $$; kill -BUS $$", queue=queue))
    grid.pilot(queue=queue).wait()
    assert grid.job_of(job_id).log()["payload.stdout"].split() == [b"caught", b"caught"]


def test_a_payload_that_the_server_kills_has_its_grace_and_the_slot_goes_on(grid: Grid) -> None:
    queue = grid.queue("KILL")
    started = grid.top / "kill.pid"
    stubborn = f"trap '' TERM; touch {started}; while :; do sleep 600; done"
    first, second = grid.submit(grid.job(stubborn, queue=queue), grid.job(queue=queue))
    pilot = grid.pilot("--heartbeat", "1", "--grace", "3", queue=queue)
    until(started.exists)
    killed = time.monotonic()
    grid.server.command(first, "tobekilled")
    until(lambda: grid.job_of(first).finals)
    assert time.monotonic() - killed < 5 + 3
    assert pilot.wait() == 0, pilot.text
    job = grid.job_of(first)
    assert (job.finals, job.code, job.fields["trans_exit_code"]) == (["failed"], 1144, 137)
    assert grid.job_of(second).state == "finished"


def test_the_log_of_a_job_that_was_killed_alone_takes_the_time_it_needs(grid: Grid) -> None:
    grid.gated_queue("SLOWLOG", is_open=True, seconds=2.5)
    started = grid.top / "slowlog.pid"
    (job_id,) = grid.submit(grid.job(STARTED.format(started), queue="SLOWLOG"))
    pilot = grid.pilot("--heartbeat", "1", "--grace", "2", queue="SLOWLOG")
    until(started.exists)
    grid.server.command(job_id, "tobekilled")
    assert pilot.wait() == 0, pilot.text
    job = grid.job_of(job_id)
    assert (job.finals, job.code) == (["failed"], 1144)
    assert "payload.stdout" in job.log()
