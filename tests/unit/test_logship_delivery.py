"""Records arrive once, in order and soon; what cannot arrive is counted and said; nobody waits for a dead sink."""

import asyncio
import json
import os
import time
from errno import ENOSPC

import pytest

from pilot.logship.queue import RecordQueue
from pilot.logship.record import Origin, Record, severity_of
from pilot.logship.shipper import LogShip
from pilot.logship.sink import LogSink, SinkContext, SinkError
from pilot.masking import Masker
from pilot.stop import Deadline
from plugins.logsinks.file import FileSink
from tests.parts.logs import make_record

ORIGIN = Origin(task_id="7", job_id="42", host="wn1", queue="Q")


class Memory(LogSink):
    """Keeps what it gets; `faults` are raised first, one a call."""

    name = "memory"

    def __init__(self, *faults, delay=0.0, max_records=500):
        super().__init__(SinkContext(timeout=2))
        self.got = []
        self.times = []
        self.calls = 0
        self._faults = list(faults)
        self._delay = delay
        self.max_records = max_records

    def send(self, batch):
        self.calls += 1
        time.sleep(self._delay)
        if self._faults:
            raise self._faults.pop(0)
        self.got += batch
        self.times += [time.time()] * len(batch)


def ship(tmp_path, *sinks, **options):
    return LogShip(ORIGIN, tmp_path, Masker(), sinks, tmp_path / "spool", **options)


def texts(sink):
    return [record.fields.get("message") for record in sink.got]


async def run(log, write, seconds=5.0):
    log.start()
    await write()
    await log.finish(Deadline(seconds))


def test_lines_of_several_files_arrive_with_all_they_need(tmp_path):
    sink = Memory()
    log = ship(tmp_path, sink)
    log.enter("payload")
    out, data = tmp_path / "payload.stdout", tmp_path / "events.json"
    for path in (out, data):
        log.follow(path)

    async def write():
        out.write_text("hello\nERROR: no disk\n")
        data.write_text('{"event": 1, "level": "warning", "PandaJobID": "forged"}\n')

    asyncio.run(run(log, write))
    by_file = {}
    for record in sink.got:
        by_file.setdefault(record.source, []).append(record.fields)
    hello, error = by_file["payload.stdout"]
    assert hello["message"] == "hello"
    assert {
        "TaskID": "7",
        "PandaJobID": "42",
        "Harvester_WorkerID": "",
        "RequestID": "",
        "host": "wn1",
    }.items() <= hello.items()
    assert (hello["line"], hello["seq"], hello["phase"], hello["severity"]) == (1, 1, "payload", "INFO")
    assert (error["seq"], error["severity"]) == (2, "ERROR")
    (event,) = by_file["events.json"]
    assert (event["event"], event["severity"], event["PandaJobID"]) == (1, "WARNING", "42")


def test_the_first_line_is_there_within_a_second(tmp_path):
    sink = Memory()
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    log.follow(path)
    written = []

    async def write():
        await asyncio.sleep(1.5)  # quiet at first: the kernel is asked to tell
        path.write_text("first\n")
        written.append(time.time())
        while not sink.got:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(log, write), 10))
    assert sink.times[0] - written[0] < 1.0


def test_a_sink_in_trouble_gets_everything_once_and_in_order_when_it_is_back(tmp_path):
    sink = Memory(SinkError("429"), OSError("reset"), SinkError("503"))
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    log.follow(path)

    async def write():
        for number in range(1000):
            with open(path, "a") as file:
                file.write(f"{number}\n")
            if number % 100 == 0:
                await asyncio.sleep(0.02)
        while len(sink.got) < 1000:
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(run(log, write), 20))
    assert texts(sink) == [str(number) for number in range(1000)]
    assert log.losses() == {}


def test_a_sink_that_asks_for_time_gets_it(tmp_path):
    sink = Memory(SinkError("429", after=1.3))
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    path.write_text("x\n")
    log.follow(path)
    began = time.time()

    async def write():
        while not sink.got:
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(run(log, write), 10))
    assert sink.times[0] - began >= 1.3
    assert sink.calls == 2


