"""A healthy pilot shows life in its log however silent its payload is: wrappers end one that does not."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.grid import Grid, until

#: A pilot that need not wait a minute.
PROGRAM = "import pilot.pilotrun as run, pilot.cli.main as cli; run.SIGN_OF_LIFE = 0.1; raise SystemExit(cli.main())"


def test_the_log_of_a_pilot_changes_while_its_payload_is_silent(tmp_path: Path) -> None:
    with Grid(tmp_path) as grid:
        (job_id,) = grid.submit(grid.job("touch started; until [ -e stop ]; do sleep 0.05; done"))
        pilot = grid.pilot(command=(sys.executable, "-c", PROGRAM, "run"))
        (started,) = until(lambda: list(grid.work.glob("*/*/started")))
        (log,) = grid.work.glob("*/pilotlog.txt")
        before = log.stat()
        until(lambda: log.stat().st_mtime_ns > before.st_mtime_ns + 500_000_000)
        started.with_name("stop").touch()
        assert pilot.wait() == 0, pilot.text
        assert grid.job_of(job_id).state == "finished"
