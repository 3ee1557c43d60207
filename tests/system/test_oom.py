"""A payload that runs out of memory is known to have: in a real control group, with a real kernel's kill."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
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

ROOT = Path(__file__).resolve().parents[2]
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


def run(text, workdir, processes, group: OwnGroup | None, known=True):
    """The end of a payload, what the watch says of it, and the pids it had."""
    slot = own_group()

    async def main():
        watch = OutOfMemory(group if known else None, slot)
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
    group.limit(100_000, 110_000)
    ended, error = run(f"exec {EAT}", tmp_path, processes, group)
    assert (ended.signum, ended.stopped) == (9, False)
    assert error.code is Code.PAYLOADOUTOFMEMORY
    assert error.diag.startswith("Payload ran out of memory: the kernel killed ")
    limit = int(100_000 * 1.1) // 4 * 4
    assert f"peak {limit} kB, limit {limit} kB" in error.diag
    group.remove()


def test_the_words_of_the_kernel_name_a_process_that_is_ours(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-8")
    group.limit(100_000, 110_000)
    ended, error = run(f"echo $$; exec {EAT}", tmp_path, processes, group, known=False)
    pid = (tmp_path / "payload.stdout").read_text().strip()
    assert ended.signum == 9
    assert re.fullmatch(rf"the kernel killed python\S* \(pid {pid}\)", error.detail)
    group.remove()


def test_the_kill_of_a_child_is_known_though_the_payload_exits_with_something_else(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-2")
    group.limit(100_000, 110_000)
    ended, error = run(f"{EAT} || exit 3", tmp_path, processes, group)
    assert ended.exit_code == 3
    assert error.code is Code.PAYLOADOUTOFMEMORY
    group.remove()


def test_sigkill_from_somebody_else_is_not_out_of_memory(tmp_path, parent, processes):
    group = Nest(str(parent)).make("job-3")
    group.limit(100_000, 110_000)
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


@pytest.fixture
def tmpfs():
    """A directory of files that are in memory, and no process' memory."""
    place = Path("/dev/shm", f"pilot-test-{os.getpid()}")
    place.mkdir()
    yield place
    shutil.rmtree(place)


def test_a_whole_pilot_reports_it(tmp_path, parent, tmpfs):
    params = {"pilot_kill_for_memory": True, "pilot_rss_grace": 0}
    queue = {"maxrss": 100, "params": params}
    fill = f"head -c 200M /dev/zero > {tmpfs}/file"
    done = watched(tmp_path, fill, "--cgroup", str(parent), queue=queue, resource_type="SCORE_VHIMEM")
    assert (done.job["state"], done.code) == ("failed", 1212), done.log
    assert re.search(r"the kernel killed \S+ \(pid \d+\): peak 112640 kB, limit 112640 kB$", done.diag)


@pytest.fixture
def slot(parent):
    """What starts a pilot in a slot of 250 MB; its kernel group of version 1."""
    (parent / "memory.limit_in_bytes").write_text(f"{250_000 << 10}")
    yield ["sh", "-c", f'echo 0 > {parent}/cgroup.procs; exec "$@"', "sh"]


SLOT = r"\(control group of the slot: 250000 kB, less \d+ kB of the pilot and 16384 kB in reserve\)"
SLOWLY = EAT.replace("x = bytearray(400_000_000); print(len(x))", """
import time
held = []
while True:
    held.append(b"x" * 5_000_000 + bytes([len(held)]))
    time.sleep(0.1)
""")  # fmt: skip


def test_a_payload_that_outgrows_the_slot_is_1235_before_the_kernel_kills(tmp_path, slot):
    done = watched(tmp_path, f"exec {SLOWLY}", "--cgroup", "off", prefix=slot)
    assert (done.job["state"], done.code) == ("failed", 1235), done.log
    assert re.search(rf"\d+ kB \(memory\) in 1 processes, the limit is \d+ kB {SLOT}$", done.diag)
    assert done.report["max_pss"] < 234_000


def test_a_payload_that_takes_more_than_the_slot_at_once_does_not_take_the_pilot_along(tmp_path, slot, parent):
    """Whoever is first, the look or the kernel in the group of the payload."""
    done = watched(tmp_path, EAT, "--cgroup", str(parent), prefix=slot)
    assert (done.job["state"], done.code) in (("failed", 1212), ("failed", 1235)), done.log
    assert re.search(rf"limit (is )?\d+ kB {SLOT}$", done.diag)
    assert "oom_kill 0" in (parent / "memory.oom_control").read_text()


def test_files_on_a_tmpfs_are_1235_before_the_kernel_kills_the_pilot_for_them(tmp_path, slot, tmpfs):
    """No process has them, so the largest one would be killed: the pilot."""
    fill = f"for i in $(seq 40); do head -c 10M /dev/zero > {tmpfs}/$i; sleep 0.1; done"
    done = watched(tmp_path, fill, "--cgroup", "off", prefix=slot)
    assert (done.job["state"], done.code) == ("failed", 1235), done.log
    assert re.search(rf"\d+ kB \(memory\) in [12] processes, the limit is \d+ kB {SLOT}$", done.diag)


def test_two_pilots_that_share_a_group_have_groups_of_their_own_for_jobs_of_one_id(tmp_path, parent):
    os.setxattr(parent, "trusted.delegate", b"1")
    (tmp_path / "job.yaml").write_text("payload: |\n  cat /proc/self/cgroup; sleep 1\n")
    local = f"{sys.executable} -m pilot.cli.main local job.yaml --keep --quiet --workdir"
    script = (
        f"echo 0 > {parent}/cgroup.procs; {local} {tmp_path}/1 & {local} {tmp_path}/2; code=$?; wait $! && exit $code"
    )
    for name in "12":
        (tmp_path / name).mkdir()
    subprocess.run(["sh", "-c", script], env={**ENVIRON, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True, timeout=30)
    told = "".join(path.read_text() for path in tmp_path.rglob("payload.stdout"))
    assert len(set(re.findall(rf":memory:.*/{parent.name}/payload-.*", told))) == 2, told
