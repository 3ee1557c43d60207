"""The checks of `pilot doctor` in real small situations: full disks, wrong clocks, tokens at their end."""

from __future__ import annotations

import base64
import gc
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path

import pytest

from pilot.doctor import credentials, disk, network, node
from pilot.doctor.check import Finding, Level, Patient, ok
from pilot.doctor.examine import CHECKS, examine, worst
from pilot.flags import run_parser
from pilot.processes import is_zombie
from pilot.server.expiry import certificate_end
from pilot.settings import TABLE, Settings
from tests.parts import cannot, free_port, program, wait_until


def patient(*argv: str, environ: dict[str, str] | None = None, **more) -> Patient:
    environ = {"HOME": "/nonexistent", **(environ or {})}
    argv = argv if "-q" in argv else ("-q", "", *argv)
    flags = vars(run_parser(TABLE, "test").parse_args(["--pilot-user", "generic", *argv]))
    flags = {name: value for name, value in flags.items() if value != ""}
    return Patient(settings=Settings.from_flags(flags, environ), environ=environ, **more)


@pytest.fixture
def with_queue(tmp_path):
    """Makes a patient with a queue of some fields, and storages."""

    def make(*argv: str, storages=None, environ=None, needs_cvmfs=False, **fields) -> Patient:
        record = {"nickname": "Q", "state": "ACTIVE", "status": "online", "copytools": {"mv": {}}} | fields
        described = [tmp_path / "queue.json", tmp_path / "storages.json"]
        for path, content in zip(described, [{"Q": record}, storages or {}], strict=True):
            path.write_text(json.dumps(content))
        argv = ("-q", "Q", "--queuedata-url", str(described[0]), "--storagedata-url", str(described[1]), *argv)
        return patient(*argv, environ=environ, needs_cvmfs=needs_cvmfs)

    return make


# --- how checks are run


def test_each_check_gets_a_line_and_the_worst_of_them_counts():
    lines = examine(patient(), {"good": lambda _: ok("fine"), "silent": lambda _: None})
    assert [str(line) for line in lines] == ["ok       good        fine"]
    assert worst(lines) is Level.OK
    levels = [Finding(level, "") for level in Level]
    assert worst(examine(patient(), {str(n): lambda _, f=f: f for n, f in enumerate(levels)})) is Level.FAILURE


def test_a_check_that_hangs_or_breaks_is_a_failure_and_hides_no_other():
    release = threading.Event()
    checks = {"hangs": lambda _: release.wait(30) and None, "breaks": lambda _: 1 / 0, "good": lambda _: ok("fine")}
    started = time.monotonic()
    lines = examine(patient(), checks, patience=0.3)
    assert time.monotonic() - started < 2
    release.set()
    assert [line.level for line in lines] == ["failure", "failure", "ok"]
    assert "no result within" in lines[0].found
    assert "ZeroDivisionError" in lines[1].found


def test_no_check_breaks_on_this_machine():
    assert not [line for line in examine(patient()) if "broke" in line.found]
    assert len(CHECKS) >= 16


def test_a_secret_in_a_text_is_masked():
    token = jwt(time.time() + 9000)
    (line,) = examine(patient(), {"leaks": lambda _: ok(f"Authorization: Bearer {token}")})
    assert token not in str(line)


# --- work directory


