"""Payloads in containers, with real runtimes: their end, what they see, and that nothing is left of them.

Podman and apptainer take a directory as an image; both get this system's own, so there is nothing to download.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pilot.processes import children
from tests.grid import Grid, Job, Pilot, processes_with, until
from tests.parts import cannot
from tests.parts.apptainer import Apptainer
from tests.parts.docker import IMAGE, LOGIN, OPTIONS, Docker
from tests.parts.podman import Podman

USER, TOKEN = LOGIN


def secrets(registry: str) -> str:
    """The secrets of a job with a login for a registry."""
    login = {"username": USER, "token": TOKEN, "registry_path": f"docker://{registry}/group/"}
    return json.dumps({"DOCKER_TOKENS": json.dumps([login])})


SECRETS = secrets("registry.invalid")
VALUE = "value-of-a-variable-51"

MEMORY = Path("/sys/fs/cgroup/memory")
EAT = "python3 -c 'x = bytearray(400_000_000); print(len(x))'"

GOOD = """
cat in.txt > {out}; echo $PandaID $PANDA_RESOURCE $PWD $TMPDIR $QUEUE_SAYS >> {out}; readlink /proc/self/ns/pid >> {out}
ls >> {out}; tr '\\0' ' ' < /proc/1/cmdline > one.txt
"""
#: Ends with 3 at the first TERM, and counts how often it came.
OBEYS = "trap 'echo told >> told.txt; sleep 0.5; exit 3' TERM; touch up; while :; do sleep 0.1; done"
#: Neither it nor its daemon ends at TERM.
IGNORES = """trap "" TERM; setsid bash -c 'trap "" TERM; while :; do sleep 1; done' &
touch up; while :; do sleep 0.1; done"""


@dataclass(slots=True)
class Runtime:
    """One of them: its queue, its image, what a pilot needs to find it."""

    name: str
    image: str
    environ: Mapping[str, str]
    queue: Mapping[str, Any]
    grid: Grid

    def job(self, command: str, *, image: str | None = None, **fields: Any) -> dict[str, Any]:
        """A job that names an image, ours by default."""
        return self.grid.job(command, queue=self.name, container_name=image or self.image, **fields)

    def pilot(self, *more: str) -> Pilot:
        """A pilot on the queue of this runtime."""
        return self.grid.pilot(*more, queue=self.name, env=self.environ)

    def run(self, job: Mapping[str, Any], *more: str) -> Job:
        """One job to its end."""
        (job_id,) = self.grid.submit(job)
        self.pilot(*more).wait(60)
        return self.grid.job_of(job_id)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as made:
        yield made


@pytest.fixture(params=["podman", "apptainer", "docker"], scope="module")
def runtime(request: pytest.FixtureRequest, grid: Grid) -> Iterator[Runtime]:
    fields: dict[str, Any] = {"container_type": f"{request.param}:pilot", "environ": f"QUEUE_SAYS={VALUE}"}
    if request.param == "podman":
        podman: Podman = request.getfixturevalue("podman")
        found = Runtime("podman", "/", podman.environ, fields, grid)
    elif request.param == "docker":
        docker: Docker = request.getfixturevalue("docker")
        fields["container_options"] = OPTIONS
        found = Runtime("docker", f"docker://{IMAGE}", docker.environ, fields, grid)
    else:
        apptainer: Apptainer = request.getfixturevalue("apptainer")
        fields["container_options"] = apptainer.options
        path = f"{apptainer.program.parent}:{os.environ['PATH']}"
        found = Runtime("apptainer", str(apptainer.image), {"PATH": path}, fields, grid)
    grid.queue(found.name, **fields)
    yield found
    if request.param == "podman":
        assert podman.containers() == []
    if request.param == "docker":
        assert docker.containers() == []
        assert docker("volume", "ls", "--quiet").stdout == ""


@pytest.fixture(scope="module")
def results(runtime: Runtime) -> dict[str, Job]:
    """Several jobs that one pilot runs one after the other."""
    out = f"out-{runtime.name}.txt"
    cases = {
        "good": runtime.job(GOOD.format(out=out), inputs={"in.txt": b"hello\n"}, outputs=[out], secrets=SECRETS),
        "seven": runtime.job("echo words >&2; exit 7"),
        "like the runtime": runtime.job("exit 125"),
        "like apptainer": runtime.job("echo FATAL: mine >&2; exit 255"),
        "large": runtime.job("python3 -c 'import time; x = bytearray(150_000_000); time.sleep(2)'"),
        "link out": runtime.job(f"ln -s /etc/hostname x; ln -s x link-{out}", outputs=[f"link-{out}"]),
        "no such path": runtime.job("true", image="/no/such/image"),
        "no name": runtime.job("true", image="x; touch $(pwd)/hacked"),
        "no registry": runtime.job("true", image="docker://127.0.0.1:1/no/image:1", secrets=SECRETS),
    }
    before = set(runtime.grid.work.iterdir())
    names = dict(zip(cases, runtime.grid.submit(*cases.values()), strict=True))
    pilot = runtime.pilot("--cleanup", "False")
    assert pilot.wait(120) == 0, pilot.text
    assert TOKEN not in pilot.text
    (main_dir,) = set(runtime.grid.work.iterdir()) - before
    assert list(main_dir.glob("PanDA_Pilot-*"))
    assert not list(main_dir.glob("container-*"))
    return {name: runtime.grid.job_of(job_id) for name, job_id in names.items()}


def test_a_good_payload_has_its_inputs_outputs_and_variables(results: dict[str, Job], runtime: Runtime) -> None:
    job = results["good"]
    assert (job.state, job.code) == ("finished", 0), job.diag
    lines = job.path(f"out-{runtime.name}.txt").read_text().splitlines()
    words = lines[1].split()
    workdir = words[2]
    assert lines[0] == "hello"
    assert words == [str(job.id), runtime.name, workdir, workdir, VALUE]
    assert workdir.endswith(f"/PanDA_Pilot-{job.id}")
    assert lines[2] != os.readlink("/proc/self/ns/pid")
    assert "container_script.sh" in lines


def test_what_a_payload_uses_is_measured(results: dict[str, Job]) -> None:
    job = results["large"]
    assert (job.state, job.code) == ("finished", 0), job.diag
    assert 146_000 < int(job.fields["max_rss"]) < 200_000  # kB; above it are shells, and what python needs
    # What runs the container is not the payload: that is a shell.
    assert int(results["seven"].fields.get("max_rss") or 0) < 20_000, results["seven"].fields


def test_no_secret_is_in_the_log_of_a_job_or_on_a_command_line(results: dict[str, Job]) -> None:
    log = results["good"].log()
    assert "container_script.sh" in log
    assert not [name for name, content in log.items() if TOKEN.encode() in content]
    assert VALUE.encode() not in log["one.txt"]


def test_an_output_that_leads_out_of_the_job_directory_is_1165_and_says_where(results: dict[str, Job]) -> None:
    job = results["link out"]
    assert (job.state, job.code) == ("failed", 1165), job.diag
    assert (
        f"a link out of the job directory, to {os.path.realpath('/etc/hostname')}; the payload is in a container"
        in job.diag
    )


@pytest.mark.parametrize(("name", "status"), [("seven", 7), ("like the runtime", 125), ("like apptainer", 255)])
def test_the_status_of_a_payload_is_its_own_whatever_runtimes_use_it_for(
    results: dict[str, Job], name: str, status: int
) -> None:
    job = results[name]
    assert (job.state, job.code) == ("failed", 1305), job.diag
    assert f"exit status {status}" in job.diag
    assert int(job.fields["trans_exit_code"]) == status % 255 or int(job.fields["trans_exit_code"]) == status


@pytest.mark.parametrize("name", ["no such path", "no name", "no registry"])
def test_an_image_that_is_not_there_is_1360_and_says_which(results: dict[str, Job], name: str) -> None:
    job = results[name]
    assert (job.state, job.code) == ("failed", 1360), job.diag
    assert {"no such path": "/no/such/image", "no name": "hacked", "no registry": "127.0.0.1:1"}[name] in job.diag


@pytest.mark.parametrize("payload", [OBEYS, IGNORES], ids=["obeys", "ignores"])
def test_a_stop_leaves_nothing_of_a_container(runtime: Runtime, payload: str) -> None:
    (job_id,) = runtime.grid.submit(runtime.job(payload))
    pilot = runtime.pilot("--grace", "8")
    workdir = until(lambda: next(runtime.grid.work.glob(f"*/PanDA_Pilot-{job_id}"), None))
    until((workdir / "up").exists)
    assert VALUE not in command_lines()
    began = pilot.signal(signal.SIGTERM)
    assert pilot.wait(20) == 143
    took = time.monotonic() - began
    job = runtime.grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", 1201), job.diag
    assert took < (6 if payload is OBEYS else 10)
    if payload is OBEYS:
        assert job.log()["told.txt"] == b"told\n"  # once
    until(lambda: not processes_with(f"PandaID={job_id}"), 5)


def test_a_soft_stop_lets_a_payload_save_what_it_has(runtime: Runtime) -> None:
    text = "trap 'sleep 0.3; echo saved > saved.txt; exit 0' USR1; touch up; while :; do sleep 0.1; done"
    (job_id,) = runtime.grid.submit(runtime.job(text))
    pilot = runtime.pilot("--heartbeat", "1", "--soft-stop-signal", "USR1")
    workdir = until(lambda: next(runtime.grid.work.glob(f"*/PanDA_Pilot-{job_id}"), None))
    until((workdir / "up").exists)
    runtime.grid.server.command(job_id, "softkill")
    assert pilot.wait(20) == 0
    job = runtime.grid.job_of(job_id)
    assert (job.state, job.code) == ("finished", 0), job.diag
    assert job.log()["saved.txt"] == b"saved\n"


def test_out_of_memory_is_1212_with_the_limit(runtime: Runtime, parent: Path) -> None:
    params = {"pilot_kill_for_memory": True, "pilot_rss_grace": 0, "pilot_free_space_limit": 0}
    runtime.grid.queue(runtime.name, **{**runtime.queue, "maxrss": 100, "params": params})
    for _ in range(3):
        job = runtime.run(runtime.job(EAT, resource_type="SCORE_VHIMEM"), "--cgroup", str(parent))
        if job.code != 1235:  # a sample that fell between the limit of the job and that of its group, 10 MB above
            break
    runtime.grid.queue(runtime.name, **runtime.queue)
    assert job.code == 1212, job.diag
    assert job.diag.startswith("Payload ran out of memory: the kernel killed python3 (pid ")
    assert "limit 112640 kB" in job.diag


def test_a_job_with_an_image_on_a_queue_without_a_runtime_is_1384(grid: Grid) -> None:
    (job_id,) = grid.submit(grid.job("true", container_name="docker://x/y"))
    grid.pilot().wait(30)
    job = grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", 1384)
    assert "Queue is not set up for containers" in job.diag
    assert job.known["updates"][-1]["state"] == "failed"


@pytest.mark.parametrize(("kind", "code"), [("apptainer", 1372), ("singularity", 1325), ("shifter", 1384)])
def test_a_runtime_that_is_not_on_the_node_has_its_own_code(grid: Grid, tmp_path: Path, kind: str, code: int) -> None:
    queue = grid.queue(f"Q-{kind}", container_type=f"{kind}:pilot;docker:wrapper")
    (job_id,) = grid.submit(grid.job("true", queue=queue, container_name="docker://x/y"))
    grid.pilot(queue=queue, env={"PATH": _bare_path(tmp_path)}).wait(30)
    job = grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", code), job.diag
    assert kind in job.diag


def test_containers_of_others_stay_untouched(grid: Grid, podman: Podman) -> None:
    """One of them shares the PID namespace of the node, and looks like the job's in its variables."""
    queue = grid.queue("Q-decoy", container_type="podman:pilot")
    job = grid.job("setsid sleep 1000 & sleep 0.2", queue=queue, container_name="/")
    words = ("run", "--detach", "--network=host", "--pid=host", "--env", f"PandaID={job['PandaID']}", "--rootfs", "/:O")
    decoy = podman(*words, "sleep", "1000").stdout.strip()
    try:
        before = podman("inspect", "--format", "{{.State.Pid}} {{.State.ConmonPid}}", decoy).stdout.split()
        (job_id,) = grid.submit(job)
        assert grid.pilot(queue=queue, env=podman.environ).wait(60) == 0
        assert grid.job_of(job_id).state == "finished"
        assert podman.containers() == [decoy]
        assert [os.path.exists(f"/proc/{pid}") for pid in before] == [True, True]
        assert processes_with(f"PandaID={job_id}") == [int(before[0])]
    finally:
        podman("rm", "--force", decoy)


