"""The client against a real HTTP server on loopback that misbehaves as it is told: retries, order, choice of API."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import logging
import socket
import struct
import threading
import time
from collections import deque
from urllib.parse import urlsplit

import pytest

from pilot.errors import Code, PilotError, ServerError
from pilot.masking import Secret
from pilot.server.auth import Auth, TokenFile
from pilot.server.client import PandaServer
from pilot.server.faults import AuthRefusedError, NotServedError, RefusedError, UnavailableError
from pilot.server.offline import NoServer
from pilot.server.report import JobRequest, Reply, Report, State
from pilot.server.transport import Transport
from pilot.stop import Deadline, Stop


def v1_ok(data=None, message="", success=True):
    return 200, json.dumps({"success": success, "message": message, "data": data})


def v1_command(command=None):
    return v1_ok({"StatusCode": 0, "command": command})


FORBIDDEN = "forbidden"  # 403 with the name of the method
RESET, HANG, DROP = "reset", "hang", "drop"
NO_JOBS = v1_ok(None, "No jobs in PanDA", success=False)
BAD_TOKEN = 403, "ERROR : Token authentication failed. Signature has expired"
NO_ROLE = v1_ok(None, "production or pilot role required", success=False)
REQUEST = JobRequest(queue="Q", label="managed")


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what the script says, by path; the last entry of a path stays."""

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.asked.append((path, self.decoded(body), dict(self.headers)))
        act = self.server.next(path)
        if act == HANG:
            self.server.hanging.set()
            self.server.ended.wait(20)
        elif act == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif act == FORBIDDEN:
            self.reply(403, f"ERROR : method {path.rpartition('/')[2]} is forbidden")
        elif act != DROP:
            time.sleep(act[2] if len(act) > 2 else 0)
            self.reply(*act[:2])

    @staticmethod
    def decoded(body):
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        return json.loads(body) if body else None

    def reply(self, status, text):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


class Peer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple] = []
        self.scripts: dict[str, deque] = {}
        self.hanging, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def on(self, path, *acts):
        self.scripts[path] = deque(acts)

    def next(self, path):
        script = self.scripts.get(path)
        if not script:
            return FORBIDDEN
        return script.popleft() if len(script) > 1 else script[0]

    def sent(self, key="job_status"):
        """That field of all updates, in the order they arrived."""
        return [body[key] for path, body, _ in self.asked if path.endswith(("/update_job", "/updateJob"))]

    def handle_error(self, request, client_address):
        pass

    def stop(self):
        self.ended.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


ACQUIRE, UPDATE = "/api/v1/pilot/acquire_jobs", "/api/v1/pilot/update_job"
GETJOB, UPDATEJOB = "/server/panda/getJob", "/server/panda/updateJob"
WORKER = "/api/v1/pilot/update_worker_status"


@pytest.fixture
def peer():
    server = Peer()
    yield server
    server.stop()


def client(peer, auth=None, **options) -> PandaServer:
    options = {"first_pause": 0.02, "longest_pause": 0.1, "settle": 0.2} | options
    return PandaServer(Transport(peer.url), auth or Auth(), **options)


def report(state=State.RUNNING, job_id=13, **fields) -> Report:
    return Report(job_id=job_id, attempt=1, state=state, node="wn", **fields)


def seconds_of(work) -> tuple[float, object]:
    """How long `work` took, and its result or error."""
    start = time.monotonic()
    try:
        result = asyncio.run(work)
    except PilotError as error:
        result = error
    return time.monotonic() - start, result


# --- which API --------------------------------------------------------------------------------------------------------


def test_v1_is_tried_first_and_stays(peer):
    peer.on(ACQUIRE, v1_ok({"StatusCode": 0, "jobs": [{"PandaID": 1}]}))
    peer.on(UPDATE, v1_command())
    server = client(peer)

    async def work():
        assert [job["PandaID"] for job in await server.acquire(REQUEST)] == [1]
        await server.update(report(), Deadline(5))

    asyncio.run(work())
    assert [path for path, _, _ in peer.asked] == [ACQUIRE, UPDATE]


