"""What a journal keeps, whatever happens while it is written, and what it tells of a job."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot import journal
from pilot.journal import PHASES, JobState, Journal, Moved
from pilot.masking import Secret
from pilot.staging.copytool import Stored

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.text(min_size=1).filter(lambda name: name not in ("time", "step", "sync", "self"))
facts = st.dictionaries(names, values, max_size=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write(path: Path, *steps: str | tuple[str, dict[str, Any]]) -> JobState:
    one = Journal(path)
    for step in steps:
        name, known = (step, {}) if isinstance(step, str) else step
        one.record(name, **known)
    one.close()
    return journal.state(path)


def steps(path: Path) -> list[str]:
    return [entry.step for entry in journal.read(path)]


@given(st.lists(st.tuples(st.text(), facts), max_size=4))
def test_what_was_recorded_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    before = time.time()
    write(path, *lines)
    entries = journal.read(path)
    assert [(entry.step, entry.facts) for entry in entries] == lines
    assert all(before - 0.001 <= entry.time <= time.time() + 0.001 for entry in entries)


def test_each_line_is_a_json_object_with_time_and_step_first(path: Path) -> None:
    write(path, ("started", {"pid": 4711}))
    line = path.read_text()
    assert line.endswith("}\n")
    assert list(json.loads(line)) == ["time", "step", "pid"]


def test_only_the_owner_may_read_it_and_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    write(path, "log")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        Journal(tmp_path / "link")


@pytest.mark.parametrize(
    "value",
    [Secret("hunter2hunter2"), b"x", Path("x"), {1, 2}, float("nan"), float("inf"), Stored(url="x"), [Secret("x")]],
    ids=["secret", "bytes", "path", "set", "nan", "infinity", "object", "secret in a list"],
)
def test_what_is_no_json_value_is_refused_by_name_and_leaves_no_line(path: Path, value: object) -> None:
    one = Journal(path)
    with pytest.raises(TypeError, match="journal fact 'url': ") as error:
        one.record("moved", lfn="x", url=value)
    assert "hunter2" not in str(error.value)
    with pytest.raises(TypeError, match="'time'"):
        one.record("moved", time=1)
    one.record("log")
    one.close()
    assert steps(path) == ["log"]


@given(st.integers(0, 10_000))
def test_a_line_torn_anywhere_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    write(path, ("acquired", {"job_id": 1}), "stagein", ("failed", {"code": 1099, "diag": "né"}))
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    kept = steps(path)
    assert kept == ["acquired", "stagein", "failed"][: len(kept)]
    assert len(kept) >= path.read_bytes().count(b"\n")
    write(path, "report")
    assert steps(path) == [*kept, "report"]


def test_foreign_lines_are_left_out(path: Path) -> None:
    path.write_bytes(
        b'\xff\xfe\n[1]\n"x"\n\n{"step":"log"}\n{"time":"x","step":"log"}\n{"time":1,"step":2}\n' + b"[" * 99999
    )
    write(path, "report")
    assert steps(path) == ["report"]


def test_a_missing_journal_tells_nothing(path: Path) -> None:
    assert journal.read(path) == []
    assert journal.state(path) == JobState()
    assert journal.state(path).left == ()


def test_lines_of_many_threads_do_not_mix(path: Path) -> None:
    one = Journal(path)

    def work(number: int) -> None:
        for count in range(50):
            one.record("note", number=number, count=count, text="x" * 3000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    entries = journal.read(path)
    assert len(entries) == 200
    for number in range(4):
        assert [entry.facts["count"] for entry in entries if entry.facts["number"] == number] == list(range(50))


def test_a_full_disk_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Journal(tmp_path / "journal.jsonl")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, one._fd)
    os.close(full)
    with caplog.at_level(logging.ERROR):
        one.record("report", sync=True)
    one.close()
    assert "step report is not in the journal" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_killed_pilot_leaves_every_line_it_wrote(path: Path) -> None:
    code = """
