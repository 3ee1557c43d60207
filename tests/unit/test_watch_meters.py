"""What is measured is what was used, within 5 %: of real processes, also of those that no sample has seen."""

import asyncio
import json
import os
import resource
import sys
import time

import pytest

from pilot.cgroup import Group, Nest, OwnGroup, own_group
from pilot.payload.process import PayloadProcess
from pilot.plugins import load
from pilot.processes import Processes, Spent
from pilot.stop import Deadline
from pilot.watch.guard import choose_meter
from pilot.watch.memory import Memory
from pilot.watch.meter import Meter, Sample, Subject, Tally
from pilot.watch.timeline import SUMMARY, TABLE, Timeline

ENVIRON = {"PATH": os.environ["PATH"]}
NEAR = 0.05


@pytest.fixture(scope="module")
def processes():
    return Processes()


def measure(script, workdir, processes, meter="procfs", period=0.1):
    """The usage of a Python script and what it printed."""
    (workdir / "script.py").write_text(script)

    async def main():
        payload = PayloadProcess.start(
            f"{sys.executable} script.py", workdir=workdir, environment=ENVIRON, processes=processes
        )
        made = load("pilot.meters", meter, Meter)()
        made.attach(
            Subject(pid=payload.pid, members=payload.members, workdir=workdir, processes=processes, environ=ENVIRON)
        )
        tally = Tally()
        line = Timeline(workdir)
        look = Memory(made, tally, (), line.add)
        waiting = asyncio.ensure_future(payload.wait())
        while not waiting.done():
            look.look()
            await asyncio.wait({waiting}, timeout=period)
        await payload.stop(Deadline(5), grace=1)
        ended = await payload.wait()
        tally.end(ended.spent, ended.seconds)
        line.close(tally)
        return tally.usage()

    usage = asyncio.run(main())
    return usage, (workdir / "payload.stdout").read_text().split()


HIGHEST = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), flush=True)\n"


def test_memory_is_what_the_kernel_says(tmp_path, processes):
    usage, (highest,) = measure(f"import time\nx = b'x' * 200_000_000\n{HIGHEST}time.sleep(0.6)", tmp_path, processes)
    assert usage.max_rss == pytest.approx(int(highest), rel=NEAR)
    assert usage.max_pss == pytest.approx(int(highest), rel=NEAR)
    assert usage.avg_rss <= usage.max_rss <= usage.max_vmem


def test_a_peak_that_no_sample_has_seen_is_known_of_the_largest_process(tmp_path, processes):
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # a child's peak begins with that of who forked it
    script = f"import time\ntime.sleep(0.4)\nx = b'x' * {300_000_000 + mine}\n{HIGHEST}del x"
    usage, (highest,) = measure(script, tmp_path, processes, period=0.35)
    assert usage.max_rss == pytest.approx(int(highest), rel=NEAR)


def test_pages_that_processes_share_are_counted_once_in_pss_and_for_each_in_rss(tmp_path, processes):
    fork = "for _ in range(3): os.fork() or time.sleep(1) or os._exit(0)"
    script = f"import os, time\nx = b'x' * 100_000_000\n{fork}\ntime.sleep(0.8)"
    usage, _ = measure(script, tmp_path, processes)
    assert usage.max_pss == pytest.approx(100_000_000 / 1024, rel=0.3)
    assert usage.max_rss > 3.5 * 100_000_000 / 1024


BURN = "import time\nwhile time.process_time() < {}: pass\n"
CHILDREN = "import subprocess, sys\nfor _ in range(3): subprocess.run([sys.executable, '-c', {!r}])\n"


def test_cpu_time_has_the_children_that_ended_between_samples(tmp_path, processes):
    usage, _ = measure(CHILDREN.format(BURN.format(0.4)), tmp_path, processes, period=2.0)
    assert usage.cpu_time in (1, 2)  # 1.2 s, four interpreters, and whole seconds are reported
    assert 0.2 < usage.cores < 1.2


def test_io_has_the_children_that_ended_between_samples_and_counts_them_once(tmp_path, processes):
    write = "open('file', 'wb').write(b'x' * 20_000_000); import time; time.sleep(0.15)"
    usage, _ = measure(CHILDREN.format(write), tmp_path, processes)
    assert usage.tot_wchar == pytest.approx(60_000_000, rel=NEAR)
    read = "open('file', 'rb').read()"
    usage, _ = measure(CHILDREN.format(read), tmp_path, processes)
    assert usage.tot_rchar == pytest.approx(60_000_000, rel=0.15)  # and three interpreters


