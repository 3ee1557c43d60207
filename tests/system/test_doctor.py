"""`pilot doctor` as a wrapper runs it, before a server that asks for a token."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grid import ROOT, Grid, Pilot

DOCTOR = (sys.executable, str(ROOT / "pilot.py"), "doctor")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid"), token="the-good-token", origin="vo.pilot") as grid:
        yield grid


def doctor(grid: Grid, *more: str, token: str = "the-good-token", queue: str = "Q") -> Pilot:
    path = grid.top / f"token-{len(token)}"
    path.write_text(token)
    path.chmod(0o600)
    env = {"PANDA_AUTH_TOKEN": str(path), "PANDA_AUTH_ORIGIN": "vo.pilot"}
    return grid.pilot(*more, queue=queue, env=env, command=DOCTOR)


def levels(pilot: Pilot) -> dict[str, str]:
    return {line.split()[1]: line.split()[0] for line in pilot.out.read_text().splitlines()}


def test_the_command_line_of_a_wrapper_finds_a_good_node_good(grid: Grid) -> None:
    pilot = doctor(grid)
    assert pilot.wait() == 0, pilot.text
    found = levels(pilot)
    assert {found[name] for name in ("server", "clock", "queue", "copytools", "storages", "credential", "workdir")} == {
        "ok"
    }
    assert not pilot.err.read_text()
    assert not grid.main_dirs()
    assert "the-good-token" not in pilot.text


def test_a_token_that_the_server_does_not_know_is_a_failure_in_json_too(grid: Grid) -> None:
    pilot = doctor(grid, "--json", token="a-wrong-token")
    assert pilot.wait() == 1, pilot.text
    report = json.loads(pilot.out.read_text())
    (server,) = [check for check in report["checks"] if check["name"] == "server"]
    assert (report["level"], server["level"], report["back_off"]) == ("failure", "failure", 0)
    assert "renew the token" in server["advice"]
    assert "a-wrong-token" not in json.dumps(report)


def test_a_bad_node_waits_until_it_is_told_to_end_and_a_good_one_does_not(grid: Grid) -> None:
    grid.queue("OFFLINE", status="offline")
    bad, good = doctor(grid, "--back-off", "50-60", queue="OFFLINE"), doctor(grid, "--back-off", "50-60")
    bad.says("not fit for jobs")
    assert good.wait() == 0
    time.sleep(0.2)  # to the wait itself
    told = bad.signal()
    assert bad.wait() == 1
    assert time.monotonic() - told < 1


def test_a_server_that_hangs_does_not_hold_it_up(tmp_path: Path, grid: Grid) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        pilot = doctor(grid, "--url", url, "--queuedata-url", f"{url}/q.json")
        assert pilot.wait() == 1
        assert time.monotonic() - started < 15
    found = levels(pilot)
    assert (found["server"], found["queue"], found["workdir"]) == ("failure", "failure", "ok")


def test_options_that_cannot_be_used_end_it_with_2(grid: Grid) -> None:
    for wrong in (["--back-off", "soon"], ["--heartbeats", "1"]):
        pilot = doctor(grid, *wrong)
        assert pilot.wait() == 2
        assert "Traceback" not in pilot.text
