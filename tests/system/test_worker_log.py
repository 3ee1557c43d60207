"""`pilot logship` sends a whole worker's log, with the job of each line, and failures in one piece."""

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.parts import wait_until

PREFIX = "2026-11-22 05:00:00,123 | {:<8} | pilot.control.job                | run                       | "
DEFINITION = "job definition = {'PandaID': 4711, 'jobName': 'lsst_r_1.2_3', 'taskID': 99, 'jobPars': 'x'}"
LOG = [
    "wrapper starts on node",
    PREFIX.format("INFO") + DEFINITION,
    PREFIX.format("WARNING") + "the ERROR in this text is no level",
    PREFIX.format("INFO") + "payload stderr (last lines):",
    "  File x, line 3",
    "ValueError: bad",
    PREFIX.format("INFO") + "job 4711 has state=failed",
    PREFIX.format("INFO") + "ready for new job",
    PREFIX.format("INFO") + "password is s3cret-of-wrapper",
]


@pytest.fixture
def cache():
    """A panda cache that keeps what it is sent."""
    kept = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            kept.append((self.path, self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.kept = kept
    yield server
    server.shutdown()
    server.server_close()


def start(top, *options):
    argv = [sys.executable, "-m", "pilot.cli.main", "logship", "worker.log", "--server", "file;out.jsonl", *options]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "MY_PASSWORD": "s3cret-of-wrapper"}
    return subprocess.Popen(argv, cwd=top, env=environ | {"HARVESTER_ID": "h1"}, stderr=subprocess.PIPE)


def records(top):
    path = top / "out.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def end(process):
    """Its exit code and what it said."""
    _, said = process.communicate(timeout=20)
    return process.returncode, said.decode()


def test_lines_know_their_job_and_a_failure_is_one_record(tmp_path, cache):
    worker = subprocess.Popen(["sleep", "60"])
    url = f"http://127.0.0.1:{cache.server_address[1]}"
    ship = start(tmp_path, "--pid", str(worker.pid), "--upload", url, "--upload-name", "h1_7.out")
    try:
        (tmp_path / "worker.log").write_text("\n".join(LOG) + "\n")
        wait_until(lambda: len(records(tmp_path)) == 7, "all lines at the sink while the worker runs")
    finally:
        worker.kill()
        worker.wait()
    assert end(ship) == (0, "")
    found = records(tmp_path)
    assert [record["PandaJobID"] for record in found] == ["", *["4711"] * 5, ""]
    assert {record["jobName"] for record in found[1:6]} == {"lsst_r_1.2_3"}
    assert (found[1]["TaskID"], found[0]["phase"]) == ("99", "worker")
    assert [record["severity"] for record in found] == ["INFO", "INFO", "WARNING", "ERROR", "ERROR", "INFO", "INFO"]
    assert found[3]["message"].endswith("(last lines):\n  File x, line 3\nValueError: bad")
    assert found[6]["message"].endswith("password is ***")
    assert found[0]["Harvester_ID"] == "h1"
    ((path, kind, body),) = cache.kept
    assert (path, kind.split(";")[0]) == ("/putFile", "multipart/form-data")
    assert b'name="file"; filename="h1_7.out"' in body
    assert DEFINITION.encode() in body
    assert b"s3cret-of-wrapper" not in body


def test_a_stop_sends_the_last_lines(tmp_path):
    (tmp_path / "worker.log").write_text("first\n")
    ship = start(tmp_path, "--job-id", "12")
    wait_until(lambda: records(tmp_path) != [], "the first line")
    with open(tmp_path / "worker.log", "a") as log:
        log.write(PREFIX.format("ERROR") + "payload stderr:\nlast words without an end")
    ship.send_signal(signal.SIGTERM)
    assert end(ship) == (0, "")
    first, last = records(tmp_path)
    assert (first["PandaJobID"], last["severity"]) == ("12", "ERROR")
    assert last["message"].endswith("stderr:\nlast words without an end")


def test_an_upload_that_fails_is_told(tmp_path):
    (tmp_path / "worker.log").write_text("x\n")
    ship = start(tmp_path, "--upload", "http://127.0.0.1:1", "--pid", "999999999")
    code, said = end(ship)
    assert code == 1
    assert "worker.log is not uploaded" in said


@pytest.mark.parametrize(
    ("server", "told"),
    [("nosuch;http://localhost:1", "nosuch"), ("fluentd;tcp://localhost:nosuch", "nosuch"), ("", "which sinks?")],
)
def test_a_sink_that_is_not_there_is_an_error_at_once(tmp_path, server, told):
    code, said = end(start(tmp_path, f"--server={server}"))
    assert code == 2
    assert told in said
    assert "Traceback" not in said