def test_what_neither_memory_nor_disk_can_hold_is_counted_and_said_in_stream_and_log(tmp_path, caplog):
    sink = Memory(*[SinkError("503")] * 3)
    log = ship(tmp_path, sink, spool_limit=1 << 20)
    path = tmp_path / "log"
    log.follow(path)

    async def write():
        with open(path, "w") as file:
            for number in range(20_000):
                file.write(f"{number} {'x' * 200}\n")
        while not sink.got or len(sink.got) + log.losses().get("memory", 0) < 20_000:
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(run(log, write), 20))
    lost = log.losses()["memory"]
    lines = [text for text in texts(sink) if "xxx" in text]
    told = [int(text.split()[-3]) for text in texts(sink) if "lines were lost or kept back" in text]
    assert 20_000 <= len(lines) + lost <= 20_002  # what tells of losses can be lost, too
    assert lines[-1].startswith("19999 ")
    assert told[-1] == lost
    assert "lines were lost or kept back" in caplog.text
    spool = tmp_path / "spool" / "0-memory"
    assert not spool.exists() or list(spool.iterdir()) == []


def test_a_file_that_is_named_while_it_runs_is_followed_unless_it_leads_out(tmp_path):
    sink = Memory()
    log = ship(tmp_path / "job", sink)
    (tmp_path / "job").mkdir()
    (tmp_path / "secret").write_text("not ours\n")

    async def write():
        await asyncio.sleep(1.5)  # nothing to follow, so nothing is looked at
        (tmp_path / "job" / "my.log").write_text("hello\n")
        assert log.follow_name("my.log")
        assert not log.follow_name("../secret")
        assert not log.follow_name(str(tmp_path / "secret"))
        began = time.monotonic()
        while not sink.got:
            await asyncio.sleep(0.02)
        assert time.monotonic() - began < 1
        (tmp_path / "job" / "workDir").mkdir()
        (tmp_path / "job" / "workDir" / "below.log").write_text("deeper\n")
        assert log.follow_name("below.log")

    asyncio.run(asyncio.wait_for(run(log, write), 10))
    assert texts(sink) == ["hello", "deeper"]


def test_files_that_match_are_followed_as_they_come(tmp_path):
    sink = Memory()
    log = ship(tmp_path, sink)
    log.follow(tmp_path / "log")
    log.follow_matching(tmp_path / "workDir" / "tmp.stdout.*")

    async def write():
        await asyncio.sleep(1.0)  # quiet at first
        (tmp_path / "workDir").mkdir()
        for name in ("a", "b"):
            began = time.monotonic()
            (tmp_path / "workDir" / f"tmp.stdout.{name}").write_text(f"{name}\n")
            (tmp_path / "workDir" / f"other.{name}").write_text("not asked for\n")
            while name not in texts(sink):
                await asyncio.sleep(0.02)
            assert time.monotonic() - began < 1.0
            await asyncio.sleep(1.2)

    asyncio.run(asyncio.wait_for(run(log, write), 10))
    assert [record.source for record in sink.got] == ["workDir/tmp.stdout.a", "workDir/tmp.stdout.b"]


def test_a_quiet_file_that_is_rotated_or_comes_back_is_noticed_at_once(tmp_path):
    sink = Memory()
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    path.write_text("one\n")
    log.follow(path)
    taken = []

    async def write():
        for text in ("two", "three"):
            await asyncio.sleep(1.5)  # the kernel is asked to tell
            if text == "two":
                path.rename(tmp_path / "log.1")
            else:
                path.unlink()
            path.write_text(f"{text}\n")
            began = time.monotonic()
            while texts(sink)[-1:] != [text]:
                await asyncio.sleep(0.01)
            taken.append(time.monotonic() - began)

    asyncio.run(asyncio.wait_for(run(log, write), 20))
    assert texts(sink) == ["one", "two", "three"]
    assert max(taken) < 1


