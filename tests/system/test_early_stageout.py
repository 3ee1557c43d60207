"""Outputs that leave while the payload still runs: what is closed, renamed or listed; what changes after that."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from tests.grid import ENDPOINT, Grid, Job, Scenarios, until

scenario = Scenarios()

QUIET = {"pilot_early_quiet": 0.2}
ROOM = {"pilot_free_space_limit": 0, "pilot_free_space_limit_running": 0}


def queue(grid: Grid, mode: str, **params: Any) -> None:
    grid.queue("Q", params={**ROOM, **QUIET, "pilot_early_stageout": mode, **params})


def wait_for(name: str) -> str:
    return f"while [ ! -e {name} ]; do sleep 0.02; done"


def started(grid: Grid, command: str, *outputs: str, **more: Any) -> tuple[int, Any]:
    (job_id,) = grid.submit(grid.job(command, outputs=outputs, **more))
    return job_id, grid.pilot()


def go_on(grid: Grid, name: str) -> None:
    """Let the payload see a file in its directory."""
    (path,) = grid.work.glob("*/PanDA_Pilot-*")
    (path / name).touch()


def finished(grid: Grid, job_id: int, pilot: Any) -> Job:
    assert pilot.wait() == 0, pilot.text
    job = grid.job_of(job_id)
    assert job.state == "finished", (job.diag, pilot.text)
    return job


@scenario
def closed_and_renamed_outputs_are_out_before_the_payload_ends(top: Path) -> None:
    with Grid(top) as grid:
        queue(grid, "closed")
        command = f"echo a > a; echo b > b.tmp; mv b.tmp b; {wait_for('go')}; echo c > c"
        job_id, pilot = started(grid, command, "a", "b", "c")
        until(lambda: grid.stored("a").exists() and grid.stored("b").exists())
        assert grid.job_of(job_id).finals == []
        assert not grid.stored("c").exists()
        go_on(grid, "go")
        job = finished(grid, job_id, pilot)
        assert [job.path(name).read_text() for name in "abc"] == ["a\n", "b\n", "c\n"]
        assert [job.files[name]["endpoint"] for name in "abc"] == [ENDPOINT] * 3
        assert pilot.text.count("stage-out of a:") == 1


@scenario
def an_output_that_changes_after_it_left_is_sent_again(top: Path) -> None:
    with Grid(top) as grid:
        queue(grid, "closed")
        name = "a%41"  # no escape, but its copy has one in the URL for `mv`
        job_id, pilot = started(grid, f"echo first > {name}; {wait_for('go')}; echo second >> {name}", name)
        until(lambda: grid.stored(name).exists())
        go_on(grid, "go")
        job = finished(grid, job_id, pilot)
        assert job.path(name).read_text() == "first\nsecond\n"
        assert int(job.files[name]["fsize"]) == 13
        assert "changed after it was staged out" in pilot.text


@scenario
def what_the_manifest_lists_leaves_and_nothing_else(top: Path) -> None:
    with Grid(top) as grid:
        queue(grid, "manifest", pilot_early_manifest="ready.txt")
        # the manifest is kept open, has a name that is none, and a line without an end
        command = (
            f"exec 5> ready.txt; echo a > a; echo b > b; printf 'a\\n../x\\nnone\\nb' >&5; {wait_for('go')}; echo c > c"
        )
        job_id, pilot = started(grid, command, "a", "b", "c")
        until(lambda: grid.stored("a").exists())
        assert not grid.stored("b").exists()
        go_on(grid, "go")
        job = finished(grid, job_id, pilot)
        assert set("abc") <= set(job.files)
        assert "'../x'" in pilot.text


@scenario
def a_pattern_finds_files_as_they_come(top: Path) -> None:
    with Grid(top) as grid:
        queue(grid, "closed")
        command = f"echo 1 > DST_1.root; {wait_for('go')}; echo 2 > DST_2.root"
        job_id, pilot = started(grid, command, r"regex|DST_.*\.root")
        until(lambda: grid.stored("DST_1.root").exists())
        go_on(grid, "go")
        assert pilot.wait() == 0
        job = grid.job_of(job_id)
        assert job.finals == ["finished"]
        assert {"DST_1.root", "DST_2.root"} <= set(job.files)
        assert job.files["DST_1.root"]["guid"] != job.files["DST_2.root"]["guid"]


@scenario
def archives_of_a_zip_map_and_outputs_that_may_miss_in_a_whole_pilot(top: Path) -> None:
    with Grid(top) as grid:
        wanted = grid.job("echo a > a; echo b > b", outputs=["a", "all.zip", "x.maybe"], allowNoOutput="*.maybe")
        (job_id,) = grid.submit(wanted | {"jobPars": wanted["jobPars"] + " <ZIP_MAP>all.zip:a,b</ZIP_MAP>"})
        pilot = grid.pilot()
        assert pilot.wait() == 0
        job = grid.job_of(job_id)
        assert job.finals == ["finished"], pilot.text
        with zipfile.ZipFile(job.path("all.zip")) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {"a": b"a\n", "b": b"b\n"}
        assert "x.maybe" not in job.files


@scenario
def a_failed_try_is_left_to_the_stage_out_after_the_payload(top: Path) -> None:
    with Grid(top) as grid:
        queue(grid, "closed")
        blocker = grid.stored("a")
        blocker.parent.parent.mkdir(parents=True)
        blocker.parent.write_text("no directory")
        job_id, pilot = started(grid, f"echo a > a; {wait_for('go')}", "a")
        pilot.says("is left to the stage-out")
        blocker.parent.unlink()
        go_on(grid, "go")
        assert finished(grid, job_id, pilot).path("a").read_text() == "a\n"


@scenario
def a_stop_ends_early_transfers_at_once(top: Path) -> None:
    with Grid(top) as grid:
        gate = grid.gated_queue("Q")
        record = {"copytools": {"gate": {"directory": str(gate)}}, "acopytools": {"write_lan": ["gate"], "pl": ["mv"]}}
        grid.queue("Q", params={**ROOM, **QUIET, "pilot_early_stageout": "closed"}, **record)
        job_id, pilot = started(grid, "echo a > a; sleep 60", "a")
        until(lambda: any(gate.iterdir()))
        before = pilot.signal()
        pilot.wait(10)
        assert grid.job_of(job_id).finals == ["failed"], before
        assert not grid.stored("a").exists()


@scenario
def a_payload_that_fails_leaves_what_was_out_in_the_report(top: Path) -> None:
    with Grid(top) as grid:
        queue(grid, "closed", pilot_early_quiet=30)
        job_id, pilot = started(grid, f"echo a > t; mv t a; {wait_for('go')}; echo b > b; exit 3", "a", "b")
        until(lambda: grid.stored("a").exists())
        go_on(grid, "go")
        assert pilot.wait() == 0
        job = grid.job_of(job_id)
        assert (job.finals, "a" in job.files, "b" in job.files) == (["failed"], True, False)


running = scenario.fixture()
test_scenario = scenario.test()
