"""Whole pilots in control groups of version 2, as systemd, Kubernetes and new batch systems hand them down.

The kernel here may count memory in version 1 only, so all of it happens inside one that is a process of its own: this
module is run there, too, and leaves what it saw of each case for the tests outside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pilot.cgroup import Nest, own_group
from pilot.processes import Processes
from tests.grid import processes_with
from tests.parts.uml import SHARED, TOP, Uml, uml
from tests.watched import watched

__all__ = ["uml"]

pytestmark = pytest.mark.slow

ROOT = Path("/sys/fs/cgroup")
NEAR = 0.05

#: MB of the queue; what the kernel gets is a tenth more (pilot.watch.memorylimit).
QUEUE = 100
LIMIT_KB = QUEUE * 1024

#: Shell text that knows the payload's own group.
GROUP = "group=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)\n"
FILES_OF_IT = "memory.high memory.max memory.swap.max pids.max memory.events cpu.stat memory.peak"
TELL = f'{GROUP}cd "$group" && head {FILES_OF_IT}; cd "$OLDPWD"\n'


def python(text: str) -> str:
    """The shell text of a Python program."""
    return f"cat > program.py <<'END'\n{text}\nEND\n{sys.executable} program.py"


#: How a pilot comes into its slot: with what a wrapper has beside it; with a stranger; as a user, who owns the group.
MARKED = 'sleep 1000 & "$@"; status=$?; kill $!; exit $status'
STRANGER = 'setsid sleep 1000 & sleep 0.2; "$@"; status=$?; kill $!; exit $status'
OWNED = """
chown 1000 "$slot" "$slot/cgroup.procs" "$slot/cgroup.threads" "$slot/cgroup.subtree_control"
chown -R 1000 "$HOME"
shift
setpriv --reuid=1000 --regid=1000 --clear-groups /usr/bin/python3 "$@"
exit $?
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A payload and the slot of its pilot.

    Attributes:
        payload: shell text.
        slot: files of the slot's group and what they are set to.
        maxrss: of the queue, MB.
        settings: of the pilot.
        wrapper: shell text that starts the pilot, which is "$@", in the slot's group, which is $slot.
    """

    payload: str
    slot: Mapping[str, str] = field(default_factory=dict)
    maxrss: int = QUEUE
    settings: str = ""
    wrapper: str = MARKED


SLOWLY = """
import time
held = []
while True:
    held.append(bytearray(b"x" * (2 << 20)))
    time.sleep(0.1)
"""
BOMB = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
    except OSError as error:
        raise SystemExit(f"fork: {error.strerror}")
"""
USE = """
import os, time
held = bytearray(os.urandom(1 << 20)) * 120
child = os.fork()
if not child:
    more = bytearray(os.urandom(1 << 20)) * 60
end = time.process_time() + 2
while time.process_time() < end:
    pass
time.sleep(1)  # a sample is made meanwhile
if not child:
    os._exit(0)
os.wait()
"""
FILES = "head -c 200M /dev/zero > /dev/shm/big; exit $?"
AT_ONCE = "bytearray(b'x' * (400 << 20))"
LEAVES = f"""{GROUP}
mkdir "$group/inner" "$group/inner/most" || exit 9
(echo 0 > "$group/inner/most/cgroup.procs"; exec setsid sleep 600) &
(setsid bash -c 'trap "" TERM; sleep 601; sleep 602' &)
sleep 0.3; echo left
"""

#: As Kubernetes and HTCondor set it up: at its limit all of it is killed.
SLOT = {"memory.max": "150M", "memory.oom.group": "1"}
#: What the pilot makes of that for the payload.
LESS = r"\(control group of the slot: 153600 kB, less \d+ kB of the pilot and 16384 kB in reserve\)"

CASES = {
    "more than the slot has": Case(TELL + python(AT_ONCE), slot=SLOT, maxrss=400),
    "more files in memory than the slot has": Case(FILES, slot=SLOT, maxrss=400),
    "files in memory": Case(FILES),
    "files in memory, as a user": Case(FILES, wrapper=OWNED),
    "much at once": Case(python(AT_ONCE)),
    "slowly more than the job may": Case(TELL + python(SLOWLY)),
    "a fork bomb that tries for ever": Case(
        "bomb() { bomb | bomb & }; bomb; wait; sleep 600", settings="max_processes = 40\ngrace = 5"
    ),
    "a fork bomb": Case(python(BOMB), settings="max_processes = 40"),
    "what it used": Case(f"{python(USE)}\n{TELL}", maxrss=1000),
    "groups of its own": Case(LEAVES),
    "a stranger in the group": Case("echo well", wrapper=STRANGER),
}


# --- inside


