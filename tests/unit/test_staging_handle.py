"""The handle: programs of tools run in groups of their own and end, with their children, when they must."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pilot.errors import Code, PilotError, TransferError
from pilot.staging.handle import KEEP_OUTPUT, TransferHandle
from pilot.stop import Stop
from pilot.testing.copytool import Programs

LATE = TransferError(Code.STAGEINTIMEOUT, "late")


def make(stop: Stop | None = None, timeout: float = 30.0, environment=None) -> TransferHandle:
    return TransferHandle(stop or Stop(), Programs(), timeout, LATE, environment or {"PATH": os.environ["PATH"]})


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_a_program_gives_its_status_and_both_outputs():
    done = make().run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_arguments_are_not_for_a_shell(tmp_path):
    done = make().run(["printf", "%s", f"$(touch {tmp_path}/x); a b"])
    assert done.stdout == f"$(touch {tmp_path}/x); a b"
    assert not (tmp_path / "x").exists()


def test_the_environment_is_the_given_one_with_additions():
    done = make(environment={"PATH": os.environ["PATH"], "A": "1", "B": "1"}).run(["env"], env={"B": "2"})
    assert sorted(line for line in done.stdout.split("\n") if line[:1] in ("A", "B")) == ["A=1", "B=2"]


def test_only_the_end_of_long_output_is_kept():
    done = make().run(["sh", "-c", "yes | head -c 3000000; echo last"])
    assert len(done.stdout) == KEEP_OUTPUT
    assert done.stdout.endswith("last\n")


def test_a_program_that_is_not_there_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        make().run(["/no/such/program"])


def test_nothing_starts_after_a_stop(tmp_path):
    stop = Stop()
    stop.request(PilotError(Code.SIGTERM, "stop"))
    with pytest.raises(PilotError) as caught:
        make(stop).run(["touch", str(tmp_path / "x")])
    assert caught.value is stop.reason
    assert not (tmp_path / "x").exists()


def test_advance_raises_after_the_time_out():
    handle = make(timeout=0.0)
    with pytest.raises(TransferError) as caught:
        handle.advance(5)
    assert caught.value is LATE
    assert handle.moved == 5


def test_growth_of_a_watched_file_is_progress(tmp_path):
    handle, target = make(), tmp_path / "f"
    assert handle.moved == 0
    handle.run(["sh", "-c", f"printf 12345 > {target}"], watch=target)
    assert handle.moved == 5


@pytest.mark.parametrize("stubborn", [False, True])
def test_terminate_and_kill_end_the_program_and_its_children(tmp_path, stubborn):
    """A child in the background that keeps the outputs open must neither stay nor hold us up."""
    trap = "trap '' TERM; " if stubborn else ""
    pids = tmp_path / "pids"
    script = f"{trap}sleep 60 & echo $! > {pids}.new; mv {pids}.new {pids}; wait; sleep 60"
    handle = make()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            handle.run(["sh", "-c", script])
        except PilotError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not pids.exists():
        time.sleep(0.01)
    handle.terminate()
    if stubborn:
        thread.join(0.2)
        assert thread.is_alive()
        handle.kill()
    thread.join(5)
    assert not thread.is_alive()
    assert caught == [LATE]
    assert gone(int(pids.read_text()))


def test_what_a_program_leaves_behind_ends_with_it(tmp_path):
    done = make().run(["sh", "-c", "sleep 60 & echo $!"])
    assert done.returncode == 0
    assert gone(int(done.stdout))


def test_nobody_else_is_signalled():
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        handle = make()
        handle.run(["true"])
        handle.terminate()
        handle.kill()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