def test_a_kernel_that_overlooks_lines_is_not_trusted_again(tmp_path, monkeypatch):
    """As for a file that another node writes."""
    waits = []

    async def nothing_happened(self, seconds):
        waits.append(seconds)
        if not path.exists():
            path.write_text("from elsewhere\n")
        return False

    monkeypatch.setattr("pilot.logship.notice.Notice.wait", nothing_happened)
    sink = Memory()
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    log.follow(path)

    async def write():
        while not sink.got:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.5)

    asyncio.run(asyncio.wait_for(run(log, write), 10))
    assert len(waits) == 1


def test_the_rhythm_of_looks_does_without_the_kernels_notice(tmp_path, monkeypatch):
    def none(self):
        raise OSError(24, "too many")

    monkeypatch.setattr("pilot.logship.notice.Notice.__init__", none)
    test_the_first_line_is_there_within_a_second(tmp_path)


def test_a_batch_that_is_refused_for_good_is_counted_and_said(tmp_path):
    sink = Memory(SinkError("too big", retry=False), max_records=1)
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    log.follow(path)

    async def write():
        path.write_text("bad\ngood\n")
        while not sink.got:
            await asyncio.sleep(0.05)
        path.write_text("bad\ngood\nlast\n")

    asyncio.run(asyncio.wait_for(run(log, write), 10))
    assert log.losses() == {"memory": 1}
    assert "good" in texts(sink)
    assert any("1 lines were lost" in str(text) for text in texts(sink))


def test_a_dead_sink_holds_up_neither_the_others_nor_the_end(tmp_path):
    dead, good = Memory(delay=30), Memory()
    log = ship(tmp_path, dead, good)
    path = tmp_path / "log"
    path.write_text("line\n" * 10)
    log.follow(path)

    async def write():
        while len(good.got) < 10:
            await asyncio.sleep(0.02)

    began = time.monotonic()
    asyncio.run(run(log, write, seconds=1.0))
    assert time.monotonic() - began < 5
    assert log.losses() == {"memory": 10}


@pytest.mark.parametrize("slow", [Memory(delay=0.3, max_records=100), Memory(*[SinkError("503")] * 99)])
def test_at_the_end_a_slow_sink_gets_its_time_and_a_dead_one_does_not(tmp_path, slow):
    log = ship(tmp_path, slow)
    path = tmp_path / "log"
    log.follow(path)
    dead = bool(slow._faults)

    async def main():
        log.start()
        path.write_text("".join(f"{number}\n" for number in range(800)))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await log.finish(Deadline(20), patience=0.6)
        return time.monotonic() - began

    took = asyncio.run(main())
    assert took < 1.5 if dead else took > 1.5
    assert log.losses() == ({"memory": 800} if dead else {})


def test_less_time_at_the_end_is_less_time_and_no_line_is_sent_twice(tmp_path):
    sinks = Memory(delay=0.3, max_records=100), Memory()
    log = ship(tmp_path, *sinks)
    path = tmp_path / "log"
    path.write_text("".join(f"{number}\n" for number in range(800)))
    log.follow(path)

    async def main():
        log.start()
        first = asyncio.create_task(log.finish(Deadline(20)))
        await asyncio.sleep(0.5)
        first.cancel()
        await log.finish(Deadline(0.4))
        log.enter("report")

    asyncio.run(main())
    assert texts(sinks[1]) == [str(number) for number in range(800)]
    assert 800 - len(sinks[0].got) <= log.losses()["memory"] < 800  # of what is under way nobody knows


def test_a_sink_whose_trouble_shows_at_the_end_has_no_more_time_than_one_that_was_in_trouble(tmp_path):
    sink = Memory(*[SinkError("503")] * 99)
    sink.context = SinkContext(timeout=15)
    log = ship(tmp_path, sink)
    (tmp_path / "log").write_text("line\n")
    log.follow(tmp_path / "log")

    async def main():
        log.start()
        began = time.monotonic()
        await log.finish(Deadline(20), patience=0.6)
        return time.monotonic() - began

    assert asyncio.run(main()) < 8
    assert log.losses() == {"memory": 1}


