"""Payloads that behave badly, under a whole pilot: for each the right code and text, true numbers, and nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grid import IDS, Grid, Job, Scenarios, children_of, processes_with, until
from tests.parts import cannot
from tests.watched import Watched
from tests.watched import watched as watched_one

scenario = Scenarios(workers=4)
PYTHON = sys.executable


def watched(top: Path, payload: str, *options: str, **fields: Any) -> Watched:
    """A job with a number that no other has at the same time; nothing of it is left."""
    job_id = next(IDS)
    done = watched_one(top, payload, *options, PandaID=job_id, **fields)
    assert processes_with(f"PandaID={job_id}") == []
    return done


def script(top: Path, text: str) -> str:
    """The command for a Python program."""
    path = top / "program.py"
    path.write_text(text)
    return f"{PYTHON} {path}"


# --- deaths, one after another

SIGNALS = (
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM"),
    *("TERM", "XCPU", "XFSZ", "SYS", "RTMIN"),
)
DIE = "import os, signal as s; {0} == 9 or s.signal({0}, s.SIG_DFL); os.kill(os.getpid(), {0})"

#: Name to command, and what is to be reported: code, exit status, words.
ENDS = {
    "closes its files": ("exec <&- >&- 2>&-; sleep 0.1; exit 5", 1305, 5, "exit status 5"),
    "is a session of its own": ("exec setsid -w bash -c 'sleep 0.1; exit 6'", 1305, 6, "exit status 6"),
    "leaves a stopped child": ("(kill -STOP $BASHPID; sleep 600) & sleep 0.1; exit 7", 1305, 7, "exit status 7"),
    "leaves a stopped daemon": ("(setsid bash -c 'kill -STOP $$; sleep 600' &); sleep 0.1", 0, 0, ""),
    "dies in its child": ("bash -c 'kill -BUS $$'; exit $?", 1305, 135, "(a child was killed by SIGBUS)"),
    "writes into a closed pipe": ("yes | true; exit ${PIPESTATUS[0]}", 1305, 141, "SIGPIPE"),
    "is not there": ("no-such-program-here", 1305, 127, "command not found"),
    "may not be run": ("touch it; ./it", 1305, 126, "Permission denied"),
    "runs into its own limit": ("ulimit -v 300000; " + PYTHON + " -c 'x = bytearray(10**9)'", 1305, 1, "MemoryError"),
    "takes much at once and dies": (f"exec {PYTHON} -c 'x = bytearray(200 << 20); exit(3)'", 1305, 3, "exit status 3"),
    "says that the disk is full": ("echo 'cp: x: No space left on device' >&2; exit 1", 1098, 1, "No space left"),
    "brings its own words": (
        """cat > problem_matchers.json <<"END"
        [{"regex": "^E(\\\\d+): (.*)", "message": "detector {1} is {2}", "code": 1110}]
