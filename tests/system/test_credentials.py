"""Credentials of real pilots: looked at before a job, renewed by the server, kept from payloads."""

import asyncio
import base64
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pilot.credentials import Keeper
from pilot.job import Job
from pilot.mirror import Mirror
from pilot.queuedata import Queue, hash_path
from pilot.server.auth import find_auth
from plugins.experiments.generic import Generic
from tests.grid import ENDPOINT, ENVIRON, SCOPE, Grid, until
from tests.parts import program, x509
from tests.parts.xrootd import server


def token(seconds):
    """A JSON web token that ends in so many seconds; nobody checks its signature here."""
    parts = [{"alg": "none"}, {"exp": int(time.time() + seconds), "sub": "pilot"}]
    words = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*words, "c2lnbmF0dXJl"])


def certificate(folder, name, days):
    """A certificate with its key, that lasts for so many days."""
    new = [program("openssl"), "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key"]
    subprocess.run([*new, "-out", f"{name}.req"], cwd=folder, check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", "-in", f"{name}.req", "-signkey", f"{name}.key", "-days", str(days)]
    subprocess.run([*sign, "-out", f"{name}.cert"], cwd=folder, check=True, capture_output=True)
    path = folder / f"{name}.pem"
    path.write_text((folder / f"{name}.cert").read_text() + (folder / f"{name}.key").read_text())
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def proxies(tmp_path_factory):
    """Certificates that have ended, end soon, and last."""
    folder = tmp_path_factory.mktemp("proxies")
    return {name: certificate(folder, name, days) for name, days in (("ended", -1), ("user", 2), ("lasting", 10))}


@contextmanager
def read_only(folder):
    """A directory that is mounted read-only, such as a secret of a pod."""
    if subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


#: A pilot of an experiment with a role, that looks at its credentials all the time and takes three days for short.
RENEWING = (
    "import pilot.credentials as c; from pilot.experiment import Experiment; from pilot.cli.main import main;"
    "c.LOOK, c.SHORT = 0.1, 3 * 86400.0; Experiment.proxy_role = lambda self, job: 'role'; raise SystemExit(main())"
)


@pytest.fixture
def grid(tmp_path, proxies):
    (tmp_path / "fresh").write_text(token(86400))
    with Grid(tmp_path / "grid", grants={"token": tmp_path / "fresh", "proxy": proxies["user"]}) as grid:
        yield grid


def pilot_with(grid, *options, queue="Q", **how):
    """A pilot that does look at its credentials: the grid's own options have `-t`."""
    grid_options = grid.options
    grid.options = lambda *more, queue=queue: [word for word in grid_options(*more, queue=queue) if word != "-t"]
    try:
        return grid.pilot(*options, queue=queue, **how)
    finally:
        grid.options = grid_options


def analysis(grid, command, **fields):
    """A user's job: its transformation comes from the web."""
    (grid.files / "run.sh").write_text(f"#!/bin/bash\n{command}\n")
    url = f"{grid.server.url}/cache/run.sh"
    return grid.job(queue="USERS", prodSourceLabel="user", transformation=url, jobPars="", **fields)


def test_no_job_is_taken_with_a_token_that_has_ended(grid, tmp_path):
    (job_id,) = grid.submit(grid.job())
    (tmp_path / "token").write_text(token(-60))
    pilot = pilot_with(grid, env={"PANDA_AUTH_TOKEN": str(tmp_path / "token"), "PANDA_AUTH_ORIGIN": "vo"})

    assert pilot.wait() == 68
    assert "1163 NOPROXY" in pilot.text
    assert "it ended" in pilot.text
    missing = pilot_with(grid, env={"PANDA_AUTH_TOKEN": str(tmp_path / "none"), "PANDA_AUTH_ORIGIN": "vo"})
    assert missing.wait() == 68
    assert f"1163 NOPROXY: Grid proxy not valid: token file '{tmp_path}/none' not found" in missing.text
    assert grid.job_of(job_id).state == "activated"


def test_the_option_t_switches_the_look_off(grid, tmp_path):
    (job_id,) = grid.submit(grid.job())
    (tmp_path / "token").write_text(token(-60))
    assert grid.pilot(env={"PANDA_AUTH_TOKEN": str(tmp_path / "token"), "PANDA_AUTH_ORIGIN": "vo"}).wait() == 0
    assert grid.job_of(job_id).state == "finished"


@pytest.mark.parametrize("mounted", [False, True], ids=["beside", "read-only"])
def test_a_token_is_renewed_by_the_server(grid, tmp_path, mounted):
    """In its place, or in the pilot's own directory when it is on a volume that cannot be written to."""
    folder = tmp_path / "secret"
    folder.mkdir()
    file = folder / "token"
    file.write_text(token(-60))
    (tmp_path / "key").write_text("the-key-of-the-token\n")
    with read_only(folder) if mounted else nullcontext():
        (job_id,) = grid.submit(grid.job("sleep 1"))
        names = {
            "PANDA_AUTH_TOKEN": str(file),
            "PANDA_AUTH_ORIGIN": "vo",
            "PANDA_AUTH_TOKEN_KEY": str(tmp_path / "key"),
        }
        pilot = pilot_with(grid, "-a", "", env=names)
        assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"
    assert "the credential is renewed" in pilot.text
    assert "the-key-of-the-token" not in pilot.text
    assert (tmp_path / "fresh").read_text() not in pilot.text
    assert not list(pilot.cwd.glob("credentials-*"))  # batch systems fetch what lies there
    if not mounted:
        assert file.read_text().strip() == (tmp_path / "fresh").read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("option", [False, True], ids=["environment", "option"])
def test_all_use_the_renewed_copy_of_a_proxy_that_is_mounted(tmp_path, proxies, option):
    folder = tmp_path / "secret"
    folder.mkdir()
    file = folder / "x509up"
    file.write_bytes(proxies["user"].read_bytes())
    file.chmod(0o400)
    with Grid(tmp_path / "roles", grants={"proxy": proxies["lasting"]}) as grid, read_only(folder):
        grid.queue("Q", params={"pilot_payload_variables": "X509_USER_PROXY", "pilot_free_space_limit": 0})
        command = "cd; stat -c %a $X509_USER_PROXY; openssl x509 -noout -subject -in $X509_USER_PROXY"
        (job_id,) = grid.submit(grid.job(f"({command}) > who", outputs=["who"]))
        named = {"more": ("--cacert", str(file)), "env": {}} if option else {"env": {"X509_USER_PROXY": str(file)}}
        settings = tmp_path / "long.cfg"
        settings.write_text(grid.settings.read_text() + f"proxy_limit = {5 * 86400}\n")
        more = named.pop("more", ())
        program = (sys.executable, "-c", RENEWING, "run")
        pilot = pilot_with(grid, "-a", "", "--config", str(settings), *more, command=program, **named)
        assert pilot.wait() == 0, pilot.text
        told = grid.job_of(job_id).path("who").read_text()
    assert told.startswith("600\n") and "CN = lasting" in told
    assert file.read_bytes() == proxies["user"].read_bytes()
    assert not list(pilot.cwd.glob("credentials-*"))


def test_no_token_is_renewed_without_leave(grid, tmp_path):
    (tmp_path / "token").write_text(token(-60))
    (tmp_path / "key").write_text("k" * 20)
    names = {"PANDA_AUTH_TOKEN": str(tmp_path / "token"), "PANDA_AUTH_TOKEN_KEY": str(tmp_path / "key")}
    assert pilot_with(grid, "-y", env={**names, "PANDA_AUTH_ORIGIN": "vo"}).wait() == 68


def test_a_proxy_that_has_ended_and_one_that_is_too_short_end_the_pilot(grid, proxies):
    grid.submit(grid.job())
    ended = pilot_with(grid, env={"X509_USER_PROXY": str(proxies["ended"])})
    assert ended.wait() == 68
    assert "1373 CERTIFICATEHASEXPIRED" in ended.text

    settings = grid.top / "long.cfg"
    settings.write_text(grid.settings.read_text() + f"proxy_limit = {5 * 86400}\n")
    short = pilot_with(grid, "--config", str(settings), env={"X509_USER_PROXY": str(proxies["user"])})
    assert short.wait() == 80
    assert "1382 PROXYTOOSHORT" in short.text
    assert "120.0 h are needed" in short.text


def test_a_payload_gets_no_proxy_unless_it_shall(grid, proxies):
    (job_id,) = grid.submit(grid.job('test -z "$X509_USER_PROXY"'))
    assert pilot_with(grid, env={"X509_USER_PROXY": str(proxies["lasting"])}).wait() == 0
    assert grid.job_of(job_id).state == "finished"


def test_a_user_s_payload_gets_the_user_s_proxy_and_not_ours(grid, proxies):
    grid.queue("USERS", params={"pilot_payload_proxy": "server", "pilot_free_space_limit": 0})
    command = (
        'stat -c %a "$X509_USER_PROXY" >mode; cp "$X509_USER_PROXY" given; openssl x509 -noout -subject -in given >who'
    )
    (job_id,) = grid.submit(analysis(grid, command, outputs=["who", "mode"]))
    pilot = pilot_with(grid, "-a", "", "-j", "user", env={"X509_USER_PROXY": str(proxies["lasting"])}, queue="USERS")

    assert pilot.wait() == 0, pilot.text
    done = grid.job_of(job_id)
    assert done.state == "finished", pilot.text
    assert "user" in done.path("who").read_text()
    assert done.path("mode").read_text() == "600\n"
    assert b"PRIVATE KEY" not in b"".join(done.log().values())
    assert not list(pilot.cwd.glob("x509*"))  # batch systems fetch what lies there


@pytest.mark.parametrize("runtime", ["", "apptainer"], ids=["on the node", "in a container"])
def test_the_proxy_of_a_payload_is_renewed_while_it_runs(tmp_path, proxies, runtime, request):
    queue, fields, path = {}, {}, ENVIRON["PATH"]
    if runtime:
        apptainer = request.getfixturevalue("apptainer")
        queue = {"container_type": "apptainer:pilot", "container_options": apptainer.options}
        fields, path = {"container_name": str(apptainer.image)}, f"{apptainer.program.parent}:{path}"
    granted = tmp_path / "granted"
    granted.write_bytes(proxies["user"].read_bytes())
    with Grid(tmp_path / "other", grants={"proxy": granted}) as grid:
        grid.queue("USERS", params={"pilot_payload_proxy": "server", "pilot_free_space_limit": 0}, **queue)
        subject = 'openssl x509 -noout -subject -in "$X509_USER_PROXY"'
        wait = f"until {subject} | grep lasting >>who; do sleep 0.1; done"
        command = f"{subject} >who; {wait}; stat -c %a $X509_USER_PROXY >>who"
        (job_id,) = grid.submit(analysis(grid, command, outputs=["who"], **fields))
        program = (sys.executable, "-c", RENEWING, "run")
        environ = {"X509_USER_PROXY": str(proxies["lasting"]), "PATH": path}
        pilot = pilot_with(grid, "-j", "user", env=environ, queue="USERS", command=program)
        until(lambda: any("user" in file.read_text() for file in grid.work.glob("*/PanDA_Pilot-*/who")))
        time.sleep(0.3)  # it asks for a new one, and gets none that lasts longer
        (tmp_path / "new").write_bytes(proxies["lasting"].read_bytes())
        (tmp_path / "new").rename(granted)
        pilot.wait()
        done = grid.job_of(job_id)
        assert done.state == "finished", pilot.text
        assert pilot.text.count("the payload's proxy is renewed") == 1
        assert [line.split()[-1] for line in done.path("who").read_text().splitlines()] == ["user", "lasting", "600"]


def test_words_in_any_encoding_before_a_certificate_are_left_as_they_are(tmp_path, proxies):
    own = tmp_path / "own"
    own.write_bytes("Zertifikat für Müller\n".encode("latin-1") + proxies["lasting"].read_bytes())
    (tmp_path / "copies").mkdir()
    with Mirror(tmp_path / "mirror", needed=lambda path: True) as mirror:
        copy = mirror.add(str(own))
        auth = find_auth({"X509_USER_PROXY": copy})
        keeper = Keeper(None, auth, Generic(), scratch=tmp_path / "copies", payload_proxy="pilot")
        asyncio.run(keeper.check())
        given = asyncio.run(keeper.for_payload(Job(job_id=1), Queue()))["X509_USER_PROXY"]
    assert copy != str(own)
    assert Path(given).read_bytes() == own.read_bytes()


def test_a_payload_whose_proxy_has_ended_is_not_started(tmp_path, proxies):
    with Grid(tmp_path / "other", grants={"proxy": proxies["ended"]}) as grid:
        grid.queue("USERS", params={"pilot_payload_proxy": "server", "pilot_free_space_limit": 0})
        (job_id,) = grid.submit(analysis(grid, "true"))
        pilot_with(grid, "-j", "user", env={"X509_USER_PROXY": str(proxies["lasting"])}, queue="USERS").wait()
        until(lambda: grid.job_of(job_id).state == "failed")
        assert grid.job_of(job_id).code == 1163
        assert "the payload's proxy ended" in grid.job_of(job_id).diag


@pytest.fixture(scope="module")
def guarded():
    """An XRootD server where the robot of pilots may only read below /in, and a user may only write below /out."""
    top = Path(tempfile.mkdtemp(prefix="x509-"))
    top.chmod(0o755)
    user, robot = x509.make(top / "user"), x509.make(top / "robot")
    shutil.copytree(robot.ca, user.ca, dirs_exist_ok=True)
    (top / "gridmap").write_text(f'"{user.dn}" user\n"{robot.dn}" robot\n')
    if os.geteuid() == 0:
        shutil.chown(user.top / "host.key", "xrootd", "xrootd")
    host = f"-cert:{user.top / 'host.pem'} -key:{user.top / 'host.key'}"
    gsi = f"""
xrootd.seclib libXrdSec.so
sec.protocol gsi -certdir:{user.ca} {host} -crl:0 -gmapopt:11 -gridmap:{top / "gridmap"} -vomsat:0
sec.protbind * only gsi
ofs.authorize 1
acc.authdb {{base}}/authdb
"""
    with server(gsi, authdb="u user /out a\nu robot /in rl\n") as one:
        yield one, user, robot
    shutil.rmtree(top)


def test_on_a_unified_queue_what_a_user_s_job_leaves_is_written_as_the_user(tmp_path, guarded):
    """Also where the bindings are wanted: they know one proxy in a process, the pilot's, which reads the input."""
    xrootd, user, robot = guarded
    with Grid(tmp_path / "grid", grants={"proxy": user.proxy}) as grid:
        tools = {"copytools": {"xrdcp": {"use": "bindings"}}, "acopytools": {"read_lan": ["xrdcp"]}}
        tools["acopytools"] |= {"write_lan": ["xrdcp"], "pl": ["xrdcp"]}
        grid.queue("USERS", params={"pilot_payload_proxy": "server", "pilot_free_space_limit": 0}, **tools)
        record = json.loads((grid.files / "storages.json").read_text())
        door = {"endpoint": f"root://localhost:{xrootd.port}/", "id": 1}
        places = {"read_lan": "/in", "write_lan": "/out", "pl": "/out"}
        record[ENDPOINT]["arprotocols"] = {name: [{**door, "path": path}] for name, path in places.items()}
        (grid.files / "storages.json").write_text(json.dumps(record))
        xrootd.write(f"in/{hash_path(SCOPE, 'in.txt')}", b"an input\n")

        command = 'test "$X509_UNIFIED_DISPATCH" = "$X509_USER_PROXY" && cat in.txt >out.txt'
        (job_id,) = grid.submit(analysis(grid, command, inputs={"in.txt": b"an input\n"}, outputs=["out.txt"]))
        environ = {"X509_USER_PROXY": str(robot.proxy), "X509_CERT_DIR": str(user.ca)}
        pilot = pilot_with(grid, "-a", "", "-j", "user", env=environ, queue="USERS")
        pilot.wait()
        done = grid.job_of(job_id)
    assert done.state == "finished", pilot.text
    assert (xrootd.data / f"out/{hash_path(SCOPE, 'out.txt')}").read_bytes() == b"an input\n"
    assert len(list(xrootd.data.glob("out/**/*.log.tgz"))) == 1
    assert not list(pilot.cwd.glob("x509*"))
