"""Sink opensearch: opensearch-py against a server with a real node's answers, and through the faults before it."""

import base64
import ssl
import subprocess
import time
import uuid

import pytest

from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin
from pilot.logship.sink import SinkContext, SinkError
from pilot.masking import Secret
from tests.parts.logs import make_record, ship_lines
from tests.parts.opensearch import Door, search_server

pytest.importorskip("opensearchpy")
__all__ = ["search_server"]
ORIGIN = Origin(task_id="7", job_id="42", host="wn1", queue="Q")


@pytest.fixture
def name():
    """A log of its own for each test."""
    return f"Log-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def door(search_server):
    door = Door(search_server)
    yield door
    door.close()


def sink(port, name, words="", scheme="http", **context):
    (made,) = make_sinks(
        parse(f"opensearch;{scheme}://localhost:{port}{words}"),
        SinkContext(**{"timeout": 2.0, "log_name": name} | context),
    )
    return made


def records(*texts):
    return [
        make_record(ORIGIN.fields(), source="payload.stdout", number=n, sequence=n, phase="payload", text=text)
        for n, text in enumerate(texts, 1)
    ]


def found(search_server, name):
    return search_server.documents(f"{name.lower()}-*")


def messages(search_server, name):
    return [document["message"] for document in found(search_server, name)]


def test_records_are_documents_of_the_day(search_server, door, name):
    made = sink(door.port, name)
    made.send(records("hello", "ERROR bad", '{"message": "ü", "n": 3}'))
    made.close()
    first, second, third = found(search_server, name)
    assert first["_index"] == name.lower() + time.strftime("-%Y.%m.%d", time.gmtime(first["PilotTimeStamp"]))
    assert first["@timestamp"].endswith("Z")
    assert (first["message"], first["PandaJobID"], first["queue"]) == ("hello", "42", "Q")
    assert (second["severity"], third["message"], third["n"]) == ("ERROR", "ü", 3)


@pytest.mark.parametrize("fault", [429, 503, 401, "reset", "lost", "half", 2.5])
def test_faults_delay_and_neither_lose_nor_double(search_server, door, name, tmp_path, fault):
    door.plan = [fault, fault]
    assert ship_lines(tmp_path, sink(door.port, name), 200) == {}
    assert messages(search_server, name) == [str(number) for number in range(200)]


def test_only_what_was_refused_is_sent_again(search_server, door, name):
    made, batch = sink(door.port, name), records(*"abcd")
    door.plan = ["half"]
    with pytest.raises(SinkError, match="2 of 4 later: 429 es_rejected_execution_exception"):
        made.send(batch)
    made.send(batch)
    made.close()
    assert door.documents == 6
    assert messages(search_server, name) == ["a", "b", "c", "d"]


def test_documents_that_do_not_fit_are_given_up_and_counted_and_the_others_arrive(search_server, door, name):
    made = sink(door.port, name)
    with pytest.raises(SinkError, match=r"400 .*parsing") as caught:
        made.send(records('{"message": "a", "n": 3}', '{"message": "b", "n": {"deep": 1}}', '{"message": "c", "n": 4}'))
    assert (caught.value.retry, caught.value.refused) == (False, 1)
    made.send(records("x", "x", "x", "d")[3:])
    made.close()
    assert messages(search_server, name) == ["a", "c", "d"]


BASIC = "Basic " + base64.b64encode(b"me:s3cret-password").decode()
LOGINS = {
    "secrets": ("", {"secrets": {"opensearch_login": Secret("me"), "opensearch_password": Secret("s3cret-password")}}),
    "environment": ("", {"environ": {"OPENSEARCH_USERNAME": "me", "OPENSEARCH_PASSWORD": "s3cret-password"}}),
    "options": (";login=me;password_file={top}/password", {}),
    "token": ("", {"secrets": {"opensearch_token": Secret("t0ken-text")}}),
    "token file": (";token_file={top}/token", {}),
}


@pytest.mark.parametrize("way", LOGINS)
def test_each_way_to_log_in(search_server, name, tmp_path, way):
    (tmp_path / "password").write_text("s3cret-password\n")
    (tmp_path / "token").write_text("t0ken-text\n")
    words, context = LOGINS[way]
    door = Door(search_server, login="Bearer t0ken-text" if "token" in way else BASIC)
    try:
        sink(door.port, name, words.format(top=tmp_path), **context).send(records("x"))
        with pytest.raises(SinkError, match="401") as caught:
            sink(door.port, name).send(records("x"))
        assert caught.value.retry
    finally:
        door.close()


def test_requests_are_signed_for_aws(door, name, monkeypatch):
    pytest.importorskip("botocore")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    sink(door.port, name, ";auth=aws;region=eu-west-1").send(records("x"))
    assert door.authorizations[0].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "/eu-west-1/es/aws4_request" in door.authorizations[0]


def test_tls_is_verified(search_server, name, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*openssl, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    door = Door(search_server, tls=served)
    try:
        with pytest.raises(SinkError, match=r"(?i)certificate"):
            sink(door.port, name, scheme="https", tls=ssl.create_default_context).send(records("x"))
        trusting = ssl.create_default_context(cafile=certificate)
        made = sink(door.port, name, scheme="https", tls=lambda: trusting)
        made.send(records("x"))
        made.close()
        assert messages(search_server, name) == ["x"]
    finally:
        door.close()
