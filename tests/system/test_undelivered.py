"""Outputs that no storage takes are kept, and a later pilot, or `pilot deliver`, brings them to their end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from tests.grid import Grid, Scenarios, until

scenario = Scenarios()

DELIVER = (sys.executable, "-m", "pilot.cli.main", "deliver")


def block(grid: Grid, lfn: str) -> Path:
    """Put a file where the directory of an output has to be; removing it mends the storage."""
    blocker = grid.stored(lfn).parent
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_text("no directory")
    return blocker


def kept_job(grid: Grid, *more: str, command: str = "echo a > a; echo b > b") -> tuple[int, Path, Path]:
    """A job whose output `a` was not taken: its id, where it is kept, what blocks it."""
    kept = grid.top / "kept"
    blocker = block(grid, "a")
    (job_id,) = grid.submit(grid.job(command, outputs=["a", "b"]))
    pilot = grid.pilot("--keep-undelivered", str(kept), *more)
    assert pilot.wait() == 0, pilot.text
    return job_id, kept, blocker


def finals(grid: Grid, job_id: int) -> list[str]:
    return [state for state in grid.job_of(job_id).states if state in ("holding", "finished", "failed")]


@scenario
def the_next_pilot_delivers_and_the_job_is_finished(top: Path) -> None:
    with Grid(top) as grid:
        job_id, kept, blocker = kept_job(grid, command="mkdir d; echo a > d/a; ln -s $PWD/d/a a; echo b > b")
        assert finals(grid, job_id) == ["holding"]
        (folder,) = kept.iterdir()
        assert {path.name for path in folder.iterdir()} >= {"a", "delivery.json", "journal.jsonl"}
        assert not (folder / "payload.stdout").exists()
        steps = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        assert [step["where"] for step in steps if step["step"] == "kept"] == [str(folder)]
        assert list(grid.main_dirs()) == []
        blocker.unlink()
        second = grid.pilot("--keep-undelivered", str(kept))
        assert second.wait() == 0, second.text
        job = grid.job_of(job_id)
        assert (job.state, finals(grid, job_id)) == ("finished", ["holding", "finished"]), second.text
        assert (job.code, job.path("a").read_text(), job.path("b").read_text()) == (0, "a\n", "b\n")
        assert "payload.stdout" in job.log()
        assert list(kept.iterdir()) == []


@scenario
def pilot_deliver_says_what_is_left_and_delivers_what_can_be(top: Path) -> None:
    with Grid(top) as grid:
        job_id, kept, blocker = kept_job(grid)
        left = grid.pilot(str(kept), command=DELIVER)
        assert left.wait() != 0
        assert "1 jobs are still not delivered" in left.text
        assert len(list(kept.iterdir())) == 1
        blocker.unlink()
        grid.queue("OTHER")
        other = grid.pilot(str(kept), command=DELIVER, queue="OTHER")
        assert other.wait() != 0
        assert "is left to pilots of its queue Q" in other.text
        done = grid.pilot(str(kept), command=DELIVER)
        assert done.wait() == 0, done.text
        assert grid.job_of(job_id).state == "finished"
        assert grid.server.counters()["calls"]["acquire_jobs"] == 2, "deliver asked for a job"


@scenario
def what_a_killed_pilot_leaves_is_delivered(top: Path) -> None:
    with Grid(top) as grid:
        kept = grid.top / "kept"
        gate = grid.top / "gate"
        gate.mkdir()
        tools: dict[str, Any] = {"copytools": {"gate": {"directory": str(gate)}, "mv": {}}}
        grid.queue("Q", acopytools={"write_lan": ["gate"], "read_lan": ["mv"], "pl": ["mv"]}, **tools)
        (job_id,) = grid.submit(grid.job("echo a > a; echo said", outputs=["a"]))
        first = grid.pilot("--keep-undelivered", str(kept))
        until(lambda: (gate / "put-a").exists())
        meanwhile = grid.pilot("--keep-undelivered", str(kept), command=DELIVER)  # a living pilot's are its own
        assert meanwhile.wait() == 0, meanwhile.text
        first.signal(signal.SIGKILL)
        first.wait()
        assert finals(grid, job_id) == []
        log_file = grid.stored(grid.job_of(job_id).known["definition"]["logFile"])
        killed_too = grid.pilot(str(grid.work), command=DELIVER)
        until(log_file.exists)  # it is out, and nobody lives to note that
        killed_too.signal(signal.SIGKILL)
        killed_too.wait()
        (gate / "open").touch()
        second = grid.pilot("--keep-undelivered", str(kept))
        assert second.wait() == 0, second.text
        job = grid.job_of(job_id)
        assert (job.state, job.path("a").read_text()) == ("finished", "a\n"), second.text
        log = job.log()
        assert log["payload.stdout"] == b"said\n"
        assert "pilotlog.txt" in log
        assert list(grid.work.glob("*/PanDA_Pilot-*")) == []


@scenario
def a_stop_during_the_stage_out_leaves_a_job_that_the_next_pilot_finishes(top: Path) -> None:
    with Grid(top) as grid:
        kept = grid.top / "kept"
        gate = grid.gated_queue("Q")
        (job_id,) = grid.submit(grid.job("echo a > a", outputs=["a"]))
        first = grid.pilot("--keep-undelivered", str(kept), "--grace", "6")
        until(lambda: (gate / "put-a").exists())
        first.signal()
        first.wait(12)
        assert finals(grid, job_id) == ["holding"], first.text
        assert len(list(kept.glob("*/a"))) == 1
        (gate / "open").touch()
        assert grid.pilot("--keep-undelivered", str(kept)).wait() == 0
        job = grid.job_of(job_id)
        assert (job.state, job.path("a").read_text()) == ("finished", "a\n")
        assert "payload.stdout" in job.log()


@scenario
def a_stop_while_a_catalogue_hangs_leaves_a_job_that_is_registered_later(top: Path) -> None:
    with Grid(top) as grid, socket.create_server(("127.0.0.1", 0)) as silent:
        kept = grid.top / "kept"
        grid.queue("Q", catchall="mv_final_destination,register")
        (job_id,) = grid.submit(grid.job("echo a > a", outputs=["a"], log=None))
        asked = ["--catalogue", "rucio", "--rucio-host", f"http://127.0.0.1:{silent.getsockname()[1]}"]
        first = grid.pilot("--keep-undelivered", str(kept), "--grace", "6", *asked, env={"BEARER_TOKEN": "a.b.c"})
        first.says("stage-out of a:")
        asking, _ = silent.accept()
        first.signal()
        first.wait(12)
        asking.close()
        assert finals(grid, job_id) == ["holding"], first.text
        grid.queue("Q")  # as it is when the catalogue is well
        assert grid.pilot("--keep-undelivered", str(kept)).wait() == 0
        assert grid.job_of(job_id).state == "finished"


@scenario
def a_good_job_that_the_server_did_not_hear_of_is_reported_later(top: Path) -> None:
    with Grid(top, faults=["update_job@finished:503:0"]) as grid:
        kept = grid.top / "kept"
        grid.settings.write_text(grid.settings.read_text() + "final_report_timeout = 1\n")
        (job_id,) = grid.submit(grid.job("echo a > a", outputs=["a"]))
        first = grid.pilot("--keep-undelivered", str(kept))
        assert first.wait() != 0
        assert len(list(kept.iterdir())) == 1, first.text
        grid.server.clear_faults()
        second = grid.pilot("--keep-undelivered", str(kept))
        assert second.wait() == 0, second.text
        assert (grid.job_of(job_id).state, second.text.count("stage-out of")) == ("finished", 0)


@scenario
def a_payload_that_fails_or_makes_no_output_is_failed_and_nothing_is_kept(top: Path) -> None:
    with Grid(top) as grid:
        for command in ("echo a > a; exit 1", "echo b > b"):
            kept = grid.top / "kept"
            (job_id,) = grid.submit(grid.job(command, outputs=["a", "b"]))
            pilot = grid.pilot("--keep-undelivered", str(kept))
            assert pilot.wait() == 0
            assert finals(grid, job_id) == ["failed"]
            assert not kept.exists()


@scenario
def a_job_that_is_over_for_the_server_is_not_delivered(top: Path) -> None:
    with Grid(top) as grid:
        job_id, kept, blocker = kept_job(grid)
        grid.server.kill(job_id, code=9)
        blocker.unlink()
        until(lambda: grid.job_of(job_id).state == "cancelled")
        done = grid.pilot(str(kept), command=DELIVER)
        assert done.wait() == 0, done.text
        assert not grid.stored("a").exists()
        assert list(kept.iterdir()) == []


@scenario
def a_job_directory_moves_to_another_file_system(top: Path) -> None:
    kept = Path("/dev/shm") / top.name
    if not kept.parent.is_dir():
        return
    with Grid(top) as grid:
        blocker = block(grid, "a")
        (job_id,) = grid.submit(grid.job("echo a > a", outputs=["a"]))
        try:
            assert grid.pilot("--keep-undelivered", str(kept)).wait() == 0
            assert finals(grid, job_id) == ["holding"]
            (folder,) = kept.iterdir()
            assert (folder / "a").read_text() == "a\n"
            blocker.unlink()
            assert grid.pilot(str(kept), command=DELIVER).wait() == 0
            assert grid.job_of(job_id).state == "finished"
            assert list(kept.iterdir()) == []
        finally:
            shutil.rmtree(kept, ignore_errors=True)


@scenario
def what_does_not_fit_where_it_shall_be_kept_stays_in_the_work_directory(top: Path) -> None:
    with Grid(top) as grid:
        kept = grid.top / "kept"
        kept.mkdir()
        blocker = block(grid, "a")
        (job_id,) = grid.submit(grid.job("head -c 1000000 /dev/zero > a", outputs=["a"]))
        run = (sys.executable, "-m", "pilot.cli.main", "run")
        mount = f'mount -t tmpfs -o size=500k none {kept} && exec "$@"'
        pilot = grid.pilot(
            "--keep-undelivered", str(kept), command=("unshare", "-m", "bash", "-c", mount, "bash", *run)
        )
        assert pilot.wait() == 0, pilot.text
        assert finals(grid, job_id) == ["holding"]
        assert len(list(grid.work.glob("*/PanDA_Pilot-*/a"))) == 1, pilot.text
        blocker.unlink()
        assert grid.pilot(str(grid.work), command=DELIVER).wait() == 0
        assert grid.job_of(job_id).state == "finished"


@scenario
def a_note_of_another_user_or_with_paths_in_it_is_refused(top: Path) -> None:
    with Grid(top) as grid:
        job_id, kept, blocker = kept_job(grid)
        blocker.unlink()
        (folder,) = kept.iterdir()
        note = folder / "delivery.json"
        good = note.read_text()
        note.write_text(good.replace('"lfn": "a"', '"lfn": "../../a"'))
        bad = grid.pilot(str(kept), command=DELIVER)
        assert bad.wait() != 0
        assert "../../a" in bad.text
        note.write_text("{")
        assert grid.pilot(str(kept), command=DELIVER).wait() != 0
        note.write_text(good)
        assert grid.pilot(str(kept), command=DELIVER).wait() == 0
        assert grid.job_of(job_id).state == "finished"


@scenario
def a_pipe_where_a_note_could_be_holds_up_nobody(top: Path) -> None:
    with Grid(top) as grid:
        (grid.work / "x").mkdir()
        os.mkfifo(grid.work / "x" / "delivery.json")
        (job_id,) = grid.submit(grid.job("echo a > a", outputs=["a"]))
        assert grid.pilot("--keep-undelivered", str(grid.top / "kept")).wait() == 0
        assert grid.job_of(job_id).state == "finished"
        assert grid.pilot(str(grid.work), command=DELIVER).wait() != 0


@scenario
def a_link_of_the_payload_does_not_bring_a_file_of_the_node_into_the_log(top: Path) -> None:
    with Grid(top) as grid:
        gate = grid.top / "gate"
        gate.mkdir()
        tools: dict[str, Any] = {"copytools": {"gate": {"directory": str(gate)}, "mv": {}}}
        grid.queue("Q", acopytools={"write_lan": ["gate"], "read_lan": ["mv"], "pl": ["mv"]}, **tools)
        (grid.top / "token").write_text("a secret of the site")
        links = f"ln -sf {grid.top}/token pilotlog.txt"
        (job_id,) = grid.submit(grid.job(f"echo a > a; {links}", outputs=["a"]))
        first = grid.pilot("--keep-undelivered", str(grid.top / "kept"))
        until(lambda: (gate / "put-a").exists())
        first.signal(signal.SIGKILL)
        first.wait()
        (gate / "open").touch()
        assert grid.pilot(str(grid.work), command=DELIVER).wait() == 0
        log = grid.job_of(job_id).log()
        assert b"a secret of the site" not in b"".join(log.values())
        assert b"job definition" in log["pilotlog.txt"]


running = scenario.fixture()
test_scenario = scenario.test()
