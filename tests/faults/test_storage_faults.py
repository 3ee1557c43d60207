"""Storages and copy tools at their worst: each fault has its code, and the next job runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.grid import Grid, Job, Scenarios, processes_with, until

PILOT = (sys.executable, "-m", "pilot.cli.main", "run")
#: Root without the capabilities that let it pass by file modes: like any user.
AS_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")

needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to drop rights")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


def run(grid: Grid, queue: str, *jobs: Mapping[str, Any], **options: Any) -> list[Job]:
    """Run jobs in one pilot, and a good one after them."""
    ids = grid.submit(*jobs)
    (last,) = grid.submit(grid.job(queue=queue))
    pilot = grid.pilot(queue=queue, **options)
    assert pilot.wait(60) == 0, pilot.text[-5000:]
    found = [grid.job_of(job_id) for job_id in ids]
    for job in found:
        assert job.reported_once(), job.states
        assert processes_with(f"PandaID={job.id}") == []
    assert grid.job_of(last).state == "finished", pilot.text[-5000:]
    return found


# --- inputs


def test_an_input_that_is_not_as_the_catalogue_says_fails_the_job_before_its_payload(grid: Grid) -> None:
    queue = grid.queue("INPUTS")
    mark = grid.top / "ran"

    def job(lfn: str, **fields: Any) -> dict[str, Any]:
        return grid.job(f"touch {mark}", inputs={lfn: b"some bytes\n"}, queue=queue, **fields)

    missing, pipe, directory = job("in.missing"), job("in.pipe"), job("in.directory")
    for lfn in ("in.missing", "in.pipe", "in.directory"):
        grid.stored(lfn).unlink()
    os.mkfifo(grid.stored("in.pipe"))
    grid.stored("in.directory").mkdir()
    cases = [
        (missing, 1331, "in.missing"),
        (pipe, 1099, "not a regular file"),
        (directory, 1099, "not a regular file"),
        (job("in.sum", checksum="ad:00000001"), 1171, "not 00000001"),
        (job("in.md5", checksum="md:" + "0" * 32), 1145, "md5"),
        (job("in.size", fsize="12"), 1099, "has 11 bytes, not 12"),
        (job("in.nowhere", ddmEndPointIn="NO_SUCH_DISK"), 1331, "in.nowhere"),
    ]
    jobs = run(grid, queue, *(definition for definition, *_ in cases))
    for job_, (_, code, words) in zip(jobs, cases, strict=True):
        assert (job_.state, job_.code) == ("failed", code), job_.diag
        assert words in job_.diag
        assert job_.log()["pilotlog.txt"]
    assert not mark.exists()


@needs_root
def test_a_storage_that_may_not_be_read_or_written_is_told(tmp_path: Path) -> None:
    with Grid(tmp_path) as grid:
        unreadable = grid.job(inputs={"in.secret": b"x"})
        grid.stored("in.secret").chmod(0)
        (reading,) = run(grid, "Q", unreadable, command=(*AS_A_USER, *PILOT))
        assert (reading.code, reading.state) == (1099, "failed")
        assert "may not be read" in reading.diag
        closed = grid.storage / "test" / "scope"
        closed.chmod(0o555)
        (job_id,) = grid.submit(grid.job("echo x > out.closed", outputs=["out.closed"]))
        assert grid.pilot(command=(*AS_A_USER, *PILOT)).wait() == 0
        closed.chmod(0o755)
        writing = grid.job_of(job_id)
        assert (writing.finals, writing.files) == (["failed"], {})
        assert writing.code in (1137, 1199)
        assert "ermission denied" in writing.diag
        assert writing.fields["trans_exit_code"] == 0


@needs_root
def test_a_storage_that_is_full_is_told(tmp_path: Path) -> None:
    with Grid(tmp_path) as grid:
        mount = f'mount -t tmpfs -o size=1m none {grid.storage} && exec "$@"'
        inside = ("unshare", "--mount", "sh", "-c", mount, "sh")
        if subprocess.run([*inside, "true"], capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a small file system")
        (job_id,) = grid.submit(grid.job("head -c 5M /dev/zero > out.big", outputs=["out.big"]))
        assert grid.pilot(command=(*inside, *PILOT)).wait() == 0
        job = grid.job_of(job_id)
        assert (job.finals, job.code) == (["failed"], 1333), job.diag
        assert list(job.files) == [job.known["definition"]["logFile"]]


@needs_root
def test_a_full_disk_under_the_pilot_keeps_no_report_back(tmp_path: Path) -> None:
    with Grid(tmp_path) as grid:
        mount = f'mount -t tmpfs -o size=20m none {grid.work} && exec "$@"'
        inside = ("unshare", "--mount", "sh", "-c", mount, "sh")
        if subprocess.run([*inside, "true"], capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a small file system")
        filling = grid.job("head -c 100M /dev/zero > big; exit 3")
        freeing = grid.job("head -c 100M /dev/zero > big; rm big; exit 3")
        full, freed = run(grid, "Q", filling, freeing, command=(*inside, *PILOT))
        assert (full.state, full.code, full.fields["trans_exit_code"]) == ("failed", 1098, 3), full.diag
        assert "the disk is full" in full.diag or "No space left on device" in full.diag
        assert full.log()["big"]
        assert (freed.state, freed.code) == ("failed", 1305)
        assert freed.log()["pilotlog.txt"]


# --- outputs


def test_an_output_that_is_there_already_is_good_if_it_is_the_same_and_never_overwritten(grid: Grid) -> None:
    queue = grid.queue("THERE")
    for lfn in ("out.same", "out.other"):
        grid.store(lfn, b"content\n")
    same, other = run(
        grid,
        queue,
        grid.job("echo content > out.same", outputs=["out.same"], queue=queue),
        grid.job("echo other > out.other", outputs=["out.other"], queue=queue),
    )
    assert (same.state, same.code) == ("finished", 0)
    assert (other.state, other.code) == ("failed", 1221)
    assert grid.stored("out.other").read_bytes() == b"content\n"


def test_one_output_that_fails_does_not_keep_back_the_others(grid: Grid) -> None:
    queue = grid.queue("SOME")
    command = "echo 1 > some.1; echo 3 > some.3"
    (job,) = run(grid, queue, grid.job(command, outputs=["some.1", "some.2", "some.3"], queue=queue))
    assert (job.state, job.code) == ("failed", 1165)
    assert {"some.1", "some.3"} < set(job.files)
    assert "some.2" not in job.files


# --- copy tools

scenario = Scenarios()


@scenario.for_each(
    bug_in=("bug", "get", 1099, "KeyError"),
    bug_out=("bug", "put", 1137, "KeyError"),
    exit=("exit", "get", 1099, "SystemExit"),
    garbage=("garbage", "put", 1137, "has 8 bytes, not 1"),
)
def a_tool_that_misbehaves_fails_its_job(top: Path, fault: str, where: str, code: int, words: str) -> None:
    with Grid(top) as grid:
        grid.gated_queue("T", is_open=True, fault=fault, where=where)
        definition = grid.job("cp in.t out.t", inputs={"in.t": b"x"}, outputs=["out.t"], queue="T")
        (job_id,) = grid.submit(definition)
        pilot = grid.pilot(queue="T")
        assert pilot.wait() == 0, pilot.text
        job = grid.job_of(job_id)
        assert job.reported_once()
        assert (job.state, job.code) == ("failed", code), job.diag
        assert words in job.diag, job.diag


@scenario
def a_storage_that_is_busy_is_asked_again(top: Path) -> None:
    with Grid(top) as grid:
        grid.gated_queue("FLAKY", is_open=True, fault="flaky", where="get")
        (job,) = run(grid, "FLAKY", grid.job("cat in.flaky", inputs={"in.flaky": b"x"}, queue="FLAKY"))
        assert job.state == "finished"


@scenario
def a_storage_that_stays_busy_is_told_after_its_tries(top: Path) -> None:
    with Grid(top) as grid:
        grid.gated_queue("BUSY", is_open=True, fault="retry", where="get")
        (job,) = run(grid, "BUSY", grid.job("cat in.busy", inputs={"in.busy": b"x"}, queue="BUSY"))
        assert (job.state, job.code) == ("failed", 1324)
        assert "busy" in job.diag


@scenario.for_each(get=("get",), put=("put",))
def a_tool_that_hangs_and_does_not_listen_does_not_hold_up_a_stop(top: Path, where: str) -> None:
    with Grid(top) as grid:
        gate = grid.gated_queue("HANG", is_open=True, fault="hang", where=where)
        definition = grid.job("cp in.t out.t", inputs={"in.t": b"x"}, outputs=["out.t"], queue="HANG")
        (job_id,) = grid.submit(definition)
        pilot = grid.pilot("--grace", "5", queue="HANG")
        until(lambda: list(gate.glob(f"{where}-*")))
        sent = pilot.signal(signal.SIGTERM)
        assert pilot.wait() == 143
        assert time.monotonic() - sent < 5 + 1  # a busy machine takes some of it to end a process
        job = grid.job_of(job_id)
        assert (job.finals, job.code) == (["failed"], 1201)
        assert grid.main_dirs() == []


@scenario.for_each(
    tool=({"copytools": {}, "acopytools": {}}, "none for rucio"),  # the tool of a queue that names none
    known=({"copytools": {"no-such-tool": {}}, "acopytools": {"read_lan": ["no-such-tool"]}}, "no-such-tool"),
    storage=({"astorages": {}}, "storage"),
)
def a_queue_without_a_tool_or_a_storage_says_so_in_the_job(top: Path, fields: dict[str, Any], words: str) -> None:
    with Grid(top) as grid:
        grid.queue("BARE", **fields)
        job_id, plain = grid.submit(
            grid.job("echo x > bare.out", inputs={"bare.in": b"x"}, queue="BARE", ddmEndPointIn="", log=None),
            grid.job(queue="BARE", log=None),
        )
        pilot = grid.pilot(queue="BARE")
        assert pilot.wait() == 0, pilot.text
        job = grid.job_of(job_id)
        assert job.finals == ["failed"], job.states
        assert words in job.diag.lower(), job.diag
        assert "Traceback" not in pilot.text
        assert grid.job_of(plain).finals == ["finished"]


running = scenario.fixture()
test_scenario = scenario.test()
