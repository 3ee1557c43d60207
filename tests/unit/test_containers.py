"""Containers: who gets which, and what the runtimes are told; no runtime is needed here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pilot.contain import choose_runtime, logins_of, make_container
from pilot.errors import Code, PilotError
from pilot.job import File, Job, Kind, Utility
from pilot.masking import Masker, Secret
from pilot.payload.container import FORWARDING_INIT, linked_directories, runtime_failure, swallowed_failure
from pilot.processes import children, is_zombie, send
from pilot.queuedata import Queue
from pilot.settings import Settings
from plugins.experiments.atlas import Atlas
from plugins.experiments.generic import Generic
from plugins.experiments.rubin import Rubin
from tests.grid import until

TOKEN = "glpat-55c1d9e44aa0"
LOGIN = {"username": "me", "token": TOKEN, "registry_path": "docker://registry.cern.ch/group/"}
IMAGE = "docker://registry.cern.ch:443/group/image-1.0_x:tag@sha256:0"
NASTY = 'x\'; touch hacked; echo "$(id)" `id`'


def queue(**fields: Any) -> Queue:
    return Queue.from_record({"nickname": "Q", "container_type": "singularity:pilot;docker:wrapper", **fields})


def bench(top: Path, experiment: Any = None, programs: tuple[str, ...] = (), **settings: Any) -> Any:
    (top / "bin").mkdir(exist_ok=True)
    for name in programs:
        (top / "bin" / name).write_text("#!/bin/sh\n")
        (top / "bin" / name).chmod(0o755)
    chosen = Settings(cvmfs_base=str(top / "cvmfs"), **settings)
    if experiment:
        chosen = chosen.with_experiment(experiment.settings, experiment.name)
    environ = {"PATH": str(top / "bin"), "HOME": "/home/pilot"}
    return SimpleNamespace(
        settings=chosen, experiment=experiment or Generic(), environ=environ, main_dir=top, masker=Masker()
    )


def command(top: Path, job: Job, of: Queue, on: Any, environment: dict[str, str] | None = None, **more: Any) -> Any:
    """The container for a job, ready to start, in a job directory of its own."""
    workdir = top / "job"
    workdir.mkdir(exist_ok=True)
    runtime = choose_runtime(job, of, on)
    assert runtime is not None
    more["linked"] = linked_directories(workdir, [file.lfn for file in job.inputs])
    made = make_container(runtime, on, job, of, workdir, "echo payload", environment or {}, **more)
    asyncio.run(made.prepare())
    return made


class TestDecision:
    def test_an_image_or_a_platform_where_the_queue_has_containers(self, tmp_path):
        on = bench(tmp_path, programs=("apptainer",))
        named = choose_runtime(Job(job_id=1, container_image="docker://x/y"), queue(), on)
        by_platform = choose_runtime(Job(job_id=1, platform="x86_64-centos7-gcc8-opt"), queue(), on)
        assert [found.kind.name for found in (named, by_platform)] == ["apptainer", "apptainer"]
        assert choose_runtime(Job(job_id=1), queue(), on) is None
        assert choose_runtime(Job(job_id=1, platform="x86_64"), queue(container_type="docker:wrapper"), on) is None

    @pytest.mark.parametrize("kind", ["docker:wrapper", "", "podman:middleware"])
    def test_an_image_where_the_queue_has_none_for_pilots(self, tmp_path, kind):
        with pytest.raises(PilotError) as caught:
            choose_runtime(Job(job_id=1, container_image="x/y"), queue(container_type=kind), bench(tmp_path))
        assert caught.value.code is Code.QUEUENOTSETUPFORCONTAINERS

    def test_singularity_serves_where_only_that_is_installed(self, tmp_path):
        on = bench(tmp_path, programs=("singularity",))
        found = choose_runtime(Job(job_id=1, container_image="x/y"), queue(container_type="apptainer:pilot"), on)
        assert Path(found.program).name == "singularity"

    def test_atlas_has_its_wrapper_others_where_it_is_and_rubin_none(self, tmp_path):
        job = Job(job_id=1, container_image="x/y")
        assert choose_runtime(job, queue(), bench(tmp_path, Atlas())).kind.name == "alrb"
        assert choose_runtime(job, queue(), bench(tmp_path, Rubin())) is None
        place = tmp_path / "cvmfs/atlas.cern.ch/repo/ATLASLocalRootBase/user/atlasLocalSetup.sh"
        place.parent.mkdir(parents=True)
        place.touch()
        assert choose_runtime(job, queue(), bench(tmp_path)).kind.name == "alrb"
        direct = bench(tmp_path, container_setup="direct", programs=("apptainer",))
        assert choose_runtime(job, queue(), direct).kind.name == "apptainer"

    def test_a_transformation_that_starts_its_container_itself_has_none(self, tmp_path):
        job = Job(job_id=1, container_image="x/y", transformation="https://host/trf/runcontainer-00-01")
        assert choose_runtime(job, queue(), bench(tmp_path)) is None


class TestCommands:
    def test_apptainer_gets_variables_by_its_own_and_the_real_places_of_links(self, tmp_path):
        storage = tmp_path / "storage, one"
        storage.mkdir()
        (storage / "in.root").touch()
        (tmp_path / "job").mkdir()
        (tmp_path / "job/in.root").symlink_to(storage / "in.root")
        job = Job(job_id=1, container_image="/", inputs=(File(lfn="in.root", kind=Kind.INPUT),), platform="a&nvidia")
        of = queue(container_options="-B /data,${workdir} --contain")
        made = command(tmp_path, job, of, bench(tmp_path, programs=("apptainer",)), {"A": NASTY, "PATH": "/outside"})
        argv = list(made.argv)
        assert (made.environment["APPTAINERENV_A"], made.environment["APPTAINER_NO_EVAL"]) == (NASTY, "1")
        assert "APPTAINERENV_PATH" not in made.environment
        assert made.environment["APPTAINERENV_TMPDIR"] == str(tmp_path / "job")
        assert NASTY not in argv
        assert f'type=bind,"source={storage}","destination={storage}",ro' in argv
        assert {"--pid", "--cleanenv", "--nv", "--contain", f"/data,{tmp_path}/job"} <= set(argv)

    def test_a_file_of_a_variable_that_nobody_can_look_at_is_no_mount(self, tmp_path):
        job = Job(job_id=1, container_image="/")
        variables = {"X509_USER_PROXY": f"/{'x' * 300}"}  # as one in a directory of another user
        made = command(tmp_path, job, queue(), bench(tmp_path, programs=("apptainer",)), variables)
        assert "xxx" not in " ".join(made.argv)

    def test_who_has_his_own_number_inside_podman_has_it_for_the_payload(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
        monkeypatch.setattr(os, "getegid", lambda: 5678)
        kept = queue(container_type="podman:pilot", container_options="--userns keep-id")
        made = command(tmp_path, Job(job_id=1, container_image="x:1"), kept, bench(tmp_path, programs=("podman",)), {})
        argv = list(made.argv)
        assert argv[argv.index("--user") + 1] == "1234:5678"

    def test_podman_and_docker_get_names_of_variables_and_an_id_file(self, tmp_path):
        job = Job(job_id=1, container_image="docker://registry/x:1", secrets=secrets())
        for name in ("podman", "docker"):
            on = bench(tmp_path, programs=(name,))
            made = command(tmp_path, job, queue(container_type=f"{name}:pilot"), on, {"A": NASTY}, memory_kb=1000)
            argv = list(made.argv)
            assert argv[argv.index("A") - 1] == "--env"
            assert made.environment["A"] == NASTY
            assert NASTY not in " ".join(argv)
            assert TOKEN not in " ".join(argv) + str(made.environment)
            assert argv[argv.index("--memory") + 1] == "1000k"
            user = "0:0" if name == "podman" else f"{os.geteuid()}:{os.getegid()}"
            assert argv[argv.index("--user") + 1] == user
            assert "registry/x:1" in argv
            file = tmp_path / "container-job/config.json"
            assert file.stat().st_mode & 0o777 == 0o600
            assert file.parent.stat().st_mode & 0o777 == 0o700
            assert list(json.loads(file.read_text())["auths"]) == ["registry.cern.ch"]
            found = made.environment.get("DOCKER_CONFIG") or argv[argv.index("--authfile") + 1]
            assert found.startswith(str(file.parent))

    @pytest.mark.parametrize("image", ["-v/:/host", "a b", "$(id)", "/not/there", ""])
    def test_what_is_no_image_is_1360(self, tmp_path, image):
        job = Job(job_id=1, container_image=image, platform="" if image else "x86_64-a-b-c")
        with pytest.raises(PilotError) as caught:
            command(tmp_path, job, queue(container_type="podman:pilot"), bench(tmp_path, programs=("podman",)))
        assert caught.value.code is Code.IMAGENOTFOUND

    def test_a_script_takes_the_place_of_a_link_and_does_not_follow_it(self, tmp_path):
        (tmp_path / "job").mkdir()
        (tmp_path / "precious").write_text("kept")
        (tmp_path / "job/container_script.sh").symlink_to(tmp_path / "precious")
        made = command(tmp_path, Job(job_id=1, container_image="/"), queue(), bench(tmp_path, programs=("apptainer",)))
        assert (tmp_path / "precious").read_text() == "kept"
        script = made.order.workdir / "container_script.sh"
        assert script.stat().st_mode & 0o777 == 0o755
        subprocess.run(["bash", script.name], cwd=made.order.workdir, check=True, capture_output=True)
        assert made.started


class TestAlrb:
    """ATLAS' wrapper, played by a script that notes its words and runs the payload's script."""

    SETUP = 'printf "%s\\n" "$thePlatform" "$PandaID" "$@" > alrb.txt\nbash ./container_script.sh\n'

    def run(self, top: Path, job: Job, of: Queue) -> list[str]:
        place = top / "cvmfs/atlas.cern.ch/repo/ATLASLocalRootBase/user/atlasLocalSetup.sh"
        place.parent.mkdir(parents=True)
        place.write_text(self.SETUP)
        made = command(top, job, of, bench(top, Atlas()), {"PATH": os.environ["PATH"]})
        done = subprocess.run(made.argv, cwd=top / "job", env=made.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert made.started
        assert not list(top.rglob("hacked"))
        return (top / "job/alrb.txt").read_text().splitlines()

    def test_the_words_are_those_of_pilot_3(self, tmp_path):
        words = self.run(tmp_path, Job(job_id=17, container_image=IMAGE, platform="p&nvidia"), queue())
        files = ["-s", "/srv/my_release_setup.sh", "-r", "/srv/container_script.sh"]
        assert words == [IMAGE, "17", "-c", IMAGE, *files, "-e", "-c -i --nv"]
        script = (tmp_path / "job/container_script.sh").read_text()
        assert "export TMPDIR=/srv\nexport GFORTRAN_TMPDIR=/srv\necho payload\n" in script
        setup = (tmp_path / "job/my_release_setup.sh").read_text()
        assert 'date +"%H:%M:%S %Y/%m/%d"' in setup
        assert setup.endswith("return $retCode\n")

    def test_without_cvmfs_with_options_and_words_of_the_job(self, tmp_path):
        job = Job(job_id=17, platform="x86_64-el9", container_options={"execArgs": f"-a {shlex.quote(NASTY)}"})
        words = self.run(tmp_path, job, queue(is_cvmfs=False, container_options="-B /a,${workdir} -C"))
        assert words[:5] == ["x86_64-el9", "17", "-c", "x86_64-el9", "-d"]
        assert words[-4:] == ["-e", f"-B /a,{tmp_path}/job -C", "-a", NASTY]

    @pytest.mark.parametrize("name", [NASTY, "a b", "x86_64-el9&", "$HOME", "*"])
    def test_a_name_that_a_shell_would_read_otherwise_is_1360(self, tmp_path, name):
        with pytest.raises(PilotError) as caught:
            command(tmp_path, Job(job_id=17, container_image=name), queue(), bench(tmp_path, Atlas()))
        assert caught.value.code is Code.IMAGENOTFOUND

    def test_what_alrb_knows_of_the_node_stays_there_and_mounts_come_by_the_environment(self, tmp_path):
        (tmp_path / "certificates").mkdir()
        (tmp_path / "cvmfs").mkdir()
        node = {"ALRB_SCRATCH": "/a", "ATLAS_LOCAL_ROOT_BASE": "/b", "ATLAS_SW_BASE": "/c", "TMPDIR": "/d"}
        given = {"ALRB_XCACHE_PROXY": "root://x", "ATLAS_POOLCOND_PATH": "/e", "A": NASTY}
        known = {"X509_CERT_DIR": str(tmp_path / "certificates"), "APPTAINER_BINDPATH": "/f"}
        made = command(tmp_path, Job(job_id=17, platform="p"), queue(), bench(tmp_path, Atlas()), node | given | known)
        for prefix in ("APPTAINER", "SINGULARITY"):
            assert {f"{prefix}ENV_{name}": value for name, value in given.items()}.items() <= made.environment.items()
            assert not {f"{prefix}ENV_{name}" for name in node} & made.environment.keys()
            assert made.environment[f"{prefix}_NO_EVAL"] == "1"
        binds = [f"{tmp_path}/job", f"{tmp_path}/certificates:{tmp_path}/certificates:ro"]
        assert made.environment["APPTAINER_BINDPATH"].split(",") == ["/f", *binds]
        assert made.environment["SINGULARITY_BINDPATH"].split(",") == binds
        assert node.items() <= made.environment.items()

    def test_the_order_of_platforms(self, tmp_path):
        every = Job(
            job_id=17,
            user_platform="user",
            preprocess=Utility(command="x"),
            container_options={"containerImage": "inner", "containerExec": "echo inner"},
            container_image="image",
            platform="p",
        )
        assert self.run(tmp_path, every, queue())[0] == "user"
        assert "echo inner" in (tmp_path / "job/container_script.sh").read_text()


class TestFailures:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("ERROR  : Failed to create user namespace: user namespace disabled", 1345),
            ("FATAL:   No more available loop devices, try increasing 'max loop devices'", 1307),
            ("WARNING: Not mounting requested bind point (already mounted in container): /x", 1308),
            ("FATAL:   container creation failed: Failed to mount image in directory", 1309),
            ("FATAL: mount hook function failure: mount /a->/a error: while mounting /a: no", 1309),
            ("Singularity is not installed on this node", 1325),
            ("Apptainer is not installed on this node", 1372),
            ("FATAL:   while opening: Operation not permitted", 1306),
            ("FATAL:   could not open image /x: no such file", 1360),
            ("Error: initializing source docker://x: pinging container registry", 1360),
            ('docker: Error response from daemon: Get "https://no.invalid/v2/": dial tcp: no such host.', 1360),
            ("docker: Error response from daemon: failed to resolve reference: x:1: not found", 1360),
            ("docker: Error response from daemon: bind source path does not exist: /x.", 1308),
            ("something else", 1306),
            ("", 1306),
        ],
    )
    def test_the_words_of_a_runtime_have_a_code(self, text, code):
        error = runtime_failure("apptainer", 255, f"INFO: more\n{text}\n" if text else "")
        assert error.code.value == code
        assert (text.split("(")[0].split() or ["255"])[-1] in error.detail

    def test_what_is_wrong_with_an_option_is_said_and_not_where_the_help_is(self):
        assert "--x" in runtime_failure("docker", 125, "unknown flag: --x\nSee 'docker run --help'.\n").detail

    def test_words_of_a_good_payload_count_only_where_they_are_the_runtimes(self):
        assert swallowed_failure("alrb", "chown: Operation not permitted\n") is None
        assert swallowed_failure("alrb", "Apptainer is not installed\n").code is Code.APPTAINERNOTINSTALLED


def secrets() -> Secret:
    return Secret(json.dumps({"DOCKER_TOKENS": json.dumps([LOGIN])}))


def test_what_sees_the_pilot_end_outlives_the_signals_that_all_inside_are_told():
    words = ["/bin/bash", "-c", FORWARDING_INIT, "init", "/bin/sleep", "60"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        try:
            pid = until(lambda: watcher(process.pid))
            for name in ("HUP", "ALRM", "TERM", "USR1", "USR2", "XCPU"):
                send([pid], signal.Signals[f"SIG{name}"])
            process.stdin.write(b"line\n")
            process.stdin.flush()
            time.sleep(0.2)
            assert watcher(process.pid) == pid
        finally:
            send([*children(process.pid), process.pid], signal.SIGKILL)


def watcher(init: int) -> int:
    """The copy of the first process that reads its input, as soon as it ignores TERM; else 0."""
    for pid in children(init):
        status = dict(re.findall(r"(\w+):\s*(.*)", Path(f"/proc/{pid}/status").read_text()))
        if status["Name"] == "bash" and int(status["SigIgn"], 16) >> (signal.SIGTERM - 1) & 1 and not is_zombie(pid):
            return pid
    return 0


def test_logins_are_read_as_panda_has_them_and_nonsense_shows_no_secret(caplog):
    (login,) = logins_of(secrets())
    assert (login.registry, login.user, login.token.reveal()) == ("registry.cern.ch", "me", TOKEN)
    assert TOKEN not in repr(login)
    for text in (f'{{"DOCKER_TOKENS": "{TOKEN}"}}', f'"{TOKEN}"', f'{{"DOCKER_TOKENS": [{{"token": "{TOKEN}"}}]}}'):
        assert list(logins_of(Secret(text))) == []
    assert TOKEN not in caplog.text