@pytest.mark.parametrize("absence", [FORBIDDEN, (404, "Not Found")])
def test_without_v1_the_legacy_api_is_used_and_remembered(absence, peer):
    peer.on(ACQUIRE, absence)
    peer.on(GETJOB, (200, "StatusCode=0&PandaID=7"))
    peer.on(UPDATEJOB, (200, "StatusCode=0&command=tobekilled"))
    server = client(peer)

    async def work():
        assert [job["PandaID"] for job in await server.acquire(REQUEST)] == ["7"]
        assert (await server.update(report(), Deadline(5))).command == "tobekilled"
        await server.acquire(REQUEST)

    asyncio.run(work())
    assert [path for path, _, _ in peer.asked] == [ACQUIRE, GETJOB, UPDATEJOB, GETJOB]


def test_a_server_upgraded_under_a_running_job_gets_its_final_report(peer):
    peer.on(GETJOB, (200, "StatusCode=20"))
    server = client(peer)

    async def work():
        assert await server.acquire(REQUEST) == []
        peer.on(GETJOB, FORBIDDEN)
        peer.on(UPDATE, v1_command())
        await server.update(report(State.FINISHED), Deadline(5))

    asyncio.run(work())
    assert [path for path, _, _ in peer.asked][-2:] == [UPDATEJOB, UPDATE]


def test_a_server_that_is_exchanged_while_we_report_gets_the_report(peer):
    peer.on(ACQUIRE, NO_JOBS)
    peer.on(UPDATE, (404, "no backend"), (404, "no backend"), v1_command())
    server = client(peer)

    async def work():
        await server.acquire(REQUEST)
        await server.update(report(State.FINISHED), Deadline(5))

    asyncio.run(work())
    assert [path for path, _, _ in peer.asked].count(UPDATE) == 3


def test_a_server_that_never_served_us_is_no_server(peer):
    with pytest.raises(NotServedError):
        asyncio.run(client(peer).update(report(State.FINISHED), Deadline(60)))


@pytest.mark.parametrize(("api", "path"), [("v1", ACQUIRE), ("legacy", GETJOB)])
def test_a_fixed_api_is_not_left(api, path, peer):
    with pytest.raises(NotServedError, match="is forbidden"):
        asyncio.run(client(peer, api=api).acquire(REQUEST))
    assert [asked for asked, _, _ in peer.asked] == [path]


def test_a_bad_token_is_no_reason_to_try_the_other_api(peer):
    peer.on(ACQUIRE, BAD_TOKEN)
    peer.on(GETJOB, (200, "StatusCode=20"))
    with pytest.raises(AuthRefusedError, match="Signature has expired"):
        asyncio.run(client(peer).acquire(REQUEST))
    assert [asked for asked, _, _ in peer.asked] == [ACQUIRE]


def test_an_unknown_api_is_refused(peer):
    with pytest.raises(ValueError, match="v2"):
        client(peer, api="v2")


# --- acquire ----------------------------------------------------------------------------------------------------------


def test_no_jobs_is_an_empty_list(peer):
    peer.on(ACQUIRE, NO_JOBS)
    assert asyncio.run(client(peer).acquire(REQUEST)) == []


@pytest.mark.parametrize("fault", [RESET, DROP, (500, "oops"), (200, "<html>"), v1_ok(None, "Timed out", False)])
def test_a_failed_request_for_jobs_is_one_try_and_an_error(fault, peer):
    peer.on(ACQUIRE, fault)
    with pytest.raises(UnavailableError):
        asyncio.run(client(peer).acquire(REQUEST))
    assert len(peer.asked) == 1


def test_a_request_for_jobs_ends_after_its_time(peer):
    peer.on(ACQUIRE, HANG)
    took, error = seconds_of(client(peer, timeout=0.3).acquire(REQUEST))
    assert isinstance(error, UnavailableError)
    assert took < 2