def test_a_stop_does_not_wait_for_an_image_on_its_way(grid: Grid, docker: Docker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        image = f"docker://127.0.0.1:{silent.getsockname()[1]}/image:1"
        queue = grid.queue("Q-fetching", container_type="docker:pilot")
        (job_id,) = grid.submit(grid.job("true", queue=queue, container_name=image))
        pilot = grid.pilot("--grace", "20", queue=queue, env=docker.environ)
        connection, _ = silent.accept()
        with connection:
            began = pilot.signal(signal.SIGTERM)
            assert pilot.wait(20) == 143
            assert time.monotonic() - began < 5
    assert grid.job_of(job_id).code == 1201


@pytest.mark.parametrize("victim", ["pilot", "docker run"])
def test_a_container_of_docker_ends_with_the_pilot_and_with_what_runs_it(
    grid: Grid, docker: Docker, victim: str
) -> None:
    queue = grid.queue("Q-killed", container_type="docker:pilot", container_options=OPTIONS)
    (job_id,) = grid.submit(grid.job(IGNORES, queue=queue, container_name=f"docker://{IMAGE}"))
    pilot = grid.pilot(queue=queue, env=docker.environ)
    workdir = until(lambda: next(grid.work.glob(f"*/PanDA_Pilot-{job_id}"), None))
    until((workdir / "up").exists)
    if victim == "pilot":
        pilot.close()
        until(lambda: not processes_with(f"PandaID={job_id}"), 5)
        docker("rm", "--force", "--volumes", *docker.containers())
    else:
        (client,) = children(pilot.pid)
        os.kill(client, signal.SIGKILL)
        assert pilot.wait(20) == 0
        assert grid.job_of(job_id).code == 1305
        assert docker.containers() == []
        assert not processes_with(f"PandaID={job_id}")


def test_files_are_staged_in_a_container_of_docker(grid: Grid, docker: Docker) -> None:
    queue = grid.queue(
        "Q-docker-middleware",
        container_type="docker:pilot;container:middleware",
        container_options=f"{OPTIONS} -v {grid.storage}:{grid.storage}",
        params={"pilot_middleware_container": IMAGE},
    )
    job = grid.job("cat in.txt > out-m.txt", queue=queue, inputs={"in.txt": b"hello\n"}, outputs=["out-m.txt"])
    (job_id,) = grid.submit(job)
    pilot = grid.pilot(queue=queue, env=docker.environ)
    assert pilot.wait(60) == 0
    assert grid.job_of(job_id).state == "finished", pilot.text
    assert f"stage-in: middleware container '{IMAGE}' (docker)" in pilot.text
    assert docker.containers() == []


@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_an_image_of_a_private_registry_is_fetched_with_the_login_of_the_job(
    grid: Grid, docker: Docker, podman: Podman, registry: str, kind: str
) -> None:
    insecure = "" if kind == "docker" else " --tls-verify=false"
    queue = grid.queue(f"Q-{kind}-login", container_type=f"{kind}:pilot", container_options=OPTIONS + insecure)
    image = f"docker://{registry}/private/test:1"
    jobs = [
        grid.job("id -u; exit 7", queue=queue, container_name=image, **more)
        for more in ({}, {"secrets": secrets(registry)})
    ]
    ids = grid.submit(*jobs)
    pilot = grid.pilot(queue=queue, env={"docker": docker, "podman": podman}[kind].environ)
    assert pilot.wait(60) == 0
    without, with_it = map(grid.job_of, ids)
    assert without.code == 1360, without.diag
    assert registry in without.diag
    assert with_it.code == 1305, with_it.diag
    assert TOKEN not in pilot.text


@pytest.fixture
def parent() -> Iterator[Path]:
    """A control group of our own, in which pilots may make those of payloads."""
    place = MEMORY / f"pilot-containers-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        cannot(f"no memory control group of version 1 can be made: {error}")
    yield place
    place.rmdir()


def command_lines() -> str:
    """Of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def _bare_path(top: Path) -> str:
    """A PATH with a shell and nothing else."""
    for name in ("bash", "sh"):
        (top / name).symlink_to(shutil.which(name) or cannot(name))
    return str(top)
