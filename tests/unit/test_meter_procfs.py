"""What the procfs meter tells of a running payload is what its processes say of themselves."""

import asyncio
import gc
import json
import os
import resource
import sys
import time
from contextlib import asynccontextmanager

import pytest

from pilot.payload.process import PayloadProcess
from pilot.processes import Processes
from pilot.stop import Deadline
from pilot.watch.meter import Subject
from plugins.meters import procfs
from plugins.meters.procfs import Procfs

ENVIRON = {"PATH": os.environ["PATH"]}

#: Writes what the kernel says of this process to standard output, as JSON.
TELL = """
import json, os, resource, sys, time
def tell():
    status = dict(line.split(":", 1) for line in open("/proc/self/status", errors="replace"))
    io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    smaps = dict(line.split(":", 1) for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    told = {"rss": int(status["VmRSS"].split()[0]), "vmem": int(status["VmSize"].split()[0]),
            "pss": int(smaps["Pss"].split()[0]), "threads": int(status["Threads"]),
            "utime": sum(one.ru_utime for one in usage), "stime": sum(one.ru_stime for one in usage),
            "rchar": int(io["rchar"]), "wchar": int(io["wchar"]),
            "rbytes": int(io["read_bytes"]), "wbytes": int(io["write_bytes"])}
    print(json.dumps(told), flush=True)
"""

#: Seconds of a clock tick, in which /proc counts.
TICK = 1 / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def processes():
    return Processes()


@asynccontextmanager
async def metered(script, workdir, processes):
    """A running payload and a meter at it; the payload is ended at the end."""
    (workdir / "script.py").write_text(TELL + script)
    text = f"exec {sys.executable} script.py"
    payload = PayloadProcess.start(text, workdir=workdir, environment=ENVIRON, processes=processes)
    meter = Procfs()
    meter.attach(
        Subject(pid=payload.pid, members=payload.members, workdir=workdir, processes=processes, environ=ENVIRON)
    )
    try:
        yield payload, meter
    finally:
        await payload.stop(Deadline(5), grace=0.1)
        await payload.wait()


async def told(workdir, count=1):
    """What `count` processes have told of themselves."""
    end = time.monotonic() + 20
    while len(lines := (workdir / "payload.stdout").read_text().splitlines()) < count:
        assert time.monotonic() < end, (workdir / "payload.stderr").read_text()
        await asyncio.sleep(0.01)
    return [json.loads(line) for line in lines]


def sampled(script, workdir, processes, count=1):
    """One sample after `count` processes told, and the sums of what they told."""

    async def main():
        async with metered(script, workdir, processes) as (_, meter):
            lines = await told(workdir, count)
            await asyncio.sleep(0.05)
            return meter.sample(), {key: sum(line[key] for line in lines) for key in lines[0]}

    return asyncio.run(main())


def near(value, rel=0.03, extra=0.0):
    return pytest.approx(value, rel=rel, abs=extra)


def test_memory_cpu_and_io_are_what_the_process_says_of_itself(tmp_path, processes):
    script = """
held = b"x" * 100_000_000
end = resource.getrusage(resource.RUSAGE_SELF).ru_utime + 0.5
while resource.getrusage(resource.RUSAGE_SELF).ru_utime < end: pass
with open("file", "wb") as file:
    file.write(held[:20_000_000])
import mmap
mapped = mmap.mmap(os.open("file", os.O_RDWR), 0)
assert not any(mapped[::4096].strip(b"x"))
tell()
time.sleep(60)
"""
    sample, said = sampled(script, tmp_path, processes)
    assert (sample.processes, sample.threads) == (1, 1)
    assert (sample.rss, sample.pss, sample.vmem) == (near(said["rss"]), near(said["pss"]), near(said["vmem"]))
    assert sample.rss > 100_000_000 / 1024
    assert 100_000_000 / 1024 < sample.held <= sample.pss - 20_000_000 / 1024
    assert (sample.utime, sample.stime) == (near(said["utime"], extra=0.03), near(said["stime"], extra=0.03))
    assert sample.cpu == sample.utime + sample.stime
    assert sample.utime >= 0.5
    assert sample.wchar == near(said["wchar"]) == near(20_000_000)
    assert (sample.rchar, sample.rbytes) == (near(said["rchar"]), near(said["rbytes"], extra=4096))
    assert sample.wbytes == near(said["wbytes"])


