"""Out of memory is known from the kernel's own counts and words, and from nothing else."""

import pytest

from pilot.cgroup import Group
from pilot.errors import Code
from pilot.watch.memorylimit import MemoryLimit
from pilot.watch.oom import OutOfMemory

KILLED = "6,900,1,-;Memory cgroup out of memory: Killed process 321 (cc1 (plus)) total-vm:9kB, anon-rss:8kB, UID:0\n"
NOBODYS = "6,901,1,-;Out of memory: Killed process 99 (other) total-vm:9kB\n"
IN_GROUP = "6,902,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a/job,task=cc1,pid=7,uid=0\n"


def counts(folder, kills, limit="max", peak=0):
    folder.mkdir(exist_ok=True)
    (folder / "memory.events").write_text(f"oom 1\noom_kill {kills}\n")
    (folder / "memory.max").write_text(limit)
    (folder / "memory.peak").write_text(str(peak))
    return Group(2, {"memory": folder})


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "kmsg"
    path.write_text(KILLED + NOBODYS)  # what was before is not of this payload
    return path


def watch(tmp_path, log, group=None, slot=None, namespace=4026531836):
    (tmp_path / "pid").symlink_to(f"pid:[{namespace}]")
    return OutOfMemory(group, slot or counts(tmp_path / "slot", 5), log, tmp_path / "pid")


def add(log, text):
    with open(log, "a") as file:
        file.write(text)


def test_nothing_that_happened_is_nothing_said(tmp_path, log):
    assert watch(tmp_path, log).error([321, 99], killed=True) is None


def test_a_line_of_the_kernel_that_names_one_of_ours_is_enough(tmp_path, log):
    oom = watch(tmp_path, log)
    add(log, NOBODYS + KILLED)
    error = oom.error([320, 321], killed=False, peak_kb=900)
    assert error.code is Code.PAYLOADOUTOFMEMORY
    assert error.diag == "Payload ran out of memory: the kernel killed cc1 (plus) (pid 321): peak 900 kB"
    oom.close()


def test_a_line_of_somebody_elses_process_is_not(tmp_path, log):
    oom = watch(tmp_path, log)
    add(log, NOBODYS)
    assert oom.error([321], killed=True) is None


def test_in_a_pid_namespace_of_our_own_the_pids_of_the_kernel_are_not_ours(tmp_path, log):
    oom = watch(tmp_path, log, namespace=4026532295)
    add(log, KILLED)
    assert oom.error([321], killed=True) is None


def test_a_line_that_names_our_group_is_enough(tmp_path, log):
    oom = watch(tmp_path, log, counts(tmp_path / "job", 1, "102400", 102400))
    add(log, IN_GROUP)
    error = oom.error([], killed=False)
    assert error.detail == "the kernel killed cc1 (pid 7): peak 100 kB, limit 100 kB"


def test_a_group_below_ours_is_ours_and_one_with_a_longer_name_is_not(tmp_path, log):
    oom = watch(tmp_path, log, counts(tmp_path / "job", 1))
    add(log, IN_GROUP.replace("/a/job", "/a/job2"))
    assert oom.error([], killed=False).detail == "the kernel killed a process"
    add(log, IN_GROUP.replace("/a/job", "/a/job/low"))
    assert oom.error([], killed=False).detail == "the kernel killed cc1 (pid 7)"


def test_the_limit_that_is_told_is_the_one_that_was_met(tmp_path, log):
    slot = counts(tmp_path / "slot", 5, "51200")
    oom = watch(tmp_path, log, counts(tmp_path / "job", 1, "102400", 48128), slot)
    assert oom.error([], killed=False).detail.endswith("peak 47 kB, limit 50 kB of the slot")


def test_a_limit_that_was_made_of_the_slots_says_so(tmp_path, log):
    oom = watch(tmp_path, log, counts(tmp_path / "job", 1, "40960", 40960), counts(tmp_path / "slot", 5, "51200"))
    error = oom.error([], killed=False, limit=MemoryLimit(kb=40, origin="less the pilot", of_slot=True))
    assert error.detail.endswith("peak 40 kB, limit 40 kB (less the pilot)")


def test_the_count_of_our_group_is_enough_without_a_log(tmp_path):
    oom = watch(tmp_path, tmp_path / "no log", counts(tmp_path / "job", 1))
    assert oom.error([], killed=False, peak_kb=5).detail == "the kernel killed a process: peak 5 kB"


def test_the_count_of_the_slot_explains_a_sigkill_and_nothing_else(tmp_path):
    slot = counts(tmp_path / "slot", 5, "2048000")
    oom = watch(tmp_path, tmp_path / "no log", slot=slot)
    assert oom.error([], killed=True) is None
    counts(tmp_path / "slot", 6, "2048000")
    assert oom.error([], killed=False) is None
    assert oom.error([], killed=True).detail == "the kernel killed a process: limit 2000 kB of the slot"


def test_it_may_be_closed_twice(tmp_path, log):
    oom = watch(tmp_path, log)
    oom.close()
    oom.close()
    assert oom.error([321], killed=False) is None
