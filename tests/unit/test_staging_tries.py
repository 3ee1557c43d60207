"""What is tried after what, what is remembered of it, what is told; and inputs that stay where they are."""

from __future__ import annotations

import threading
import time

import pytest

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.choice import Candidate
from pilot.staging.copytool import Stored
from pilot.staging.engine import StagingEngine
from pilot.staging.history import History
from pilot.staging.result import Observers, StagingObserver, Trial
from tests.unit.test_staging_engine import Fixed, Scripted, at, code, engine, inputs, outputs, run, stage_in, stage_out

DOWN = TransferError(Code.STAGEINFAILED, "down", Trait.NEXT)
WRONG = TransferError(Code.GETADMISMATCH, "wrong", Trait.NEXT)


def a(endpoint: str, name: str) -> Candidate:
    return at(f"test://{endpoint}/{name}", endpoint=endpoint)


# ------------------------------------------------------------------------------------------------------------- history


def test_what_failed_for_some_files_in_a_row_is_shunned_until_it_works_again():
    history = History(patience=2)
    bad, good = a("BAD", "f"), a("GOOD", "f")
    history.failed(bad, DOWN)
    assert not history.shuns(bad)
    history.failed(a("BAD", "g"), DOWN)
    assert history.shuns(bad)
    assert not history.shuns(good)
    assert history.overtaken(bad, [good])
    assert not history.overtaken(bad, [])
    history.failed(good, DOWN)
    history.failed(good, DOWN)
    assert not history.overtaken(bad, [good]), "others that fail too are no better"
    history.worked(bad)
    assert not history.shuns(bad)


def test_a_bad_file_is_not_the_fault_of_who_moved_it():
    history = History(patience=1)
    for bad in (Code.MISSINGINPUTFILE, Code.GETADMISMATCH, Code.FILEEXISTS, Code.NOLOCALSPACE):
        history.failed(a("X", "f"), TransferError(bad))
    assert not history.shuns(a("X", "f"))


@pytest.mark.parametrize(("error", "calls"), [(DOWN, 3), (WRONG, 8)])
def test_a_storage_that_is_down_costs_only_the_first_files_a_try(tmp_path, error, calls):
    names = [f"f{number}" for number in range(8)]
    tool = Scripted({f"test://BAD/{name}": [error] for name in names})
    plan = {name: [a("BAD", name), a("GOOD", name)] for name in names}
    result = stage_in(engine(tmp_path, plan, tool, parallel=1), inputs(*names), tmp_path)
    assert result.error is None
    assert len([url for url in tool.calls if "BAD" in url]) == calls
    assert len([url for url in tool.calls if "GOOD" in url]) == 8


def test_files_that_wait_for_their_turn_hear_what_failed_meanwhile(tmp_path):
    names = [f"f{number}" for number in range(20)]
    tool = Scripted({f"test://BAD/{name}": [lambda *_: time.sleep(0.02) or raising(DOWN)] for name in names})
    plan = {name: [a("BAD", name), a("GOOD", name)] for name in names}
    result = stage_in(engine(tmp_path, plan, tool, parallel=4), inputs(*names), tmp_path)
    assert result.error is None
    assert len([url for url in tool.calls if "BAD" in url]) <= 8, "four at once, twice"


def raising(error: PilotError) -> None:
    raise error


def test_a_storage_that_is_shunned_is_tried_when_nothing_else_is_left(tmp_path):
    names = [f"f{number}" for number in range(5)]
    tool = Scripted({f"test://BAD/{name}": [DOWN] for name in names[:3]} | {"test://GOOD/f4": [DOWN]})
    plan = {name: [a("BAD", name), a("GOOD", name)] for name in names}
    result = stage_in(engine(tmp_path, plan, tool, parallel=1), inputs(*names), tmp_path)
    assert result.error is None
    assert tool.calls[-2:] == ["test://GOOD/f4", "test://BAD/f4"]


# ------------------------------------------------------------------------------------------------------------ the story


class Trials(StagingObserver):
    def __init__(self) -> None:
        self.all: list[Trial] = []

    def tried(self, trial: Trial) -> None:
        self.all.append(trial)


