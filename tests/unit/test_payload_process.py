"""A payload is started in the job directory, its true end is known, and nothing of it is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from pilot.errors import Code, PilotError
from pilot.payload.process import PayloadProcess, tail
from pilot.processes import Processes, is_zombie
from pilot.stop import Deadline


@pytest.fixture(scope="module")
def processes():
    return Processes()


def start(text, workdir, processes):
    return PayloadProcess.start(text, workdir=workdir, environment={"PATH": os.environ["PATH"]}, processes=processes)


def run(text, workdir, processes):
    async def main():
        payload = start(text, workdir, processes)
        ended = await payload.wait()
        left = payload.members()
        await payload.stop(Deadline(5), grace=1)
        return ended, left, payload.members()

    return asyncio.run(main())


@pytest.mark.parametrize("status", [0, 1, 2, 127, 255])
def test_the_true_exit_status_is_reported(tmp_path, processes, status):
    ended, left, _ = run(f"exit {status}", tmp_path, processes)
    assert (ended.exit_code, ended.signum, ended.status, left) == (status, None, status, [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSEGV", "SIGUSR1", "SIGXCPU"])
def test_the_signal_that_ended_it_is_reported(tmp_path, processes, name):
    number = getattr(signal, name)
    ended, _, _ = run(f"ulimit -c 0; kill -{int(number)} $$", tmp_path, processes)
    assert (ended.exit_code, ended.signum, ended.status) == (None, number, 128 + number)


def test_output_goes_to_its_files_in_the_job_directory(tmp_path, processes):
    run("pwd; echo oops >&2", tmp_path, processes)
    assert tail(tmp_path / "payload.stdout") == f"{tmp_path}\n"
    assert tail(tmp_path / "payload.stderr") == "oops\n"


def test_it_has_no_input_and_its_own_session(tmp_path, processes):
    run("cat; ps -o sid= -p $$; echo $$", tmp_path, processes)
    sid, pid = tail(tmp_path / "payload.stdout").split()
    assert sid == pid


def test_cpu_time_counts_the_children(tmp_path, processes):
    burn = f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.3: pass'"
    ended, _, _ = run(f"{burn} & {burn}; wait", tmp_path, processes)
    assert ended.cpu_time >= 0.6


def test_a_daemon_that_forked_away_comes_back_and_is_ended(tmp_path, processes):
    daemon = (
        f"{sys.executable} -c 'import os,time\n"
        'if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\nopen("pid", "w").write(str(os.getpid()))\n'
        "time.sleep(60)'; while [ ! -s pid ]; do sleep 0.02; done"
    )
    ended, left, after = run(daemon, tmp_path, processes)
    pid = int((tmp_path / "pid").read_text())
    assert ended.exit_code == 0
    assert left == [pid]
    assert after == []
    assert is_zombie(pid) and not os.path.exists(f"/proc/{pid}")


def test_stop_lets_an_obedient_payload_end_itself(tmp_path, processes):
    async def main():
        payload = start("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done", tmp_path, processes)
        waiting = asyncio.create_task(payload.wait())
        while not tail(tmp_path / "payload.stdout"):
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await payload.stop(Deadline(20))
        return await waiting, time.monotonic() - began

    ended, took = asyncio.run(main())
    assert (ended.exit_code, ended.stopped) == (7, True)
    assert "bye" in tail(tmp_path / "payload.stdout")
    assert took < 10


def test_stop_kills_what_ignores_it_and_wakes_what_sleeps_stopped(tmp_path, processes):
    text = "trap '' TERM; (trap '' TERM; sleep 60) & setsid sleep 61 & (kill -STOP $BASHPID; sleep 62) & echo up; sleep 63; sleep 64"

    async def main():
        payload = start(text, tmp_path, processes)
        waiting = asyncio.create_task(payload.wait())
        while len(payload.members()) < 5:
            await asyncio.sleep(0.01)
        await payload.stop(Deadline(10), grace=0.3)
        return await waiting, payload.members()

    ended, left = asyncio.run(main())
    assert (ended.signum, left) == (signal.SIGKILL, [])


def test_a_helper_that_the_pilot_started_beside_it_is_left_alone(tmp_path, processes):
    helper = processes.start(["sleep", "60"])
    try:
        run("sleep 60 & exit 0", tmp_path, processes)
        assert helper.poll() is None
    finally:
        helper.kill()
        helper.wait()
        processes.forget(helper)


def test_a_program_that_cannot_be_started_is_an_error_of_the_table(tmp_path, processes):
    with pytest.raises(PilotError) as caught:
        start("true\0", tmp_path, processes)
    assert caught.value.code is Code.PAYLOADEXECUTIONEXCEPTION