def inside() -> None:
    """Run all cases, and leave what was seen of each in the directory that is shared."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    _hand_down(ROOT)
    found: dict[str, Any] = {}
    for number, (name, case) in enumerate(CASES.items()):
        began = time.monotonic()
        found[name] = _seen(ROOT / f"slot{number}", TOP / f"case{number}", case)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        (SHARED / "found.json").write_text(json.dumps(found))
    found["kill"] = _kill(ROOT / "kill")
    found["two"] = _two(ROOT / "two", TOP / "two")
    (SHARED / "found.json").write_text(json.dumps(found))


def _hand_down(group: Path) -> None:
    (group / "cgroup.subtree_control").write_text("+memory +pids +cpu +io")


def _seen(slot: Path, top: Path, case: Case) -> dict[str, Any]:
    """Run a pilot in a group that was handed to it, as a batch system does."""
    top.mkdir()
    slot.mkdir()
    if case.wrapper != OWNED:
        os.setxattr(slot, "trusted.delegate", b"1")
    for name, text in case.slot.items():
        (slot / name).write_text(text)
    wrapper = ("sh", "-c", f'slot=$0; echo 0 > "$slot/cgroup.procs"; {case.wrapper}', str(slot))
    queue = {"maxrss": case.maxrss, "params": {"pilot_kill_for_memory": True, "pilot_rss_grace": 0}}
    type_ = "SCORE_VHIMEM"
    environ = {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *(path for path in sys.path if "site-packages" in path)])
    }
    done = watched(
        top, case.payload, queue=queue, settings=case.settings, environ=environ, prefix=wrapper, resource_type=type_
    )
    seen = {
        "code": done.code,
        "diag": done.diag,
        "report": done.report,
        "log": done.log,
        "stdout": done.files.get("payload.stdout", b"").decode(errors="replace"),
        "groups": [path.name for path in slot.rglob("*") if path.is_dir()],
        "processes": processes_with("PandaID="),
        "populated": "populated 1" in (slot / "cgroup.events").read_text(),
        "control": (slot / "cgroup.subtree_control").read_text().split(),
    }
    subprocess.run(["rm", "-rf", str(top), "/dev/shm/big"], check=True)
    slot.rmdir()
    return seen


def _two(slot: Path, top: Path) -> list[str]:
    """What two payloads of pilots that one shell started see of their groups; the first ends before the second."""
    top.mkdir()
    slot.mkdir()
    os.setxattr(slot, "trusted.delegate", b"1")
    for seconds in (3, 5):
        see = f"sleep {seconds}; {GROUP.strip()}; echo $group $(cat $group/memory.max)"
        (top / f"{seconds}.yaml").write_text(f"limits:\n  memory: 100 MB\npayload: |\n  {see}\n")
    local = f"{sys.executable} -m pilot.cli.main local --keep --quiet --workdir {top} {top}"
    script = f"echo 0 > {slot}/cgroup.procs; {local}/3.yaml & sleep 1; {local}/5.yaml; wait"
    subprocess.run(["sh", "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    return [path.read_text() for path in top.rglob("payload.stdout")]


def _kill(parent: Path) -> dict[str, Any]:
    """A group with processes in it, also below, that end with it at one word of the kernel."""
    parent.mkdir()
    group = Nest(str(parent)).make("job")
    assert group is not None
    text = 'g=$1; mkdir $g/low; setsid sleep 600 & setsid sh -c "echo 0 > $g/low/cgroup.procs; sleep 600; :" & wait'
    left = Processes().start([*group.prefix, "/bin/sh", "-c", text, "sh", str(parent / "job")])
    end = time.monotonic() + 20
    while int((parent / "job/pids.current").read_text()) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    count = int((parent / "job/pids.current").read_text())
    signals: list[int] = []
    really, os.kill = os.kill, lambda pid, signum: signals.append(pid)
    began = time.monotonic()
    group.remove()
    os.kill = really
    seen = {"count": count, "signals": signals, "seconds": time.monotonic() - began, "status": left.wait(10)}
    return seen | {"left": (parent / "job").exists(), "version": own_group().version}


# --- outside


@pytest.fixture(scope="module")
def found(uml: Uml, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen of each case."""
    shared = tmp_path_factory.mktemp("uml")
    print(uml.run([sys.executable, "-m", "tests.faults.test_cgroup_v2"], shared))
    return dict(json.loads((shared / "found.json").read_text()))


def test_what_outgrows_the_slot_is_1235_and_names_it(found: dict[str, Any]) -> None:
    seen = found["more than the slot has"]
    assert seen["code"] == 1235, seen["diag"]
    assert re.search(rf"\(memory\) in \d+ processes, the limit is \d+ kB {LESS}", seen["diag"])
    told = told_by(seen["stdout"])
    high, most = int(told["memory.high"][0]), int(told["memory.max"][0])
    assert high + (8 << 20) == most < 150 << 20
    assert told["memory.swap.max"] == ["max"]


