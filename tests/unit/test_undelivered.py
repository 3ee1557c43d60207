"""What is delivered later: a place that hangs holds up no stop, and links lead where they led."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from pilot import undelivered
from pilot.errors import Code, PilotError
from pilot.job import File, Job, Kind
from pilot.outcome import FileOutcome
from pilot.server.report import Report, State
from pilot.stop import Stop
from pilot.undelivered import Custody, Note


def test_a_stop_does_not_wait_for_a_place_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def find(places: object) -> list[Path]:
        gate.wait(10)
        return []

    monkeypatch.setattr(undelivered, "find", find)

    async def scenario() -> int:
        stop = Stop()
        asyncio.get_running_loop().call_later(0.05, stop.request, PilotError(Code.SIGTERM, "a stop"))
        return await undelivered.deliver_all(None, [tmp_path], stop)  # type: ignore[arg-type]

    started = time.monotonic()
    assert asyncio.run(scenario()) == 0
    gate.set()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("code", [Code.RUCIOSERVICEUNAVAILABLE, Code.STAGEOUTTIMEOUT, Code.COMMANDTIMEDOUT])
def test_outputs_that_a_catalogue_that_is_away_or_hangs_does_not_know_are_kept(tmp_path: Path, code: Code) -> None:
    file = File(lfn="out", kind=Kind.OUTPUT)
    report = Report(job_id=1, attempt=1, state=State.FINISHED, node="n", queue="Q")
    custody = Custody(tmp_path, Note(job=Job(job_id=1), files=(file,), report=report, queue="Q"))
    stored = FileOutcome(file=file, url="x://out", size=1, checksums={})
    assert custody.is_worth_it([stored], PilotError(code, "not registered"))
    assert not custody.is_worth_it([stored], PilotError(Code.STAGEOUTFAILED, "no checksum"))
    custody.end()


def test_an_output_that_is_a_link_is_the_same_file_where_it_is_kept(tmp_path: Path) -> None:
    workdir, kept = tmp_path / "main" / "PanDA_Pilot-1", tmp_path / "far" / "kept"
    workdir.mkdir(parents=True)
    (tmp_path / "disk").write_text("outside")
    (workdir / "part").write_text("inside")
    links = {"out": "../../disk", "in": str(tmp_path / "disk"), "by_input": "in", "own": str(workdir / "part")}
    for name, target in links.items():
        (workdir / name).symlink_to(target)
    (workdir / "log").touch()
    files = [*(File(lfn=name, kind=Kind.OUTPUT) for name in links if name != "in"), File(lfn="log", kind=Kind.LOG)]
    report = Report(job_id=1, attempt=1, state=State.FINISHED, node="n", queue="Q")
    custody = Custody(workdir, Note(job=Job(job_id=1), files=tuple(files), report=report, queue="Q"))
    custody.move(custody.place(kept))
    text = {path.name: path.read_text() for path in (kept / workdir.name).iterdir()}
    assert {name: text[name] for name in ("out", "by_input", "own")} == {
        "out": "outside", "by_input": "outside", "own": "inside",
    }  # fmt: skip
    assert "part" not in text