END
        echo noise; echo 'E42: off' >&2; echo 'ERROR: later' >&2; exit 1""",
        1110, 1, "exit status 1: detector 42 is off",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """The jobs of two pilots, which run them one after the other."""
    with Grid(tmp_path_factory.mktemp("zoo")) as grid:
        names, queues = [], [grid.queue("ZOO0"), grid.queue("ZOO1")]
        ids = []
        for number, (name, command) in enumerate(_commands().items()):
            names.append(name)
            ids += grid.submit(grid.job(command, queue=queues[number % 2]))
        pilots = [grid.pilot(queue=queue) for queue in queues]
        for pilot in pilots:
            assert pilot.wait(60) == 0, pilot.text[-5000:]
        yield {name: grid.job_of(job_id) for name, job_id in zip(names, ids, strict=True)}


def _commands() -> dict[str, str]:
    dying = {name: f"exec {PYTHON} -c '{DIE.format(f's.SIG{name}')}'" for name in SIGNALS}
    return dying | {name: command for name, (command, *_) in ENDS.items()}


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_is_told_by_its_name(ends: dict[str, Job], name: str) -> None:
    job, signum = ends[name], signal.Signals[f"SIG{name}"]
    assert job.reported_once()
    assert job.code == (1328 if name == "SEGV" else 1305), job.diag
    assert f"killed by SIG{name}, which the pilot did not send" in job.diag
    assert job.fields["trans_exit_code"] == 128 + signum
    assert job.log()["pilotlog.txt"]
    assert processes_with(f"PandaID={job.id}") == []


@pytest.mark.parametrize("name", ENDS)
def test_each_end_has_its_code_and_its_words(ends: dict[str, Job], name: str) -> None:
    job, (_, code, status, words) = ends[name], ENDS[name]
    assert job.reported_once()
    assert (job.code, job.fields["trans_exit_code"]) == (code, status), job.diag
    assert words in job.diag
    assert processes_with(f"PandaID={job.id}") == []


def test_memory_between_two_samples_is_known_all_the_same(ends: dict[str, Job]) -> None:
    fields = ends["takes much at once and dies"].fields
    for name in ("max_rss", "max_pss"):
        assert abs(fields[name] - (205 << 10)) < 0.05 * (205 << 10), name


# --- those that go on


@scenario
def one_that_stops_itself_does_nothing_and_is_ended(top: Path) -> None:
    done = watched(top, "echo begun; kill -STOP $$; echo never", settings="looping_limit_default = 2")
    assert done.code == 1150, (done.diag, done.log[-3000:])
    assert done.files["payload.stdout"] == b"begun\n"


RUNAWAY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("begun", "w").close()
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(0.003)
"""


@scenario.for_each(
    ignores_term=("trap '' TERM; touch begun; sleep 600; sleep 600",),
    own_session=("exec setsid -w bash -c 'touch begun; sleep 600; exit 0'",),
    stopped=("touch begun; kill -STOP $$",),
    closed_files=("exec <&- >&- 2>&-; touch begun; sleep 600; exit 0",),
    many=("for n in $(seq 60); do sleep 600 & done; touch begun; wait",),
    runaway=("RUNAWAY",),
)
def a_stop_ends_it_in_the_grace_and_leaves_nothing(top: Path, payload: str) -> None:
    if payload == "RUNAWAY":
        payload = script(top, RUNAWAY) + "; sleep 600"
    with Grid(top / "grid") as grid:
        (job_id,) = grid.submit(grid.job(payload))
        pilot = grid.pilot("--grace", "5")
        until(lambda: list(grid.work.glob("*/PanDA_Pilot-*/begun")), 30, pilot.text)
        time.sleep(0.1)
        stopped = pilot.signal()
        assert pilot.wait() == 143
        assert time.monotonic() - stopped < 6.5
        job = grid.job_of(job_id)
        assert (job.code, job.finals) == (1201, ["failed"]), pilot.text[-3000:]
        assert processes_with(f"PandaID={job_id}") == []


BOMB = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
    except OSError as error:
        raise SystemExit(f"fork: {error.strerror}")
    made += 1
    if made > 500:  # a bomb that nothing holds must not take the machine along
        time.sleep(600)
