"""Who may transfer, how fast it must go, what room there is, and the line that tells it."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import time
from pathlib import Path

import pytest

from pilot.cli.terminal import Terminal
from pilot.errors import Code, Trait, TransferError
from pilot.job import File, Job, Kind
from pilot.outcome import Shown
from pilot.staging.call import StagingLimits, storage_of
from pilot.staging.engine import StagingEngine
from pilot.staging.faults import Direction
from pilot.staging.pace import Pace, PaceLimits
from pilot.staging.plan import Candidate
from pilot.staging.progress import ProgressLine, duration
from pilot.staging.result import Progress, StagingResult
from pilot.staging.room import Room
from pilot.staging.slots import Slots
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop
from pilot.testing.copytool import Programs, checksums, content

# --------------------------------------------------------------------------------------------------------------- slots


def order(slots: Slots, wanted: list[str], hold=lambda storage: 0) -> list[str]:
    """The order in which transfers begin; each holds its place for so many turns of the loop."""
    began = []

    async def one(storage: str) -> None:
        async with slots.place(storage):
            began.append(storage)
            for _ in range(hold(storage)):
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(one(storage) for storage in wanted))

    asyncio.run(main())
    return began


def test_storages_take_turns_whatever_the_order_of_the_files():
    assert order(Slots(1), list("aaabbc")) == list("abcaba")


def test_a_slow_storage_leaves_places_to_the_others():
    began = order(Slots(4), ["slow"] * 8 + ["quick"] * 20, lambda storage: 1000 if storage == "slow" else 3)
    assert began[:22].count("slow") == 2


def test_a_storage_has_no_more_than_its_limit():
    running, most = [], []

    async def one(slots: Slots, storage: str) -> None:
        async with slots.place(storage):
            running.append(storage)
            most.append(running.count("a"))
            await asyncio.sleep(0.001)
            running.remove(storage)

    async def main() -> None:
        slots = Slots(4, 2)
        await asyncio.gather(*(one(slots, storage) for storage in "aaaaaabb"))

    asyncio.run(main())
    assert max(most) == 2


def test_who_goes_away_while_waiting_or_having_loses_no_place():
    async def main() -> None:
        slots = Slots(1)

        async def hold() -> None:
            async with slots.place("a"):
                await asyncio.sleep(60)

        first, second = asyncio.ensure_future(hold()), asyncio.ensure_future(hold())
        await asyncio.sleep(0.01)
        second.cancel()
        first.cancel()
        await asyncio.wait({first, second})
        async with asyncio.timeout(1), slots.place("b"):
            pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "endpoint", "storage"),
    [("/a/b", "", ""), ("root://h:1//x", "", "h:1"), ("s3://k:s@h/x", "", "h"), ("root://h//x", "DISK", "DISK")],
)
def test_a_storage_is_an_endpoint_else_a_host(url, endpoint, storage):
    assert storage_of(Candidate(tool="t", url=url, endpoint=endpoint)) == storage


# ---------------------------------------------------------------------------------------------------------------- pace


def verdict(steps, size=1000, **limits) -> TransferError | None:
    """The first fault while `steps` go by: pairs of seconds since the start and bytes moved."""
    now = [0.0]
    pace = Pace(PaceLimits(**{"idle": 30, "speed": 10, "window": 100, **limits}), Direction.IN, size, lambda: now[0])
    for second, moved in steps:
        now[0] = second
        if fault := pace.fault(moved):
            return fault
    return None


def test_before_the_first_byte_a_tape_may_take_its_time():
    assert verdict([(second, 0) for second in range(0, 100_000, 10)]) is None


def test_after_the_last_byte_a_storage_may_take_its_time():
    assert verdict([(0, 0), (1, 1000), *((second, 1000) for second in range(2, 9000))]) is None


def test_no_byte_for_too_long_is_worth_another_try():
    fault = verdict([(0, 0), (1, 500), (20, 500), (32, 500)])
    assert (fault.code, fault.trait) == (Code.STAGEINTIMEOUT, Trait.RETRY)
    assert "no byte for 31 s, after 500" in fault.detail


def test_a_trickle_is_ended_after_a_window_and_not_before():
    steps = [(second, 5 * second) for second in range(0, 150, 5)]
    assert verdict(steps[:18]) is None
    fault = verdict(steps)
    assert (fault.code, fault.trait) == (Code.STAGEINTIMEOUT, Trait.NEXT)
    assert "5 bytes/s" in fault.detail


def test_a_pause_in_a_good_transfer_is_no_trickle():
    steps = [(0, 0), (1, 3000), *((second, 3000) for second in range(2, 29)), (29, 6000), (101, 6001)]
    assert verdict(steps, size=9000, idle=0) is None


def test_a_transfer_of_unknown_size_is_judged_from_its_first_byte():
    assert verdict([(0, 0), (500, 0), (501, 7), (532, 7)], size=None).trait is Trait.RETRY


def test_nothing_is_ended_where_nothing_is_set():
    assert verdict([(second, 1) for second in range(0, 9000, 10)], idle=0, speed=0) is None


@pytest.mark.parametrize(("limits", "seconds"), [({}, 10), ({"idle": 1}, 0.1), ({"idle": 0, "speed": 0}, 10)])
def test_looks_are_as_frequent_as_the_limits_need(limits, seconds):
    assert PaceLimits(**limits).interval == seconds


# ---------------------------------------------------------------------------------------------------------------- room


def test_two_calls_cannot_count_on_the_same_bytes(tmp_path):
    room = Room(lambda directory: 100)
    with room.reserved("first", 60, tmp_path, lambda: 0):
        assert room.left(tmp_path) == 40
        with pytest.raises(TransferError) as caught, room.reserved("second", 41, tmp_path, lambda: 0):
            pass
        assert (caught.value.code, caught.value.trait) == (Code.NOLOCALSPACE, Trait.FATAL)
        assert "second have 41 bytes" in caught.value.detail
        with room.reserved("third", 40, tmp_path, lambda: 0):
            assert room.left(tmp_path) == 0
    assert room.left(tmp_path) == 100


def test_what_is_written_is_not_counted_twice(tmp_path):
    free, written = [100], [0]
    room = Room(lambda directory: free[0])
    with room.reserved("one", 60, tmp_path, lambda: written[0]):
        free[0], written[0] = 60, 40
        assert room.left(tmp_path) == 40
        written[0] = 70
        assert room.left(tmp_path) == 60


def test_another_disk_is_another_matter(tmp_path):
    room = Room(lambda directory: 100)
    with room.reserved("one", 60, tmp_path, lambda: 0):
        assert room.left(Path("/proc")) == 100


# ------------------------------------------------------------------------------------------------------------ progress


def test_the_line_says_files_bytes_speed_and_time_left():
    now = [0.0]
    progress = Progress(Direction.IN, 8, 4_000_000_000)
    line = ProgressLine(progress, lambda: now[0])
    assert line.text() == "stage-in: 0 of 8 files, 0 B of 4.0 GB"
    now[0], progress.done, progress.finished = 10.0, 3, 1_200_000_000
    assert line.text() == "stage-in: 3 of 8 files, 1.2 of 4.0 GB, 120.0 MB/s, 23 s left"
    now[0] = 30.0
    assert line.text() == "stage-in: 3 of 8 files, 1.2 of 4.0 GB"  # nothing moved of late


def test_the_line_of_unknown_sizes_promises_nothing():
    progress = Progress(Direction.OUT, 1, 0)
    progress.finished = 5
    assert ProgressLine(progress).text().startswith("stage-out: 0 of 1 files, 5 B")


@pytest.mark.parametrize(("seconds", "text"), [(33.4, "33 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


# -------------------------------------------------------------------------------------------------- with real transfers


class Copies:
    """Files in a directory, from and to another one by mv."""

    def __init__(self, top: Path, **limits) -> None:
        self.top = top
        for name in ("there", "job"):
            (top / name).mkdir()
        tools = ToolBox(launch_dir=top, settings={"mv_stagein": "copy", "mv_stageout": "copy"})
        limits = StagingLimits(**{"pause": 0.001, "attempts_out": 1, **limits})
        self.engine = StagingEngine(plan=self, tools=tools, launcher=Programs(), limits=limits)

    def sources(self, file: File) -> list[Candidate]:
        return [Candidate(tool="mv", url=str(self.top / "there" / file.lfn))]

    destinations = sources

    def out(self, *names: str):
        files = [File(lfn=name, kind=Kind.OUTPUT) for name in names]

        async def main():
            return await self.engine.stage_out(files, self.top / "job", Stop())

        return asyncio.run(main())

    def bring(self, *names: str, **facts):
        files = [File(lfn=name, kind=Kind.INPUT, **facts) for name in names]

        async def main():
            return await self.engine.stage_in(files, self.top / "job", Stop())

        return asyncio.run(main())

    def output(self, name: str, data: bytes, age: float = 10.0) -> Path:
        path = self.top / "job" / name
        path.write_bytes(data)
        past = time.time() - age
        os.utime(path, (past, past))
        time.sleep(0.12)  # the time of the inode cannot be set
        return path


def reads_of(monkeypatch, path: Path) -> list[Path]:
    """The files that are summed up by themselves from now on, as far as they are `path`."""
    from pilot.staging import mover

    seen, real = [], mover.file_checksums

    def spy(of: Path, *args, **named):
        if of == path and list(args[0]):
            seen.append(of)
        return real(of, *args, **named)

    monkeypatch.setattr(mover, "file_checksums", spy)
    return seen


def test_an_output_that_is_copied_is_read_once(tmp_path, monkeypatch):
    place, data = Copies(tmp_path), content(3 << 20)
    path = place.output("a", data)
    seen = reads_of(monkeypatch, path)
    (staged,) = place.out("a").staged
    assert staged.checksums == {"adler32": checksums(data)["adler32"]}
    assert (tmp_path / "there" / "a").read_bytes() == data
    assert seen == []


def test_an_output_that_was_written_a_moment_ago_is_read_before_too(tmp_path, monkeypatch):
    place = Copies(tmp_path)
    path = tmp_path / "job" / "a"
    seen = reads_of(monkeypatch, path)
    path.write_bytes(b"fresh")
    (staged,) = place.out("a").staged
    assert staged.checksums == {"adler32": checksums(b"fresh")["adler32"]}
    assert seen == [path]


def test_all_types_that_are_wanted_are_computed_before(tmp_path):
    place = Copies(tmp_path, checksum_types=("adler32", "md5"))
    place.output("a", b"data")
    (staged,) = place.out("a").staged
    assert staged.checksums == checksums(b"data")


def changed_meanwhile(tmp_path, monkeypatch, change) -> object:
    """Stage out a file that `change(path)` changes when a part of it has been copied."""
    from copytools import mv

    place = Copies(tmp_path)
    path = place.output("a", content(3 << 20))

    class Meddling(mv.Hasher):
        blocks = 0

        def update(self, data: memoryview) -> None:
            super().update(data)
            Meddling.blocks += 1
            if Meddling.blocks == 2:
                change(path)

    monkeypatch.setattr(mv, "Hasher", Meddling)
    return place.out("a")


def write_inside(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"changed")


def write_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    write_inside(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("change", [write_inside, write_and_set_the_time_back, replace_by_another])
def test_a_source_that_changes_while_it_is_copied_is_found_and_its_copy_removed(tmp_path, monkeypatch, change):
    result = changed_meanwhile(tmp_path, monkeypatch, change)
    assert result.error.code is Code.STAGEOUTFAILED
    assert "changed while it was copied" in result.error.detail
    assert list((tmp_path / "there").iterdir()) == []


def test_a_file_that_is_there_already_is_compared_when_nothing_was_read_before(tmp_path):
    place = Copies(tmp_path)
    place.output("same", b"same")
    place.output("other", b"mine")
    (tmp_path / "there" / "same").write_bytes(b"same")
    (tmp_path / "there" / "other").write_bytes(b"your")
    result = place.out("same", "other")
    assert [staged.checksums for staged in result.staged] == [{"adler32": checksums(b"same")["adler32"]}]
    assert result.error.code is Code.FILEEXISTS
    assert (tmp_path / "there" / "other").read_bytes() == b"your"


def test_inputs_of_unknown_size_are_ended_when_they_are_too_large(tmp_path):
    place = Copies(tmp_path, input_size=5 << 20, pace=PaceLimits(idle=0.5), parallel=1)
    for name in "ab":
        (tmp_path / "there" / name).write_bytes(content(8 << 20))
    result = place.bring("a", "b")
    assert result.error.code is Code.SIZETOOLARGE


def test_the_log_says_how_far_transfers_are(tmp_path, caplog):
    caplog.set_level("INFO")
    place = Copies(tmp_path, tell_every=0.01)
    names = [f"{number}" for number in range(8)]
    for name in names:
        (tmp_path / "there" / name).write_bytes(content(16 << 20))
    place.bring(*names, size=16 << 20)
    lines = [message for message in caplog.messages if message.startswith("stage-in: ")]
    assert lines
    assert all(" of 8 files, " in line and "MB" in line for line in itertools.islice(lines, 1, None))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_of_a_job_has_its_transfers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    screen, job = Screen(), Job(job_id=1)
    terminal = Terminal(screen)
    terminal.job(job)
    terminal.phase(job, "stagein")
    shown = Shown(terminal, job)
    shown.started(Progress(Direction.IN, 8, 4_000_000_000))
    terminal.phase(job, "stagein")
    assert "bringing inputs 0.0 s, 0 of 8 files, 0 B of 4.0 GB" in screen.getvalue()
    shown.ended(StagingResult())
    screen.truncate(0)
    terminal.phase(job, "payload")
    assert "files" not in screen.getvalue()