def test_the_limit_of_the_slot_does_not_take_the_pilot_along(found: dict[str, Any]) -> None:
    """Whoever is first, the look or the kernel in the group of the payload."""
    seen = found["more files in memory than the slot has"]
    assert seen["code"] in (1212, 1235), seen["log"]
    assert re.search(LESS, seen["diag"]), seen["diag"]


@pytest.mark.parametrize("name", ["files in memory", "files in memory, as a user"])
def test_a_kill_at_the_limit_of_the_job_is_1212_with_peak_limit_and_process(found: dict[str, Any], name: str) -> None:
    """Files on a tmpfs are no process' memory: no sample sees them, the kernel does."""
    seen, limit = found[name], LIMIT_KB * 11 // 10
    assert seen["code"] == 1212, seen["diag"]
    assert re.search(rf"the kernel killed .*: peak {limit} kB, limit {limit} kB$", seen["diag"])
    assert "meter: cgroup" in seen["log"]


def test_what_grows_slowly_is_held_by_the_kernel_and_ended_with_numbers(found: dict[str, Any]) -> None:
    seen = found["slowly more than the job may"]
    assert seen["code"] == 1235, seen["diag"]
    assert f"the limit is {LIMIT_KB} kB" in seen["diag"]
    told = told_by(seen["stdout"])
    assert told["memory.high"] == [str(LIMIT_KB * 1024)]
    assert told["memory.max"] == [str(LIMIT_KB * 1024 * 11 // 10)]
    assert told["memory.swap.max"] == ["0"]


def test_what_grows_at_once_is_slowed_down_until_it_is_seen(found: dict[str, Any]) -> None:
    """At `memory.high`; without it the kernel would have killed it before the first sample that is over the limit."""
    seen = found["much at once"]
    assert seen["code"] == 1235, seen["diag"]
    assert LIMIT_KB < seen["report"]["max_pss"] <= LIMIT_KB * 11 // 10


def test_a_fork_bomb_is_held_by_the_kernel(found: dict[str, Any]) -> None:
    seen = found["a fork bomb"]
    assert seen["code"] == 1344, seen["diag"]
    assert "exit status 1: fork: Resource temporarily unavailable" in seen["diag"]


def test_a_fork_bomb_that_does_not_end_is_ended(found: dict[str, Any]) -> None:
    seen = found["a fork bomb that tries for ever"]
    assert seen["code"] == 1344, seen["diag"]
    assert "tries to have more than the 40 processes that it may" in seen["diag"]


def test_what_is_reported_is_what_the_group_counted(found: dict[str, Any]) -> None:
    seen = found["what it used"]
    assert seen["code"] == 0, seen["diag"]
    told, report = told_by(seen["stdout"]), seen["report"]
    peak = int(told["memory.peak"][0]) >> 10
    assert abs(report["max_pss"] - peak) < NEAR * peak
    assert report["max_rss"] > 1.5 * peak
    cpu = int(dict(line.split() for line in told["cpu.stat"])["usage_usec"]) / 1e6
    assert abs(report["cpu_consumption_time"] - cpu) < 0.5 + NEAR * cpu  # it is reported in whole seconds


def test_groups_that_a_payload_made_go_with_its_own(found: dict[str, Any]) -> None:
    seen = found["groups of its own"]
    assert (seen["code"], seen["stdout"]) == (0, "left\n"), seen["diag"]
    assert "is not empty" not in seen["log"]


def test_a_group_with_strangers_is_left_as_it_is(found: dict[str, Any]) -> None:
    seen = found["a stranger in the group"]
    assert (seen["code"], seen["stdout"]) == (0, "well\n")
    assert "processes of others are in our group" in seen["log"]
    assert "meter: procfs" in seen["log"]


def test_a_whole_group_is_killed_at_one_word(found: dict[str, Any]) -> None:
    seen = found["kill"]
    assert (seen["version"], seen["count"], seen["status"]) == (2, 4, -9)
    assert (seen["signals"], seen["left"]) == ([], False)
    assert seen["seconds"] < 1


def test_pilots_that_share_a_group_have_groups_of_their_own_to_the_end(found: dict[str, Any]) -> None:
    told = [re.fullmatch(r"/sys/fs/cgroup/two/(payload-1-0-\w+) 109998080\n", text) for text in found["two"]]
    assert len({match[1] for match in told if match}) == 2, found["two"]


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_and_the_slot_is_as_before(found: dict[str, Any], name: str) -> None:
    seen = found[name]
    assert (seen["groups"], seen["processes"], seen["populated"], seen["control"]) == ([], [], False, [])


def told_by(stdout: str) -> dict[str, list[str]]:
    """Files of the group, which the payload has shown by `head`."""
    parts = re.split(r"==> (\S+) <==\n", stdout)
    return {
        name: text.split("\n\n")[0].strip().splitlines() for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


if __name__ == "__main__":
    inside()
