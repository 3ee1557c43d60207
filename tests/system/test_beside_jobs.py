"""What goes wrong beside a job, in the pilot itself or at the terminal, costs neither the job nor its report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilot.jobrun import JobRun
from pilot.localrun import LocalRun
from pilot.outcome import Progress
from pilot.signals import held
from pilot.watch.guard import Guard


async def broken(*_: object, **__: object) -> None:
    raise ValueError("a bug")


async def nothing() -> None:
    """No live display."""


@pytest.mark.parametrize(("owner", "name"), [(JobRun, "_finish_ship"), (Guard, "remove")])
def test_a_bug_in_what_watches_or_ships_neither_fails_a_job_nor_keeps_back_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("payload: echo hello > out.txt\noutputs: [{lfn: out.txt, destination: out/}]\n")
    monkeypatch.setattr(owner, name, broken)
    with held():
        outcome = LocalRun(job_file=job, environ=os.environ, progress=Progress(), workdir=tmp_path / "work").run(
            nothing
        )
    assert (outcome.code, outcome.reported) == (0, True)
    assert (tmp_path / "out/out.txt").read_text() == "hello\n"


def test_ctrl_c_in_the_demo_ends_it_at_once_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pilot.cli.main", "demo", "--dir", str(tmp_path / "run")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("job 1: running"):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody in the group
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "SIGINT" in rest and "Traceback" not in rest