def test_every_try_is_told_with_its_end(tmp_path):
    trials, others = Trials(), Trials()
    busy = TransferError(Code.STAGEINFAILED, "busy")
    tool = Scripted({"test://A/f": [busy, busy, busy], "test://B/f": [b"x"]})
    made = engine(tmp_path, {"f": [a("A", "f"), a("B", "f")]}, tool, Observers(trials, others))
    stage_in(made, inputs("f"), tmp_path)
    told = [(trial.endpoint, trial.error and trial.error.code, bool(trial.staged)) for trial in trials.all]
    assert told == [("A", 1099, False)] * 3 + [("B", None, True)]
    assert others.all == trials.all
    assert all(trial.began > 1e9 and 0 <= trial.seconds < 1 for trial in trials.all)


def test_a_try_that_failed_tells_how_much_it_was_to_move(tmp_path):
    trials, tool = Trials(), Scripted({"test://A/f": [WRONG]})
    stage_out(engine(tmp_path, {"f": [a("A", "f")]}, tool, trials), outputs(tmp_path, "f"), tmp_path)
    assert [trial.file.size for trial in trials.all] == [len(b"output")]


def test_tries_that_failed_in_the_same_manner_are_one_line(tmp_path):
    full = [TransferError(Code.STAGEOUTFAILED, f"PUT test://A/f.77-0123456{end}.partial: full") for end in "789"]
    made = engine(tmp_path, {"f": [a("A", "f")]}, Scripted({"test://A/f": full}), attempts_out=3)
    result = stage_out(made, outputs(tmp_path, "f"), tmp_path)
    assert result.story == ["f: scripted test://A/f: Failed to stage-out file: PUT full (3 tries)"]


def test_what_is_reported_of_a_presigned_url_has_no_signature(tmp_path):
    url = "https://A/f?X-Amz-Date=1&X-Amz-Signature=secret"
    made = engine(tmp_path, {"f": [at(url)]}, Scripted({url: [b"x"]}))
    assert [staged.url for staged in stage_in(made, inputs("f"), tmp_path).staged] == ["https://A/f"]


def test_an_observer_that_fails_does_so_alone(tmp_path, caplog):
    class Broken(StagingObserver):
        def tried(self, trial: Trial) -> None:
            raise RuntimeError("a bug")

    trials = Trials()
    tool = Scripted({"test://A/f": [b"x"]})
    result = stage_in(engine(tmp_path, {"f": [a("A", "f")]}, tool, Observers(Broken(), trials)), inputs("f"), tmp_path)
    assert (result.error, len(trials.all)) == (None, 1)
    assert "Broken failed" in caplog.text


def test_a_file_that_cannot_be_planned_is_the_one_that_is_named_first(tmp_path):
    lost = TransferError(Code.NOREPLICAS, "g has none", Trait.FATAL)
    result = stage_in(engine(tmp_path, {"f": [a("A", "f")], "g": lost}, Scripted({})), inputs("f", "g"), tmp_path)
    assert [failure.file.lfn for failure in result.failed] == ["g", "f"]


def test_the_time_of_a_try_begins_with_its_turn(tmp_path):
    trials, gate = Trials(), threading.Event()
    tool = Scripted({"test://A/f": [lambda *_: gate.wait(0.2) or b"x"], "test://A/g": [b"x"]})
    plan = {"f": [a("A", "f")], "g": [a("A", "g")]}
    stage_in(engine(tmp_path, plan, tool, trials, parallel=1), inputs("f", "g"), tmp_path)
    assert [trial.seconds >= 0.2 for trial in trials.all] == [True, False]


def test_what_was_tried_is_told_in_one_line_each(tmp_path):
    busy = TransferError(Code.STAGEINFAILED, "busy")
    gone = TransferError(Code.MISSINGINPUTFILE, "gone", Trait.NEXT)
    tool = Scripted({"test://A/f": [busy] * 3, "test://B/f": [gone]})
    result = stage_in(engine(tmp_path, {"f": [a("A", "f"), a("B", "f")]}, tool), inputs("f"), tmp_path)
    assert result.story == [
        "f: scripted test://A/f: Failed to stage-in file: busy (3 tries)",
        "f: scripted test://B/f: Input file is missing in storage element: gone",
    ]
    assert code(result) is Code.STAGEINFAILED
    assert result.error.detail == "f: busy; then scripted test://B/f: Input file is missing in storage element: gone"