"""


def group_for(controller: str, name: str) -> Path:
    """A control group of version 1 for one scenario, or the word for none where we may not make any."""
    group = Path("/sys/fs/cgroup") / controller / f"pilot-zoo-{name}"
    try:
        group.mkdir()
    except OSError:
        return Path("off")
    return group


@scenario
def a_fork_bomb_is_held_by_the_kernel_or_ended_by_the_look(top: Path) -> None:
    group = group_for("pids", str(os.getpid()))
    (top / "x").mkdir()
    try:
        bomb = script(top, BOMB)
        done = watched(top / "x", bomb, "--cgroup", str(group), settings="max_processes = 60")
        assert done.code == 1344, (done.diag, done.log[-3000:])
        held = "exit status 1: fork: Resource temporarily unavailable" in done.diag
        assert held == (group.name != "off")
        assert held or ("the limit is 60" in done.diag and "fault=user" in done.report["job_metrics"])
    finally:
        if group.is_dir():
            assert [path for path in group.iterdir() if path.is_dir()] == []
            group.rmdir()


@scenario
def a_fork_bomb_that_tries_for_ever_is_ended(top: Path) -> None:
    """A shell does: held by the kernel it never has too many, and never ends."""
    group = Path("/sys/fs/cgroup/pids") / f"pilot-zoo-{os.getpid()}-shell"
    try:
        group.mkdir()
    except OSError as error:
        cannot(f"no control group of version 1 that counts processes can be made: {error}")
    (top / "x").mkdir()
    try:
        bomb = "bomb() { bomb | bomb & }; bomb; wait; sleep 600"
        done = watched(top / "x", bomb, "--cgroup", str(group), "--grace", "6", settings="max_processes = 40")
    finally:
        assert [path for path in group.iterdir() if path.is_dir()] == []
        group.rmdir()
    assert done.code == 1344, (done.diag, done.log[-3000:])
    assert "tries to have more than the 40 processes that it may" in done.diag


@scenario
def a_payload_that_fills_a_small_disk_and_goes_on_is_ended_with_its_log(top: Path) -> None:
    with Grid(top / "grid") as grid:
        mount = f'mount -t tmpfs -o size=64m none {grid.work} && exec "$@"'
        inside = ("unshare", "--mount", "sh", "-c", mount, "sh")
        if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True).returncode:
            cannot("mounting a small file system")
        grid.settings.write_text(grid.settings.read_text() + "free_space_limit_running = 8 MB\n")
        grid.queue("Q", params={"pilot_free_space_limit": 0})
        fill = "while :; do head -c 1000000 /dev/urandom >> big || sleep 0.05; done"
        (job_id,) = grid.submit(grid.job(fill))
        pilot = grid.pilot(command=(*inside, PYTHON, "-m", "pilot.cli.main", "run"))
        assert pilot.wait() == 0, pilot.text[-3000:]
        job = grid.job_of(job_id)
        assert (job.finals, job.code) == (["failed"], 1098), (job.diag, pilot.text[-3000:])
        assert job.log()["pilotlog.txt"]
        assert processes_with(f"PandaID={job_id}") == []


# --- true numbers

USE = """
import os, resource, sys, time
held = bytearray(os.urandom(1 << 20)) * 250
children = []
for _ in range(2):
    children.append(os.fork())
    if 0 in children:
        break
if 0 in children:
    child = bytearray(os.urandom(1 << 20)) * 40
end = time.process_time() + 1.5
while time.process_time() < end:
    pass
if 0 in children:
    os._exit(0)
for _ in children:
    os.wait()
with open("x.dat", "wb") as file:
    file.write(held[: 64 << 20])
own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
print(own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime, own.ru_maxrss)
"""


@scenario.for_each(procfs=("procfs",), cgroup=("cgroup",))
def what_it_used_is_what_the_kernel_counted(top: Path, meter: str) -> None:
    group = group_for("memory", f"{os.getpid()}-{meter}")
    (top / "x").mkdir()
    try:
        done = watched(top / "x", script(top, USE), "--cgroup", str(group), "--meter", meter)
    finally:
        if group.is_dir():
            assert [path for path in group.iterdir() if path.is_dir()] == []
            group.rmdir()
    assert done.code == 0, (done.diag, done.log[-3000:])
    cpu, largest = map(float, done.files["payload.stdout"].split())
    report = done.report
    assert abs(report["cpu_consumption_time"] - cpu) <= 0.5 + 0.05 * cpu  # it is reported in whole seconds
    # What all three share is in the RSS of each; an interpreter has some 9 MB of its own.
    assert abs(report["max_rss"] - (3 * 259 + 2 * 40 << 10)) <= 0.05 * (3 * 259 + 2 * 40 << 10)
    assert abs(report["max_pss"] - (250 + 2 * 40 + 9 << 10)) <= 0.05 * (250 + 2 * 40 + 9 << 10)
    assert report["max_rss"] >= largest
    assert 64 << 20 <= report["tot_wchar"] <= (64 << 20) * 1.05


def test_while_the_zoo_is_open_this_process_gets_no_zombies() -> None:
    assert [pid for pid in children_of(os.getpid()) if "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]] == []


running = scenario.fixture()
test_scenario = scenario.test()
