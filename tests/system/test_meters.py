"""Meters against the kernel's own counters, and against prmon, on one tree: within 5 %."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pilot.cgroup import Group
from pilot.payload.process import Ended, PayloadProcess
from pilot.plugins import load
from pilot.processes import Processes
from pilot.server.report import Usage
from pilot.stop import Deadline
from pilot.watch.memory import Memory
from pilot.watch.meter import Meter, Subject, Tally
from pilot.watch.timeline import SUMMARY, TABLE, Timeline
from tests.parts import CACHE, cannot
from tests.watched import watched

ENVIRON = {"PATH": os.environ["PATH"]}
NEAR = 0.05

#: Four processes: 100 MiB that they share by copy-on-write, twice 50 MiB that one has alone; each takes CPU time, and
#: says at the end what the kernel counted for it.
TREE = """
import os, resource, sys, time
shared = bytearray(os.urandom(1 << 20)) * 100
children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        break
inside = 0 in children
if inside and number < 2:
    own = bytearray(os.urandom(1 << 20)) * 50
end = time.process_time() + 0.6
while time.process_time() < end:
    pass
time.sleep({hold})
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
os.write(1, status["VmRSS"].split()[0].encode() + b"\\n")
time.sleep(0.2)
if inside:
    os._exit(0)
for child in children:
    os.waitpid(child, 0)
