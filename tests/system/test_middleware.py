"""Files staged in a middleware container, by a real apptainer, or by a script on the node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pilot.queuedata import hash_path
from tests.grid import SCOPE, Grid, Pilot, processes_with, until
from tests.parts.apptainer import Apptainer
from tests.parts.xrootd import XrootdServer, xrootd

__all__ = ["xrootd"]

CONTAINER, BASH = "container:middleware", "bash:middleware"
ACTIVITIES = ("read_lan", "write_lan", "pl")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as made:
        yield made


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a node that has no client of any storage."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("bash", "cat", "cp", "env", "ln", "ls", "mkdir", "rm", "sed", "sh", "sleep", "touch"):
        (folder / name).symlink_to(shutil.which(name) or "")
    return folder


@pytest.fixture(scope="module")
def start(grid: Grid, apptainer: Apptainer, bare: Path) -> Callable[..., Pilot]:
    """Starts a pilot on a queue of its own."""

    def started(queue: str, container_type: str, *, image: str = "", bind: Path | None = None, **fields: Any) -> Pilot:
        params = {"pilot_middleware_container": image or str(apptainer.image), "pilot_free_space_limit": 0}
        fields["params"] = params | {"pilot_free_space_limit_running": 0} | fields.get("params", {})
        options = {"container_options": f"{apptainer.options} -B {bind or grid.storage}"}
        environ = {"PATH": f"{apptainer.program.parent}:{bare}"} | fields.pop("environ", {})
        grid.queue(queue, container_type=container_type, **options | fields)
        return grid.pilot("--cleanup", "False", queue=queue, env=environ)

    return started


@pytest.fixture
def traces() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of traces, and what it got."""
    got: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/traces/", got
        server.shutdown()
        thread.join()


def told(pilot: Pilot, grid: Grid, job_id: int) -> dict[str, Any]:
    """The files with what was staged, by name, and the rest of the names in the job directory under an empty one."""
    (workdir,) = grid.work.glob(f"*/PanDA_Pilot-{job_id}")
    assert not list(workdir.parent.glob("middleware-*")), pilot.text
    found: dict[str, Any] = {path.name: json.loads(path.read_text()) for path in workdir.glob("stage*.json*")}
    return found | {"": sorted(path.name for path in workdir.glob("stage*") if path.name not in found)}


def test_a_node_without_clients_moves_files_by_those_of_the_container(
    grid: Grid, start: Callable[..., Pilot], xrootd: XrootdServer, traces: tuple[str, list[dict[str, Any]]]
) -> None:
    url, got = traces
    protocol = {"endpoint": f"{xrootd.url}/", "path": "/middleware", "id": 1}
    record = {"name": "DOOR", "type": "DATADISK", "state": "ACTIVE", "is_deterministic": True}
    record["arprotocols"] = {activity: [protocol] for activity in ACTIVITIES}
    storages = json.loads((grid.files / "storages.json").read_text())
    (grid.files / "storages.json").write_text(json.dumps({**storages, "DOOR": record}))
    xrootd.write(f"middleware/{hash_path(SCOPE, 'in.txt')}", b"hello\n")

    job = grid.job("cat in.txt >out.txt", inputs={"in.txt": b"hello\n"}, outputs=["out.txt"], queue="XROOTD")
    (job_id,) = grid.submit(job | {"ddmEndPointIn": "DOOR", "ddmEndPointOut": "DOOR,DOOR"})
    tools = {activity: ["xrdcp"] for activity in ACTIVITIES}
    pilot = start(
        *("XROOTD", CONTAINER),
        copytools={"xrdcp": {"use": "programs"}},
        acopytools=tools,
        astorages={activity: ["DOOR"] for activity in ACTIVITIES},
        params={"pilot_rucio_traces_url": url},
    )
    assert pilot.wait(60) == 0, pilot.text
    assert grid.job_of(job_id).state == "finished", pilot.text

    source, output = (f"{xrootd.url}//middleware/{hash_path(SCOPE, name)}" for name in ("in.txt", "out.txt"))
    assert (xrootd.data / f"middleware/{hash_path(SCOPE, 'out.txt')}").read_bytes() == b"hello\n"
    files = told(pilot, grid, job_id)
    assert files["stagein_status.json"] == {"in.txt": ["transferred", 0, source, "DOOR"], "error": ["", 0]}
    assert files["stageout_status.json"]["out.txt"] == ["transferred", 0, output, output, "084b021f", 6]
    assert set(files["stageout_status.json.log"]) == {job["logFile"], "error"}
    assert files["stagein_replicas.json"]["in.txt"]["checksum"] == "084b021f"
    assert files[""] == [f"stage{way}{what}" for way in ("in", "out") for what in (".sh", "_stderr.txt", "_stdout.txt")]
    seen = [(trace["eventType"], trace["filename"], trace["clientState"], trace["protocol"]) for trace in got]
    assert seen == [
        ("get_sm", "in.txt", "DONE", "root"),
        ("put_sm", "out.txt", "DONE", "root"),
        ("put_sm", job["logFile"], "DONE", "root"),
    ]


