"""A pilot in a pod: variables as options, private copies of credentials, the queue of a pod, and who asks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from pilot.alive import Alive
from pilot.cli.main import main
from pilot.job import Job
from pilot.mirror import Mirror, is_fixed
from pilot.podmode import in_pod, show_job_dir
from pilot.queuedata import QueueInfo
from pilot.queuedata.queue import Queue
from pilot.settings import Settings
from pilot.watch.walltime import slot_seconds
from pilot.wrap.podenv import PodOptions, alive_socket

#: What Harvester gives a pod of Rubin (PILOT3 9.2).
HARVESTER = {
    "computingSite": "SITE",
    "pandaQueueName": "QUEUE",
    "proxySecretPath": "/proxy/x509up",
    "proxyContent": "$proxyContent",
    "resourceType": "SCORE",
    "prodSourceLabel": "test",
    "jobType": "user",
    "pilotTyp": "RC",
    "HARVESTER_ID": "H",
    "workerID": "17",
    "logs_frontend_w": "https://cache.example.org:25443/server/panda",
    "logs_frontend_r": "https://cache.example.org/cache/",
    "stdout_name": "",
    "submit_mode": "PULL",
    "TMPDIR": "/scratch",
    "USE_REALTIME_LOGGING": "Yes",
    "REALTIME_LOGGING_SERVER": "google-cloud-logging",
    "REALTIME_LOGNAME": "Panda-PayloadLog",
    "TERMINATION_GRACE_PERIOD_SECONDS": "45",
}


def settings_of(options: PodOptions) -> Settings:
    return Settings.load(["--pilot-user", "rubin", *options.arguments], options.environ)


def test_the_variables_of_harvester_are_options_of_the_pilot() -> None:
    options = PodOptions.read([], HARVESTER)
    settings = settings_of(options)
    assert (settings.queue, settings.job_label, settings.jobtype) == ("QUEUE", "test", "user")
    assert settings.version_tag == "RC"
    assert (settings.resource_type, settings.harvester_submitmode) == ("SCORE", "PULL")
    assert settings.use_realtime_logging
    assert settings.realtime_logging_server == "google-cloud-logging"
    assert settings.realtime_logname == "Panda-PayloadLog"
    assert settings.pod
    assert settings.alive_socket == "/scratch/pilot-alive.sock"
    assert settings.cacert == "/proxy/x509up"
    assert options.environ["GTAG"] == "https://cache.example.org/cache/H_17.out"
    assert options.environ["HARVESTER_WORKER_ID"] == "17"
    assert (options.proxy, options.config_dir, options.grace) == ("", None, 45)
    assert (options.log_url, options.log_name) == ("https://cache.example.org:25443/server/panda", "H_17.out")


def test_the_log_may_be_named_by_its_url() -> None:
    options = PodOptions.read([], HARVESTER | {"stdout_name": "https://cache.example.org/cache/name.out"})
    assert options.log_name == "name.out"
    assert options.environ["GTAG"] == "https://cache.example.org/cache/name.out"


def test_a_proxy_in_a_variable_is_no_variable_of_the_pilot() -> None:
    options = PodOptions.read([], {"pandaQueueName": "Q", "proxyContent": "one,two,three"})
    assert options.proxy == "one\ntwo\nthree"
    assert "proxyContent" not in options.environ


def test_placeholders_that_nobody_filled_are_not_set() -> None:
    options = PodOptions.read([], {name: f"${name}" for name in HARVESTER} | {"pandaQueueName": "Q", "TMPDIR": "/x"})
    assert options.arguments == (
        "--pod",
        "--alive-socket",
        "/x/pilot-alive.sock",
        *("-q", "Q", "-r", "Q", "-j", "managed"),
    )
    assert {"X509_USER_PROXY", "GTAG"}.isdisjoint(options.environ)
    assert options.log_url == ""


def test_the_command_line_counts_more() -> None:
    assert settings_of(PodOptions.read(["-q", "OTHER", "-j", "ptest"], HARVESTER)).queue == "OTHER"


def test_live_logs_are_for_those_who_say_yes() -> None:
    assert not settings_of(PodOptions.read([], HARVESTER | {"USE_REALTIME_LOGGING": "no"})).use_realtime_logging


@pytest.mark.parametrize("environ", [{"TMPDIR": "/scratch"}, {"PILOT_ALIVE_SOCKET": "/x/y"}, {}])
def test_the_probe_finds_the_socket_of_the_pilot(environ: dict[str, str]) -> None:
    pilot = settings_of(PodOptions.read([], {"pandaQueueName": "Q", **environ}))
    assert pilot.alive_socket == alive_socket(environ)


def test_a_credential_that_others_can_read_has_a_private_copy_that_follows_it(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    for path in (shared, own):
        path.write_text("1")
    shared.chmod(0o440)
    own.chmod(0o600)
    with Mirror(tmp_path / "copies", look=0.02) as mirror:
        copy = Path(mirror.add(str(shared)))
        assert mirror.add(str(own)) == str(own)
        assert mirror.add(str(tmp_path / "none")) == str(tmp_path / "none")
        assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("1", 0o600)
        (tmp_path / "new").write_text("22")
        (tmp_path / "new").rename(shared)
        for _ in range(500):
            if copy.read_text() == "22":
                break
            asyncio.run(asyncio.sleep(0.01))
        assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("22", 0o600)


def test_of_a_renewed_copy_and_a_changed_secret_the_one_that_lasts_longer_wins(tmp_path: Path) -> None:
    def token(end: int) -> str:
        return f"e30.{base64.urlsafe_b64encode(json.dumps({'exp': end}).encode()).decode().rstrip('=')}.c2ln"

    def put(path: Path, end: int) -> None:
        (tmp_path / "new").write_text(token(end))
        (tmp_path / "new").rename(path)

    secret = tmp_path / "token"
    put(secret, 5000)
    Mirror(tmp_path / "copies", lambda path: True).add(str(secret))  # of a pilot that was killed
    put(secret, 1000)
    with Mirror(tmp_path / "copies", lambda path: True, look=0.01) as mirror:
        copy = Path(mirror.add(str(secret)))
        assert copy.read_text() == token(1000)
        put(copy, 3000)  # the pilot renews it
        put(secret, 2000)
        time.sleep(0.2)
        assert copy.read_text() == token(3000)
        put(secret, 4000)
        for _ in range(500):
            if copy.read_text() == token(4000):
                break
            time.sleep(0.01)
        assert (copy.read_text(), copy.stat().st_mode & 0o777) == (token(4000), 0o600)
    assert not copy.exists()


def test_no_copy_is_left_by_a_look_that_meets_the_end(tmp_path: Path) -> None:
    """One in fifteen was when it was not looked after."""
    secret, new = tmp_path / "token", tmp_path / "new"
    secret.touch()
    for number in range(100):
        with Mirror(tmp_path / f"copies-{number}", lambda path: True, look=0.001) as mirror:
            mirror.add(str(secret))
            for size in range(3):
                new.write_bytes(bytes(size))
                new.rename(secret)
                time.sleep(0.0011)
    until = time.monotonic() + 5
    while list(tmp_path.glob("copies-*")) and time.monotonic() < until:
        time.sleep(0.01)
    assert not list(tmp_path.glob("copies-*"))


@pytest.mark.parametrize("how", ["directory", "file"])
def test_a_file_that_is_mounted_or_in_a_read_only_directory_needs_a_copy(tmp_path: Path, how: str) -> None:
    file, other = tmp_path / "file", Path("/dev/shm") / f"pilot-{os.getpid()}"
    file.touch(0o600)
    assert not is_fixed(file)
    other.touch()
    try:
        target = tmp_path if how == "directory" else file
        options = ["-o", "ro", str(tmp_path)] if how == "directory" else [str(other)]
        if subprocess.run(["mount", "--bind", *options, str(target)], check=False).returncode:
            pytest.skip("no right to mount")
        try:
            if how == "directory":
                subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
            assert is_fixed(file)
        finally:
            subprocess.run(["umount", str(target)], check=True)
    finally:
        other.unlink()


def info(**fields: object) -> QueueInfo:
    record = {"nickname": "Q", "maxtime": 3600, "maxwdir": 2000, **fields}
    return QueueInfo(queue=Queue.from_record(record, "Q"), record=record)


def test_in_a_pod_the_lifetime_of_the_pilot_counts() -> None:
    assert slot_seconds(info().queue, 7200)[0] == 3600
    assert slot_seconds(in_pod(info(), {}).queue, 7200)[0] == 7200


@pytest.mark.parametrize(("limit", "most"), [("", 2000), ("1200", 950), ("100000", 2000)])
def test_a_job_may_not_write_more_than_its_pod(limit: str, most: int) -> None:
    found = in_pod(info(), {"storageLimitMiB": limit})
    assert found.queue.maxwdir == most
    assert found.overlaid({"corecount": 8}, {}).queue.maxwdir == most


def test_the_directory_of_the_job_is_shown_to_other_containers(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        show_job_dir(tmp_path / name, {"SHARED_DIR": str(tmp_path)})
        assert (tmp_path / "payload_workdir").readlink() == tmp_path / name
    show_job_dir(tmp_path, {"SHARED_DIR": str(tmp_path / "none")})


def test_who_asks_is_told_what_the_pilot_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "socket"

    async def ask() -> tuple[int, int]:
        alive = Alive(path)
        serving = asyncio.create_task(alive.serve())
        while not path.exists():
            await asyncio.sleep(0.01)
        alive.phase(Job(job_id=17, attempt=1), "payload")
        answered = await asyncio.to_thread(main, ["alive", "--socket", str(path)])
        assert path.stat().st_mode & 0o777 == 0o600
        serving.cancel()
        await asyncio.wait({serving})
        return answered, await asyncio.to_thread(main, ["alive", "--socket", str(path)])

    assert asyncio.run(ask()) == (0, 1)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("running for 0.")
    assert "job 17: payload; 0 jobs before" in said[0]
    assert said[1].startswith(f"no answer from a pilot at {path}")
    assert not path.exists()


def test_a_pilot_that_hangs_gives_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "socket"))
        hanging.listen()
        assert main(["alive", "--socket", str(tmp_path / "socket"), "--patience", "0.1"]) == 1
    assert "timed out" in capsys.readouterr().out


def test_a_socket_that_cannot_be_made_is_no_end_of_a_pilot(tmp_path: Path) -> None:
    asyncio.run(Alive(tmp_path / ("x" * 200)).serve())


def test_the_state_is_json(tmp_path: Path) -> None:
    alive = Alive(tmp_path / "socket")
    assert json.loads(json.dumps(alive.status()))["state"] == "starting"
    alive.waiting("no job yet", 60)
    assert alive.status()["state"] == "waiting"
    assert os.listdir(tmp_path) == []
