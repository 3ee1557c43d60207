"""A payload that runs out of memory is known to have: in a real control group, with a real kernel's kill."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from pilot.cgroup import Nest, OwnGroup, own_group
from pilot.errors import Code
from pilot.payload.process import PayloadProcess
from pilot.processes import Processes
from pilot.stop import Deadline
from pilot.watch.oom import OutOfMemory
from tests.parts import cannot
from tests.watched import watched

MEMORY = Path("/sys/fs/cgroup/memory")
ENVIRON = {"PATH": os.environ["PATH"]}
EAT = f"{sys.executable} -c 'x = bytearray(400_000_000); print(len(x))'"


@pytest.fixture
def parent():
    """A group of our own, in which pilots may make those of payloads."""
    place = MEMORY / f"pilot-test-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        cannot(f"no memory control group of version 1 can be made: {error}")
    yield place
    for left in place.iterdir():
        assert not left.is_dir(), f"{left} was left behind"
    place.rmdir()


@pytest.fixture(scope="module")
def processes():
    return Processes()


def run(text, workdir, processes, group: OwnGroup | None):
    """The end of a payload, what the watch says of it, and the pids it had."""
    slot = own_group()

    async def main():
        watch = OutOfMemory(group, slot)
        prefix = group.prefix if group else ()
        payload = PayloadProcess.start(text, workdir=workdir, environment=ENVIRON, processes=processes, prefix=prefix)
        ended = await payload.wait()
        await payload.stop(Deadline(5), grace=0.5)
        killed = ended.status == 137
        try:
            return ended, watch.error([payload.pid], killed=killed)
        finally:
            watch.close()

    return asyncio.run(main())


def test_a_kill_by_the_kernel_is_1212_with_the_process_the_peak_and_the_limit(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-1")
    group.limit(memory_kb=100_000)
    ended, error = run(f"exec {EAT}", tmp_path, processes, group)
    assert (ended.signum, ended.stopped) == (9, False)
    assert error.code is Code.PAYLOADOUTOFMEMORY
    assert error.diag.startswith("Payload ran out of memory: the kernel killed ")
    limit = int(100_000 * 1.1) // 4 * 4
    assert f"peak {limit} kB, limit {limit} kB" in error.diag
    group.remove()


def test_the_kill_of_a_child_is_known_though_the_payload_exits_with_something_else(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-2")
    group.limit(memory_kb=100_000)
    ended, error = run(f"{EAT} || exit 3", tmp_path, processes, group)
    assert ended.exit_code == 3
    assert error.code is Code.PAYLOADOUTOFMEMORY
    group.remove()


def test_sigkill_from_somebody_else_is_not_out_of_memory(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-3")
    group.limit(memory_kb=100_000)
    ended, error = run("kill -9 $$", tmp_path, processes, group)
    assert (ended.signum, error) == (9, None)
    group.remove()


def test_every_process_of_a_payload_begins_in_its_group(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-4")
    run("cat /proc/self/cgroup; (setsid cat /proc/self/cgroup)", tmp_path, processes, group)
    lines = (tmp_path / "payload.stdout").read_text().splitlines()
    assert [line.rpartition("/")[2] for line in lines if ":memory:" in line] == ["job-4", "job-4"]
    group.remove()


def test_what_is_left_in_a_group_is_ended_with_it(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-5")
    left = processes.start([*group.prefix, "/bin/sleep", "60"])
    end = time.monotonic() + 5
    while left.pid not in group.pids() and time.monotonic() < end:
        time.sleep(0.01)
    group.remove()
    assert left.wait(5) == -9
    processes.forget(left)
    assert not (parent / "job-5").exists()


def test_groups_that_a_payload_made_are_ended_with_its_own(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-7")
    low = parent / "job-7" / "low" / "lower"
    low.mkdir(parents=True)
    left = processes.start(["/bin/sh", "-c", f"echo 0 > {low}/cgroup.procs; exec sleep 60"])
    end = time.monotonic() + 5
    while not (low / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.01)
    group.remove()
    assert left.wait(5) == -9
    processes.forget(left)
    assert not (parent / "job-7").exists()


def test_a_group_that_cannot_be_joined_does_not_keep_a_payload_from_running(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-6")
    group.remove()
    ended, error = run("echo well", tmp_path, processes, group)
    assert (ended.exit_code, error) == (0, None)
    assert (tmp_path / "payload.stdout").read_text() == "well\n"
    assert (tmp_path / "payload.stderr").read_text() == ""


@pytest.fixture
def second():
    """The same in the tree of version 2, whatever controllers it has here."""
    place = next((path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
                  if (path / "cgroup.controllers").exists()), MEMORY) / f"pilot-test-{os.getpid()}"  # fmt: skip
    try:
        place.mkdir()
    except OSError as error:
        cannot(f"no control group of version 2 can be made: {error}")
    yield place
    place.rmdir()


def test_a_group_of_version_2_is_joined_and_killed_as_a_whole(tmp_path, second, processes):
    group = Nest(str(second)).make("job-1")
    assert group.version == 2
    left = processes.start([*group.prefix, "/bin/sh", "-c", "setsid sleep 60 & setsid sleep 60 & wait"])
    end = time.monotonic() + 5
    while len(group.pids()) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(group.pids()) == 3
    group.remove()
    assert left.wait(5) == -9
    processes.forget(left)
    assert not (second / "job-1").exists()


def test_a_whole_pilot_reports_it(tmp_path, parent):
    params = {"pilot_kill_for_memory": True, "pilot_rss_grace": 0}
    queue = {"maxrss": 100, "params": params}
    done = watched(tmp_path, EAT, "--cgroup", str(parent), queue=queue, resource_type="SCORE_VHIMEM")
    assert done.job["state"] == "failed"
    assert done.code == 1212
    assert done.diag.startswith("Payload ran out of memory: the kernel killed ")
    assert "limit 112640 kB" in done.diag
