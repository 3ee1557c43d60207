"""Sink google-cloud-logging: Google's own client against its own protos, through the errors that Google gives."""

import os
import subprocess
import sys
import time

import pytest

from pilot.errors import Code, PilotError
from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin
from pilot.logship.sink import SinkContext, SinkError
from tests.parts import free_port
from tests.parts.gcl import GclServer, service_account
from tests.parts.logs import make_record, ship_lines

pytest.importorskip("google.cloud.logging_v2")
ORIGIN = Origin(task_id="7", job_id="42", worker_id="9", harvester_id="h", host="wn1", queue="Q")


@pytest.fixture
def server():
    server = GclServer(bad="poison")
    yield server
    server.close()


def sink(port, words="", **context):
    (made,) = make_sinks(
        parse(f"google-cloud-logging;http://127.0.0.1:{port}{words}"), SinkContext(**{"timeout": 2.0} | context)
    )
    return made


def records(*texts, source="payload.stdout"):
    return [
        make_record(ORIGIN.fields(), source=source, number=n, sequence=n, phase="payload", text=text)
        for n, text in enumerate(texts, 1)
    ]


def numbers(server):
    return [int(line["message"]) for line in server.lines]


def test_an_entry_has_severity_labels_resource_and_the_whole_record(server):
    made = sink(server.port, ";project=p1")
    made.send(records("hello", "ERROR bad", '{"message": "ü", "n": 3, "deep": {"a": [1, true, null]}}'))
    made.close()
    first, second, third = server.entries
    assert first["logName"] == "projects/p1/logs/pilot-log"
    assert first["resource"] == {
        "type": "generic_node",
        "labels": {"project_id": "p1", "location": "global", "namespace": "Q", "node_id": "wn1"},
    }
    assert first["labels"] == {
        "queue": "Q", "host": "wn1", "panda_job_id": "42", "task_id": "7", "harvester_id": "h", "worker_id": "9",
        "phase": "payload", "file": "payload.stdout",
    }  # fmt: skip
    assert [entry["severity"] for entry in server.entries] == ["INFO", "ERROR", "INFO"]
    assert first["jsonPayload"]["PandaJobID"] == "42"
    assert first["jsonPayload"]["seq"] == 1
    assert second["insertId"] != first["insertId"]
    assert (third["jsonPayload"]["message"], third["jsonPayload"]["deep"]) == ("ü", {"a": [1, True, None]})


def test_lines_of_several_jobs_in_a_batch_have_the_labels_of_their_own(server):
    made = sink(server.port)
    own = ({"PandaJobID": number, "queue": "Q"} for number in ("1", "2", ""))
    made.send(
        [make_record(each, source="w.log", number=1, sequence=n, phase="", text="x") for n, each in enumerate(own)]
    )
    made.close()
    assert [entry["labels"].get("panda_job_id") for entry in server.entries] == ["1", "2", ""]


def test_nothing_but_our_entries_is_written_and_a_batch_that_comes_twice_is_kept_once(server):
    made = sink(server.port)
    batch = records("one", "two")
    server.lose = ["UNAVAILABLE"]
    with pytest.raises(SinkError, match="UNAVAILABLE"):
        made.send(batch)
    made.send(batch)
    made.close()
    assert [line["message"] for line in server.lines] == ["one", "two"]


@pytest.mark.parametrize(
    "status", ["RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "INTERNAL", "UNAUTHENTICATED"]
)
def test_what_passes_is_tried_again_and_nothing_is_lost(server, tmp_path, status):
    server.plan = [status, status]
    assert ship_lines(tmp_path, sink(server.port), 200) == {}
    assert numbers(server) == list(range(200))


def test_bad_entries_are_given_up_and_counted_and_the_good_ones_of_their_batch_arrive(server, tmp_path):
    made = sink(server.port)
    with pytest.raises(SinkError) as caught:
        made.send(records("one", "poison", "three"))
    assert (caught.value.retry, caught.value.refused) == (False, 1)
    assert [line["message"] for line in server.lines] == ["one", "three"]
    made.close()


def test_a_line_of_escapes_that_is_too_large_is_cut(server):
    made = sink(server.port)
    made.send(records("x" * 260_000, '{"message": "m", "blob": "' + "y" * 270_000 + '"}'))
    made.close()
    first, second = server.lines
    assert len(first["message"]) > 190_000
    assert first["message"].endswith("[... line cut]")
    assert (second["message"], len(second["blob"]) < 2000) == ("m", True)


def test_a_server_that_is_gone_or_hangs_costs_no_more_than_the_timeout(server):
    began = time.monotonic()
    with pytest.raises(SinkError, match="UNAVAILABLE"):
        sink(free_port()).send(records("x"))
    server.plan = [3.0]
    with pytest.raises(SinkError, match="DEADLINE_EXCEEDED"):
        sink(server.port, timeout=0.5).send(records("x"))
    assert time.monotonic() - began < 4


def test_a_server_that_comes_later_gets_all(tmp_path):
    port, late = free_port(), []

    def come(number):
        if number == 300:
            late.append(GclServer(port))

    try:
        assert ship_lines(tmp_path, sink(port), 500, come) == {}
        assert numbers(late[0]) == list(range(500))
    finally:
        late[0].close()


_OVER_TLS = """
import os, sys
from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin, RecordMaker
from pilot.logship.sink import SinkContext
sink, = make_sinks(parse(f"google-cloud-logging;https://localhost:{sys.argv[1]}"),
                   SinkContext(timeout=5.0, environ=os.environ))
sink.send([RecordMaker(Origin(host="h").fields(), "s", "p").make(1, 1, "hi")])
sink.close()
"""


def test_over_tls_with_a_service_account_and_only_to_a_server_with_a_known_certificate(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*openssl, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    account = service_account(tmp_path / "account.json", key.read_text())
    server = GclServer(tls=(key.read_bytes(), certificate.read_bytes()))
    environ = os.environ | {"GOOGLE_APPLICATION_CREDENTIALS": str(account)}
    run = [sys.executable, "-c", _OVER_TLS, str(server.port)]
    try:
        refused = subprocess.run(run, env=environ, capture_output=True, text=True, timeout=60)
        assert "SinkError: UNAVAILABLE" in refused.stderr
        trusting = environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)}
        subprocess.run(run, env=trusting, check=True, timeout=60)
        assert server.entries[0]["logName"] == "projects/tests/logs/pilot-log"
        assert server.metadata["authorization"].startswith("Bearer ey")
    finally:
        server.close()


@pytest.mark.parametrize("url", ["http://example.org:1", "tcp://localhost:1"])
def test_plain_http_is_for_loopback(url):
    with pytest.raises(PilotError) as caught:
        make_sinks(parse(f"google-cloud-logging;{url}"), SinkContext())
    assert caught.value.code is Code.BADQUEUECONFIGURATION
