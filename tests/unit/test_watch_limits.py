"""Every check has its limit, its code and its text; and it looks in time."""

import math
import os
import time

import pytest

from pilot.errors import Code, PilotError
from pilot.job import Job, Limits
from pilot.queuedata import Queue
from pilot.stop import Deadline
from pilot.watch.disk import FreeSpace, WorkdirSize, workdir_limit
from pilot.watch.killfile import KillFile
from pilot.watch.look import Pace
from pilot.watch.memory import Memory
from pilot.watch.memorylimit import MemoryLimit, memory_limit
from pilot.watch.meter import Meter, Sample, Tally
from pilot.watch.outputs import OutputSize, StdoutSize
from pilot.watch.processcount import ProcessCount
from pilot.watch.shutdown import MachineShutdown
from pilot.watch.walltime import Walltime, job_seconds, slot_seconds


def error(look):
    with pytest.raises(PilotError) as caught:
        look.look()
    return caught.value.code, caught.value.detail


class TestPace:
    def pace(self, *points, limit=1000.0):
        """The periods for values at times."""
        times = iter([at for at, _ in points])
        pace = Pace(1, 60, clock=lambda: next(times))
        return [pace.next(value, limit) for _, value in points]

    def test_what_does_not_grow_is_looked_at_ever_more_seldom(self):
        assert self.pace(*((at, 0) for at in range(8))) == [1, 2, 4, 8, 16, 32, 60, 60]

    def test_what_is_near_is_looked_at_often(self):
        assert self.pace(*((at, 900) for at in range(8)))[-1] == pytest.approx(6)
        assert self.pace(*((at, 999) for at in range(8)))[-1] == 1

    def test_what_grows_fast_is_looked_at_before_it_arrives(self):
        quiet = [(at * 60.0, 0.0) for at in range(8)]
        assert self.pace(*quiet, (421, 100))[-1] == pytest.approx(900 / 100 / 2)

    def test_what_grows_by_steps_is_not_taken_to_rest_between_them(self):
        steps = [(0, 0), (10, 400), (11, 800), (12, 900), (12.5, 900), (13, 900)]
        assert self.pace(*steps)[-2:] == [2, 4]

    def test_what_would_be_over_the_limit_before_the_next_look_is_looked_at_at_once(self):
        times = iter([0.0, 0.25, 0.35])
        pace = Pace(0.25, 60, lambda: next(times), urgent=0.05)
        assert [pace.next(value, 1000.0) for value in (0, 500, 900)] == [0.25, 0.125, 0.05]

    def test_without_a_limit_there_is_no_hurry(self):
        assert self.pace((0, 5), (1, 50), limit=0) == [60, 60]


class TestDisk:
    def test_too_little_free_space_is_1098(self, tmp_path):
        assert error(FreeSpace(tmp_path, 1 << 60))[0] is Code.NOLOCALSPACE

    def test_enough_is_looked_at_again(self, tmp_path):
        assert 1 <= FreeSpace(tmp_path, 1).look() <= 60

    def test_a_directory_that_is_too_large_is_1104(self, tmp_path):
        (tmp_path / "file").write_bytes(b"x" * 20_000)
        code, text = error(WorkdirSize(tmp_path, 10_000))
        assert code is Code.USERDIRTOOLARGE
        assert text.endswith(f"bytes in {tmp_path}, the limit is 10000 bytes")

    def test_one_core_has_its_share_of_a_queue(self):
        queue = Queue(maxwdir=8000, corecount=8, maxwdir_grace=1.0)
        assert workdir_limit(queue, Job(job_id=1, cores=1), Limits()) == 1000 << 20
        assert workdir_limit(queue, Job(job_id=1, cores=8), Limits()) == 8000 << 20


class TestStdout:
    @pytest.mark.parametrize("name", ["payload.stdout", "payload.stderr", "log.EVNTtoHITS", "workDir/tmp.stdout.x"])
    def test_a_log_that_is_too_large_is_1106(self, tmp_path, name):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 101)
        code, text = error(StdoutSize(tmp_path, 100))
        assert (code, text) == (Code.STDOUTTOOBIG, f"{name} has 101 bytes, the limit is 100 bytes")

    def test_other_files_and_outputs_that_are_called_so_are_not(self, tmp_path):
        (tmp_path / "data").write_bytes(b"x" * 101)
        (tmp_path / "log.tgz").write_bytes(b"x" * 101)
        assert StdoutSize(tmp_path, 100, skip=["log.tgz"]).look() == 1