def test_another_storage_for_an_output_is_told_and_reported(tmp_path):
    full = TransferError(Code.NOREMOTESPACE, "full", Trait.NEXT)
    tool = Scripted({"test://A/f": [full]})
    plan = {"f": [a("A", "f"), a("B", "f")], "g": [a("A", "g")]}
    result = stage_out(engine(tmp_path, plan, tool, parallel=1), outputs(tmp_path, "f", "g", endpoint="A"), tmp_path)
    assert [(staged.file.endpoint, staged.url) for staged in result.staged] == [
        ("B", "test://B/f"),
        ("A", "test://A/g"),
    ]
    assert result.story == [
        "f: scripted test://A/f: No space left on device: full",
        "Alternative stage-out for [f]: B instead of A",
        "f: scripted test://B/f: good",
    ]


# ------------------------------------------------------------------------------------------------------- direct access


def direct(endpoint: str, name: str) -> Candidate:
    return Candidate(tool="scripted", url=f"test://{endpoint}/{name}", endpoint=endpoint, direct=True)


def there(size: int) -> list[Stored]:
    return [Stored(url="u", size=size)]


def test_an_input_that_the_payload_reads_itself_stays_where_it_is(tmp_path):
    tool = Scripted({"stat test://A/f": there(1 << 50)})
    made = engine(tmp_path, {"f": [direct("A", "f"), a("A", "f")]}, tool, input_size=10)  # it takes no room
    result = stage_in(made, inputs("f", size=1 << 50, checksums={"adler32": "00000001"}), tmp_path)
    assert result.error is None
    (staged,) = result.staged
    assert (staged.file.turl, staged.file.endpoint, staged.local) == ("test://A/f", "A", False)
    assert (tool.calls, list((tmp_path / "job").iterdir())) == ([], [])


def test_one_that_is_not_there_is_looked_for_elsewhere_and_at_last_copied(tmp_path):
    tool = Scripted({"stat test://B/f": there(2), "test://A/f": [b"x"]})
    made = engine(tmp_path, {"f": [direct("A", "f"), direct("B", "f"), a("A", "f")]}, tool)
    result = stage_in(made, inputs("f", size=1), tmp_path)
    assert [attempt.error.code for attempt in result.staged[0].attempts] == [1361, 1361]
    assert (result.staged[0].file.turl, tool.calls) == ("", ["test://A/f"])


def test_one_that_is_nowhere_is_1361(tmp_path):
    result = stage_in(engine(tmp_path, {"f": [direct("A", "f")]}, Scripted({})), inputs("f"), tmp_path)
    assert code(result) is Code.REMOTEFILECOULDNOTBEOPENED
    assert result.error.detail == "f: test://A/f: there is no such file"


class Slow(Scripted):
    def stat(self, url, handle):
        threading.Event().wait(1.0)
        return


def test_the_look_is_bounded_1368_or_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("pilot.staging.call.LINGER", 0.05)
    plan = {"f": [direct("A", "f")]}
    result = stage_in(engine(tmp_path, plan, Slow({}), open_timeout=0.1, attempts_in=1), inputs("f"), tmp_path)
    assert code(result) is Code.REMOTEFILEOPENTIMEDOUT
    assert stage_in(engine(tmp_path, plan, Slow({}), open_timeout=0), inputs("f"), tmp_path).error is None


# ------------------------------------------------------------------------------------------------------------- look-up


def looked_up(tmp_path, look_up, plan) -> tuple:
    tool = Scripted({"test://A/f": [b"x"]})
    base = engine(tmp_path, plan, tool)
    made = StagingEngine(plan=Fixed(**plan), tools=base._tools, launcher=None, look_up=look_up)
    (tmp_path / "job").mkdir()
    return run(lambda stop: made.stage_in(inputs("f"), tmp_path / "job", stop)), tool


def test_what_the_catalogue_knows_of_an_input_is_verified(tmp_path):
    def look_up(files, handle):
        handle.check()
        return [File(lfn="f", kind=Kind.INPUT, size=2)]

    result, _ = looked_up(tmp_path, look_up, {"f": [a("A", "f")]})
    assert "gave 1 bytes, not 2" in result.error.detail


def test_a_look_up_that_fails_fails_all_before_a_byte_moves(tmp_path):
    def look_up(files, handle):
        raise PilotError(Code.RUCIOLISTREPLICASFAILED, "no answer")

    result, tool = looked_up(tmp_path, look_up, {"f": [a("A", "f")]})
    assert (code(result), tool.calls) == (Code.RUCIOLISTREPLICASFAILED, [])