@contextmanager
def tmpfs(where: Path, options: str) -> Iterator[Path]:
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], capture_output=True, text=True)
    if done.returncode:
        cannot(f"mounting a tmpfs: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_good_directory_is_left_as_it_was(tmp_path):
    assert disk.work_directory(patient("-a", str(tmp_path))).level is Level.OK
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_still_to_be_made_is_judged_by_the_one_above(tmp_path):
    finding = disk.work_directory(patient("-a", str(tmp_path / "a" / "b")))
    assert finding.level is Level.OK
    assert str(tmp_path) in finding.found


def test_a_full_disk_is_a_failure(tmp_path):
    with tmpfs(tmp_path / "small", "size=1m") as small:
        try:
            (small / "filler").write_bytes(bytes(2 << 20))
        except OSError:
            pass
        bad = patient("-a", str(small))
        found = disk.work_directory(bad)
        assert (found.level, "No space left" in found.found) == (Level.FAILURE, True)
        assert disk.space(bad).level is Level.FAILURE
        assert [path.name for path in small.iterdir()] == ["filler"]


def test_a_file_system_where_nothing_may_be_executed_is_a_failure(tmp_path):
    with tmpfs(tmp_path / "noexec", "size=1m,noexec") as small:
        found = disk.work_directory(patient("-a", str(small)))
    assert found.level is Level.FAILURE
    assert "programs do not run: Permission denied" in found.found
    assert "noexec" in found.advice


def test_no_inode_left_is_a_failure(tmp_path, with_queue):
    with tmpfs(tmp_path / "few", "size=8m,nr_inodes=2") as few:
        (few / "one").touch()
        found = disk.space(with_queue("-a", str(few), params={"pilot_free_space_limit": 0}))
        assert (found.level, "no inode" in found.found) == (Level.FAILURE, True)


def test_the_queue_says_how_much_disk_is_needed(tmp_path, with_queue):
    assert disk.space(with_queue("-a", str(tmp_path), params={"pilot_free_space_limit": 0})).level is Level.OK
    assert disk.space(with_queue(params={"pilot_free_space_limit": 1 << 60})).level is Level.FAILURE
    assert disk.space(with_queue(params={"pilot_free_space_limit": 0}, maxwdir=1 << 40)).level is Level.WARNING


# --- the machine


@pytest.mark.parametrize(
    ("environ", "level"),
    [({"LANG": "C.UTF-8"}, "ok"), ({"LC_ALL": "en_US.utf8"}, "ok"), ({"LC_ALL": "C", "LANG": "C.UTF-8"}, "warning"),
     ({}, "warning")],
)  # fmt: skip
def test_a_locale_without_utf_8_is_a_warning(environ, level):
    assert node.locale(patient(environ=environ)).level == level


def test_a_queue_that_gives_more_than_the_node_has_is_a_warning(with_queue):
    assert node.cores_and_memory(with_queue(corecount=1, maxrss=1)).level is Level.OK
    assert node.cores_and_memory(with_queue(corecount=100_000)).level is Level.WARNING
    assert node.cores_and_memory(with_queue(maxrss=1 << 40)).level is Level.WARNING


def test_a_named_control_group_that_is_none_is_a_warning(tmp_path):
    assert node.control_group(patient("--cgroup", str(tmp_path))).level is Level.WARNING
    assert node.control_group(patient("--cgroup", "off")).level is Level.OK


def test_container_runtimes_are_asked_for_their_version(tmp_path, with_queue, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    wanting = with_queue(container_type="singularity:pilot")
    assert node.containers(wanting).level is Level.FAILURE
    assert node.containers(patient()) == ok("no container runtime")
    runtime = tmp_path / "apptainer"
    runtime.write_text("#!/bin/sh\necho apptainer version 1.3.4\n")
    runtime.chmod(0o755)
    assert node.containers(wanting) == ok("apptainer version 1.3.4")
    runtime.write_text("#!/bin/sh\nexit 1\n")
    assert node.containers(patient()).level is Level.WARNING


def test_a_program_that_hangs_leaves_nothing_and_one_that_talks_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "_PROGRAM_PATIENCE", 0.5)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/pid; wait\n")
    program.chmod(0o755)
    assert node.program_version(str(program)).endswith("does not start")
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_zombie(child), "the child of a program that hangs has ended")
    program.write_text("#!/bin/sh\nhead -c 5000 /dev/zero | tr '\\0' x\n")
    assert len(node.program_version(str(program))) < 300 + len(str(program))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it is left to itself
def test_a_program_that_cannot_be_killed_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "_PROGRAM_PATIENCE", 0.1)
    monkeypatch.setattr(node.os, "killpg", lambda *_: None)  # as the kernel does with who waits for a driver
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 6\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    started = time.monotonic()
    assert node.gpus(patient()).level is Level.WARNING
    assert time.monotonic() - started < 5
    gc.collect()  # or the warning comes in another test