def test_io_of_an_orphan_is_counted(tmp_path, processes):
    script = (
        "import os, time\nif os.fork(): time.sleep(0.8); os._exit(0)\nif os.fork(): os._exit(0)\n"
        "open('file', 'wb').write(b'x' * 20_000_000)\ntime.sleep(0.3)"
    )
    usage, _ = measure(script, tmp_path, processes)
    assert usage.tot_wchar == pytest.approx(20_000_000, rel=NEAR)


def test_a_process_that_uses_nothing_says_nothing(tmp_path, processes):
    usage, _ = measure("", tmp_path, processes)
    assert usage.cpu_time == 0
    assert usage.tot_wbytes is not None
    assert usage.cores is None or usage.cores < 1


class TestTally:
    def test_a_sample_without_processes_is_none(self):
        tally = Tally()
        tally.add(Sample(seconds=1, processes=0, rss=5))
        assert tally.usage().max_rss is None

    def test_memory_that_came_after_pss_was_measured_counts_for_it(self):
        """PSS is measured more seldom than RSS; here 10 of a process' memory were shared."""
        tally = Tally()
        tally.add(Sample(seconds=1, processes=1, rss=50, pss=40))
        tally.add(Sample(seconds=2, processes=1, rss=150, pss=40))
        tally.end(Spent(1.0, 200, (0, 0, 0, 0)), 2.0)
        assert (tally.peak("rss"), tally.peak("pss")) == (200, 190)

    def test_the_kernels_own_numbers_win_over_samples_that_are_smaller(self):
        tally = Tally()
        tally.add(Sample(seconds=1, processes=1, rss=100, wchar=10, rchar=70, cpu=1.0))
        tally.end(Spent(4.0, 120, (50, 60, 0, 0)), 2.0)
        usage = tally.usage()
        assert (usage.cpu_time, usage.cores, usage.max_rss) == (4, 2.0, 120)
        assert (usage.tot_rchar, usage.tot_wchar, usage.rate_wchar) == (70, 60, 30)