import os, pathlib, signal, sys
from pilot.journal import Journal
one = Journal(pathlib.Path(sys.argv[1]))
for number in range(50):
    one.record("note", number=number, sync=number == 49)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(path)], timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [entry.facts["number"] for entry in journal.read(path)] == list(range(50))


ACQUIRED = ("acquired", {"job_id": 4711, "attempt": 2})
STARTED = ("started", {"pid": 99})
ENDED = ("ended", {"exit_code": 0, "signum": None})
FAILED = ("failed", {"code": 1305, "diag": "Failed to execute payload"})
LOG = ("moved", {"kind": "log", "lfn": "log.tgz", "url": "file:///log.tgz"})


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ([], []),
        ([ACQUIRED], list(PHASES)),
        ([ACQUIRED, "stagein"], list(PHASES)),
        ([ACQUIRED, "stagein", "setup"], ["setup", "payload", "stageout", "log", "report"]),
        ([ACQUIRED, "payload", STARTED], ["payload", "stageout", "log", "report"]),
        ([ACQUIRED, "payload", STARTED, ENDED], ["stageout", "log", "report"]),
        ([ACQUIRED, "payload", STARTED, ENDED, FAILED], ["log", "report"]),
        ([ACQUIRED, "stagein", FAILED], ["log", "report"]),
        ([ACQUIRED, "stageout"], ["stageout", "log", "report"]),
        ([ACQUIRED, "log"], ["log", "report"]),
        ([ACQUIRED, "log", LOG], ["report"]),
        ([ACQUIRED, "report"], ["report"]),
        ([ACQUIRED, "report", "unreported"], ["report"]),
        ([ACQUIRED, "report", "reported"], []),
        ([ACQUIRED, "report", FAILED], ["report"]),
    ],
)
def test_a_journal_tells_what_is_left_to_do(path: Path, written: list[Any], left: list[str]) -> None:
    assert list(write(path, *written).left) == left


def test_a_journal_tells_how_far_the_job_came(path: Path) -> None:
    moved = {
        "kind": "output",
        "lfn": "out",
        "guid": "AB",
        "size": 7,
        "adler32": "0a1b2c3d",
        "md5": None,
        "url": "file:///o",
    }
    known = write(
        path,
        ACQUIRED,
        "payload",
        STARTED,
        ("ended", {"exit_code": 3, "signum": None}),
        ("failed", {"code": 1305, "diag": "first"}),
        ("failed", {"code": 1137, "diag": "second"}),
        ("moved", moved | {"size": 6}),
        ("moved", moved),
        ("some later pilot's step", {"x": 1}),
        ("report", {"state": "failed", "code": 1305}),
        "reported",
    )
    assert known == JobState(
        job_id=4711,
        attempt=2,
        phase="report",
        pid=99,
        ended=True,
        exit_code=3,
        moved=(Moved(kind="output", lfn="out", guid="AB", size=7, checksums={"adler32": "0a1b2c3d"}, url="file:///o"),),
        error=(1305, "first"),
        final_state="failed",
        reported=True,
    )
    assert not known.log_stored


@given(
    st.lists(
        st.tuples(st.sampled_from([*PHASES, "acquired", "moved", "started", "ended", "failed"]), facts), max_size=4
    )
)
def test_facts_of_wrong_types_do_no_harm(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    lines = [(step, known | {"code": "x", "lfn": 1}) for step, known in lines]
    assert set(write(path, *lines).left) <= set(PHASES)


def test_an_output_that_was_removed_from_its_storage_is_not_stored(tmp_path):
    own = Journal(tmp_path / "journal.jsonl")
    for lfn in "ab":
        own.record("moved", kind="output", lfn=lfn, size=1, url=f"x://{lfn}", endpoint="RSE")
    own.record("removed", kind="output", lfn="a")
    own.close()
    (left,) = journal.state(tmp_path / "journal.jsonl").moved
    assert (left.lfn, left.endpoint) == ("b", "RSE")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_what_a_payload_put_in_the_place_of_a_journal_is_no_journal(path: Path, make: Any) -> None:
    make(path)
    with pytest.raises(OSError):  # at once: to open a pipe would wait for ever, a device has no end
        journal.state(path)