class TestOutputs:
    def test_one_that_is_too_large_is_1124(self, tmp_path):
        (tmp_path / "out").write_bytes(b"x" * 100)
        assert error(OutputSize(tmp_path, ["out"], 100, 10))[0] is Code.OUTPUTFILETOOLARGE

    def test_one_that_has_just_been_created_is_not_an_error(self, tmp_path, caplog):
        (tmp_path / "out").touch()
        look = OutputSize(tmp_path, ["out", "not there yet"], 100, 10)
        with caplog.at_level("INFO"):
            look.look()
            look.look()
        assert caplog.text.count("output out is empty so far") == 1

    def test_one_that_stays_empty_is_1350(self, tmp_path):
        (tmp_path / "out").touch()
        os.utime(tmp_path / "out", (time.time() - 11, time.time() - 11))
        code, text = error(OutputSize(tmp_path, ["out"], 100, 10))
        assert code is Code.EMPTYOUTPUTFILE
        assert text == "out has been empty for 11 s, the limit is 10 s"


class TestClock:
    def test_time_that_is_up_is_1213(self):
        assert error(Walltime(Deadline(0), "the words")) == (Code.REACHEDMAXTIME, "the words")

    def test_time_that_is_not_is_waited_for(self):
        assert Walltime(Deadline(100), "").look() == pytest.approx(100, abs=11)
        assert Walltime(Deadline(), "").look() == math.inf

    def test_a_slot_lasts_as_long_as_the_queue_says_else_as_the_pilot_may_live(self):
        assert slot_seconds(Queue(maxtime=100), 50)[0] == 100
        assert slot_seconds(Queue(), 50) == (50, "the pilot's lifetime is 50 s")

    @pytest.mark.parametrize(
        ("queue", "seconds"),
        [
            (Queue(), 50),
            (Queue(maxtime=100), 100),
            (Queue(maxtime=100, walltime_grace=1.2), 120),
            (Queue(job_maxwalltime=True), 10),
            (Queue(job_maxwalltime=True, maxtime=100, walltime_grace=1.5), 15),
        ],
    )
    def test_the_limit_of_a_job(self, queue, seconds):
        assert job_seconds(Job(job_id=1, max_walltime=10), queue, 50)[0] == pytest.approx(seconds)


class TestShutdown:
    def look(self, environ, answers=None):
        return MachineShutdown(environ, lambda url: (answers or {})[url])

    def test_a_node_without_features_is_never_asked_again(self):
        assert self.look({}).look() == math.inf

    def test_ten_minutes_before_the_machine_goes_down_it_is_1213(self, tmp_path):
        (tmp_path / "shutdowntime").write_text(f"{time.time() + 599}\n")
        code, text = error(self.look({"MACHINEFEATURES": str(tmp_path)}))
        assert code is Code.REACHEDMAXTIME
        assert text.startswith("the machine will be shut down at 20")

    def test_the_end_of_the_job_slot_counts_too(self, tmp_path):
        (tmp_path / "shutdowntime_job").write_text(str(time.time() + 1))
        assert error(self.look({"JOBFEATURES": str(tmp_path)}))[0] is Code.REACHEDMAXTIME

    def test_before_that_the_look_comes_in_time(self, tmp_path):
        (tmp_path / "shutdowntime").write_text(str(time.time() + 620))
        assert self.look({"MACHINEFEATURES": str(tmp_path)}).look() == pytest.approx(20, abs=1)

    @pytest.mark.parametrize("text", ["", "never", "\n", "0", "-1"])
    def test_a_key_that_says_nothing_is_asked_again(self, tmp_path, text):
        (tmp_path / "shutdowntime").write_text(text)
        assert self.look({"MACHINEFEATURES": str(tmp_path), "JOBFEATURES": "/nonexistent"}).look() == 60

    def test_features_may_be_at_a_url(self):
        answers = {"http://127.0.0.1/mf/shutdowntime": f"{time.time():.0f}\n".encode()}
        assert error(self.look({"MACHINEFEATURES": "http://127.0.0.1/mf/"}, answers))[0] is Code.REACHEDMAXTIME


class TestOthers:
    def test_the_kill_file_is_1363(self, tmp_path):
        look = KillFile(tmp_path / "a", tmp_path)
        assert look.look() == 5
        (tmp_path / "pilot_kill_payload").touch()
        assert error(look)[0] is Code.KILLPAYLOAD

    def test_too_many_processes_are_1344(self):
        assert ProcessCount(lambda: [1] * 20, 20).look() == 1
        code, text = error(ProcessCount(lambda: [1] * 21, 20))
        assert (code, text) == (Code.RESOURCEUNAVAILABLE, "the payload has 21 processes, the limit is 20")

    def test_too_many_that_are_wanted_again_and_again_are_too(self):
        refused = iter([1, 1, 1, 2, 2, 5, 6, 7, 9])
        times = iter([0.0, 1.0, 40.0, 41.0, 45.0, 46.0, 47.0, 48.0, 49.0])
        look = ProcessCount(lambda: [1] * 2, 20, lambda: next(refused), lambda: next(times))
        assert [look.look() for _ in range(3)] == [1, 1, 1]  # one moment long before counts no more
        assert [look.look() for _ in range(5)] == [1] * 5
        assert error(look)[1] == "the payload tries to have more than the 20 processes that it may: 9 were refused"