def test_a_tree_is_the_sum_of_its_processes(tmp_path, processes):
    script = """
for _ in range(3):
    if not os.fork():
        held = b"x" * 30_000_000
        tell()
        time.sleep(60)
tell()
time.sleep(60)
"""
    sample, said = sampled(script, tmp_path, processes, count=4)
    assert (sample.processes, sample.threads) == (4, 4)
    assert (sample.rss, sample.vmem) == (near(said["rss"]), near(said["vmem"]))
    assert sample.pss == near(said["pss"], rel=0.1)
    assert sample.pss < sample.rss
    assert sample.wchar == near(said["wchar"], extra=4096)


def test_threads_are_counted_and_their_cpu_time(tmp_path, processes):
    script = """
import threading
done = threading.Barrier(4)
def burn():
    while time.thread_time() < 0.2: pass
    done.wait()
    time.sleep(60)
for _ in range(3): threading.Thread(target=burn).start()
done.wait()
tell()
time.sleep(60)
"""
    sample, said = sampled(script, tmp_path, processes)
    assert (sample.processes, sample.threads) == (1, 4)
    assert sample.cpu == near(said["utime"] + said["stime"], extra=0.03)
    assert sample.cpu >= 0.55


def test_a_process_whose_first_thread_has_ended_still_has_its_memory(tmp_path, processes):
    script = """
import ctypes, threading
def work():
    global held
    held = os.urandom(60 << 20)
    while open("/proc/self/stat").read().split()[2] != "Z":
        time.sleep(0.01)
    print('{"held": %d}' % (len(held) >> 10), flush=True)
    time.sleep(600)
threading.Thread(target=work).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    sample, said = sampled(script, tmp_path, processes)
    assert (sample.processes, sample.threads) == (1, 2)
    for name in ("rss", "pss", "vmem"):
        assert said["held"] < getattr(sample, name), name
    assert sample.pss <= sample.rss < said["held"] + (20 << 10)


def test_nothing_is_counted_twice_when_a_child_ends_and_its_parent_waits_for_it(tmp_path, processes):
    """The kernel adds the CPU time and I/O of a child to those of the parent that waits for it."""
    script = """
child = os.fork()
if not child:
    with open("file", "wb") as file: file.write(b"x" * 20_000_000)
    while time.process_time() < 0.3: pass
    tell()
    time.sleep(60)
while not os.path.exists("end"): time.sleep(0.01)
os.kill(child, 9)
os.waitpid(child, 0)
tell()
time.sleep(60)
"""

    async def main():
        async with metered(script, tmp_path, processes) as (_, meter):
            await told(tmp_path, 1)
            before = meter.sample()
            (tmp_path / "end").touch()
            said = (await told(tmp_path, 2))[1]
            await asyncio.sleep(0.05)
            return before, meter.sample(), said

    before, after, said = asyncio.run(main())
    assert (before.processes, after.processes) == (2, 1)
    assert before.wchar == near(20_000_000)
    assert after.wchar == near(said["wchar"]) == near(20_000_000)
    assert after.cpu == near(said["utime"] + said["stime"], extra=0.05)


def test_what_orphans_have_used_stays_in_the_sum_and_nothing_ever_shrinks(tmp_path, processes):
    script = """
for number in range(3):
    if not os.fork():
        if os.fork(): os._exit(0)
        with open(f"file{number}", "wb") as file: file.write(b"x" * 10_000_000)
        while time.process_time() < 0.15: pass
        tell()
        while not os.path.exists(f"end{number}"): time.sleep(0.01)
        os._exit(0)
    os.wait()