def test_runtimes_are_asked_side_by_side(tmp_path, monkeypatch):
    """Each answers when all have been asked."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    names = ("apptainer", "singularity", "podman", "docker")
    wait = "".join(f" && [ -e {tmp_path}/{name}.asked ]" for name in names)
    for name in names:
        script = f"#!/bin/sh\ntouch $0.asked\nuntil true{wait}; do sleep 0.05; done\necho {name} version 9\n"
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    assert node.containers(patient()) == ok(", ".join(f"{name} version 9" for name in names))


def test_a_gpu_without_its_driver_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node.gpus(patient()) is None
    program = tmp_path / "nvidia-smi"
    xml = "<driver_version>535</driver_version>" + 2 * (
        "<gpu><product_name>Tesla T4</product_name><fb_memory_usage><total>15360 MiB</total></fb_memory_usage></gpu>"
    )
    for script, expected in (
        (f'echo "<nvidia_smi_log>{xml}</nvidia_smi_log>"', ok("2 x Tesla T4, 15360 MB, driver 535")),
        ('echo "<nvidia_smi_log/>"', ok("none")),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert node.gpus(patient()) == expected
    program.write_text("#!/bin/sh\necho not so\n")
    assert node.gpus(patient()).level is Level.WARNING
    program.write_text("#!/bin/sh\necho no libnvidia-ml.so.1 >&2\nexit 127\n")
    assert node.gpus(patient()).found == "nvidia-smi: no libnvidia-ml.so.1"


def test_cvmfs_is_looked_for_where_the_queue_needs_it(tmp_path, with_queue):
    base = tmp_path / "cvmfs"
    environ = {"ATLAS_SW_BASE": str(base)}
    assert node.cvmfs(patient(environ=environ)) is None
    assert node.cvmfs(with_queue(environ=environ, is_cvmfs=False)) is None
    assert node.cvmfs(with_queue(environ=environ)).level is Level.WARNING
    assert node.cvmfs(with_queue(environ=environ, is_cvmfs=True)).level is Level.FAILURE
    base.mkdir()
    assert node.cvmfs(patient(environ=environ, needs_cvmfs=True)).found == f"{base} is empty"
    (base / "atlas.cern.ch").mkdir()
    assert node.cvmfs(with_queue(environ=environ, is_cvmfs=True)).level is Level.OK
    lacking = node.cvmfs(with_queue("--pilot-user", "atlas", environ=environ, is_cvmfs=True))
    assert (lacking.level, "atlas.cern.ch/repo/sw: No such file" in lacking.found) == (Level.FAILURE, True)
    assert node.cvmfs(with_queue("--pilot-user", "atlas", "-b", environ=environ, is_cvmfs=True)).level is Level.OK


# --- credentials


def jwt(end: float) -> str:
    parts = [{"alg": "none"}, {"sub": "pilot", "exp": int(end)}]
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "c2lnbmF0dXJl"])


@pytest.mark.parametrize(
    ("left", "mode", "level", "words"),
    [
        (90_000, 0o600, "ok", "25.0 h left"),
        (1800, 0o600, "warning", "0.5 h left"),
        (-60, 0o600, "failure", "ended"),
        (90_000, 0o644, "warning", "mode 644"),
        (None, 0o600, "ok", "cannot be read"),
    ],
)
def test_a_token_is_judged_by_its_end_and_its_mode_and_never_shown(tmp_path, left, mode, level, words):
    path = tmp_path / "token"
    token = "opaque-words" if left is None else jwt(time.time() + left)
    path.write_text(token)
    path.chmod(mode)
    finding = credentials.credential(patient(environ={"PANDA_AUTH_TOKEN": str(path)}))
    assert finding.level == level
    assert words in finding.found
    assert token not in f"{finding}"


@pytest.mark.parametrize(
    ("options", "key", "level"), [((), "key", "warning"), (("-y",), "key", "failure"), (("-t",), "", "warning")]
)
def test_an_ended_token_that_will_be_renewed_or_is_nobody_s_care_keeps_no_pilot_from_jobs(
    tmp_path, options, key, level
):
    (tmp_path / "token").write_text(jwt(time.time() - 60))
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "key").write_text("k" * 20)
    names = {"PANDA_AUTH_TOKEN": str(tmp_path / "token"), "PANDA_AUTH_TOKEN_KEY": str(tmp_path / key) if key else ""}
    assert credentials.credential(patient(*options, environ=names)).level == level


def test_a_token_file_that_is_missing_is_a_failure():
    assert credentials.credential(patient(environ={"PANDA_AUTH_TOKEN": "/nonexistent/t"})).level is Level.FAILURE


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for localhost that nobody vouches for, with its key."""
    where = tmp_path_factory.mktemp("tls")
    new = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*new, *names, "-keyout", "key", "-out", "cert"], cwd=where, check=True, capture_output=True)
    both = where / "both.pem"
    both.write_text((where / "cert").read_text() + (where / "key").read_text())
    both.chmod(0o600)
    return both


