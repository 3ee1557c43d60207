"""Payloads in containers, with real runtimes: their end, what they see, and that nothing is left of them.

Podman and apptainer take a directory as an image; both get this system's own, so there is nothing to download.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.grid import Grid, Pilot
from tests.parts.apptainer import Apptainer
from tests.parts.podman import Podman

TOKEN = "glpat-7c1d9e44aa01"
LOGIN = [{"username": "somebody", "token": TOKEN, "registry_path": "docker://registry.invalid/group/"}]
SECRETS = json.dumps({"DOCKER_TOKENS": json.dumps(LOGIN)})

#: Says who it is, then waits; writes on TERM.
OBEYS = "trap 'echo told > told.txt; exit 3' TERM; touch up; while :; do sleep 0.1; done"
IGNORES = """trap "" TERM; (trap "" TERM; setsid sleep 1000 & echo $! > daemon.pid)
touch up; while :; do sleep 0.1; done"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A queue and an environment for one."""

    name: str
    image: str
    environ: Mapping[str, str]
    grid: Grid

    def run(self, command: str, *, image: str | None = None, seconds: float = 60, **fields: object) -> object:
        """Run one job to its end; what the server knows of it."""
        job = self.grid.job(command, queue=self.name, container_name=image or self.image, **fields)
        (job_id,) = self.grid.submit(job)
        self.pilot().wait(seconds)
        return self.grid.job_of(job_id)

    def pilot(self, *more: str) -> Pilot:
        """A pilot for one job, on this runtime's queue."""
        return self.grid.pilot(*more, queue=self.name, env=self.environ)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as made:
        yield made


@pytest.fixture(params=["podman", "apptainer"], scope="module")
def runtime(request: pytest.FixtureRequest, grid: Grid) -> Runtime:
    if request.param == "podman":
        podman: Podman = request.getfixturevalue("podman")
        grid.queue("podman", container_type="podman:pilot", timefloor=0)
        return Runtime("podman", "/", podman.environ, grid)
    apptainer: Apptainer = request.getfixturevalue("apptainer")
    grid.queue("apptainer", container_type="apptainer:pilot", container_options=apptainer.options, timefloor=0)
    path = f"{apptainer.program.parent}:{os.environ['PATH']}"
    return Runtime("apptainer", str(apptainer.image), {"PATH": path}, grid)


def test_a_good_payload_has_its_inputs_outputs_and_variables(runtime: Runtime) -> None:
    text = (
        "cat in.txt > out.txt; echo $PandaID $PANDA_RESOURCE $PWD $TMPDIR >> out.txt; readlink /proc/self/ns/pid"
        " >> out.txt; ls -a >> out.txt; echo $PATH >> out.txt"
    )
    out = f"out-{runtime.name}.txt"
    job = runtime.run(text.replace("out.txt", out), inputs={"in.txt": b"hello\n"}, outputs=[out])
    assert (job.state, job.code) == ("finished", 0), job.diag
    lines = job.path(out).read_text().splitlines()
    workdir = lines[1].split()[2]
    assert lines[0] == "hello"
    assert lines[1].split() == [str(job.id), runtime.name, workdir, workdir]
    assert workdir.endswith(f"/PanDA_Pilot-{job.id}")
    assert lines[2] != os.readlink("/proc/self/ns/pid")
    assert "container_script.sh" in lines
    assert ".cache" not in lines[-1]
