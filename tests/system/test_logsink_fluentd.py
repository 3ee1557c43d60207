"""Sink fluentd: fluent-logger against Fluent's own server."""

import http.server
import threading
import time

import pytest

from pilot.errors import Code, PilotError
from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin
from pilot.logship.sink import SinkContext, SinkError
from tests.parts import free_port
from tests.parts.fluentd import FluentdServer
from tests.parts.logs import make_record, ship_lines, until

pytest.importorskip("fluent")


@pytest.fixture
def server():
    server = FluentdServer()
    yield server
    server.close()


def sink(port, kind="fluentd", words=""):
    (made,) = make_sinks(parse(f"{kind};tcp://127.0.0.1:{port}{words}"), SinkContext(timeout=1.0))
    return made


def records(*texts):
    fields = Origin(job_id="42", queue="Q").fields()
    return [
        make_record(fields, source="payload.stdout", number=n, sequence=n, phase="payload", text=text)
        for n, text in enumerate(texts, 1)
    ]


def messages(server):
    return [line["message"] for line in server.lines]


@pytest.mark.parametrize("kind", ["fluentd", "fluent"])
def test_a_record_arrives_with_tag_time_and_fields(server, kind):
    batch = records("hello", '{"message": "ü", "deep": {"a": [1, null, true]}, "big": 123456789012345678}')
    made = sink(server.port, kind)
    made.send(batch)
    assert until(lambda: len(server.entries) == 2)
    made.close()
    first, second = server.entries
    assert first["tag"] == "pilot-log"
    assert first["time"] == pytest.approx(batch[0].when * 1000, abs=1)
    assert (first["record"]["PandaJobID"], first["record"]["queue"], first["record"]["seq"]) == ("42", "Q", 1)
    assert (second["record"]["message"], second["record"]["deep"]) == ("ü", {"a": [1, None, True]})


@pytest.mark.parametrize("words", ["", ";ack=no"])
def test_a_port_that_speaks_http_is_told_from_fluentd(words):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        made = sink(server.server_port, words=words)
        with pytest.raises(SinkError, match=r"no port of the forward protocol: it says b'(HTTP|<)") as caught:
            for _ in range(20):
                made.send(records("hello\n"))
                time.sleep(0.05)
        assert caught.value.retry
        made.close()
        server.shutdown()


def test_lines_of_a_growing_file_arrive_once_and_in_order(server, tmp_path):
    assert ship_lines(tmp_path, sink(server.port), 500) == {}
    assert until(lambda: len(server.lines) >= 500)
    assert messages(server) == [str(number) for number in range(500)]


def test_a_server_that_comes_later_gets_all(tmp_path):
    port, late = free_port(), []

    def come(number):
        if number == 200:
            late.append(FluentdServer(port))

    try:
        assert ship_lines(tmp_path, sink(port), 500, come) == {}
        assert until(lambda: len(late[0].lines) >= 500)
        assert messages(late[0]) == [str(number) for number in range(500)]
    finally:
        late[0].close()


def test_one_that_was_started_again_gets_the_next_lines(server):
    made = sink(server.port)
    made.send(records("one"))
    assert until(lambda: server.lines)
    server.close()
    with pytest.raises(SinkError):
        for _ in range(3):
            made.send(records("lost"))
    again = FluentdServer(server.port)
    try:
        made.send(records("two"))
        assert until(lambda: messages(again) == ["two"])
    finally:
        made.close()
        again.close()


def test_one_that_never_acknowledges_is_waited_for_once(caplog):
    server = FluentdServer(silent=True)
    made, told = sink(server.port), sink(server.port, words=";ack=no")
    try:
        with pytest.raises(SinkError, match="no acknowledgement"):
            made.send(records("one"))
        for each in (made, made, told):
            each.send(records("two"))
        assert until(lambda: messages(server) == ["one", "two", "two", "two"])
        assert [record.message for record in caplog.records] == [
            f"127.0.0.1:{server.port} gave no acknowledgement: from now on none is waited for"
        ]
    finally:
        made.close()
        told.close()
        server.close()


@pytest.mark.parametrize("url", ["tcp://example.org:24224", "udp://localhost", ""])
def test_places_that_cannot_be_used_are_refused(url):
    with pytest.raises(PilotError) as caught:
        make_sinks(parse(f"fluentd;{url}"), SinkContext())
    assert caught.value.code is Code.BADQUEUECONFIGURATION