# --- updates: retries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [RESET],
        [DROP],
        [(500, "oops"), (502, "bad gateway"), (503, "")],
        [(200, '{"success": tr'), (200, "")],
        [v1_ok({"StatusCode": 30}, "Database error"), v1_ok({"StatusCode": 10}, "Timed out")],
        [(429, "slow down")],
    ],
    ids=["reset", "dropped", "5xx", "garbage", "status 30 and 10", "too many"],
)
@pytest.mark.parametrize("state", [State.RUNNING, State.FINISHED])
def test_an_update_is_sent_again_after_a_passing_fault(faults, state, peer, caplog):
    peer.on(UPDATE, *faults, v1_command("debug"))
    reply = asyncio.run(client(peer).update(report(state), Deadline(10)))
    assert reply == Reply(command="debug")
    assert peer.sent() == [state.value] * (len(faults) + 1)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(faults)
    assert all(f"update of job 13 ({state.value})" in line and "again in" in line for line in warnings)


def test_a_server_that_is_away_for_a_while_gets_the_final_report():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    servers = []

    async def work():
        server = PandaServer(Transport(f"http://127.0.0.1:{port}"), Auth(), first_pause=0.05, longest_pause=0.1)
        task = asyncio.ensure_future(server.update(report(State.FINISHED), Deadline(10)))
        await asyncio.sleep(0.3)
        assert not task.done()
        late = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        late.daemon_threads, late.asked, late.next = True, [], lambda path: v1_command()
        thread = threading.Thread(target=late.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append((late, thread))
        await task

    try:
        asyncio.run(work())
        assert [body["job_status"] for _, body, _ in servers[0][0].asked] == ["finished"]
    finally:
        for late, thread in servers:
            late.shutdown()
            thread.join()
            late.server_close()


@pytest.mark.parametrize("fault", [HANG, (500, "oops")])
def test_a_final_report_is_given_up_at_the_deadline_and_not_much_before(fault, peer):
    peer.on(UPDATE, fault)
    took, error = seconds_of(client(peer).update(report(State.FINISHED), Deadline(0.6)))
    assert isinstance(error, UnavailableError)
    assert 0.3 < took < 1.2


def test_the_pauses_between_tries_grow_and_have_a_limit(peer):
    server = client(peer, first_pause=1.0, longest_pause=60.0)
    pauses = [[server._pause(done, float("inf")) for _ in range(50)] for done in (1, 2, 3, 4, 7, 5000)]
    for most, values in zip((1, 2, 4, 8, 60, 60), pauses, strict=True):
        assert most / 2 <= min(values) < max(values) <= most
    assert server._pause(10, 20.0) <= 10


def test_without_time_nothing_is_sent(peer):
    with pytest.raises(UnavailableError, match="no time left"):
        asyncio.run(client(peer).update(report(State.FINISHED), Deadline(0)))
    assert peer.asked == []


@pytest.mark.parametrize("fault", [HANG, (500, "oops")])
def test_a_stop_ends_the_tries_early(fault, peer):
    peer.on(UPDATE, fault)

    async def work():
        stop = Stop()
        task = asyncio.ensure_future(client(peer).update(report(), Deadline(30), stop))
        await asyncio.sleep(0.1)
        stop.request(PilotError(Code.SIGTERM))
        await task

    took, error = seconds_of(work())
    assert isinstance(error, ServerError)
    assert "stopped" in error.detail
    assert took < 1


def test_an_answer_that_comes_right_after_a_stop_still_counts(peer):
    peer.on(UPDATE, (*v1_command("tobekilled"), 0.15))

    async def work():
        stop = Stop()
        stop.request(PilotError(Code.SIGTERM))
        return await client(peer, settle=2.0).update(report(), Deadline(30), stop)

    assert asyncio.run(work()).command == "tobekilled"


# --- updates: refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (NO_ROLE, "production or pilot role required"),
        (v1_ok({"StatusCode": 50}, "Invalid job status: x", success=False), "Invalid job status: x"),
        (v1_ok({"StatusCode": 60}, "", success=True), "StatusCode 60"),
        (v1_ok(None, "Type error: 'job_id' must be of type int, got str.", success=False), "'job_id' must be"),
        ((400, "what?"), "what?"),
        ((302, ""), "redirects are not followed"),
    ],
)
def test_a_refused_final_report_is_an_error_at_once_with_the_servers_words(answer, words, peer):
    peer.on(UPDATE, answer)
    with pytest.raises(RefusedError) as caught:
        asyncio.run(client(peer).update(report(State.FAILED), Deadline(60)))
    assert words in caught.value.detail
    assert len(peer.asked) == 1


