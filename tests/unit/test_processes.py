"""The pilot knows its processes from the kernel: whose they are, whether they live, what they have used."""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pilot import processes as rooms
from pilot.processes import Processes, Spent, ancestors, children, descendants, is_zombie, send, wait_exit

#: Six processes in three generations.
TREE = "sleep 60 & (sleep 61 & sleep 62; exit 1) & echo up; sleep 63; exit 1"


@pytest.fixture(scope="module")
def processes():
    return Processes()


@pytest.fixture
def tree(processes):
    """The shell of `TREE`, when all of it is alive."""
    process = processes.start(["bash", "-c", TREE], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        eventually(lambda: len(descendants([process.pid])) == 6)
        yield process
    finally:
        send(descendants([process.pid]), signal.SIGKILL)
        process.wait()
        process.stdout.close()
        processes.forget(process)
        eventually(lambda: reaped(processes))


def reaped(processes):
    processes.reap()
    return processes.adopted() == []


def eventually(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def orphan(processes, program, **options):
    """Start `program` below a parent that dies at once, in a session that is not ours; its pid."""
    start = f"subprocess.Popen([sys.executable, '-c', {program!r}])"
    text = f"import os, subprocess, sys; print({start}.pid, flush=True); os._exit(0)"
    parent = processes.start([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, **options)
    pid = int(parent.stdout.readline())
    parent.wait()
    parent.stdout.close()
    processes.forget(parent)
    return pid


# ------------------------------------------------------------------------------------------------------------- looking


def test_descendants_are_those_that_psutil_finds_parents_first(tree):
    found = descendants([tree.pid])
    assert set(found) == {tree.pid, *(child.pid for child in psutil.Process(tree.pid).children(recursive=True))}
    assert all(found.index(psutil.Process(pid).ppid()) < number for number, pid in enumerate(found) if number)


def test_roots_that_are_given_twice_or_below_one_another_count_once(tree):
    below = children(tree.pid)
    assert sorted(descendants([*below, tree.pid, tree.pid])) == sorted(descendants([tree.pid]))


def test_the_scan_of_all_processes_finds_the_same_children(tree):
    for pid in [*descendants([tree.pid]), os.getpid()]:
        assert sorted(rooms._all_children().get(pid, [])) == sorted(children(pid))


def test_without_files_of_children_all_processes_are_looked_at_once(tree, monkeypatch):
    found, looks = descendants([tree.pid]), []
    listdir = os.listdir
    monkeypatch.setattr(rooms, "_HAS_CHILDREN_FILE", False)
    monkeypatch.setattr(os, "listdir", lambda path: looks.append(path) or listdir(path))
    assert set(descendants([tree.pid])) == set(found)
    assert looks == ["/proc"]


def test_ancestors_are_parents_and_theirs(tree):
    last = descendants([tree.pid])[-1]
    above = list(ancestors(last))
    assert above == [process.pid for process in psutil.Process(last).parents()]
    assert tree.pid in above


def test_children_of_any_thread_are_found(processes):
    text = "import subprocess, threading; threading.Thread(target=subprocess.run, args=(['sleep', '60'],)).start()"
    process = processes.start([sys.executable, "-c", text])
    try:
        eventually(lambda: len(children(process.pid)) == 1)
    finally:
        send(descendants([process.pid]), signal.SIGKILL)
        process.wait()
        processes.forget(process)
        eventually(lambda: reaped(processes))


def test_a_process_that_is_gone_has_no_children_and_gets_no_signal():
    process = subprocess.Popen(["true"])
    process.wait()
    assert (children(process.pid), is_zombie(process.pid)) == ([], True)
    send([process.pid], signal.SIGKILL)


HIDDEN = """
import os, subprocess
from pilot import processes as rooms
other = subprocess.Popen(["sleep", "60"])
os.setegid(65534), os.seteuid(65534)
print(rooms.is_zombie(other.pid), rooms.descendants([other.pid]) == [other.pid], *rooms._all_children())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a /proc")
def test_processes_that_proc_hides_are_as_if_gone():
    mount = 'mount -t proc -o hidepid=1 proc /proc && exec "$@"'
    words = ["unshare", "-mpf", "--kill-child", "sh", "-c", mount, "sh", sys.executable, "-c", HIDDEN]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "True True 0\n", done.stderr


def test_a_process_is_a_zombie_from_its_end_until_it_is_waited_for(processes):
    process = processes.start(["sleep", "60"])
    assert not is_zombie(process.pid)
    send([process.pid], signal.SIGKILL)
    eventually(lambda: is_zombie(process.pid))
    assert process.wait() == -signal.SIGKILL
    processes.forget(process)


@pytest.mark.parametrize("name", [b"caf\xe9 (", b"a) Z (b", b"x\n) Z 1"])
def test_any_name_of_a_program_is_borne(tmp_path, processes, name):
    """proc(5): the name is in parentheses and may itself be anything, also nothing that UTF-8 knows."""
    program = os.path.join(os.fsencode(tmp_path), name)
    os.symlink(b"/bin/sleep", program)
    process = processes.start([program, b"60"])
    try:
        assert not is_zombie(process.pid)
        assert process.pid in children()
        assert process.pid in rooms._all_children()[os.getpid()]
    finally:
        process.kill()
        process.wait()
        processes.forget(process)


def test_a_process_lives_on_when_its_first_thread_has_ended(processes):
    text = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("up", flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit(2): this thread alone
"""
    process = processes.start([sys.executable, "-c", text], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert not is_zombie(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        processes.forget(process)


# ------------------------------------------------------------------------------------------------- whose a process is


def test_an_orphan_of_what_we_started_comes_to_us_and_is_reaped(processes):
    pid = orphan(processes, "import time; time.sleep(60)")
    assert processes.adopted() == [pid]
    send([pid], signal.SIGKILL)
    eventually(lambda: reaped(processes))
    assert not os.path.exists(f"/proc/{pid}")


def test_what_an_orphan_has_used_is_counted_once(processes):
    before = processes.adopted_usage
    orphan(processes, "import time\nwhile time.process_time() < 0.3: pass")
    eventually(lambda: reaped(processes))
    processes.reap()
    assert 0.3 <= processes.adopted_usage.since(before).cpu < 0.6


def test_what_we_started_ourselves_is_neither_adopted_nor_reaped(processes):
    process = processes.start(["true"])
    eventually(lambda: is_zombie(process.pid))
    processes.reap()
    assert processes.adopted() == []
    assert process.wait() == 0
    processes.forget(process)


def test_a_program_that_a_library_runs_by_itself_keeps_its_exit_status(processes):
    """subprocess.run somewhere in a library: reaped under its hands it would seem to have ended well."""
    process = subprocess.Popen(["bash", "-c", "exit 3"])
    eventually(lambda: is_zombie(process.pid))
    processes.reap()
    assert processes.adopted() == []
    assert process.wait() == 3


def test_children_that_a_shell_left_us_by_exec_are_not_ours_to_end(processes):
    text = "import os; from pilot.processes import Processes; p = Processes(); p.reap(); print(p.adopted(), flush=True)"
    shell = f'setsid sleep 60 >/dev/null & echo $!; exec "{sys.executable}" -c "{text}"'
    done = subprocess.run(["bash", "-c", shell], stdout=subprocess.PIPE, text=True, timeout=20, check=True)
    pid, adopted = done.stdout.split()
    try:
        assert adopted == "[]"
        assert not is_zombie(int(pid))
    finally:
        os.kill(int(pid), signal.SIGKILL)  # an orphan of the shell's, it is our child now
        os.waitpid(int(pid), 0)


def test_a_process_that_is_being_started_is_never_taken_for_an_orphan(processes):
    """Another thread starts programs all the time while we look."""

    async def main():
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, start_many)
        seen = []
        while not work.done():
            seen += processes.adopted()
            processes.reap()
            await asyncio.sleep(0)
        return await work, seen

    def start_many():
        codes = []
        for _ in range(60):
            process = processes.start(["true"])
            codes.append(process.wait())
            processes.forget(process)
        return codes

    assert asyncio.run(main()) == ([0] * 60, [])


# ------------------------------------------------------------------------------------------------------- waiting, fds


@pytest.mark.parametrize("pidfd", [True, False], ids=["pidfd", "kernel-before-5.3"])
@pytest.mark.parametrize(("text", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", -9)])
def test_the_end_of_a_process_is_an_event(processes, monkeypatch, pidfd, text, code):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")

    async def main():
        process = processes.start(["bash", "-c", f"sleep 0.05; {text}"])
        usage = await asyncio.wait_for(wait_exit(process), 10)
        processes.forget(process)
        return process.returncode, usage

    returncode, usage = asyncio.run(main())
    assert returncode == code
    assert isinstance(usage, Spent) if pidfd else usage is None


def test_a_process_that_has_ended_before_is_waited_for_too(processes):
    async def main():
        process = processes.start(["bash", "-c", "exit 4"])
        eventually(lambda: is_zombie(process.pid))
        first = await asyncio.wait_for(wait_exit(process), 10)
        second = await asyncio.wait_for(wait_exit(process), 10)
        processes.forget(process)
        return process.returncode, first is None, second is None

    assert asyncio.run(main()) == (4, False, True)


def test_two_may_wait_for_one_process(processes):
    async def main():
        process = processes.start(["bash", "-c", "sleep 0.05; exit 5"])
        usages = await asyncio.wait_for(asyncio.gather(wait_exit(process), wait_exit(process)), 10)
        processes.forget(process)
        return process.returncode, sum(usage is None for usage in usages)

    assert asyncio.run(main()) == (5, 1)


def test_a_wait_that_is_cancelled_leaves_no_descriptor_and_can_be_repeated(processes):
    async def main():
        process = processes.start(["sleep", "0.3"])
        before = os.listdir("/proc/self/fd")
        for _ in range(20):
            waiting = asyncio.ensure_future(wait_exit(process))
            await asyncio.sleep(random.uniform(0, 0.005))
            waiting.cancel()
            await asyncio.wait({waiting})
        after = os.listdir("/proc/self/fd")
        await asyncio.wait_for(wait_exit(process), 10)
        processes.forget(process)
        return len(before), len(after), process.returncode

    before, after, code = asyncio.run(main())
    assert (after, code) == (before, 0)


def test_many_processes_leave_no_descriptor_and_no_zombie(processes):
    async def main():
        for _ in range(30):
            process = processes.start(["true"])
            await wait_exit(process)
            processes.forget(process)

    asyncio.run(main())
    gc.collect()
    before, zombies = len(os.listdir("/proc/self/fd")), zombie_children()
    asyncio.run(main())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert zombie_children() <= zombies


def zombie_children():
    """Those of other tests may be there: this process adopts what their servers leave behind."""
    return {pid for pid in children() if is_zombie(pid)}


def test_a_large_parent_of_ours_does_not_hide_what_a_child_had():
    """`ru_maxrss` of a process begins at that of whoever started it (exec keeps the old one)."""
    us = (
        "import os, subprocess, sys; from pilot import processes; "
        "child = subprocess.Popen([sys.executable, '-c', 'x = bytearray(100 << 20)']); "
        "print(processes._wait(child.pid)[1].max_rss)"
    )
    starts = f"import subprocess, sys; x = bytearray(300 << 20); subprocess.run([sys.executable, '-c', {us!r}])"
    done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, check=True)
    assert 100 << 10 < int(done.stdout) < 150 << 10
