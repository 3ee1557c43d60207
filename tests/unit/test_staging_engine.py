"""The staging engine with real files and real tools, and with tools that fail on command."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging import call
from pilot.staging.call import StagingLimits
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer
from pilot.staging.engine import StagingEngine
from pilot.staging.mover import transfer_timeout
from pilot.staging.plan import Candidate
from pilot.staging.result import Progress, StagingObserver, StagingResult
from pilot.staging.toolbox import ToolBox, find_tool
from pilot.stop import Stop
from pilot.testing.copytool import Programs, checksums, content

STOPPED = PilotError(Code.SIGTERM, "stopped by the test")


class Fixed:
    """A plan that was made before."""

    def __init__(self, **plans: Sequence[Candidate] | PilotError) -> None:
        self.plans = plans

    def sources(self, file: File) -> Sequence[Candidate]:
        plan = self.plans[file.lfn]
        if isinstance(plan, PilotError):
            raise plan
        return plan

    destinations = sources


class Scripted(CopyTool):
    """Does for each URL what a list says, one entry a call: an error to raise, or something to do."""

    name = "scripted"
    schemes = frozenset({"test"})

    def __init__(self, script: dict[str, list]) -> None:
        super().__init__(ToolContext())
        self.script = script
        self.calls: list[str] = []
        self.removed: list[str] = []
        self.space = True
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def fills_disk(self) -> bool:
        return self.space

    def _act(self, transfer: Transfer, handle: Handle) -> Stored:
        with self.lock:
            self.calls.append(transfer.url)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            steps = self.script.get(transfer.url, [])
            step = steps.pop(0) if steps else b""
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                step = step(transfer, handle)
            if isinstance(step, Stored):
                return step
            if transfer.file.kind is Kind.INPUT:
                transfer.path.write_bytes(step)
            return Stored(url=transfer.url, size=transfer.path.stat().st_size)
        finally:
            with self.lock:
                self.at_once -= 1

    get = put = _act

    def stat(self, url: str, handle: Handle) -> Stored | None:
        found = self.script.get(f"stat {url}")
        return found[0] if found else None

    def remove(self, url: str, handle: Handle) -> None:
        self.removed.append(url)


class Box(ToolBox):
    def __init__(self, tmp_path: Path, tool: Scripted | None = None, **settings: str) -> None:
        settings = {"mv_stagein": "copy", "mv_stageout": "copy", **settings}
        super().__init__(launch_dir=tmp_path, settings=settings, find=find_tool, names=set)
        self._tools = {"scripted": tool} if tool else {}


def at(url: object, tool: str = "scripted", **more) -> Candidate:
    return Candidate(tool=tool, url=str(url), **more)


def engine(tmp_path: Path, plan, tool=None, observer=None, settings=None, **limits) -> StagingEngine:
    return StagingEngine(
        plan=plan if not isinstance(plan, dict) else Fixed(**plan),
        tools=Box(tmp_path, tool, **(settings or {})),
        launcher=Programs(),
        limits=StagingLimits(**{"pause": 0.001, **limits}),
        observer=observer,
        environment=dict(os.environ),
    )


def run(work) -> StagingResult:
    """Await what `work(stop)` makes."""

    async def main() -> StagingResult:
        return await work(Stop())

    return asyncio.run(main())


def stage_in(engine_: StagingEngine, files: Sequence[File], tmp_path: Path) -> StagingResult:
    (tmp_path / "job").mkdir(exist_ok=True)
    return run(lambda stop: engine_.stage_in(files, tmp_path / "job", stop))


def stage_out(engine_: StagingEngine, files: Sequence[File], tmp_path: Path) -> StagingResult:
    return run(lambda stop: engine_.stage_out(files, tmp_path / "job", stop))


def inputs(*names: str, **facts) -> list[File]:
    return [File(lfn=name, kind=Kind.INPUT, **facts) for name in names]


def outputs(tmp_path: Path, *names: str, data: bytes = b"output", **facts) -> list[File]:
    (tmp_path / "job").mkdir(exist_ok=True)
    for name in names:
        (tmp_path / "job" / name).write_bytes(data)
    return [File(lfn=name, kind=Kind.OUTPUT, **facts) for name in names]


def code(result: StagingResult) -> Code:
    assert result.error is not None
    return result.error.code


# -------------------------------------------------------------------------------------------------------- real files


def test_inputs_arrive_with_what_is_known_of_them(tmp_path):
    data = content(100_000)
    (tmp_path / "source").write_bytes(data)
    sums = checksums(data)
    file = File(lfn="a", kind=Kind.INPUT, size=len(data), checksums={"adler32": sums["adler32"].upper().lstrip("0")})
    result = stage_in(engine(tmp_path, {"a": [at(tmp_path / "source", "mv", endpoint="E")]}), [file], tmp_path)
    assert result.error is None
    (staged,) = result.staged
    assert staged.path.read_bytes() == data
    assert (staged.size, staged.tool, staged.url) == (len(data), "mv", str(tmp_path / "source"))
    assert (staged.file.lfn, staged.file.endpoint, staged.local) == ("a", "E", True)
    assert staged.checksums == {"adler32": sums["adler32"]}
    assert staged.seconds > 0


@pytest.mark.parametrize("mode", ["copy", "link", "move"])
@pytest.mark.parametrize(("kind", "expected"), [("adler32", Code.GETADMISMATCH), ("md5", Code.GETMD5MISMATCH)])
def test_an_input_with_a_wrong_checksum_is_1171_or_1145_and_removed(tmp_path, mode, kind, expected):
    (tmp_path / "source").write_bytes(b"data")
    plan = {"a": [at(tmp_path / "source", "mv")]}
    made = engine(tmp_path, plan, settings={"mv_stagein": mode})
    result = stage_in(made, inputs("a", checksums={kind: "00000000"}), tmp_path)
    assert code(result) is expected
    assert os.listdir(tmp_path / "job") == []
    assert (tmp_path / "source").read_bytes() == b"data"


def test_an_input_of_another_size_is_1099(tmp_path):
    (tmp_path / "source").write_bytes(b"data")
    result = stage_in(engine(tmp_path, {"a": [at(tmp_path / "source", "mv")]}), inputs("a", size=5), tmp_path)
    assert code(result) is Code.STAGEINFAILED
    assert "4 bytes, not 5" in result.error.detail


def test_an_input_that_is_not_there_is_1331(tmp_path):
    result = stage_in(engine(tmp_path, {"a": [at(tmp_path / "source", "mv")]}), inputs("a"), tmp_path)
    assert code(result) is Code.MISSINGINPUTFILE


def test_outputs_and_logs_are_where_they_should_be(tmp_path):
    files = outputs(tmp_path, "a", "b", data=b"data")
    log = File(lfn="log", kind=Kind.LOG)
    (tmp_path / "job" / "log").touch()  # a log may be empty
    plan = {name: [at(tmp_path / "out" / name, "mv")] for name in ("a", "b", "log")}
    result = stage_out(engine(tmp_path, plan, checksum_types=("adler32", "md5")), [*files, log], tmp_path)
    assert result.error is None
    assert [staged.file.lfn for staged in result.staged] == ["a", "b", "log"]
    assert result.staged[0].checksums == checksums(b"data")
    assert result.staged[0].url == str(tmp_path / "out" / "a")
    assert (tmp_path / "out" / "b").read_bytes() == b"data"


def test_an_output_that_is_not_there_is_1165_and_keeps_no_other_back(tmp_path):
    plan = {name: [at(tmp_path / "out" / name, "mv")] for name in ("a", "b")}
    (file,) = outputs(tmp_path, "b")
    result = stage_out(engine(tmp_path, plan), [File(lfn="a", kind=Kind.OUTPUT), file], tmp_path)
    assert code(result) is Code.MISSINGOUTPUTFILE
    assert [staged.file.lfn for staged in result.staged] == ["b"]


def test_an_output_that_is_a_directory_is_1165(tmp_path):
    (tmp_path / "job" / "a").mkdir(parents=True)
    result = stage_out(engine(tmp_path, {}), [File(lfn="a", kind=Kind.OUTPUT)], tmp_path)
    assert code(result) is Code.MISSINGOUTPUTFILE


def test_an_empty_output_is_1191(tmp_path):
    result = stage_out(engine(tmp_path, {}), outputs(tmp_path, "a", data=b""), tmp_path)
    assert code(result) is Code.ZEROFILESIZE


def test_an_output_that_is_stored_already_is_success_and_another_is_1221(tmp_path):
    plan = {"a": [at(tmp_path / "out" / "a", "mv")]}
    files = outputs(tmp_path, "a")
    assert stage_out(engine(tmp_path, plan), files, tmp_path).error is None
    assert stage_out(engine(tmp_path, plan), files, tmp_path).error is None
    assert code(stage_out(engine(tmp_path, plan), outputs(tmp_path, "a", data=b"OUTPUT"), tmp_path)) is Code.FILEEXISTS


def test_an_output_for_the_batch_system_is_reported_where_it_will_be(tmp_path):
    turl = "root://eos//a"
    plan = {"a": [at(tmp_path / "a", "mv", surl=turl, onward=True)]}
    result = stage_out(engine(tmp_path, plan, settings={"mv_stageout": "move"}), outputs(tmp_path, "a"), tmp_path)
    assert result.error is None
    assert result.staged[0].url == turl
    assert (tmp_path / "a").read_bytes() == b"output"
    assert (tmp_path / "output.list").read_text().startswith(f"a {turl}:checksumtype=adler32:checksumvalue=")


# -------------------------------------------------------------------------------------------------- tries and choices


def test_what_may_pass_is_tried_again_at_the_same_place(tmp_path):
    tool = Scripted({"u": [TransferError(Code.STAGEINFAILED, "busy"), OSError(5, "I/O error"), b"x"]})
    result = stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, tool), inputs("a"), tmp_path)
    assert tool.calls == ["u", "u", "u"]
    assert [str(attempt) for attempt in result.staged[0].attempts] == [
        "scripted u: Failed to stage-in file: busy",
        "scripted u: Failed to stage-in file: scripted: I/O error",
    ]


def test_tries_are_bounded_and_then_the_next_place_is_tried(tmp_path):
    tool = Scripted({"u": [TransferError(Code.STAGEINFAILED, "busy") for _ in range(9)]})
    result = stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, tool, attempts_in=2), inputs("a"), tmp_path)
    assert tool.calls == ["u", "u", "v"]
    assert result.error is None


def test_another_place_is_tried_at_once_if_this_one_cannot_help(tmp_path):
    tool = Scripted({"u": [TransferError(Code.MISSINGINPUTFILE, "gone", Trait.NEXT)]})
    stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, tool), inputs("a"), tmp_path)
    assert tool.calls == ["u", "v"]


def test_nothing_is_tried_after_what_nothing_helps(tmp_path):
    tool = Scripted({"u": [TransferError(Code.NOLOCALSPACE, "full", Trait.FATAL)]})
    result = stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, tool), inputs("a"), tmp_path)
    assert tool.calls == ["u"]
    assert code(result) is Code.NOLOCALSPACE


def test_the_first_error_is_the_cause_and_all_are_told(tmp_path):
    errors = {
        "u": [TransferError(Code.MISSINGINPUTFILE, "gone", Trait.NEXT)],
        "v": [TransferError(Code.STAGEINAUTHENTICATIONFAILURE, "who?", Trait.NEXT)],
    }
    result = stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, Scripted(errors)), inputs("a"), tmp_path)
    assert code(result) is Code.MISSINGINPUTFILE
    assert result.error.detail == "a: gone; then scripted v: Authentication failure during stage-in: who?"
    assert len(result.failed[0].attempts) == 2


def test_a_bug_of_a_tool_is_an_error_of_the_table(tmp_path, caplog):
    tool = Scripted({"u": [ZeroDivisionError("oops")], "v": [b"x"]})
    result = stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, tool), inputs("a"), tmp_path)
    assert result.error is None
    assert result.staged[0].attempts[0].error.code is Code.STAGEINFAILED
    assert "ZeroDivisionError: oops" in str(result.staged[0].attempts[0])


def test_a_tool_that_cannot_be_used_is_1323_and_the_next_is_tried(tmp_path):
    tool = Scripted({"v": [b"x"]})
    result = stage_in(engine(tmp_path, {"a": [at("u", "nonsense"), at("v")]}, tool), inputs("a"), tmp_path)
    assert result.error is None
    assert result.staged[0].attempts[0].error.code is Code.UNKNOWNCOPYTOOL


@pytest.mark.parametrize("planned", [Code.NOSTORAGE, Code.NOSTORAGEPROTOCOL, Code.NONDETERMINISTICDDM])
def test_what_the_plan_says_is_the_files_error(tmp_path, planned):
    plan = {"a": PilotError(planned, "no"), "b": [at(tmp_path / "out" / "b", "mv")]}
    result = stage_out(engine(tmp_path, plan), outputs(tmp_path, "a", "b"), tmp_path)
    assert code(result) is planned
    assert [staged.file.lfn for staged in result.staged] == ["b"]
    result = stage_in(engine(tmp_path, plan), inputs("a", "b"), tmp_path)
    assert code(result) is planned
    assert not result.staged


@pytest.mark.parametrize("direction", ["in", "out"])
def test_an_error_without_a_code_is_1099_or_1137(tmp_path, direction):
    tool, plan = Scripted({"u": [PermissionError(13, "Permission denied")]}), {"a": [at("u")]}
    if direction == "in":
        assert code(stage_in(engine(tmp_path, plan, tool), inputs("a"), tmp_path)) is Code.STAGEINFAILED
    else:
        assert code(stage_out(engine(tmp_path, plan, tool), outputs(tmp_path, "a"), tmp_path)) is Code.STAGEOUTFAILED


# ------------------------------------------------------------------------------------ tools are not taken at their word


def test_an_input_is_read_if_the_tool_does_not_know_its_checksum(tmp_path):
    tool = Scripted({"u": [b"wrong"], "v": [b"right"]})
    file = inputs("a", checksums={"md5": checksums(b"right")["md5"]})
    result = stage_in(engine(tmp_path, {"a": [at("u"), at("v")]}, tool), file, tmp_path)
    assert (tmp_path / "job" / "a").read_bytes() == b"right"
    assert result.staged[0].attempts[0].error.code is Code.GETMD5MISMATCH


def test_a_tool_that_makes_nothing_has_failed(tmp_path):
    tool = Scripted({"u": [lambda transfer, handle: Stored(url="u")]})
    assert code(stage_in(engine(tmp_path, {"a": [at("u")]}, tool), inputs("a"), tmp_path)) is Code.STAGEINFAILED


def test_a_catalogue_checksum_that_cannot_be_computed_is_1314(tmp_path):
    result = stage_in(engine(tmp_path, {"a": [at("u")]}, Scripted({})), inputs("a", checksums={"sha0": "1"}), tmp_path)
    assert code(result) is Code.UNKNOWNCHECKSUMTYPE


def test_a_second_checksum_that_cannot_be_computed_does_no_harm(tmp_path):
    sums = {"sha0": "1", "adler32": "00000001"}
    result = stage_in(engine(tmp_path, {"a": [at("u")]}, Scripted({})), inputs("a", checksums=sums), tmp_path)
    assert result.error is None


@pytest.mark.parametrize(("kind", "expected"), [("adler32", Code.PUTADMISMATCH), ("md5", Code.PUTMD5MISMATCH)])
def test_an_output_that_is_wrong_in_the_storage_is_1172_or_1141_and_removed(tmp_path, kind, expected):
    bad = Stored(url="u", size=6, checksums={kind: "0bad0bad"})
    tool = Scripted({"u": [bad, bad, bad]})
    result = stage_out(
        engine(tmp_path, {"a": [at("u")]}, tool, checksum_types=(kind,)), outputs(tmp_path, "a"), tmp_path
    )
    assert code(result) is expected
    assert tool.removed == ["u", "u", "u"]
    assert (tmp_path / "job" / "a").read_bytes() == b"output"


def test_a_bad_copy_in_the_storage_may_be_good_at_the_second_try(tmp_path):
    good = Stored(url="u", size=6, checksums=checksums(b"output"))
    tool = Scripted({"u": [Stored(url="u", size=5), good]})
    result = stage_out(engine(tmp_path, {"a": [at("u")]}, tool), outputs(tmp_path, "a"), tmp_path)
    assert result.error is None
    assert tool.removed == ["u"]


def test_the_storage_is_asked_what_the_tool_does_not_know(tmp_path):
    tool = Scripted({"u": [Stored(url="u")] * 3})
    assert code(stage_out(engine(tmp_path, {"a": [at("u")]}, tool), outputs(tmp_path, "a"), tmp_path)) == 1137
    tool = Scripted({"u": [Stored(url="u")], "stat u": [Stored(url="u", size=6)]})
    assert stage_out(engine(tmp_path, {"a": [at("u")]}, tool), outputs(tmp_path, "a"), tmp_path).error is None


def test_an_output_that_changes_while_it_is_copied_is_not_taken(tmp_path):
    def write_on(transfer: Transfer, handle: Handle) -> Stored:
        with open(transfer.path, "ab") as file:
            file.write(b"more")
        return Stored(url="u", size=6)

    tool = Scripted({"u": [write_on]})
    result = stage_out(engine(tmp_path, {"a": [at("u")]}, tool), outputs(tmp_path, "a"), tmp_path)
    assert code(result) is Code.STAGEOUTFAILED
    assert "changed while it was copied" in result.error.detail
    assert tool.removed == ["u"]


def test_an_only_copy_is_not_removed_however_bad(tmp_path):
    def move(transfer: Transfer, handle: Handle) -> Stored:
        transfer.path.rename(tmp_path / "moved")
        return Stored(url="u", size=1)

    tool = Scripted({"u": [move]})
    assert code(stage_out(engine(tmp_path, {"a": [at("u")]}, tool), outputs(tmp_path, "a"), tmp_path)) == 1137
    assert tool.removed == []


# ------------------------------------------------------------------------------------------------------------- room


def test_inputs_that_are_too_large_together_are_1168_before_a_byte_moves(tmp_path):
    tool = Scripted({})
    plan = {"a": [at("u")], "b": [at("v")]}
    result = stage_in(engine(tmp_path, plan, tool, input_size=10), inputs("a", "b", size=6), tmp_path)
    assert code(result) is Code.SIZETOOLARGE
    assert len(result.failed) == 2
    assert tool.calls == []


def test_inputs_that_do_not_fit_on_the_disk_are_1098(tmp_path):
    tool = Scripted({})
    size = 1 << 60
    result = stage_in(engine(tmp_path, {"a": [at("u")]}, tool, input_size=2 * size), inputs("a", size=size), tmp_path)
    assert code(result) is Code.NOLOCALSPACE
    assert tool.calls == []


def test_links_need_no_room(tmp_path):
    tool = Scripted({})
    tool.space = False
    result = stage_in(engine(tmp_path, {"a": [at("u")]}, tool, input_size=10), inputs("a", size=1 << 60), tmp_path)
    assert tool.calls == ["u"]  # and then of course it has another size
    assert code(result) is Code.STAGEINFAILED


# ---------------------------------------------------------------------------------------------- together, and their end


def test_no_more_than_the_limit_move_at_once(tmp_path):
    names = [f"f{number}" for number in range(9)]
    tool = Scripted({name: [lambda transfer, handle: time.sleep(0.05) or b"x"] for name in names})
    plan = {name: [at(name)] for name in names}
    result = stage_in(engine(tmp_path, plan, tool, parallel=3), inputs(*names), tmp_path)
    assert len(result.staged) == 9
    assert tool.most_at_once == 3


def wait_for_the_end(transfer: Transfer, handle: Handle) -> Stored:
    """A well-behaved tool in a long transfer."""
    while True:
        handle.check()
        time.sleep(0.01)


def ignore_the_end(transfer: Transfer, handle: Handle) -> Stored:
    """A tool that hangs in a library."""
    time.sleep(1.0)
    return Stored(url="late")


def test_a_failed_input_ends_the_others_at_once(tmp_path):
    tool = Scripted({"u": [wait_for_the_end], "v": [TransferError(Code.MISSINGINPUTFILE, "gone", Trait.NEXT)]})
    plan = {"a": [at("u")], "b": [at("v")], "c": [at("w")]}
    began = time.monotonic()
    result = stage_in(engine(tmp_path, plan, tool, parallel=2), inputs("a", "b", "c"), tmp_path)
    assert time.monotonic() - began < 1
    assert code(result) is Code.MISSINGINPUTFILE
    assert result.error.detail == "b: gone"
    assert {failure.file.lfn for failure in result.failed} >= {"a", "b"}


def stopped_in_the_middle(work) -> tuple[StagingResult, float]:
    """The result of a call that is stopped when its tools run, and the seconds from the stop to the end."""

    async def main() -> tuple[StagingResult, float]:
        stop = Stop()
        task = asyncio.ensure_future(work(stop))
        await asyncio.sleep(0.1)
        stop.request(STOPPED)
        asked = time.monotonic()
        return await task, time.monotonic() - asked

    return asyncio.run(main())


def test_a_stop_ends_all_and_keeps_what_has_arrived(tmp_path):
    tool = Scripted({"u": [wait_for_the_end], "v": [lambda transfer, handle: Stored(url="v", size=6)]})
    made = engine(tmp_path, {"a": [at("u")], "b": [at("v")]}, tool)
    files = outputs(tmp_path, "a", "b")
    result, seconds = stopped_in_the_middle(lambda stop: made.stage_out(files, tmp_path / "job", stop))
    assert seconds < 0.5
    assert result.error is STOPPED
    assert [staged.file.lfn for staged in result.staged] == ["b"]


def test_a_stop_does_not_wait_for_a_tool_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(call, "LINGER", 0.2)
    made = engine(tmp_path, {"a": [at("u")]}, Scripted({"u": [ignore_the_end]}))
    (tmp_path / "job").mkdir()
    result, seconds = stopped_in_the_middle(lambda stop: made.stage_in(inputs("a"), tmp_path / "job", stop))
    assert seconds < 0.8
    assert result.error is STOPPED


def test_a_stop_does_not_wait_for_the_next_try(tmp_path):
    tool = Scripted({"u": [TransferError(Code.STAGEINFAILED, "busy")] * 3})
    made = engine(tmp_path, {"a": [at("u")]}, tool, pause=60)
    (tmp_path / "job").mkdir()
    result, seconds = stopped_in_the_middle(lambda stop: made.stage_in(inputs("a"), tmp_path / "job", stop))
    assert seconds < 0.5
    assert result.error is STOPPED
    assert tool.calls == ["u"]


def test_a_stop_ends_the_program_of_a_tool(tmp_path):
    ended = []

    def program(transfer: Transfer, handle: Handle) -> Stored:
        try:
            handle.run(["sleep", "60"])
        finally:
            ended.append(True)
        return Stored(url="u")

    made = engine(tmp_path, {"a": [at("u")]}, Scripted({"u": [program]}))
    (tmp_path / "job").mkdir()
    result, seconds = stopped_in_the_middle(lambda stop: made.stage_in(inputs("a"), tmp_path / "job", stop))
    assert (seconds < 0.5, ended, result.error) == (True, [True], STOPPED)


def test_nothing_moves_after_a_stop(tmp_path):
    tool = Scripted({})
    made = engine(tmp_path, {"a": [at("u")]}, tool)

    async def main() -> StagingResult:
        stop = Stop()
        stop.request(STOPPED)
        return await made.stage_in(inputs("a"), tmp_path, stop)

    result = asyncio.run(main())
    assert result.error is STOPPED
    assert tool.calls == []


def test_a_cancelled_call_ends_its_transfers(tmp_path):
    ended = threading.Event()

    def long(transfer: Transfer, handle: Handle) -> Stored:
        try:
            return wait_for_the_end(transfer, handle)
        finally:
            ended.set()

    made = engine(tmp_path, {"a": [at("u")]}, Scripted({"u": [long]}))

    async def main() -> None:
        stop = Stop()
        task = asyncio.ensure_future(made.stage_in(inputs("a"), tmp_path, stop))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())


@pytest.mark.parametrize("tool_act", [wait_for_the_end, ignore_the_end])
@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_transfer_that_takes_too_long_is_1151_or_1152(tmp_path, monkeypatch, tool_act, direction):
    monkeypatch.setattr(call, "transfer_timeout", lambda size: 0.1)
    monkeypatch.setattr(call, "LINGER", 0.1)
    made = engine(tmp_path, {"a": [at("u")]}, Scripted({"u": [tool_act]}))
    if direction == "in":
        assert code(stage_in(made, inputs("a"), tmp_path)) is Code.STAGEINTIMEOUT
    else:
        assert code(stage_out(made, outputs(tmp_path, "a"), tmp_path)) is Code.STAGEOUTTIMEOUT


@pytest.mark.parametrize(("size", "seconds"), [(0, 400), (10**9, 1400), (10**12, 10800), (None, 10800)])
def test_the_time_out_grows_with_the_size(size, seconds):
    assert transfer_timeout(size) == seconds


# ----------------------------------------------------------------------------------------------------------- observers


class Listener(StagingObserver):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        self.progress = progress
        self.heard.append("started")

    def arrived(self, staged) -> None:
        self.heard.append(f"arrived {staged.file.lfn}")

    def failed(self, failure) -> None:
        self.heard.append(f"failed {failure.file.lfn}")

    def ended(self, result) -> None:
        self.heard.append("ended")


def test_observers_hear_of_every_file(tmp_path):
    listener = Listener()
    tool = Scripted({"u": [Stored(url="u", size=6)], "v": [TransferError(Code.STAGEOUTFAILED, "no", Trait.FATAL)]})
    made = engine(tmp_path, {"a": [at("u")], "b": [at("v")]}, tool, listener, parallel=1)
    stage_out(made, outputs(tmp_path, "a", "b"), tmp_path)
    assert sorted(listener.heard) == ["arrived a", "ended", "failed b", "started"]
    assert (listener.heard[0], listener.heard[-1]) == ("started", "ended")


def test_progress_counts_bytes_that_are_under_way(tmp_path):
    listener, seen = Listener(), []

    def slow(transfer: Transfer, handle: Handle) -> bytes:
        handle.advance(40)
        seen.append((listener.progress.moved, listener.progress.done))
        handle.advance(60)
        return content(100)

    made = engine(
        tmp_path, {"a": [at("u")], "b": [at("v")]}, Scripted({"u": [slow], "v": [slow]}), listener, parallel=1
    )
    result = stage_in(made, inputs("a", "b", size=100), tmp_path)
    assert result.error is None
    assert seen == [(40, 0), (140, 1)]
    progress = listener.progress
    assert (progress.files, progress.bytes, progress.done, progress.moved) == (2, 200, 2, 200)
    assert progress.speed > 0