def test_a_repeated_final_report_is_success(peer):
    peer.on(UPDATE, DROP, v1_command("alreadydone"))
    assert asyncio.run(client(peer).update(report(State.FINISHED), Deadline(5))).command == "alreadydone"


@pytest.mark.parametrize("words", ["Argument error: got an unexpected keyword argument 'node'",
                                   "Type error: 'node' must be of type int, got str."])  # fmt: skip
def test_an_argument_the_server_does_not_know_is_left_out_from_then_on(words, peer, caplog):
    peer.on(UPDATE, v1_ok(None, words, success=False), v1_command())
    server = client(peer, first_pause=60)  # no pause is made for it

    async def work():
        await server.update(report(), Deadline(5))
        await server.update(report(State.FINISHED), Deadline(5))

    asyncio.run(work())
    assert ["node" in body for _, body, _ in peer.asked] == [True, False, False]
    assert caplog.text.count("goes without node") == 1


def test_the_legacy_api_heals_too(peer):
    peer.on(UPDATEJOB, (500, "updateJob() got an unexpected keyword argument 'source_site'"), (200, "StatusCode=0"))
    asyncio.run(client(peer, api="legacy").update(report(source_site="S"), Deadline(5)))
    assert ["source_site" in body for _, body, _ in peer.asked] == [True, False]


def test_metadata_that_cannot_be_stored_does_not_cost_the_report(peer):
    refused = v1_ok({"StatusCode": 30}, "Failed to add meta_data")
    peer.on(UPDATE, refused, v1_command())
    server = client(peer)

    async def work():
        await server.update(report(State.FINISHED, metadata="x"), Deadline(5))
        await server.update(report(State.FINISHED, metadata="y", job_id=14), Deadline(5))

    asyncio.run(work())
    assert [body.get("meta_data") for _, body, _ in peer.asked] == ["x", None, "y"]


