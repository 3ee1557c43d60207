"""A payload that forks daemons is cleaned up to the last process, and nobody else's process is touched.

The pilot here is a Python process of its own. Beside it live decoys of the same user: a plain process, a tree with an
orphan in a session of its own, with the payload's command line, variables and directory; and a child that the shell
left to the pilot when it became the pilot.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

PILOT = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
from pilot.payload.process import PayloadProcess
from pilot.processes import Processes, is_zombie
from pilot.stop import Deadline

async def main(workdir, how):
    processes = Processes()
    helper = processes.start(["sleep", "1001"])     # a copy tool's program
    library = subprocess.Popen(["sleep", "1002"])   # what a library runs by itself
    payload = PayloadProcess.start(
        (workdir / "payload.sh").read_text(), workdir=workdir, environment=dict(os.environ), processes=processes
    )
    if how == "stopped":
        while not (workdir / "up").exists():
            await asyncio.sleep(0.01)
        seen = payload.members()
    else:
        await payload.wait()
        seen = payload.members()
    await payload.stop(Deadline(10), grace=0.5)
    ended = await payload.wait()
    alive = [not is_zombie(process.pid) for process in (helper, library)]
    for process in (helper, library):
        process.kill()
        process.wait()
    print(json.dumps({"seen": seen, "left": payload.members(), "helpers": alive, "stopped": ended.stopped,
                      "pid": os.getpid()}))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""

#: A daemon as the books have it, one that ignores SIGTERM, one with a clean environment and title, one that is stopped.
DAEMON = """
import ctypes, os, signal, sys, time
how = sys.argv[1]
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir("/")
if how == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "hidden": ctypes.CDLL(None).prctl(15, b"kworker/0:1", 0, 0, 0)
with open(sys.argv[2] + ".part", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[2] + ".part", sys.argv[2])
if how == "hidden": os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"], {})
if how == "stopped": os.kill(os.getpid(), signal.SIGSTOP)
while True: time.sleep(1000)
"""

KINDS = ("plain", "deaf", "hidden", "stopped")

PAYLOAD = f"""
for kind in {" ".join(KINDS)}; do {sys.executable} daemon.py $kind $PWD/$kind.pid; done
nohup sleep 1000 >/dev/null 2>&1 & echo $! > background.pid
(trap '' TERM HUP; exec setsid {sys.executable} -c 'import time; time.sleep(1000)') & echo $! > session.pid
for name in {" ".join(KINDS)}; do while [ ! -s $name.pid ]; do sleep 0.02; done; done
touch up
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def read_pid(path):
    end = time.monotonic() + 20
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)
    return int(path.read_text())


def kill(pid):
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:  # init's, or of whoever adopts here
        pass


def kill_ours(pid):
    """What should be gone may have its number taken over by somebody else."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
    except OSError:
        return
    if b"1000" in command or b"daemon.py" in command:
        kill(pid)


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "payload.sh").write_text(PAYLOAD)
    (tmp_path / "daemon.py").write_text(DAEMON)
    (tmp_path / "main.py").write_text(PILOT)
    return tmp_path


@pytest.fixture
def decoys(workdir, tmp_path_factory):
    """Processes that look like the payload's in all that a search by name, user, variable or directory could see."""
    aside = tmp_path_factory.mktemp("decoys")
    environ = dict(os.environ, PandaID="4711")
    text = f"{sys.executable} {workdir}/daemon.py plain {aside}/orphan; sleep 1000 & echo $! > {aside}/child; wait"
    plain = subprocess.Popen(["sleep", "1000"], cwd=workdir, env=environ)
    tree = subprocess.Popen(["bash", "-c", text], cwd=workdir, env=environ, start_new_session=True)
    others = {"orphan": read_pid(aside / "orphan"), "child": read_pid(aside / "child")}
    yield {"plain": plain.pid, "tree": tree.pid, **others}
    for process in (plain, tree):
        process.kill()
        process.wait()
    for pid in others.values():
        kill(pid)


@pytest.mark.parametrize("how", ["ended", "stopped"])
def test_nothing_of_the_payload_is_left_and_nobody_else_is_touched(workdir, decoys, how):
    if how == "stopped":
        with open(workdir / "payload.sh", "a") as file:
            file.write("\nsleep 1000; sleep 1000\n")
    shell = f"sleep 1000 >/dev/null 2>&1 & echo $! > inherited.pid; exec {sys.executable} main.py {workdir} {how}"
    environ = dict(os.environ, PandaID="4711")
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", shell], cwd=workdir, env=environ, capture_output=True, text=True, timeout=60
        )
        took = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        payload = {path.stem: int(path.read_text()) for path in workdir.glob("*.pid") if path.stem != "inherited"}
        assert set(payload) == {*KINDS, "background", "session"}
        assert set(payload.values()) <= set(said["seen"])
        assert {name: alive(pid) for name, pid in payload.items()} == dict.fromkeys(payload, False)
        assert (said["left"], said["stopped"]) == ([], how == "stopped")
        assert said["helpers"] == [True, True]
        assert {name: alive(pid) for name, pid in decoys.items()} == dict.fromkeys(decoys, True)
        inherited = read_pid(workdir / "inherited.pid")
        assert alive(inherited)
        assert not {*decoys.values(), inherited, os.getpid(), said["pid"]} & set(said["seen"])
        assert took < 20
    finally:
        for path in workdir.glob("*.pid"):
            kill_ours(int(path.read_text()))
