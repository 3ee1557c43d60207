"""Whatever happens on the way to a sink, no line is lost.

All sinks of the network are fed at once, each through a gate of its own: a fault costs its seconds once.
"""

import asyncio
import time

import pytest

from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin
from pilot.logship.shipper import LogShip
from pilot.logship.sink import SinkContext
from pilot.masking import Masker
from pilot.stop import Deadline
from tests.parts.fluentd import FluentdServer
from tests.parts.gate import Gate
from tests.parts.gcl import GclServer
from tests.parts.logs import LogstashServer, LokiServer, until
from tests.parts.opensearch import search_server
from tests.parts.rsyslog import Rsyslog

for module in ("fluent", "opensearchpy", "google.cloud.logging_v2"):
    pytest.importorskip(module)
__all__ = ["search_server"]

KINDS = ("loki", "logstash", "rsyslog", "fluentd", "opensearch", "google-cloud-logging")
#: Those that keep a batch once that is sent twice, since its answer was lost.
EXACT = ("opensearch", "google-cloud-logging")


class Field:
    """Receivers of all kinds, each behind its gate."""

    def __init__(self, top, search):
        self.search, self.index = search, f"syslog-{top.name.lower()}"
        self.name = f"faults-{top.name}".lower()
        self.servers = {
            "loki": LokiServer(),
            "logstash": LogstashServer(),
            "rsyslog": Rsyslog(top, search.url, self.index),
            "fluentd": FluentdServer(),
            "google-cloud-logging": GclServer(),
        }
        ports = {kind: server.port for kind, server in self.servers.items()}
        ports["opensearch"] = int(search.url.rpartition(":")[2])
        self.gates = {kind: Gate(port) for kind, port in ports.items()}

    def sinks(self):
        words = {
            "loki": "loki;http",
            "logstash": "logstash;http",
            "rsyslog": "logstash;tcp",
            "fluentd": "fluentd;tcp",
            "opensearch": "opensearch;http",
            "google-cloud-logging": "google-cloud-logging;http",
        }
        text = ",".join(f"{word}://127.0.0.1:{self.gates[kind].port}" for kind, word in words.items())
        return make_sinks(parse(text), SinkContext(timeout=1.0, log_name=self.name))

    def each(self, do):
        for gate in self.gates.values():
            do(gate)

    def numbers(self, kind):
        """The lines that a receiver has, as it got them."""
        if kind in ("opensearch", "rsyslog"):
            pattern = f"{self.name}-*" if kind == "opensearch" else self.index
            try:
                lines = self.search.documents(pattern)
            except OSError:  # no such index yet
                return []
        else:
            lines = self.servers[kind].lines
        return [int(line["message"]) for line in lines if line["file"] == "payload.stdout"]

    def close(self):
        self.each(Gate.close)
        for server in self.servers.values():
            server.close()


@pytest.fixture
def field(tmp_path, search_server):
    made = Field(tmp_path, search_server)
    yield made
    made.close()


def ship(top, sinks, fault, count=600):
    """Ship numbered lines, with a coroutine `fault(log, write)` when a third of them is written; what was lost."""

    async def main():
        log = LogShip(Origin(job_id="42", host="wn1"), top, Masker(), sinks, top / "spool")
        path, written = top / "payload.stdout", iter(range(count))
        log.follow(path)
        log.start()

        async def write(lines, pause=0.002):
            with open(path, "a") as file:
                for _ in range(lines):
                    file.write(f"{next(written)}\n")
                    file.flush()
                    await asyncio.sleep(pause)

        await write(count // 3)
        await fault(log, write)
        await write(count // 3, 0.001)
        await asyncio.sleep(0.5)
        await log.finish(Deadline(12))
        return log.losses()

    return asyncio.run(main())


def arrived(field, kind, wanted):
    """The numbers at a receiver, when those that are wanted are there, or 5 s later."""
    deadline = time.monotonic() + 5
    while not set(found := field.numbers(kind)).issuperset(wanted) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def all_are_there(field, count, exact=EXACT):
    for kind in KINDS:
        found = arrived(field, kind, range(count))
        assert sorted(set(found)) == list(range(count)), kind
        if kind in exact:
            assert sorted(found) == list(range(count)), kind


def test_those_that_refuse_get_all_when_they_are_back(field, tmp_path):
    async def fault(log, write):
        field.each(Gate.refuse)
        await write(200, 0.01)
        field.each(Gate.open)

    assert ship(tmp_path, field.sinks(), fault) == {}
    all_are_there(field, 600)


def test_those_that_hang_hold_up_nobody_and_get_all(field, tmp_path):
    async def fault(log, write):
        field.each(Gate.hang)
        began = time.monotonic()
        await write(200, 0.01)
        assert time.monotonic() - began < 4
        field.each(Gate.open)

    assert ship(tmp_path, field.sinks(), fault) == {}
    all_are_there(field, 600, (*EXACT, "rsyslog"))  # its connection is kept, and with it what is under way


def test_resets_in_mid_batch_lose_nothing(field, tmp_path):
    async def fault(log, write):
        for after in (2000, 20_000):
            field.each(lambda gate, after=after: gate.cut(after))
            await write(100, 0)
            await asyncio.sleep(0.8)

    assert ship(tmp_path, field.sinks(), fault) == {}
    all_are_there(field, 600)


def test_a_server_without_answers_that_is_killed_and_started_again_has_all(tmp_path, search_server):
    index = f"syslog-{tmp_path.name.lower()}"
    servers = [Rsyslog(tmp_path, search_server.url, index)]
    port = servers[0].port

    async def fault(log, write):
        for _ in range(2):
            servers[-1].hang()
            await write(100, 0.005)
            await asyncio.sleep(0.5)
            servers[-1].kill()
            await write(50, 0.001)
            servers.append(Rsyslog(tmp_path, search_server.url, index, port))
            await asyncio.sleep(0.8)

    try:
        (sink,) = make_sinks(parse(f"logstash;tcp://127.0.0.1:{port}"), SinkContext(timeout=2.0))
        assert ship(tmp_path, [sink], fault, 900) == {}
        found = lambda: {int(each["message"]) for each in search_server.documents(index)}  # noqa: E731
        assert until(lambda: found() == set(range(900)))
    finally:
        servers[-1].close()


@pytest.mark.slow
def test_all_come_back_after_a_minute_with_nothing_lost(field, tmp_path):
    async def fault(log, write):
        field.each(Gate.refuse)
        began = time.monotonic()
        await write(400, 0.05)
        await asyncio.sleep(60 - (time.monotonic() - began))
        field.each(Gate.open)

    assert ship(tmp_path, field.sinks(), fault, 1200) == {}
    all_are_there(field, 1200)