def test_a_script_on_the_node_finds_what_the_site_s_commands_set_up(
    grid: Grid, start: Callable[..., Pilot], tmp_path: Path
) -> None:
    """Here Python itself: the node has none in PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to("/usr/bin/python3")
    job = grid.job("cat in.txt >out.txt", inputs={"in.txt": b"hello\n"}, outputs=["out.txt"], queue="BASH")
    good, without = grid.submit(job, grid.job(inputs={"other.txt": b"x"}, log=None, queue="BASH-0"))
    pilot = start("BASH", BASH, params={"pilot_middleware_setup": f"export PATH=$PATH:{tmp_path}/bin"})
    assert pilot.wait(60) == 0, pilot.text
    assert grid.job_of(good).state == "finished", pilot.text
    assert grid.stored("out.txt").read_bytes() == b"hello\n"

    pilot = start("BASH-0", BASH)
    pilot.wait(60)
    assert (grid.job_of(without).code, grid.job_of(without).state) == (1342, "failed"), pilot.text
    assert "there is no Python >= 3.11" in grid.job_of(without).diag


def test_what_goes_wrong_in_there_has_the_codes_of_files_and_what_goes_wrong_with_it_its_own(
    grid: Grid, start: Callable[..., Pilot]
) -> None:
    def job(queue: str, **fields: Any) -> dict[str, Any]:
        return grid.job("true", inputs={"a.txt": b"a", "b.txt": b"b"}, log=None, queue=queue, **fields)

    bad, no_output, no_image = grid.submit(
        job("WRONG", checksum="ad:00620062,ad:0badbad0"),
        grid.job(outputs=["no.txt"], log=None, queue="WRONG"),
        job("NO-IMAGE"),
    )
    first, second = start("WRONG", CONTAINER), start("NO-IMAGE", CONTAINER, image="/no/such/image")
    first.wait(60)
    second.wait(60)
    assert grid.job_of(bad).code == 1171, first.text
    assert "b.txt" in grid.job_of(bad).diag
    status = told(first, grid, bad)["stagein_status.json"]
    assert (status["b.txt"][:2], status["error"][1]) == (["failed", 1171], 1171)
    assert grid.job_of(no_output).code == 1165, first.text
    assert told(first, grid, no_output)["stageout_status.json"]["no.txt"][:2] == ["failed", 1165]

    assert grid.job_of(no_image).code == 1360, second.text
    assert "middleware container '/no/such/image'" in grid.job_of(no_image).diag
    assert told(second, grid, no_image)["stagein_status.json"]["a.txt"][:2] == ["failed", 1360]


@pytest.mark.parametrize("runtime", ["apptainer", "podman", "bash"])
def test_a_stop_ends_what_moves_in_there(
    grid: Grid, start: Callable[..., Pilot], tmp_path: Path, runtime: str, request: pytest.FixtureRequest
) -> None:
    queue, container_type = f"STOP-{runtime}", BASH if runtime == "bash" else f"{CONTAINER};{runtime}:pilot"
    tools: dict[str, Any] = {"copytools": {"gate": {"directory": str(tmp_path)}}}
    tools["acopytools"] = {activity: ["gate"] for activity in ACTIVITIES}
    if runtime == "podman":
        tools["environ"] = {**request.getfixturevalue("podman").environ, "PATH": os.environ["PATH"]}
        tools |= {"image": "/", "container_options": f"-v {tmp_path}:{tmp_path}"}
    setup = {"pilot_middleware_setup": f"export PATH=$PATH:/usr/bin MARK={tmp_path}"}
    (job_id,) = grid.submit(grid.job(inputs={"in.txt": b"hello\n"}, log=None, queue=queue))
    pilot = start(queue, container_type, bind=tmp_path, params=setup, **tools)
    until((tmp_path / "get-in.txt").exists, why=lambda: pilot.text)
    assert processes_with(f"MARK={tmp_path}")
    began = pilot.signal(signal.SIGTERM)
    pilot.wait()
    assert time.monotonic() - began < 5.0, pilot.text
    assert not processes_with(f"MARK={tmp_path}")
    assert grid.job_of(job_id).code == 1201, pilot.text
    assert told(pilot, grid, job_id)["stagein_status.json"]["in.txt"][:2] == ["failed", 1201]


#: A docker whose daemon does not answer any more.
STUCK = """#!/bin/bash
while [ "$1" ]; do [ "$1" = --cidfile ] && echo 0123456789abcdef >"$2" && touch UP; shift; done
exec sleep 9
"""


def test_a_runtime_that_is_stuck_does_not_cost_the_report_of_a_job_that_is_stopped(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(STUCK.replace("UP", str(tmp_path / "up")))
    (tmp_path / "docker").chmod(0o755)
    params = {"pilot_middleware_container": "x/y:1", "pilot_free_space_limit": 0}
    queue = grid.queue("STUCK", container_type=f"docker:pilot;{CONTAINER}", params=params)
    (job_id,) = grid.submit(grid.job("true", inputs={"in.txt": b"x"}, queue=queue))
    pilot = grid.pilot("--grace", "3", queue=queue, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    until((tmp_path / "up").exists)
    began = pilot.signal(signal.SIGTERM)
    assert pilot.wait(30) == 143, pilot.text
    assert time.monotonic() - began < 5
    assert grid.job_of(job_id).code == 1201, pilot.text