def test_a_sink_that_answers_late_is_not_called_again_before(tmp_path):
    sink = Memory(delay=1.6, max_records=10)
    sink.context = SinkContext(timeout=0.1)
    log = ship(tmp_path, sink)
    path = tmp_path / "log"
    path.write_text("line\n" * 10)
    log.follow(path)

    async def write():
        await asyncio.sleep(1.5)

    asyncio.run(run(log, write))
    assert (sink.calls, len(sink.got), log.losses()) == (1, 10, {})


def test_a_disk_that_is_full_in_the_middle_of_a_batch_leaves_no_torn_line(tmp_path, monkeypatch):
    sink = FileSink(SinkContext(url=str(tmp_path / "out.jsonl")))
    batch = [make_record({}, source="s", number=1, sequence=n, phase="", text=f"{n}") for n in (1, 2)]
    write, room = os.write, iter([100])
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[: next(room, None) or fail(ENOSPC)]))
        with pytest.raises(SinkError, match="No space"):
            sink.send(batch)
    sink.send(batch)
    sink.send(batch[:1])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 1]


def fail(number):
    raise OSError(number, os.strerror(number))


def test_more_than_the_rate_is_kept_back_and_counted(tmp_path):
    sink = Memory()
    log = ship(tmp_path, sink, rate=10)
    path = tmp_path / "log"
    path.write_text("".join(f"{number}\n" for number in range(1000)))
    log.follow(path)

    async def write():
        await asyncio.sleep(0.3)

    asyncio.run(run(log, write))
    sent = [text for text in texts(sink) if text.isdigit()]
    assert sent == [str(number) for number in range(len(sent))]
    assert 100 <= len(sent) < 120
    assert log.losses()["rate"] == 1000 - len(sent)


def test_what_memory_cannot_hold_goes_to_disk_and_then_the_oldest_go(tmp_path):
    queue = RecordQueue(tmp_path / "spool", spool_limit=3 << 20)
    records = [make_record({}, source="f", number=n, sequence=n, phase="", text="x" * 1000) for n in range(1, 10_001)]
    queue.extend(records)
    assert queue.lost > 0
    assert len(queue) + queue.lost == len(records)
    assert sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) < 5 << 20
    seen = []
    while batch := queue.peek(500, 1 << 20):
        seen += [record.sequence for record in batch]
        queue.drop(len(batch))
    assert seen == sorted(seen)
    assert len(seen) == len(records) - queue.lost
    assert seen[-1] == 10_000
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_record_survives_the_spool():
    record = make_record(ORIGIN.fields(), source="f", number=3, sequence=2, phase="payload", text="ü ERROR")
    again = Record.from_json(record.to_json())
    assert (again.fields, again.to_json()) == (record.fields, record.to_json())
    for each in ("when", "severity", "source", "sequence", "message"):
        assert getattr(again, each) == getattr(record, each)


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        ("2026-11-22 03:00:00,1 | WARNING  | pilot | f | text", "WARNING"),
        ("Traceback (most recent call last):", "ERROR"),
        ("ValueError: bad", "ERROR"),
        ("FATAL out of memory", "CRITICAL"),
        ("no ERRORS here, just INFORMATION", "INFO"),
        ("0 errors", "INFO"),
        ("DEBUG x", "DEBUG"),
    ],
)
def test_the_severity_is_found_in_the_text(line, severity):
    assert severity_of(line) == severity


def test_the_file_sink_writes_lines_of_json(tmp_path):
    target = tmp_path / "out.jsonl"
    log = ship(tmp_path, FileSink(SinkContext(url=f"file://{target}")))
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    log.follow(path)

    async def write():
        await asyncio.sleep(0)

    asyncio.run(run(log, write))
    assert [json.loads(line)["message"] for line in target.read_text().splitlines()] == ["one", "two"]