def test_a_refused_credential_gets_a_few_tries_and_a_renewed_one_is_used(peer, tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    auth = Auth(TokenFile(str(token)), "vo.production")
    peer.on(UPDATE, BAD_TOKEN)
    took, error = seconds_of(client(peer, auth).update(report(State.RUNNING), Deadline(60)))
    assert isinstance(error, AuthRefusedError)
    assert len(peer.asked) == 3
    assert took < 5

    again = client(peer, auth, first_pause=0.4, longest_pause=0.4)

    async def renew():
        task = asyncio.ensure_future(again.update(report(State.FINISHED), Deadline(60)))
        await asyncio.sleep(0.1)
        token.write_text("new-one\n")
        peer.on(UPDATE, v1_command())
        await task

    asyncio.run(renew())
    assert [headers["Authorization"] for _, _, headers in peer.asked] == ["Bearer old"] * 4 + ["Bearer new-one"]
    assert peer.asked[-1][2]["Origin"] == "vo.production"


def test_a_final_report_waits_for_a_renewed_credential_as_long_as_it_may(peer, tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    peer.on(UPDATE, BAD_TOKEN)
    server = client(peer, Auth(TokenFile(str(token)), "vo.production"), first_pause=0.02, longest_pause=0.02)

    async def renew():
        task = asyncio.ensure_future(server.update(report(State.FINISHED), Deadline(60)))
        while len(peer.asked) < 8:
            await asyncio.sleep(0.01)
        token.write_text("new-one")
        peer.on(UPDATE, v1_command())
        await task

    asyncio.run(renew())
    assert peer.asked[-1][2]["Authorization"] == "Bearer new-one"


def test_a_token_does_not_reach_the_log(peer, tmp_path, caplog):
    (tmp_path / "token").write_text("hunter2hunter2")
    peer.on(UPDATE, RESET, v1_ok({"StatusCode": 0, "command": "debug", "pilotSecrets": {"pw": "swordfish"}}))
    auth = Auth(TokenFile(str(tmp_path / "token")), "vo")
    with caplog.at_level(logging.DEBUG):
        reply = asyncio.run(client(peer, auth).update(report(), Deadline(5)))
    assert reply.secrets == {"pw": Secret("swordfish")}
    assert "POST /api/v1/pilot/update_job: 200" in caplog.text
    assert "hunter2" not in caplog.text
    assert "swordfish" not in caplog.text


# --- updates: order ---------------------------------------------------------------------------------------------------


def test_updates_of_one_job_arrive_one_after_the_other(peer):
    peer.on(UPDATE, (*v1_command(), 0.1))
    server = client(peer, settle=5)

    async def work():
        first = asyncio.ensure_future(server.update(report(State.STARTING), Deadline(5)))
        await asyncio.sleep(0)
        await asyncio.gather(first, server.update(report(State.RUNNING), Deadline(5)))
        await server.update(report(State.FINISHED), Deadline(5))

    took, _ = seconds_of(work())
    assert peer.sent() == ["starting", "running", "finished"]
    assert took >= 0.3


@pytest.mark.parametrize("fault", [HANG, (500, "oops")], ids=["hangs", "is in retries"])
def test_a_final_report_takes_the_place_of_one_that(fault, peer):
    peer.on(UPDATE, fault)
    server = client(peer, longest_pause=30, first_pause=10)

    async def work():
        beat = asyncio.ensure_future(server.update(report(), Deadline(60)))
        await asyncio.sleep(0.15)
        peer.on(UPDATE, v1_command())
        await server.update(report(State.FINISHED), Deadline(60))
        assert await beat == Reply()

    took, result = seconds_of(work())
    assert result is None
    assert took < 2
    assert peer.sent() == ["running", "finished"]


def test_after_a_final_report_was_begun_no_other_is_sent(peer):
    peer.on(UPDATE, (500, "oops"))
    server = client(peer)

    async def work():
        final = asyncio.ensure_future(server.update(report(State.FAILED), Deadline(60)))
        await asyncio.sleep(0.05)
        assert await server.update(report(State.RUNNING), Deadline(60)) == Reply()
        assert not final.done()
        peer.on(UPDATE, v1_command())
        await final
        assert await server.update(report(State.RUNNING), Deadline(60)) == Reply()

    asyncio.run(work())
    assert set(peer.sent()) == {"failed"}


def test_a_heartbeat_that_was_answered_while_the_final_report_waited_keeps_its_answer(peer):
    peer.on(UPDATE, (*v1_command("debug"), 0.1), v1_command())
    server = client(peer, settle=5)

    async def work():
        beat = asyncio.ensure_future(server.update(report(), Deadline(60)))
        await asyncio.sleep(0.03)
        await server.update(report(State.FINISHED), Deadline(60))
        return await beat

    assert asyncio.run(work()).command == "debug"
    assert peer.sent() == ["running", "finished"]


def test_jobs_do_not_wait_for_each_other(peer):
    peer.on(UPDATE, HANG, v1_command())
    server = client(peer)

    async def work():
        stuck = asyncio.ensure_future(server.update(report(job_id=1), Deadline(60)))
        await asyncio.sleep(0.1)
        await server.update(report(job_id=2), Deadline(60))
        stuck.cancel()

    took, _ = seconds_of(work())
    assert took < 1


def test_a_repeated_final_report_waits_for_the_first_no_longer_than_its_deadline(peer):
    peer.on(UPDATE, (500, "oops"))
    server = client(peer)

    async def work():
        first = asyncio.ensure_future(server.update(report(State.FINISHED), Deadline(60)))
        await asyncio.sleep(0.05)
        try:
            await server.update(report(State.FINISHED), Deadline(0.2))
        finally:
            first.cancel()

    took, error = seconds_of(work())
    assert isinstance(error, UnavailableError)
    assert took < 1


def test_a_cancelled_update_does_not_block_the_next(peer):
    peer.on(UPDATE, HANG, v1_command())
    server = client(peer)

    async def work():
        task = asyncio.ensure_future(server.update(report(), Deadline(60)))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait({task})
        await server.update(report(State.FINISHED), Deadline(5))

    took, result = seconds_of(work())
    assert result is None
    assert took < 1


# --- the other calls --------------------------------------------------------------------------------------------------


def test_a_worker_status_that_fails_is_a_warning(peer, caplog):
    peer.on(WORKER, (500, "oops"))
    asyncio.run(client(peer).worker_status("started", "1", "h", "n", "q"))
    assert len(peer.asked) == 2
    assert "worker status started is not sent" in caplog.text


def test_a_worker_status_arrives(peer, caplog):
    peer.on(WORKER, RESET, v1_ok())
    asyncio.run(client(peer).worker_status("finished", "1", "h", "n", "q"))
    assert peer.asked[-1][1] == {"worker_id": "1", "harvester_id": "h", "status": "finished", "node_id": "n"}
    assert "is not sent" not in caplog.text


def test_node_maps_are_quietly_left_out_where_there_is_no_place_for_them(peer, caplog):
    node = {"site": "S", "host_name": "h", "cpu_model": "c"}
    asyncio.run(client(peer, api="legacy").update_worker_node(node))
    asyncio.run(client(peer).update_worker_gpu(node | {"vendor": "NVIDIA", "model": "m", "count": 1}))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    peer.on("/api/v1/pilot/update_worker_node", v1_ok())
    asyncio.run(client(peer).update_worker_node(node))
    assert peer.asked[-1][1] == node


def test_questions_are_answered(peer):
    peer.on("/api/v1/metaconfig/get_resource_types", v1_ok([{"resource_name": "SCORE"}]))
    peer.on("/api/v1/pilot/get_job_status", v1_ok([{"job_id": 1, "status": "running", "attempt_number": 2}]))
    peer.on("/api/v1/creds/get_access_token", v1_ok({"user_proxy": "t"}))
    peer.on("/api/v1/creds/get_proxy", v1_ok({"user_proxy": "p"}))
    peer.on("/api/v1/creds/get_key_pair", v1_ok({"public_key": "a", "private_key": "b"}))
    peer.on("/api/v1/creds/get_user_secrets", v1_ok('{"k": "v"}'))
    server = client(peer)

    async def work():
        assert await server.resource_types() == [{"resource_name": "SCORE"}]
        assert await server.get_job_status([1]) == {1: ("running", 2)}
        assert await server.get_access_token("c") == Secret("t")
        assert await server.get_proxy() == Secret("p")
        assert await server.get_key_pair("a", "b") == ("a", Secret("b"))
        assert await server.get_user_secrets(["k"]) == {"k": Secret("v")}

    asyncio.run(work())


def test_an_address_and_an_environment_make_a_client(peer, tmp_path):
    (tmp_path / "token").write_text("tok\n")
    environ = {"PANDA_AUTH_TOKEN": "token", "PANDA_AUTH_ORIGIN": "vo.production"}
    server = PandaServer.at(peer.url, environ=environ, api="v1", directories=[tmp_path])
    peer.on(ACQUIRE, NO_JOBS)
    assert asyncio.run(server.acquire(REQUEST)) == []
    assert peer.asked[0][2]["Authorization"] == "Bearer tok"


# --- no server --------------------------------------------------------------------------------------------------------


def test_without_a_server_the_last_report_is_kept_and_written(tmp_path):
    server = NoServer(tmp_path / "heartbeat.json")

    async def work():
        assert await server.acquire(REQUEST) == []
        await server.update(report(), Deadline(5))
        assert json.loads((tmp_path / "heartbeat.json").read_text())["state"] == "running"
        await server.update(report(State.FAILED, error_code=1305, error_diag="x"), Deadline(5))
        await server.update(report(), Deadline(5))
        await server.worker_status("finished", "1", "h", "n", "q")
        assert await server.resource_types() == []

    asyncio.run(work())
    assert server.last.state is State.FAILED
    written = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (written["jobId"], written["state"], written["pilotErrorCode"]) == ("13", "failed", 1305)
    assert {"xml", "metaData", "timestamp", "attemptNr"} <= set(written)
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]


def test_a_heartbeat_file_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    server = NoServer(tmp_path / "nosuch" / "heartbeat.json")
    asyncio.run(server.update(report(), Deadline(5)))
    assert "heartbeat.json is not written" in caplog.text
    assert server.last is not None