class TestTimeline:
    def test_the_table_has_a_line_for_each_moment_and_the_summary_the_extremes(self, tmp_path):
        line, tally = Timeline(tmp_path), Tally()
        for second, rss in ((0, 100), (1, 300), (2, 200)):
            sample = Sample(seconds=second, processes=2, threads=3, rss=rss, pss=rss // 2, vmem=900, wchar=second * 10)
            tally.add(sample)
            line.add(sample)
        line.close(tally)
        header, *rows = [row.split("\t") for row in (tmp_path / TABLE).read_text().splitlines()]
        assert header[:2] == ["Time", "wtime"]
        assert [dict(zip(header, row, strict=True))["rss"] for row in rows] == ["100", "300", "200"]
        summary = json.loads((tmp_path / SUMMARY).read_text())
        assert {key: summary["Max"][key] for key in ("rss", "pss", "vmem", "wtime", "wchar", "nprocs", "nthreads")} == {
            "rss": 300, "pss": 150, "vmem": 900, "wtime": 2, "wchar": 20, "nprocs": 2, "nthreads": 3,
        }  # fmt: skip
        assert summary["Avg"]["rss"] == 225  # over time: 200 in the first second, 250 in the second one
        assert summary["Avg"]["wchar"] == 10

    def test_it_has_at_most_some_hundred_lines(self, tmp_path):
        line = Timeline(tmp_path)
        for second in range(0, 20_000, 2):
            line.add(Sample(seconds=second, processes=1))
        line.close(Tally())
        assert len((tmp_path / TABLE).read_text().splitlines()) < 600

    def test_a_link_that_the_payload_put_there_is_not_followed(self, tmp_path):
        (tmp_path / "precious").write_text("precious")
        for name in (TABLE, SUMMARY):
            (tmp_path / name).symlink_to(tmp_path / "precious")
        line, tally = Timeline(tmp_path), Tally()
        tally.add(Sample(seconds=1, processes=1))
        line.add(Sample(seconds=1, processes=1))
        line.close(tally)
        assert (tmp_path / "precious").read_text() == "precious"

    def test_a_place_where_nothing_can_be_written_ends_it_with_a_line_in_the_log(self, tmp_path, caplog):
        line, tally = Timeline(tmp_path / "gone"), Tally()
        tally.add(Sample(seconds=1, processes=1))
        for second in range(5):
            line.add(Sample(seconds=second, processes=1))
        line.close(tally)
        assert caplog.text.count("no time line") == 1


def fake(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


class TestGroups:
    def test_version_2_counts(self, tmp_path):
        folder = fake(
            tmp_path / "g", memory__current="1000\n", memory__peak="2000\n", memory__max="3000\n",
            memory__events="low 0\nhigh 1\nmax 2\noom 1\noom_kill 4\n", cpu__stat="usage_usec 2500000\nuser_usec 1\n",
            io__stat="8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=5 wbytes=6\n", cgroup__procs="12\n13\n",
        )  # fmt: skip
        group = Group(2, dict.fromkeys(("memory", "cpu", "io"), folder))
        assert (group.memory_current, group.memory_peak, group.memory_limit) == (1000, 2000, 3000)
        assert (group.oom_kills, group.cpu_seconds, group.io_bytes) == (4, 2.5, (15, 26))
        assert group.pids() == [12, 13]

    def test_no_limit_and_no_file_are_none(self, tmp_path):
        group = Group(2, {"memory": fake(tmp_path / "g", memory__max="max\n")})
        assert (group.memory_limit, group.memory_peak, group.oom_kills, group.cpu_seconds) == (None,) * 4
        first = Group(1, {"memory": fake(tmp_path / "h", memory__limit_in_bytes="9223372036854771712\n")})
        assert first.memory_limit is None

    def test_limits_of_version_2_leave_room_to_say_1235_first(self, tmp_path):
        folder = fake(tmp_path / "g", memory__high="max", memory__max="max", pids__max="max")
        OwnGroup(2, dict.fromkeys(("memory", "pids"), folder)).limit(1000, 1100, 50)
        written = [(folder / name).read_text() for name in ("memory.high", "memory.max", "pids.max")]
        assert written == [str(1000 * 1024), str(int(1000 * 1024 * 1.1)), "50"]

    def test_our_group_is_found_below_its_mount(self, tmp_path):
        fake(tmp_path / "proc/self", cgroup="0::/user.slice/job\n", mountinfo=(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
        ))  # fmt: skip
        folder = fake(tmp_path / "sys/fs/cgroup/user.slice/job")
        assert own_group(tmp_path).folders["memory"] == folder

    def test_in_a_container_it_is_what_is_mounted_there(self, tmp_path):
        fake(tmp_path / "proc/self", cgroup="5:memory:/docker/abc\n0::/\n", mountinfo=(
            "30 23 0:26 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        ))  # fmt: skip
        folder = fake(tmp_path / "sys/fs/cgroup/memory")
        assert own_group(tmp_path).folders["memory"] == folder

    def test_a_group_that_was_not_handed_to_us_is_left_alone(self, tmp_path):
        fake(tmp_path / "proc/self", cgroup="0::/job\n", mountinfo="30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n")
        folder = fake(tmp_path / "cg/job", cgroup__procs="", cgroup__controllers="memory")
        if os.geteuid():
            folder.chmod(0o500)
        assert Nest("auto", tmp_path).make("payload") is None
        assert [path.name for path in folder.iterdir() if path.is_dir()] == []

    @pytest.mark.parametrize(("beside", "left"), [("populated 1\n", "memory pids"), ("populated 0\n", "-memory -pids")])
    def test_a_pilot_that_ends_takes_no_controllers_from_one_beside_it(self, tmp_path, beside, left):
        own = fake(tmp_path / "own", cgroup__subtree_control="memory pids", cgroup__procs="")
        fake(own / "payload-1-1-abc", cgroup__events=beside)
        nest = Nest("off", tmp_path)
        nest._pilots = fake(own / "pilot-1", cgroup__procs="")
        nest.close()
        assert (own / "cgroup.subtree_control").read_text() == left

    def test_a_place_that_is_no_group_is_no_reason_to_fail(self, tmp_path, caplog):
        assert Nest(str(tmp_path / "nothing")).make("payload") is None
        assert "is no control group that we may use" in caplog.text
        assert Nest("off").make("payload") is None


class TestChoice:
    def test_auto_takes_the_group_where_there_is_one(self, tmp_path):
        assert choose_meter("auto", None, {}).name == "procfs"
        assert choose_meter("auto", Group(2, {"memory": tmp_path}), {}).name == "cgroup"

    @pytest.mark.parametrize("name", ["cgroup", "prmon", "nonsense"])
    def test_one_that_cannot_work_is_replaced_with_a_warning(self, name, caplog):
        assert choose_meter(name, None, {"PATH": "/nonexistent"}).name == "procfs"
        assert f"meter {name} cannot be used" in caplog.text

    @pytest.mark.parametrize(("summary", "whole"), [('{"Max": {}}', True), ('{"HW": {}}', False), ('{"Ma', False)])
    def test_prmon_is_run_as_pilot_3_does_and_its_files_kept(self, tmp_path, processes, summary, whole):
        tool, workdir = tmp_path / "bin" / "prmon", tmp_path / "work"
        tool.parent.mkdir()
        workdir.mkdir()
        tool.write_text(
            f'#!/bin/bash\ntrap \'echo -n "$SUMMARY" > $6; exit\' USR1\necho Time > "$4"\n'
            f'echo "$@" > {tmp_path}/args\nwhile :; do sleep 0.05; done\n'
        )
        tool.chmod(0o755)
        environ = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "SUMMARY": summary}

        async def main():
            meter = choose_meter("prmon", None, environ)
            us = os.getpid()
            meter.attach(Subject(pid=us, members=lambda: [us], workdir=workdir, processes=processes, environ=environ))
            while not (tmp_path / "args").exists():
                await asyncio.sleep(0.02)
            sample = meter.sample()
            await meter.close(5)
            return sample, meter.writes_timeline

        sample, kept = asyncio.run(main())
        assert sample.rss > 10_000
        assert (tmp_path / "args").read_text().split() == [
            *("--pid", str(os.getpid()), "--filename", TABLE, "--json-summary", SUMMARY, "--interval", "60")
        ]  # fmt: skip
        assert kept is whole
        assert (workdir / TABLE).read_text() == "Time\n"
        assert (workdir / SUMMARY).exists() is whole
        assert sorted(path.name for path in tmp_path.iterdir()) == ["args", "bin", "work"]

    def test_prmon_that_does_not_end_has_no_more_time_than_there_is(self, tmp_path, processes):
        tool, workdir = tmp_path / "prmon", tmp_path / "work"
        tool.write_text(f"#!/bin/bash\ntrap '' USR1\ntouch {tmp_path}/ready\nwhile :; do sleep 0.05; done\n")
        tool.chmod(0o755)
        workdir.mkdir()
        environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

        async def main():
            meter = choose_meter("prmon", None, environ)
            meter.attach(Subject(pid=1, members=list, workdir=workdir, processes=processes, environ=environ))
            while not (tmp_path / "ready").exists():
                await asyncio.sleep(0.02)
            began = time.monotonic()
            await meter.close(0.1)
            return time.monotonic() - began

        assert asyncio.run(main()) < 2.5
        assert sorted(path.name for path in tmp_path.iterdir()) == ["prmon", "ready", "work"]

    def test_prmon_that_crashes_is_started_again_five_times(self, tmp_path, processes, caplog):
        tool, pids = tmp_path / "bin" / "prmon", tmp_path / "pids"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/bash\necho "$2" >> {pids}; exit 3\n')
        tool.chmod(0o755)
        environ = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
        meter = choose_meter("prmon", None, environ)
        us = os.getpid()
        meter.attach(Subject(pid=77, members=lambda: [us], workdir=tmp_path, processes=processes, environ=environ))
        for _ in range(200):
            sample = meter.sample()
            if not meter.writes_timeline:
                break
            time.sleep(0.02)
        asyncio.run(meter.close(5))
        assert not meter.writes_timeline
        assert pids.read_text().split() == ["77", *[str(us)] * 5]
        assert "prmon ended 6 times; the time line is the pilot's own" in caplog.text
        assert sample.rss > 10_000