def test_the_end_of_a_certificate_is_read_as_openssl_does(certificate):
    told = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", certificate], capture_output=True, text=True)
    end = datetime.strptime(told.stdout.strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert certificate_end(certificate) == end.timestamp()
    finding = credentials.credential(patient("--cacert", str(certificate)))
    assert (finding.level, "h left" in finding.found) == (Level.OK, True)


def test_a_chain_ends_with_the_first_of_its_certificates_and_a_proxy_at_its_end_is_a_failure(tmp_path, certificate):
    for command in (
        ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=p", "-keyout", "key", "-out", "request"],
        ["x509", "-req", "-in", "request", "-signkey", "key", "-days", "-1", "-out", "ended"],
    ):
        subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True)
    proxy = tmp_path / "proxy"
    proxy.write_text("".join(path.read_text() for path in (certificate, tmp_path / "ended")))
    proxy.chmod(0o600)
    assert certificate_end(proxy) == pytest.approx(time.time() - 86400, abs=60)
    finding = credentials.credential(patient("--cacert", str(proxy)))
    assert (finding.level, "ended" in finding.found) == (Level.FAILURE, True)


def test_a_file_without_a_certificate_has_no_end(tmp_path):
    (tmp_path / "x").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert certificate_end(tmp_path / "x") is None


def test_the_directory_of_cas_must_have_some(tmp_path, certificate):
    with_path = patient("--capath", str(tmp_path))
    assert credentials.authorities(with_path).level is Level.FAILURE
    shutil.copy(certificate, tmp_path / "ca.pem")
    assert credentials.authorities(with_path) == ok(f"{tmp_path}: 1 files")
    assert credentials.authorities(patient("--capath", "/nonexistent/x")).level is Level.FAILURE


# --- server