time.sleep(60)
"""

    async def main():
        async with metered(script, tmp_path, processes) as (_, meter):
            said = await told(tmp_path, 3)
            samples = [meter.sample()]
            for number in range(3):
                (tmp_path / f"end{number}").touch()
                while samples[-1].processes > 3 - number:
                    await asyncio.sleep(0.02)
                    samples.append(meter.sample())
            return samples, sum(line["utime"] + line["stime"] for line in said)

    samples, cpu = asyncio.run(asyncio.wait_for(main(), 30))
    assert (samples[0].processes, samples[-1].processes) == (4, 1)
    assert samples[-1].wchar == near(30_000_000)
    assert samples[-1].cpu >= cpu - 3 * 2 * TICK  # user and system time of each are cut to whole ticks
    for name in ("cpu", "utime", "stime", "rchar", "wchar", "rbytes", "wbytes", "seconds"):
        values = [getattr(sample, name) for sample in samples]
        assert values == sorted(values), name


def test_a_process_with_any_name_is_measured(tmp_path, processes):
    script = """
import ctypes
ctypes.CDLL(None).prctl(15, b"caf\\xe9) R 1 (", 0, 0, 0)
held = b"x" * 50_000_000
tell()
time.sleep(60)
"""
    sample, said = sampled(script, tmp_path, processes)
    assert (sample.processes, sample.rss) == (1, near(said["rss"]))


def test_a_payload_that_has_ended_has_no_memory_and_keeps_what_it_used(tmp_path, processes):
    script = "open('file', 'wb').write(b'x' * 20_000_000)\ntell()\nwhile not os.path.exists('end'): time.sleep(0.01)"

    async def main():
        async with metered(script, tmp_path, processes) as (payload, meter):
            await told(tmp_path)
            meter.sample()
            (tmp_path / "end").touch()
            await payload.wait()
            return meter.sample()

    sample = asyncio.run(main())
    assert (sample.processes, sample.rss, sample.pss, sample.vmem, sample.threads) == (0, 0, 0, 0, 0)
    assert sample.wchar == near(20_000_000)


def test_pids_that_are_gone_or_not_ours_disturb_nothing():
    meter = Procfs()
    assert meter.sample().processes == 0
    meter._members = lambda: [2**22 + 1, os.getpid(), 0]
    sample = meter.sample()
    assert sample.processes == 1
    assert sample.rss == near(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rel=0.9)


@pytest.mark.parametrize(("told", "held"), [("", 0), ("Pss_File: 300 kB\n", 450)])
def test_what_is_held_counts_shared_swap_once_and_no_page_of_a_file(monkeypatch, told, held):
    """Before Linux 5.3 the kernel does not tell which pages are of files."""
    rollup = f"00-ff ---p 00 [rollup]\nPss: 700 kB\n{told}Swap: 400 kB\nSwapPss: 50 kB\n"
    monkeypatch.setattr(procfs, "_read", lambda pid, name: rollup.encode())
    assert procfs._pss(1) == (700, 400, held)


def test_sampling_is_quick_and_leaves_no_descriptor(tmp_path, processes):
    """DESIGN.md: 0.1 % of a core while a payload sleeps. A sample of a small tree costs well below 5 ms of CPU."""

    async def main():
        async with metered("os.fork() or time.sleep(60)\ntell()\ntime.sleep(60)", tmp_path, processes) as (_, meter):
            await told(tmp_path)
            meter.sample()
            gc.collect()
            before, began = len(os.listdir("/proc/self/fd")), time.thread_time()
            for _ in range(50):
                meter.sample()
            return (time.thread_time() - began) / 50, len(os.listdir("/proc/self/fd")) - before

    seconds, descriptors = asyncio.run(main())
    assert descriptors == 0
    assert seconds < 0.005