with open("file", "wb") as file:
    file.write(shared)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the meter says, what the kernel says of the payload, and what it printed."""

    usage: Usage
    ended: Ended
    rss: int


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes()


@pytest.fixture
def group() -> Iterator[Group]:
    """A control group of version 1 that counts memory and CPU time."""
    folders = {name: Path(f"/sys/fs/cgroup/{name}/pilot-meters-{os.getpid()}") for name in ("memory", "cpuacct")}
    try:
        for folder in folders.values():
            folder.mkdir()
    except OSError as error:
        cannot(f"no control groups of version 1 can be made: {error}")
    yield Group(1, folders)
    for folder in folders.values():
        folder.rmdir()


def measure(
    workdir: Path, processes: Processes, meter: str, group: Group | None = None, hold: float = 0.6, beside: str = ""
) -> Measured:
    """Run the tree under a meter, and what is beside it: a command with the pid behind it."""
    (workdir / "tree.py").write_text(TREE.format(hold=hold))
    joins = [str(folder / "cgroup.procs") for folder in group.folders.values()] if group else []
    prefix = ("sh", "-c", 'while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift; exec "$@"', "sh", *joins, "--")

    async def main() -> tuple[Usage, Ended]:
        payload = PayloadProcess.start(
            f"exec {sys.executable} tree.py", workdir=workdir, environment=ENVIRON, processes=processes, prefix=prefix
        )
        other = subprocess.Popen([*beside.split(), str(payload.pid)], cwd=workdir) if beside else None
        made = load("pilot.meters", meter, Meter)()
        made.attach(
            Subject(
                pid=payload.pid,
                members=payload.members,
                workdir=workdir,
                processes=processes,
                environ=ENVIRON,
                group=group,
            )
        )
        tally, line = Tally(), Timeline(workdir)
        look = Memory(made, tally, (), line.add)
        waiting = asyncio.ensure_future(payload.wait())
        while not waiting.done():
            look.look()
            await asyncio.wait({waiting}, timeout=0.1)
        await payload.stop(Deadline(5), grace=1)
        ended = await payload.wait()
        tally.end(ended.spent, ended.seconds)
        line.close(tally)
        await made.close(5)
        if other is not None:
            other.wait(10)
        return tally.usage(), ended

    usage, ended = asyncio.run(main())
    assert ended.exit_code == 0, (workdir / "payload.stderr").read_text()
    told = [int(text) for text in (workdir / "payload.stdout").read_text().split()]
    assert len(told) == 4
    return Measured(usage, ended, sum(told))


def near(value: float, extra: float = 0.0) -> Any:
    return pytest.approx(value, rel=NEAR, abs=extra)


@pytest.mark.parametrize("meter", ["procfs", "cgroup"])
def test_a_meter_tells_what_the_kernel_counted(tmp_path: Path, processes: Processes, group: Group, meter: str) -> None:
    found = measure(tmp_path, processes, meter, group)
    usage = found.usage
    assert usage.max_rss == near(found.rss)  # the sum of what each says of itself
    assert usage.max_pss is not None and usage.cpu_time is not None
    assert usage.max_pss == near((group.memory_peak or 0) >> 10)  # the file is written when two of four have ended
    counted = group.cpu_seconds or 0.0
    assert counted >= 2.4
    assert found.ended.spent.cpu == near(counted)
    assert usage.cpu_time == pytest.approx(counted, abs=0.5 + NEAR * counted)  # whole seconds are reported
    summary = json.loads((tmp_path / SUMMARY).read_text())["Max"]
    assert summary["pss"] == usage.max_pss
    assert summary["utime"] + summary["stime"] == pytest.approx(counted, abs=2)  # each cut to whole seconds
    assert usage.tot_wchar == near(100 << 20)


def test_the_time_line_is_read_by_what_reads_prmons(tmp_path: Path, processes: Processes) -> None:
    """Its plots and its compression take `Time` as the name of a line, in whole seconds, and want known columns."""
    measure(tmp_path, processes, "procfs", hold=2.0)
    header, *rows = [line.split("\t") for line in (tmp_path / TABLE).read_text().splitlines()]
    assert set(header) == {
        *("Time", "wtime", "nprocs", "nthreads", "utime", "stime", "pss", "rss", "swap", "vmem"),
        *("rchar", "wchar", "read_bytes", "write_bytes"),
    }  # fmt: skip
    table = [dict(zip(header, map(int, row), strict=True)) for row in rows]
    assert len(table) >= 2
    for name in ("Time", "wtime"):
        values = [row[name] for row in table]
        assert values == sorted(set(values)), name
    summary = json.loads((tmp_path / SUMMARY).read_text())
    memory, io = {"pss", "rss", "swap", "vmem"}, {"rchar", "wchar", "read_bytes", "write_bytes"}
    assert set(summary["Max"]) == memory | io | {"nprocs", "nthreads", "utime", "stime", "wtime"}
    assert set(summary["Avg"]) == memory | io | {"nprocs", "nthreads"}
    assert summary["Max"]["nprocs"] == 4


@pytest.fixture
def prmon() -> str:
    program = shutil.which("prmon", path=f"{CACHE / 'prmon'}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(
            "prmon is in no registry, and 4 min to build: put it on PATH or into .cache/prmon to compare, also in CI"
        )
    return program


def test_it_agrees_with_prmon(tmp_path: Path, processes: Processes, prmon: str) -> None:
    beside = f"{prmon} --interval 1 --filename prmon.txt --json-summary prmon.json --pid"
    found = measure(tmp_path, processes, "procfs", hold=5.0, beside=beside).usage
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in (SUMMARY, "prmon.json"))
    most = theirs["Max"]
    assert (found.max_pss, found.max_rss, found.max_vmem) == (near(most["pss"]), near(most["rss"]), near(most["vmem"]))
    assert found.cpu_time is not None
    assert 0 <= found.cpu_time - most["utime"] - most["stime"] <= 2  # it cuts both to whole seconds
    network = {f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets")}  # of the whole node
    for part in ("Max", "Avg"):
        assert set(ours[part]) == set(theirs[part]) - network
    assert ours["HW"] | {"mem": {}} == theirs["HW"] | {"mem": {}}
    assert ours["HW"]["mem"]["MemTotal"] == near(theirs["HW"]["mem"]["MemTotal"])
    tables = [(tmp_path / name).read_text().splitlines()[0].split("\t") for name in (TABLE, "prmon.txt")]
    assert tables[0] == [name for name in tables[1] if name not in network]


def test_a_whole_pilot_has_prmons_own_files_in_the_log(tmp_path: Path, prmon: str) -> None:
    environ = {"PATH": f"{Path(prmon).parent}:{os.environ['PATH']}"}
    payload = f"exec {sys.executable} -c 'import time; x = bytes([1]) * 50_000_000; time.sleep(3)'"
    done = watched(tmp_path, payload, settings="meter=prmon", environ=environ)
    assert done.code == 0, done.diag
    summary = json.loads(done.files[SUMMARY])
    assert summary["prmon"]["Version"] != "pilot"
    assert "rx_bytes" in summary["Max"]
    assert b"rx_bytes" in done.files[TABLE]
    assert int(done.report["max_rss"]) == near(summary["Max"]["rss"])


def test_a_prmon_that_does_not_start_fails_no_job(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "prmon"
    tool.parent.mkdir()
    tool.write_text("#!/nonexistent\n")
    tool.chmod(0o755)
    (tmp_path / "x").mkdir()
    environ = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = watched(tmp_path / "x", "sleep 1", settings="meter=prmon", environ=environ)
    assert done.code == 0, done.diag
    assert "prmon does not start" in done.log
    assert json.loads(done.files[SUMMARY])["Max"]["rss"] > 0
    assert len(done.files[TABLE].splitlines()) > 1


def test_a_whole_pilot_has_the_gpus_of_its_payload_in_the_time_line(tmp_path: Path) -> None:
    """The stand-in has one GPU, on which all are that are called payload.sh, and a stranger."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        '#!/bin/bash\n[ "$1" = pmon ] || { echo "<nvidia_smi_log><gpu/></nvidia_smi_log>"; exit; }\n'
        'echo "# gpu pid type sm mem enc dec fb command"; echo " 0 1 C 99 99 - - 99999 init"\n'
        "for file in /proc/[0-9]*/comm; do read -r name < $file || continue\n"
        '[ "$name" = payload.sh ] && pid=${file%/comm} && echo " 0 ${pid#/proc/} C 30 20 - - 100 it"; done; exit 0\n'
    )
    smi.chmod(0o755)
    (tmp_path / "x").mkdir()
    done = watched(tmp_path / "x", "sleep 3.5", environ={"PATH": f"{smi.parent}:{os.environ['PATH']}"})
    assert done.code == 0, done.diag
    most = json.loads(done.files[SUMMARY])["Max"]
    assert (most["ngpus"], most["gpusmpct"], most["gpumempct"], most["gpufbmem"]) == (1, 30, 20, 102400)
    assert b"\tgpufbmem" in done.files[TABLE].splitlines()[0]