@contextmanager
def serving(off: float = 0.0, status: int = 200, tls: Path | None = None, asks: bool = False) -> Iterator[str]:
    """The URL of a server whose clock is off by some seconds, and that may ask for a client certificate."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"success": true, "message": "", "data": []}' if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.do_GET()

        def date_time_string(self, timestamp=None):
            return formatdate(time.time() + off, usegmt=True)

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):  # who does not trust us breaks off
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            if asks:
                context.load_verify_locations(tls)
                context.verify_mode = ssl.CERT_REQUIRED
                context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 says it after the handshake, if it still can
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("off", "level", "words"),
    [(0, "ok", "the server"), (-100, "warning", "ahead of"), (100, "warning", "behind"), (3600, "failure", "behind")],
)
def test_the_clock_is_judged_by_that_of_the_server(off, level, words):
    with serving(off) as url:
        it = patient("--url", url)
        assert network.server(it).level is Level.OK
        finding = network.clock(it)
    assert finding.level == level
    assert words in finding.found


@pytest.mark.parametrize(
    ("status", "words"), [(403, "keep us out"), (401, "renew"), (404, "no PanDA server"), (503, "firewall")]
)
def test_what_a_server_refuses_with_says_what_to_do(status, words):
    with serving(status=status) as url:
        finding = network.server(patient("--url", url))
    assert finding.level is Level.FAILURE
    assert words in finding.advice


def test_a_certificate_of_an_unknown_ca_is_a_failure_and_of_a_known_one_is_not(tmp_path, certificate):
    with serving(tls=certificate) as url:
        finding = network.server(patient("--url", url))
        assert finding.level is Level.FAILURE
        assert "not trusted" in finding.found
        assert "--capath" in finding.advice
        shutil.copy(certificate, tmp_path / "ca.pem")
        assert network.server(patient("--url", url, "--capath", str(tmp_path))).level is Level.OK


def test_a_server_that_wants_a_client_certificate_says_so(tmp_path, certificate):
    shutil.copy(certificate, tmp_path / "ca.pem")
    with serving(tls=certificate, asks=True) as url:
        finding = network.server(patient("--url", url, "--capath", str(tmp_path)))
        assert (finding.level, "X509_USER_PROXY" in finding.advice) == (Level.FAILURE, True)
        shown = patient("--url", url, "--capath", str(tmp_path), "--cacert", str(certificate))
        assert network.server(shown).level is Level.OK


def test_nobody_there_and_plain_http_elsewhere_are_failures():
    assert network.server(patient("--url", f"http://127.0.0.1:{free_port()}")).level is Level.FAILURE
    finding = network.server(patient("--url", "http://panda.example.org"))
    assert "--allow-http" in finding.found
    assert network.server(patient()) is None
    assert network.clock(patient()) is None


# --- queue, tools, storages


def test_a_queue_must_be_readable_active_and_right(with_queue):
    assert network.queue(patient()) is None
    assert network.queue(with_queue()).level is Level.OK
    for bad, words in [({"state": "BROKEN"}, "BROKEN"), ({"status": "offline"}, "offline"),
                       ({"params": {"pilot_grace": "soon"}}, "pilot_grace")]:  # fmt: skip
        finding = network.queue(with_queue(**bad))
        assert (finding.level, words in finding.found) == (Level.FAILURE, True)
    assert network.queue(patient("-q", "Q", "--queuedata-url", "/nonexistent/q.json")).level is Level.FAILURE


def test_tools_of_the_queue_must_work_here(with_queue, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert network.copy_tools(with_queue()) == ok("mv")
    fallback = network.copy_tools(with_queue(acopytools={"pr": ["lsm", "mv"]}))
    assert (fallback.level, "no program lsm-get" in fallback.found) == (Level.WARNING, True)
    assert network.copy_tools(with_queue(acopytools={"pr": ["mv"], "pw": ["lsm"]})).level is Level.FAILURE
    assert "no plug-in" in network.copy_tools(with_queue(acopytools={"pr": ["nothing"]})).found
    (tmp_path / "xrdcp").write_text("#!/bin/sh\necho v5.9 >&2\n")  # where the real one says it
    (tmp_path / "xrdcp").chmod(0o755)
    installed = network.copy_tools(patient())
    assert (installed.level, "mv" in installed.found) == (Level.OK, True)
    assert f"boto3 {version('boto3')}" in installed.found
    assert "xrdcp: v5.9" in installed.found


def test_storages_of_the_queue_are_reached(with_queue, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        good, bad = f"root://127.0.0.1:{listener.getsockname()[1]}/", f"https://127.0.0.1:{free_port()}"
        ways = {"A": [good], "B": [good, bad], "C": [bad], "D": [f"file://localhost{tmp_path}"]}

        def find(*names: str) -> Finding:
            storages = {
                name: {"arprotocols": {"pr": [{"endpoint": url, "path": str(tmp_path)} for url in urls]}}
                for name, urls in ways.items()
            }
            return network.storages(with_queue(storages=storages, astorages={"pr": list(names)}))

        assert find("A", "D").level is Level.OK
        assert find("B").level is Level.WARNING
        assert find("A", "C").level is Level.WARNING
        lost = find("C")
        assert (lost.level, "refused" in lost.found) == (Level.FAILURE, True)
        assert network.storages(with_queue()) is None


def test_a_storage_that_speaks_tls_must_be_trusted(with_queue, tmp_path, certificate):
    cas = tmp_path / "cas"
    cas.mkdir()
    shutil.copy(certificate, cas / "ca.pem")
    with serving(tls=certificate) as url:
        for scheme in ("https", "davs"):
            place = f"{scheme}://{url.partition('://')[2]}"
            storages = {"A": {"arprotocols": {"pr": [{"endpoint": place, "path": "/"}]}}}
            strange = network.storages(with_queue(storages=storages, astorages={"pr": ["A"]}))
            assert strange.level is Level.FAILURE
            assert "its certificate is not trusted" in strange.found
            assert "--capath" in strange.advice
            known = with_queue("--capath", str(cas), storages=storages, astorages={"pr": ["A"]})
            assert network.storages(known).level is Level.OK
