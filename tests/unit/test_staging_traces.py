"""Traces: what they say, and that a server which is dead, hangs or refuses costs nothing but traces."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pilot.errors import Code, PilotError, TransferError
from pilot.job import File, Job, Kind
from pilot.server.transport import Transport
from pilot.settings import Settings
from pilot.staging.faults import Direction
from pilot.staging.result import Attempt, FailedFile, Progress, StagedFile, Trial, gave_up
from pilot.staging.services import make_tracing
from pilot.staging.traces import TraceFacts, Tracer, TraceSender, client_state
from tests.parts import free_port

USER = "/DC=org/CN=somebody"
JOB = Job(job_id=77, task_id=5, definition_id="9", user=USER)
FACTS = TraceFacts(queue="Q", host="node1")
INPUT = File(lfn="f", kind=Kind.INPUT, scope="s", dataset="d", guid="AB-CD", size=10, endpoint="A")


def tracer(job=JOB, facts=FACTS, mask=str) -> tuple[Tracer, list]:
    sent: list = []
    made = Tracer(job, facts, sent.append, mask)
    made.started(Progress(Direction.IN, 1, 10))
    return made, sent


def trial(error: PilotError | None = None, **facts) -> Trial:
    staged = StagedFile(
        file=INPUT, path=None, url="root://a//f", size=10, checksums={}, tool="xrdcp", seconds=2, verifying=0.5
    )
    base = {
        "direction": Direction.IN,
        "file": INPUT,
        "tool": "xrdcp",
        "url": "root://u:p@a//f?authz=x",
        "endpoint": "B",
    }
    return Trial(
        **{**base, "began": 1000.0, "seconds": 2.0, "staged": None if error else staged, "error": error, **facts}
    )


# ------------------------------------------------------------------------------------------------------- what they say


def test_a_trace_has_all_fields_of_pilot_3():
    made, sent = tracer()
    before = time.time()
    made.tried(trial())
    (trace,) = sent
    user = hashlib.md5(USER.encode()).hexdigest()
    assert before - 1 < trace.pop("timeStart") <= trace.pop("catStart") <= time.time()
    assert trace.pop("eventVersion")
    assert trace == {
        "eventType": "get_sm", "protocol": "root", "clientState": "DONE", "localSite": "A", "remoteSite": "B",
        "relativeStart": 1000.0, "transferStart": 1000.0, "validateStart": 1001.5, "timeEnd": 1002.0, "dataset": "d",
        "version": None, "duid": None, "filename": "f", "guid": "ABCD", "filesize": 10, "usr": user, "appid": 77,
        "hostname": "node1", "ip": "", "suspicious": "0", "usrdn": user, "url": "root://a//f", "stateReason": "OK",
        "uuid": hashlib.md5(b"ppilot_9").hexdigest(), "taskid": 5, "pq": "Q", "scope": "s",
    }  # fmt: skip


def test_an_input_from_the_cache_is_told_as_used_and_one_that_was_copied_is_not_told_twice():
    made, sent = tracer()
    copied = trial().staged
    made.arrived(copied)
    assert sent == []
    made.arrived(replace(copied, tool="cache", url="/cache/xy", seconds=1.0))
    (trace,) = sent
    assert (trace["eventType"], trace["clientState"], trace["remoteSite"]) == ("get_sm", "ALREADY_DONE", "A")
    assert (trace["filesize"], trace["timeEnd"] - trace["transferStart"], trace["url"]) == (10, 1.0, None)


def test_a_failed_try_says_why_without_secrets():
    made, sent = tracer(mask=lambda text: text.replace("secret", "***"))
    made.tried(trial(TransferError(Code.GETADMISMATCH, r"a\b secret")))
    assert sent[0]["clientState"] == "AD_MISMATCH"
    assert sent[0]["stateReason"] == "adler32 mismatch on input file: ab ***"


@pytest.mark.parametrize(
    ("analysis", "direction", "event"),
    [
        (False, Direction.IN, "get_sm"),
        (True, Direction.IN, "get_sm_a"),
        (False, Direction.OUT, "put_sm"),
        (True, Direction.OUT, "put_sm_a"),
    ],
)
def test_the_event_tells_direction_and_kind_of_job(analysis, direction, event):
    made, sent = tracer(Job(job_id=1, is_analysis=analysis))
    made.tried(trial(direction=direction))
    assert sent[0]["eventType"] == event


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (Code.STAGEINTIMEOUT, "CP_TIMEOUT"),
        (Code.MISSINGINPUTFILE, "MISSING_INPUT"),
        (Code.GETMD5MISMATCH, "MD5_MISMATCH"),
        (Code.FILEEXISTS, "FILE_EXISTS"),
        (Code.NOREMOTESPACE, "NO_SPACE"),
        (Code.MISSINGCREDENTIALS, "S3_ERROR"),
        (Code.REMOTEFILEOPENTIMEDOUT, "FAILED_REMOTE_OPEN"),
        (Code.STAGEINFAILED, "COPY_ERROR"),
        (Code.BADQUEUECONFIGURATION, "STAGEIN_ATTEMPT_FAILED"),
    ],
)
def test_each_error_has_its_state(code, state):
    assert client_state(PilotError(code), Direction.IN) == state


def test_a_place_without_a_name_is_not_told_of():
    made, sent = tracer()
    made.tried(trial(endpoint="", file=File(lfn="f", kind=Kind.INPUT)))
    assert sent == []


def test_direct_access_is_told_as_such():
    made, sent = tracer()
    file = File(lfn="f", kind=Kind.INPUT, turl="root://a//f")
    staged = StagedFile(file=file, path=None, url="root://a//f", size=1, checksums={}, tool="xrdcp", seconds=0)
    made.tried(trial(staged=staged))
    assert (sent[0]["clientState"], sent[0]["stateReason"]) == ("FOUND_ROOT", "direct_access")


def test_what_nobody_could_try_has_a_trace_and_what_it_ended_has_none():
    made, sent = tracer()
    error = TransferError(Code.NOREPLICAS, "none")
    made.failed(FailedFile(file=INPUT, error=error, direction=Direction.IN))
    made.failed(FailedFile(file=INPUT, error=error, direction=Direction.IN))
    tried = TransferError(Code.STAGEINFAILED, "no")
    made.tried(trial(tried))
    made.failed(FailedFile(file=INPUT, error=tried, direction=Direction.IN))
    lost = gave_up(INPUT, [Attempt(tool="xrdcp", url="root://a//f", error=tried, seconds=0)])
    made.failed(replace(lost, direction=Direction.IN))
    made.failed(FailedFile(file=replace(INPUT, lfn="other"), error=lost.error, direction=Direction.IN))
    assert [trace["clientState"] for trace in sent] == ["NO_REPLICA", "COPY_ERROR"]


def test_users_are_named_only_if_that_is_set_and_a_site_may_have_its_own_name():
    made, sent = tracer(facts=TraceFacts(site="SITE", user_dn=True))
    made.tried(trial())
    assert (sent[0]["usrdn"], sent[0]["localSite"]) == (USER, "SITE")


# --------------------------------------------------------------------------------------------------------- the sender


class Collector(HTTPServer):
    """Takes traces, answering with the statuses it is given and 201 when they are used up."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.statuses, self.got = list(statuses), []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 201
        if status == 201:
            self.server.got.append(json.loads(body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def collector():
    made: list[Collector] = []

    def make(*statuses: int) -> Collector:
        made.append(Collector(*statuses))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def sender(port: int, **options) -> TraceSender:
    return TraceSender(Transport(f"http://127.0.0.1:{port}/traces/"), **{"pause": 0.01, **options})


def test_traces_arrive_in_order_with_our_address(collector):
    server = collector()
    made = sender(server.server_port)
    for number in range(3):
        made.send({"n": number, "ip": ""})
    made.close(5)
    assert server.got == [{"n": number, "ip": "127.0.0.1"} for number in range(3)]
    assert (made.sent, made.lost) == (3, 0)


def test_a_server_in_trouble_is_asked_again_and_one_that_refuses_is_not(collector):
    server = collector(503, 500, 201, 400, 201)
    made = sender(server.server_port)
    for number in range(3):
        made.send({"n": number})
    deadline = time.monotonic() + 5
    while made.sent + made.lost < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    made.close(1)
    assert [trace["n"] for trace in server.got] == [0, 2]
    assert (made.sent, made.lost) == (2, 1)
    assert (made.trouble(), made.trouble()) == (22, 0)


def test_a_server_that_is_not_there_loses_traces_and_no_time():
    made = sender(free_port())
    began = time.monotonic()
    for number in range(50):
        made.send({"n": number})
    assert time.monotonic() - began < 0.2
    made.close(3)
    assert (made.lost, made.trouble()) == (50, 7)
    assert time.monotonic() - began < 2


def test_a_server_that_takes_no_connection_is_a_time_out():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):  # one may wait: the kernel does not answer a second
            made = TraceSender(Transport(f"http://127.0.0.1:{address[1]}/", connect_timeout=0.2), pause=0.01)
            made.send({})
            made.close(3)
    assert made.trouble() == 28


def test_a_server_that_hangs_is_waited_for_only_so_long():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = sender(silent.getsockname()[1], waiting=10)
        for number in range(50):
            made.send({"n": number})
        assert made.lost >= 39  # ten wait, one is under way
        began = time.monotonic()
        made.close(0.2)
        assert time.monotonic() - began < 0.5
        assert made.lost == 50


def test_nothing_is_sent_after_the_end(collector):
    server = collector()
    made = sender(server.server_port)
    made.close(1)
    made.send({})
    assert (made.lost, server.got) == (1, [])


# ------------------------------------------------------------------------------------------------------ who is told


def tracing(argv=(), experiment=None, **values):
    settings = Settings.load(["-q", "Q", "--pilot-user", "generic", *argv], {})
    if experiment:
        settings = settings.with_experiment({"rucio_traces_url": experiment}, "x")
    return make_tracing(settings, "Q", {}, str)


def test_nobody_is_told_unless_somebody_says_who():
    assert tracing() is None


def test_an_experiments_server_is_told_of_real_jobs_only():
    url = "https://rucio.example.org/traces/"
    assert tracing(["--url", "https://panda.example.org"], url).sender is not None
    assert tracing(["--url", "https://127.0.0.1"], url) is None
    assert tracing(["--url", "http://localhost:25080"], url) is None
    assert tracing(["--url", "https://panda.example.org", "-z"], url) is None
    assert tracing(["--url", "https://panda.example.org", "--use-rucio-traces", "false"], url) is None


def test_a_server_of_traces_that_cannot_be_used_is_no_reason_to_end(caplog):
    assert tracing(["--url", "https://panda.example.org"], "http://rucio.example.org/traces/") is None
    assert "no traces are sent" in caplog.text
