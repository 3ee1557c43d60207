"""The embedded server as a process: start, end, command line, files, record, TLS, credentials."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pilot.devserver.app import Settings
from pilot.devserver.auth import Guard
from pilot.devserver.client import DevServer, DevServerError, LocalDevServer
from pilot.masking import Secret

ROOT = Path(__file__).resolve().parents[2]
UPDATE = b'{"job_id": 1, "job_status": "running"}'


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pilot.devserver", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)


def get(
    url: str, path: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), dict(response.headers)
    finally:
        connection.close()


# --- life


def test_it_starts_quickly_and_ends_cleanly_on_sigterm() -> None:
    begun = time.monotonic()
    server = DevServer()
    started = time.monotonic() - begun
    assert server.submit({}) == [1]
    server.close()
    assert server.returncode == 0
    assert started < 2  # 0.2 s on an idle machine
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=5)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_open_connections_and_a_delay_running(signum: signal.Signals) -> None:
    with DevServer(faults=["is_alive:delay=60"]) as server:
        idle = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
        busy = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
        busy.sendall(b"GET /api/v1/system/is_alive HTTP/1.1\r\nHost: x\r\n\r\n")
        while not server.counters()["calls"]:
            pass
        os.kill(server.pid, signum)
        assert server._process.wait(5) == 0
        server._errors.seek(0)
        assert server._errors.read() == ""
        idle.close()
        busy.close()


def test_it_says_when_it_is_ready(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "pilot.devserver", f"--ready-file={ready}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        told = json.loads(ready.read_text())
        process.terminate()
        assert process.stdout.read() == ""  # the URL is all that is ever on stdout
        assert process.wait(5) == 0
    assert told == {"url": line.strip(), "port": urlsplit(line).port, "pid": process.pid}


def test_a_failed_start_says_why() -> None:
    with DevServer() as server, pytest.raises(DevServerError, match="Address already in use"):
        DevServer(port=urlsplit(server.url).port or 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token", "secret-text"], "--token and --origin go together"),
        (["--client-ca", "x"], "need --cert"),
        (["--files", "/nonexistent"], "not a directory"),
        (["--jobs", "/nonexistent.json"], "No such file"),
        (["--fault", "update_job:explode"], "unknown kind of fault"),
        (["--command", "nonsense"], "not JOBID:TEXT"),
        (["--command", "7:debug"], "PandaID=7 not found"),
        (["--cert", "/nonexistent.pem"], "No such file"),
        (["--state", sys.executable], "not a database"),
        (["--jobs", sys.executable], "can't decode"),
    ],
)
def test_a_command_line_that_cannot_be_ends_with_2_and_one_line(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_options_of_the_command_line_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text('[{"PandaID": 7}, {}]')
    command = [
        sys.executable,
        "-m",
        "pilot.devserver",
        f"--jobs={tmp_path}",
        "--command=7:softkill",
        "--api=v1",
        "--verbose",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        body = b'{"job_id": 7, "job_status": "running"}'
        answer = get(url, "/api/v1/pilot/update_job", "POST", body, Content_Type="application/json")[1]
        states = get(url, "/devserver/states")[1]
        process.terminate()
        said = process.stderr.read()
    assert json.loads(answer)["data"]["command"] == "softkill"
    assert json.loads(states) == {"7": "running", "8": "activated"}
    assert "POST /api/v1/pilot/update_job 200" in said


def test_the_subcommand_has_the_same_options() -> None:
    import argparse

    from pilot.cli.devserver import add_parser

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["devserver", "--port", "5", "--fault", "a:reset", "--fault", "b:503"])
    assert (args.port, args.fault, callable(args.run)) == (5, ["a:reset", "b:503"], True)


# --- state and record


def test_jobs_outlive_the_server_in_a_state_file(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    with DevServer(state=state) as server:
        server.submit([{}, {}])
        get(server.url, "/api/v1/pilot/update_job", "POST", UPDATE, Content_Type="application/json")
        before = server.job(1)
    with DevServer(state=state) as server:
        assert server.job(1) == before
        assert server.states() == {1: "running", 2: "activated"}
        assert server.submit({}) == [3]


def test_every_exchange_is_recorded_in_the_shape_of_the_wire_files_without_secrets(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    token, password = "topsecrettoken", 'pass"word+1'
    secrets = json.dumps({"logstash_password": password})
    with DevServer(record=record, token=token, origin="loop.production") as server:
        server.submit({"pilotSecrets": secrets, "secrets": {"key": password}})
        sent = {"Authorization": f"Bearer {token}", "Origin": "loop.production"}
        form = {"Content_Type": "application/x-www-form-urlencoded", **sent}
        got = get(server.url, "/server/panda/getJob", "POST", b"siteName=Q", **form)
        assert b"pass%5C%22word%2B1" in got[1]
        server.fault("update_job:reset")
        with pytest.raises(ConnectionResetError):
            body = gzip.compress(json.dumps({"jobId": 1, "state": "running"}).encode())
            get(server.url, "/server/panda/updateJob", "POST", body, Content_Type="application/json", **sent)
    first, second = [json.loads(line) for line in record.read_text().splitlines()]
    wire = json.loads((ROOT / "tests/contract/wire/legacy-one-job-by-pilot3.jsonl").read_text().splitlines()[0])
    assert wire.keys() <= first.keys()
    assert (first["status"], first["request_body"]) == ("200 OK", "siteName=Q")
    assert first["request_headers"]["Authorization"] == "Bearer ***"
    assert second["request_body"] == {"gzip_json": {"jobId": 1, "state": "running"}}
    assert (second["status"], second["fault"]) == (None, "reset")
    for hidden in (token, password, "word+1", "word%2B1", "logstash_password"):
        assert hidden not in record.read_text()


# --- files


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDevServer]:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("not for you")
    (outside / "served").mkdir()
    (outside / "served" / "queue.json").write_text("{}")
    (outside / "served" / "sub").mkdir()
    (outside / "served" / "sub" / "big.dat").write_bytes(bytes(3_000_000))
    (outside / "served" / "link").symlink_to(outside / "secret.txt")
    with LocalDevServer(Settings(files=outside / "served")) as server:
        yield server


def test_files_are_served_under_cache(cache: LocalDevServer) -> None:
    status, body, headers = get(cache.url, "/cache/queue.json?x=1")
    assert (status, body, headers["Content-Type"]) == (200, b"{}", "application/json")
    assert len(get(cache.url, "/cache/sub/big.dat")[1]) == 3_000_000
    status, body, headers = get(cache.url, "/cache/sub/big.dat", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "3000000")
    assert get(cache.url, "/cache/queue.json", "PUT")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "%2e%2e/secret.txt",
        "sub/../../secret.txt",
        "..%2fsecret.txt",
        "//etc/passwd",
        "link",
        "%00",
        "sub",
        "",
    ],
)
def test_nothing_outside_the_directory_is_served(cache: LocalDevServer, path: str) -> None:
    assert get(cache.url, f"/cache/{path}")[:2] == (404, b"not found")


def test_without_a_directory_there_are_no_files() -> None:
    with LocalDevServer() as server:
        assert get(server.url, "/cache/pyproject.toml")[0] == 404


# --- HTTP


@pytest.mark.parametrize("header", [b"Transfer-Encoding: chunked", b"Content-Length: many"])
def test_a_body_without_a_length_is_refused(cache: LocalDevServer, header: bytes) -> None:
    with socket.create_connection((urlsplit(cache.url).hostname, urlsplit(cache.url).port), timeout=5) as sock:
        sock.sendall(b"POST /api/v1/pilot/update_job HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 411 ")


# --- credentials


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({}, "SSL secure connection is required"),
        ({"Authorization": "Bearer good", "Origin": "vo"}, "production or pilot role required"),
        ({"Authorization": "Bearer good", "Origin": "vo.production"}, "Invalid job status: odd"),
        ({"Authorization": "Bearer bad", "Origin": "vo.production"}, "Token authentication failed. Invalid token."),
        (
            {"Authorization": "Bearer good", "Origin": "other.production"},
            "Token authentication failed. Unknown vo : other",
        ),
        ({"Authorization": "Bearer good", "Origin": "vo.admin"}, "failed. Not a member of the vo/admin group"),
        ({"Authorization": "Bearer good"}, "Token authentication failed. Token decode failure."),
    ],
)
def test_a_token_needs_its_origin(headers: dict[str, str], answer: str) -> None:
    with LocalDevServer(Settings(guard=Guard(Secret("good"), "vo.production"))) as server:
        body = b'{"job_id": 1, "job_status": "odd"}'
        status, text, _ = get(
            server.url, "/api/v1/pilot/update_job", "POST", body, Content_Type="application/json", **headers
        )
        assert answer in text.decode()
        assert status == (403 if "failed" in answer else 200)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server certificate, a client certificate, an RFC 3820 proxy of it, and a stranger's certificate."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates of this test, and is not installed")
    where = tmp_path_factory.mktemp("keys")
    (where / "host.cnf").write_text("subjectAltName=IP:127.0.0.1")
    (where / "proxy.cnf").write_text("proxyCertInfo=critical,language:id-ppl-inheritAll\nkeyUsage=digitalSignature")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=where, check=True, capture_output=True, timeout=20)

    def issue(name: str, subject: str, issuer: str, *more: str) -> None:
        request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject]
        openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signer = ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-days", "2", *more)

    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl(*new, "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=Stranger", "-keyout", "stranger.key", "-out", "stranger.pem")
    issue("host", "/CN=127.0.0.1", "ca", "-extfile", "host.cnf")
    issue("user", "/O=Loop/CN=Some Pilot", "ca")
    issue("proxy", "/O=Loop/CN=Some Pilot/CN=123456", "user", "-extfile", "proxy.cnf")
    parts = ("proxy.pem", "proxy.key", "user.pem")
    (where / "proxy-chain.pem").write_text("".join((where / part).read_text() for part in parts))
    return where


def ask_over_tls(
    server: DevServer, keys: Path, cert: str = "", key: str = "", path: str = "update_job"
) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=keys / "ca.pem")
    if cert:
        context.load_cert_chain(keys / cert, keys / key if key else None)
    connection = http.client.HTTPSConnection(urlsplit(server.url).netloc, context=context, timeout=10)
    try:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if path == "update_job":
            connection.request("POST", "/api/v1/pilot/update_job", UPDATE, headers)
        else:
            connection.request("GET", path, headers=headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_client_certificates_and_proxies_of_the_ca_are_credentials(keys: Path) -> None:
    options = {"cert": keys / "host.pem", "key": keys / "host.key", "client_ca": keys / "ca.pem", "ca": keys / "ca.pem"}
    with DevServer(**options) as server:
        server.submit({})
        assert server.url.startswith("https://")
        assert ask_over_tls(server, keys)["message"] == "SSL secure connection is required"
        for pair in (("user.pem", "user.key"), ("proxy-chain.pem", "")):
            assert ask_over_tls(server, keys, *pair)["data"] == {"StatusCode": 0, "command": "NULL"}
        denied = ask_over_tls(server, keys, "proxy-chain.pem", path="/api/v1/creds/get_proxy")
        assert "'Some Pilot' not in authorized users" in denied["message"]
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            ask_over_tls(server, keys, "stranger.pem", "stranger.key")
        server.fault("update_job:reset")
        with pytest.raises(ConnectionResetError):
            ask_over_tls(server, keys, "user.pem", "user.key")
        assert ask_over_tls(server, keys, "user.pem", "user.key")["success"]
    assert server.returncode == 0


def test_a_client_that_never_shakes_hands_stops_nobody(keys: Path) -> None:
    with DevServer(cert=keys / "host.pem", key=keys / "host.key", ca=keys / "ca.pem") as server:
        silent = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
        assert ask_over_tls(server, keys)["data"]["command"] == "tobekilled"
        silent.close()
