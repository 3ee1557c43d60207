"""A payload is started in the job directory, its true end is known, and nothing of it is left behind."""

import asyncio
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from pilot.errors import Code, PilotError
from pilot.payload.container import Container
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


def test_what_a_payload_starts_to_save_its_work_is_left_to_it(tmp_path, processes):
    text = "trap 'sleep 0.3 && sleep 0.3 && echo saved; exit 7' TERM; echo up; sleep 60; echo woken"

    async def main():
        payload = start(text, tmp_path, processes)
        waiting = asyncio.create_task(payload.wait())
        while len(payload.members()) < 2:
            await asyncio.sleep(0.01)
        await payload.stop(Deadline(20))
        return await waiting

    assert asyncio.run(main()).exit_code == 7
    assert "saved" in tail(tmp_path / "payload.stdout")


def test_stop_kills_what_ignores_it_and_wakes_what_sleeps_stopped(tmp_path, processes):
    text = (
        "trap '' TERM; (trap '' TERM; sleep 60) & setsid sleep 61 & "
        "(kill -STOP $BASHPID; sleep 62) & echo up; sleep 63; sleep 64"
    )

    async def main():
        payload = start(text, tmp_path, processes)
        waiting = asyncio.create_task(payload.wait())
        while len(payload.members()) < 5:
            await asyncio.sleep(0.01)
        await payload.stop(Deadline(10), grace=0.3)
        return await waiting, payload.members()

    ended, left = asyncio.run(main())
    assert (ended.signum, left) == (signal.SIGKILL, [])


def test_a_stop_does_not_wait_for_what_runs_a_container_and_is_stuck(tmp_path, processes):
    class Stuck(Container):
        async def command(self):
            return ["sleep", "60"]

        async def signal(self, signum):
            await asyncio.sleep(60)

    async def main():
        container = Stuck(SimpleNamespace(workdir=tmp_path), "")
        await container.prepare()
        payload = PayloadProcess.start(
            "", workdir=tmp_path, environment={"PATH": os.environ["PATH"]}, processes=processes, container=container
        )
        waiting = asyncio.create_task(payload.wait())
        began = time.monotonic()
        await payload.stop(Deadline(2), grace=0.3)
        await waiting
        return time.monotonic() - began

    assert asyncio.run(main()) < 5


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


#: A process that is always another one: each forks the next and dies.
HOPPER = f"""exec {sys.executable} -c 'import os, time
end = time.monotonic() + {{seconds}}
while time.monotonic() < end:
    if os.fork(): os._exit(0)'"""


def test_a_process_that_keeps_forking_away_is_seen_in_every_look(tmp_path, processes):
    async def main():
        payload = start(HOPPER.format(seconds=0.8), tmp_path, processes)
        end = time.monotonic() + 0.6
        await payload.wait()
        looks = []
        while time.monotonic() < end:
            looks.append(len(payload.members()))
        await payload.stop(Deadline(5))
        return looks, payload.members()

    looks, left = asyncio.run(main())
    assert len(looks) > 10
    assert looks.count(0) == 0
    assert left == []


def test_a_process_that_keeps_forking_away_is_caught(tmp_path, processes):
    async def main():
        payload = start(HOPPER.format(seconds=60), tmp_path, processes)
        await payload.wait()
        began = time.monotonic()
        await payload.stop(Deadline(10))
        return time.monotonic() - began, payload.members()

    took, left = asyncio.run(main())
    assert left == []
    assert took < 10


def test_cpu_time_counts_what_the_payload_left_behind(tmp_path, processes):
    code = 'import time\nwhile time.process_time() < 0.4: pass\nopen("done", "w").close()\ntime.sleep(60)'
    done = tmp_path / "done"

    async def main():
        payload = start(f"setsid {sys.executable} -c '{code}' & sleep 0.05", tmp_path, processes)
        first = await payload.wait()
        deadline = time.monotonic() + 30
        while not done.exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await payload.stop(Deadline(5))
        return first.cpu_time, (await payload.wait()).cpu_time

    first, last = asyncio.run(main())
    assert first < 0.3
    assert 0.4 <= last < 0.6


def test_two_may_wait_for_one_payload_and_a_wait_may_be_repeated(tmp_path, processes):
    async def main():
        payload = start("sleep 0.05; exit 3", tmp_path, processes)
        ended = await asyncio.gather(payload.wait(), payload.wait())
        return [*ended, await payload.wait()]

    assert len(set(asyncio.run(main()))) == 1


def test_a_wait_that_was_cancelled_can_be_taken_up_again(tmp_path, processes):
    async def main():
        payload = start("sleep 0.2; exit 3", tmp_path, processes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(payload.wait(), 0.02)
        return await payload.wait()

    assert asyncio.run(main()).exit_code == 3


def test_stop_of_a_payload_that_has_ended_long_ago_does_nothing_and_says_so(tmp_path, processes):
    async def main():
        payload = start("exit 3", tmp_path, processes)
        await payload.wait()
        began = time.monotonic()
        await payload.stop(Deadline(5))
        return (await payload.wait()).stopped, time.monotonic() - began

    stopped, took = asyncio.run(main())
    assert not stopped
    assert took < 0.5


def test_its_environment_is_what_it_is_given_and_nothing_else(tmp_path, processes):
    async def main():
        payload = PayloadProcess.start(
            "/usr/bin/env -0", workdir=tmp_path, environment={"ONLY": "this one"}, processes=processes
        )
        await payload.wait()

    asyncio.run(main())
    names = {entry.partition("=")[0] for entry in (tmp_path / "payload.stdout").read_text().split("\0") if entry}
    assert names == {"ONLY", "PWD", "SHLVL", "_"}  # three are bash's own


def test_it_inherits_no_descriptor_of_the_pilot(tmp_path, processes):
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        run("ls -l /proc/self/fd", tmp_path, processes)
    assert "secret" not in tail(tmp_path / "payload.stdout")


def test_a_prefix_runs_the_shell(tmp_path, processes):
    async def main():
        payload = PayloadProcess.start(
            'echo "$MARK: $0"',
            workdir=tmp_path,
            environment={},
            processes=processes,
            prefix=["/usr/bin/env", "MARK=in"],
        )
        return await payload.wait()

    assert asyncio.run(main()).exit_code == 0
    assert tail(tmp_path / "payload.stdout") == "in: /bin/bash\n"


def test_a_text_that_is_too_long_for_an_argument_is_run_from_a_file(tmp_path, processes):
    ended, left, _ = run("set -- " + "word " * 50_000 + "; echo $#; exit 7", tmp_path, processes)
    assert (ended.exit_code, left) == (7, [])
    assert tail(tmp_path / "payload.stdout") == "50000\n"


def test_a_text_that_cannot_be_written_is_an_error_of_the_table(tmp_path, processes):
    (tmp_path / "payload_command.sh").touch()
    with pytest.raises(PilotError) as caught:
        start("#" * 200_000, tmp_path, processes)
    assert caught.value.code is Code.PAYLOADEXECUTIONEXCEPTION


def test_the_tail_of_a_file_is_its_last_bytes_and_of_anything_else_nothing(tmp_path):
    (tmp_path / "log").write_bytes(b"start \xff end")
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zeros")
    assert tail(tmp_path / "log", 5) == "\ufffd end"
    assert [tail(tmp_path / name) for name in ("none", "pipe", "zeros", ".")] == [""] * 4