TYPES = [
    {"resource_name": "SCORE", "maxrampercore": 2000},
    {"resource_name": "MCORE", "maxrampercore": 2000},
    {"resource_name": "SCORE_HIMEM", "maxrampercore": None},
    {"resource_name": "ODD", "maxrampercore": "many"},
]


class TestMemoryLimit:
    def mb(self, queue=None, types=TYPES, limits=None, pull=True, **job):
        queue = queue or Queue(rss_grace=1.0, corecount=8)
        return memory_limit(Job(job_id=1, **job), queue, limits or Limits(), types, pull=pull).kb / 1024

    def test_the_limit_of_a_job_file_is_taken_as_it_is(self):
        assert self.mb(limits=Limits(memory_mb=500), types=None) == pytest.approx(500e6 / (1 << 20), abs=0.001)

    def test_a_pilot_that_does_not_end_jobs_for_it_has_none(self):
        assert self.mb(types=None, resource_type="SCORE") == 0

    def test_it_is_what_the_resource_type_allows_for_each_core(self):
        assert self.mb(resource_type="SCORE") == 2000
        assert self.mb(resource_type="MCORE", cores=8) == 16_000

    def test_the_grace_of_the_queue_comes_on_top(self):
        assert self.mb(Queue(), resource_type="SCORE") == 4000
        assert self.mb(Queue(rss_grace=1.5, memkillgrace=120), resource_type="SCORE") == pytest.approx(3600)

    def test_a_very_large_job_has_the_memory_of_the_queue(self):
        queue = Queue(rss_grace=1.0, maxrss=64_000, corecount=8)
        assert self.mb(queue, resource_type="MCORE_VHIMEM", cores=4) == 64_000
        assert self.mb(queue, resource_type="SCORE_VHIMEM") == 8000

    def test_a_type_without_a_maximum_leaves_it_to_the_job(self):
        assert self.mb(resource_type="SCORE_HIMEM", min_ram=3500) == 4000
        assert self.mb(resource_type="SCORE_HIMEM", min_ram=3500, pull=False) == 3500
        assert self.mb(resource_type="ODD", min_ram=1000) == 1000

    def test_a_job_that_says_nothing_has_what_the_queue_has(self):
        assert self.mb(Queue(rss_grace=1.0, maxrss=2500), types=[]) == 2500
        assert self.mb(Queue(rss_grace=1.0), types=[]) == 0

    @pytest.mark.parametrize(
        ("name", "megabytes"),
        [("SCORE", 2000), ("MCORE_LOMEM", 1000), ("SCORE_HIMEM", 3000), ("SCORE_VERYODD", 4001), ("GPU", 4001)],
    )
    def test_without_a_word_of_the_server_there_is_a_table(self, name, megabytes):
        assert self.mb(types=[], resource_type=name) == megabytes


class Given(Meter):
    """Says what it was told."""

    name = "given"

    def __init__(self, *samples):
        self._samples = list(samples)

    def attach(self, subject):
        pass

    def sample(self):
        return self._samples.pop(0)


def sample(pss, **values):
    return Sample(seconds=1.0, processes=2, pss=pss, rss=2 * pss, **values)


class TestMemory:
    LIMIT = MemoryLimit(kb=1000, origin="because")

    def test_more_than_the_limit_is_1235_with_numbers(self):
        tally = Tally()
        code, text = error(Memory(Given(sample(1001)), tally, [self.LIMIT]))
        assert code is Code.PAYLOADEXCEEDMAXMEM
        assert text == "1001 kB (PSS) in 2 processes, the limit is 1000 kB (because)"
        assert tally.peak("pss") == 1001

    def test_the_limit_that_is_passed_is_the_one_that_is_told(self):
        slot = MemoryLimit(kb=1500, origin="the slot", counts="RSS", used=lambda sample: sample.rss)
        code, text = error(Memory(Given(sample(900)), Tally(), [self.LIMIT, slot]))
        assert (code, text) == (
            Code.PAYLOADEXCEEDMAXMEM,
            "1800 kB (RSS) in 2 processes, the limit is 1500 kB (the slot)",
        )

    def test_near_the_limit_there_is_one_warning(self, caplog):
        look = Memory(Given(sample(899), sample(901), sample(950)), Tally(), [self.LIMIT])
        periods = [look.look() for _ in range(3)]
        assert caplog.text.count("the payload is near its memory limit: 901 kB") == 1
        assert max(periods) <= 7

    def test_samples_become_seldom_but_not_too_seldom(self):
        look = Memory(Given(*[sample(10)] * 10), Tally())
        periods = [look.look() for _ in range(10)]
        assert periods[:3] == [0.25, 0.5, 1.0]
        assert 2.0 <= periods[-1] <= 60.0

    def test_all_who_want_to_know_get_each_sample(self):
        seen = []
        Memory(Given(sample(10)), Tally(), (), seen.append).look()
        assert seen == [sample(10)]
