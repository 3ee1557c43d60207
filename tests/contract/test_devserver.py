"""The embedded server beyond the recordings: strictness, dispatch, job states, the adder, commands and faults."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from pilot.devserver.app import Settings
from pilot.devserver.client import DevServerError, LocalDevServer
from pilot.devserver.faults import Fault, FaultError, parse
from pilot.devserver.jobs import DefinitionError, load, outcome
from pilot.devserver.spec import CALLS, LEGACY_CALLS
from pilot.devserver.v1 import V1

LATER = 3600.0
REPORT = json.dumps({name: {"guid": "g", "fsize": 1, "adler32": "00000001"} for name in ("out", "log.tgz")})
FILES = {"outFiles": "out,log.tgz", "logFile": "log.tgz"}


@pytest.fixture
def server() -> Iterator[LocalDevServer]:
    with LocalDevServer(Settings(adder_delay=LATER)) as running:
        yield running


def exchange(
    server: LocalDevServer, path: str, body: bytes = b"", method: str = "POST", **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def v1(server: LocalDevServer, call: str, **arguments: Any) -> dict[str, Any]:
    body = json.dumps(arguments).encode()
    return json.loads(exchange(server, f"/api/v1/{call}", body, Content_Type="application/json")[1])


def legacy(server: LocalDevServer, method: str, **arguments: Any) -> dict[str, Any]:
    headers = {"Content_Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    return json.loads(exchange(server, f"/server/panda/{method}", urlencode(arguments).encode(), **headers)[1])


def update(server: LocalDevServer, job_id: int, state: str, **fields: Any) -> Any:
    return v1(server, "pilot/update_job", job_id=job_id, job_status=state, **fields)["data"].get("command")


def acquire(server: LocalDevServer, queue: str = "Q", **arguments: Any) -> list[int]:
    reply = v1(server, "pilot/acquire_jobs", site_name=queue, **arguments)
    return [job["PandaID"] for job in reply["data"]["jobs"]] if reply["success"] else []


# --- what both APIs refuse


def test_every_call_of_the_tables_has_a_handler(server: LocalDevServer) -> None:
    assert V1(server.server.app.state)._handlers.keys() == CALLS.keys()
    unanswered = [name for name in LEGACY_CALLS if "forbidden" in exchange(server, f"/server/panda/{name}")[1]]
    assert unanswered == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean_core_count": 1.5}, "'mean_core_count' must be of type int, got float."),
        ({"core_count": "1"}, "'core_count' must be of type int, got str."),
        ({"pilot_log": None}, "'pilot_log' must be of type str, got NoneType."),
        ({"start_time": 1795311199}, "'start_time' must be of type str, got int."),
    ],
)
def test_v1_refuses_a_wrong_type(server: LocalDevServer, fields: dict[str, Any], message: str) -> None:
    server.submit({"PandaID": 1})
    reply = v1(server, "pilot/update_job", job_id=1, job_status="running", **fields)
    assert reply == {"success": False, "message": f"Type error: {message}", "data": None}
    assert server.job(1)["state"] == "activated"
    assert server.job(1)["updates"] == []


def test_v1_takes_null_for_what_may_be_left_out(server: LocalDevServer) -> None:
    server.submit({"PandaID": 1})
    assert update(server, 1, "running", max_rss=12.5, core_count=None, cpu_conversion_factor=1) == "NULL"


def test_v1_fails_as_the_real_server_where_its_own_check_fails(server: LocalDevServer) -> None:
    body = json.dumps({"job_id": 1, "job_status": "running", "max_rss": "much"}).encode()
    answer = exchange(server, "/api/v1/pilot/update_job", body, Content_Type="application/json")
    assert answer == (500, "'types.UnionType' object has no attribute '__name__'")


def test_v1_clock_speed_is_a_float_and_nothing_else(server: LocalDevServer) -> None:
    reply = v1(server, "pilot/update_worker_node", site="S", host_name="h", cpu_model="c", clock_speed=2500)
    assert reply["message"] == "Type error: 'clock_speed' must be of type float, got int."


def test_v1_names_a_missing_argument_before_an_unknown_one(server: LocalDevServer) -> None:
    reply = v1(server, "pilot/update_job", job_id=1, nonsense=1)
    assert reply["message"] == "Argument error: missing a required argument: 'job_status'"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("job_ids=1", [{"job_id": 1, "status": "activated", "attempt_number": 1}]),
        ("job_ids=x", "Type error: 'job_ids' with value '['x']' could not be casted to type List from list."),
        ("job_ids=1&timeout=x", "Type error: 'timeout' with value 'x' could not be casted to type int from str."),
    ],
)
def test_v1_casts_the_text_of_a_query(server: LocalDevServer, query: str, expected: Any) -> None:
    server.submit({"PandaID": 1})
    path = f"/api/v1/pilot/get_job_status?{query}"
    reply = json.loads(exchange(server, path, method="GET", Accept="application/json")[1])
    assert expected in (reply["data"], reply["message"])


@pytest.mark.parametrize(
    ("path", "name"),
    [("/api/v1/pilot/x/y", ""), ("/", ""), ("/api/v2/pilot/update_job", "update_job"), ("/server/panda/x", "x")],
)
def test_unknown_paths_are_forbidden_by_the_name_that_the_real_server_sees(
    server: LocalDevServer, path: str, name: str
) -> None:
    assert exchange(server, path) == (403, f"ERROR : method {name} is forbidden")


def test_each_generation_can_be_left_out() -> None:
    with LocalDevServer(Settings(api="legacy")) as old, LocalDevServer(Settings(api="v1")) as new:
        assert exchange(old, "/api/v1/pilot/update_job") == (403, "ERROR : method update_job is forbidden")
        assert exchange(new, "/server/panda/getJob") == (403, "ERROR : method getJob is forbidden")


def test_legacy_json_must_be_gzip_without_a_word_about_it(server: LocalDevServer) -> None:
    body = json.dumps({"siteName": "Q"}).encode()
    plain = exchange(server, "/server/panda/getJob", body, Content_Type="application/json")
    assert plain == (500, "Not a gzipped file (b'{\"')")
    zipped = exchange(server, "/server/panda/getJob", gzip.compress(body), Content_Type="application/json")
    assert zipped == (200, "StatusCode=20")


@pytest.mark.parametrize(
    ("method", "form", "text"),
    [
        ("getJob", "siteName=Q&n_jobs=1", "getJob() got an unexpected keyword argument 'n_jobs'"),
        ("updateJob", "", "updateJob() missing 2 required positional arguments: 'jobId' and 'state'"),
        ("updateJob", "jobId=x&state=running", "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_legacy_answers_a_wrong_argument_with_pythons_words(
    server: LocalDevServer, method: str, form: str, text: str
) -> None:
    headers = {"Content_Type": "application/x-www-form-urlencoded"}
    assert exchange(server, f"/server/panda/{method}", form.encode(), **headers) == (500, text)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"[" * 100_000, (500, "maximum recursion depth exceeded")),
        (b"[1]", (500, "argument after ** must be a mapping, not list")),
        (b"\xff", (500, "codec can't decode")),
        (b'{"job_id": 1' + b"0" * 30 + b', "job_status": "running"}', (200, '"command": "tobekilled"')),
    ],
)
def test_odd_bodies_are_answered(server: LocalDevServer, body: bytes, answer: tuple[int, str]) -> None:
    status, text = exchange(server, "/api/v1/pilot/update_job", body, Content_Type="application/json")
    assert status == answer[0]
    assert answer[1] in text


def test_one_connection_serves_many_requests(server: LocalDevServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    for _ in range(3):
        connection.request("GET", "/api/v1/system/is_alive", headers={"Accept": "application/json"})
        response = connection.getresponse()
        assert json.load(response) == {"success": True, "message": "", "data": None}
        assert not response.will_close
    connection.close()


# --- handing out jobs


def test_jobs_without_an_id_get_the_next_one(server: LocalDevServer) -> None:
    assert server.submit([{"PandaID": 41}, {}, {"PandaID": "NULL"}]) == [41, 42, 43]


@pytest.mark.parametrize("bad", [{"PandaID": 1}, {"PandaID": "abc"}, {"attemptNr": "one"}])
def test_a_bad_submission_stores_nothing(server: LocalDevServer, bad: dict[str, Any]) -> None:
    server.submit({"PandaID": 1})
    with pytest.raises(DevServerError, match=r"PandaID|attemptNr"):
        server.submit([{}, bad])
    assert server.states() == {1: "activated"}


def test_each_job_is_handed_out_once_under_concurrency(server: LocalDevServer) -> None:
    ids = server.submit([{} for _ in range(40)])
    with ThreadPoolExecutor(8) as pool:
        given = [i for found in pool.map(lambda _: acquire(server), range(48)) for i in found]
    assert sorted(given) == ids


def test_jobs_go_to_their_queue_and_label_and_those_without_queue_to_any(server: LocalDevServer) -> None:
    server.submit([{"computingSite": "A"}, {"computingSite": "B", "prodSourceLabel": "user"}, {}])
    assert acquire(server, "B", prod_source_label="user") == [2]
    assert acquire(server, "B") == [3]
    assert acquire(server, "C") == []
    assert acquire(server, "A", prod_source_label="managed") == [1]


def test_jobs_go_by_priority_and_only_where_they_fit(server: LocalDevServer) -> None:
    server.submit([{"currentPriority": 1}, {"currentPriority": 9, "minRamCount": 4000}, {"currentPriority": 5}])
    assert acquire(server, memory=2000) == [3]
    assert acquire(server, n_jobs=5) == [2, 1]


def test_a_short_definition_is_sent_with_every_key_that_the_real_server_sends(server: LocalDevServer) -> None:
    server.submit({"inFiles": "a,b", "outFiles": "o,l", "logFile": "l", "extra": 1, "computingSite": "Q"})
    job = v1(server, "pilot/acquire_jobs", site_name="Q")["data"]["jobs"][0]
    recorded = json.loads((Path(__file__).parent / "wire/v1-harvester-push.jsonl").read_text().splitlines()[3])
    keys = list(json.loads(recorded["response_body"])["data"]["jobs"][0])
    assert list(job) == [*keys[:-1], "extra", "nSent"]
    assert (job["GUID"], job["scopeOut"], job["ddmEndPointOut"]) == ("NULL,NULL", "NULL", "NULL,NULL")
    assert len(job["logGUID"]) == 36


def test_a_raw_definition_is_sent_as_it_is(server: LocalDevServer) -> None:
    server.submit({"_raw": True, "PandaID": "seven", "attemptNr": None, "jobPars": 5})
    job = v1(server, "pilot/acquire_jobs", site_name="Q")["data"]["jobs"][0]
    assert job == {"StatusCode": 0, "PandaID": "seven", "attemptNr": None, "jobPars": 5, "nSent": 1}


def test_a_definition_can_name_the_server_before_its_address_is_known(server: LocalDevServer) -> None:
    server.submit({"transformation": "{devserver}/cache/run.sh"})
    assert server.job(1)["definition"]["transformation"] == f"{server.url}/cache/run.sh"
    headers = {"Content_Type": "application/x-www-form-urlencoded"}
    text = exchange(server, "/server/panda/getJob", b"siteName=Q", **headers)[1]
    assert urlencode({"transformation": f"{server.url}/cache/run.sh"}) in text


def test_legacy_bulk_jobs_without_json_are_json_in_a_form(server: LocalDevServer) -> None:
    server.submit([{}, {}])
    headers = {"Content_Type": "application/x-www-form-urlencoded"}
    text = exchange(server, "/server/panda/getJob", b"siteName=Q&nJobs=2", **headers)[1]
    assert text.startswith("StatusCode=0&jobs=%5B%7B%22StatusCode%22%3A+0%2C+%22PandaID%22%3A+1")


def test_definitions_come_from_a_file_a_list_lines_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"jobName": "one"}')
    (tmp_path / "b.json").write_text('[{"jobName": "two"}, {"jobName": "three"}]')
    (tmp_path / "c.jsonl").write_text('{"jobName": "four"}\n\n{"jobName": "five"}\n')
    (tmp_path / "readme.txt").write_text("not one")
    assert [job["jobName"] for job in load(tmp_path)] == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("text", ["{not json", '"text"', "[1]"])
def test_what_is_no_definition_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(DefinitionError):
        load(tmp_path / "job.json")


# --- states


def test_starting_does_not_undo_running(server: LocalDevServer) -> None:
    server.submit({})
    assert [update(server, 1, state) for state in ("running", "starting")] == ["NULL", "NULL"]
    assert server.job(1)["state"] == "running"


def test_a_running_update_after_the_final_one_changes_nothing(server: LocalDevServer) -> None:
    server.submit(FILES)
    assert update(server, 1, "finished", job_output_report=REPORT, job_metrics="good") == "NULL"
    assert update(server, 1, "running", job_metrics="late") == "NULL"
    assert (server.job(1)["state"], server.job(1)["fields"]["job_metrics"]) == ("holding", "good")
    assert update(server, 1, "failed") == "alreadydone"


def test_a_job_that_the_pilot_holds_can_still_end(server: LocalDevServer) -> None:
    server.submit(FILES)
    assert [update(server, 1, state) for state in ("holding", "holding")] == ["NULL", "NULL"]
    assert update(server, 1, "finished", job_output_report=REPORT) == "NULL"
    server.settle()
    assert server.job(1)["state"] == "finished"


def test_another_batch_id_is_a_database_error_but_numbers_are_left_alone(server: LocalDevServer) -> None:
    server.submit([{}, {}])
    update(server, 1, "running", batch_id="slurm-7")
    reply = v1(server, "pilot/update_job", job_id=1, job_status="running", batch_id="slurm-8")
    assert (reply["message"], reply["data"]) == ("Database error", {"StatusCode": 30})
    assert legacy(server, "updateJob", jobId=1, state="running", batchID="slurm-8") == {"StatusCode": 30}
    update(server, 2, "running", batch_id="77.0")
    assert update(server, 2, "running", batch_id="78.0") == "NULL"


@pytest.mark.parametrize("api", ["v1", "legacy"])
def test_what_a_job_was_told_reads_the_same_through_either_api(server: LocalDevServer, api: str) -> None:
    server.submit({**FILES, "attemptNr": 3})
    acquire(server)
    if api == "v1":
        update(server, 1, "running", attempt_nr=3, max_rss=1000)
        update(server, 1, "failed", attempt_nr=3, pilot_error_code=1305, pilot_error_diag="x" * 600)
    else:
        legacy(server, "updateJob", jobId=1, state="running", attemptNr=3, maxRSS=1000)
        legacy(server, "updateJob", jobId=1, state="failed", attemptNr=3, pilotErrorCode=1305, pilotErrorDiag="x" * 600)
    job = server.job(1)
    assert [(u["state"], u["api"], u["answer"]) for u in job["updates"]] == [
        ("running", api, {"StatusCode": 0, "command": "NULL"}),
        ("failed", api, {"StatusCode": 0, "command": "NULL"}),
    ]
    assert job["updates"][0]["fields"]["max_rss"] == 1000
    assert job["updates"][0]["time"] <= job["updates"][1]["time"] <= time.time()
    assert (job["fields"]["pilot_error_code"], job["fields"]["pilot_error_diag"]) == (1305, "x" * 500)


@pytest.mark.parametrize("attempt", [1, 3])
def test_another_attempt_is_told_to_be_killed(server: LocalDevServer, attempt: int) -> None:
    server.submit({"attemptNr": 2})
    assert update(server, 1, "finished", attempt_nr=attempt) == "tobekilled"
    assert legacy(server, "updateJob", jobId=1, state="finished", attemptNr=attempt)["command"] == "tobekilled"
    assert server.job(1)["state"] == "activated"


def test_harvester_s_calls_are_the_same_through_either_api(server: LocalDevServer) -> None:
    workers = [{"workerID": 2, "status": "running"}]
    assert legacy(server, "updateWorkers", harvesterID="h", workers=json.dumps(workers)) == [True, [True]]
    assert v1(server, "harvester/update_workers", harvester_id="h", workers=workers)["data"] == [True]
    told = [notice["arguments"] for notice in server.notices("update_workers")]
    assert told == [{"harvester_id": "h", "workers": workers}] * 2
    assert legacy(server, "updateWorkers", harvesterID="h", workers="no JSON")[0] is False
    assert legacy(server, "harvesterIsAlive", harvesterID="h", data="{}")[0] is True
    assert legacy(server, "reportWorkerStats_jobtype", harvesterID="h", siteName="Q", paramsList="{}")[0] is True


# --- the adder


def entries(*lfns: str) -> str:
    return json.dumps({lfn: {"guid": "g", "fsize": 1, "adler32": "00000001"} for lfn in lfns})


def catalogue(*lfns: str) -> str:
    """What Harvester makes of a job's files; it writes one quotation mark too many, too."""
    size = '<metadata att_name="fsize" att_value = "1"/><metadata att_name="adler32" att_value="00000001"/>'
    files = "".join(f'"<File ID="g"><logical><lfn name="{lfn}"/></logical>{size}</File> ' for lfn in lfns)
    start = '<?xml version="1.0" encoding="UTF-8" standalone="no" ?>\n<!DOCTYPE POOLFILECATALOG SYSTEM "InMemory">'
    return f"{start}<POOLFILECATALOG>{files}</POOLFILECATALOG>"


@pytest.mark.parametrize(
    ("state", "report", "error", "expected", "diag"),
    [
        ("finished", entries("out", "log.tgz"), False, "finished", ""),
        ("finished", catalogue("out", "log.tgz"), False, "finished", ""),
        ("finished", "<", False, "failed", "Could not get GUID/LFN/MD5/FSIZE/SURL from pilot JSON"),
        ("finished", entries("out"), False, "failed", "expected output log.tgz is missing in pilot JSON"),
        ("finished", entries("log.tgz"), False, "failed", "expected output out is missing in pilot JSON"),
        ("finished", "", False, "failed", "Could not get GUID/LFN/MD5/FSIZE/SURL from pilot JSON"),
        (
            "finished",
            '{"out": {"guid": "g"}}',
            False,
            "failed",
            "Could not get GUID/LFN/MD5/FSIZE/SURL from pilot JSON",
        ),
        ("finished", entries("out", "log.tgz", "stranger"), False, "failed", ""),
        ("finished", entries("out", "log.tgz", "in"), False, "finished", ""),
        ("failed", entries("log.tgz"), True, "failed", ""),
        ("failed", "", True, "failed", ""),
        ("failed", "{}", True, "failed", "expected output log.tgz is missing in pilot JSON"),
    ],
)
def test_the_adder_wants_every_output_and_the_log(
    state: str, report: str, error: bool, expected: str, diag: str
) -> None:
    result = outcome({**FILES, "inFiles": "in"}, state, report, error)
    assert (result.state, result.ddm_error_diag) == (expected, diag)
    assert bool(result.ddm_error_code) == bool(diag)


def test_outputs_may_be_missing_where_the_job_allows_it_and_a_job_may_have_none() -> None:
    assert outcome({**FILES, "allowNoOutput": "out"}, "finished", entries("log.tgz"), False).state == "finished"
    assert outcome({}, "finished", "", False).state == "finished"


def test_the_adder_runs_by_itself_after_its_delay() -> None:
    with LocalDevServer(Settings(adder_delay=0.05)) as server:
        server.submit([FILES, FILES])
        update(server, 1, "finished", job_output_report=REPORT)
        update(server, 2, "finished")
        assert server.wait([1, 2], timeout=5) == {1: "finished", 2: "failed"}
        assert server.job(1)["files"] == json.loads(REPORT)
        assert update(server, 1, "running") == "tobekilled"


def test_waiting_ends_by_its_timeout_or_when_it_is_stopped(server: LocalDevServer) -> None:
    server.submit({})
    with pytest.raises(TimeoutError, match="1: 'activated'"):
        server.wait(timeout=0.05)
    stop = threading.Event()
    stop.set()
    assert server.wait(stop=stop) == {1: "activated"}


# --- commands


def test_a_command_stays_until_another_one_replaces_it(server: LocalDevServer) -> None:
    server.submit({})
    server.command(1, "softkill")
    assert [update(server, 1, "running"), update(server, 1, "running")] == ["softkill", "softkill"]
    server.command(1, "debug")
    server.command(1, "ps -ef")
    assert update(server, 1, "running") == "debug,ps -ef"
    server.command(1, "debugoff")
    assert update(server, 1, "running") == "ps -ef"
    server.command(1, "")
    assert update(server, 1, "running") == "NULL"


def test_debug_mode_brings_the_pilot_secrets_of_the_job(server: LocalDevServer) -> None:
    server.submit({"pilotSecrets": {"logstash_login": "me"}})
    server.command(1, "debug")
    reply = v1(server, "pilot/update_job", job_id=1, job_status="running")
    assert json.loads(reply["data"]["pilotSecrets"]) == {"logstash_login": "me"}


def test_a_killed_job_that_fails_is_cancelled_and_takes_no_other_command(server: LocalDevServer) -> None:
    server.submit(FILES)
    update(server, 1, "running")
    server.kill(1)
    with pytest.raises(DevServerError, match="being killed"):
        server.command(1, "softkill")
    assert update(server, 1, "running") == "tobekilled"
    update(server, 1, "failed", pilot_error_code=1144, job_output_report=entries("log.tgz"))
    server.settle()
    assert server.job(1)["state"] == "cancelled"


@pytest.mark.parametrize(("state", "code"), [(None, None), ("starting", None), ("running", 9)])
def test_a_job_that_does_not_run_or_is_killed_with_force_is_over_at_once(
    server: LocalDevServer, state: str | None, code: int | None
) -> None:
    server.submit({})
    if state:
        update(server, 1, state)
    server.kill(1, code)
    assert server.job(1)["state"] == "cancelled"
    assert acquire(server) == []
    assert update(server, 1, "finished") == "tobekilled"


def test_commands_for_unknown_jobs_are_refused(server: LocalDevServer) -> None:
    for attempt in (lambda: server.command(5, "softkill"), lambda: server.kill(5), lambda: server.job(5)):
        with pytest.raises(DevServerError, match="5"):
            attempt()


def test_what_is_told_beside_jobs_is_kept(server: LocalDevServer) -> None:
    v1(server, "pilot/update_worker_status", worker_id="1", harvester_id="h", status="started")
    legacy(server, "updateWorkerPilotStatus", site="Q", workerID="1", harvesterID="h", status="finished")
    told = [(n["arguments"]["worker_id"], n["arguments"]["status"]) for n in server.notices("update_worker_status")]
    assert told == [("1", "started"), ("1", "finished")]
    gpu = {"site": "S", "host_name": "h", "vendor": "NVIDIA", "model": "A100", "count": 1}
    messages = [v1(server, "pilot/update_worker_node_gpu", **gpu)["message"] for _ in range(2)]
    assert messages == ["Inserted new worker node GPU.", "Updated existing worker node GPU."]
    assert len(server.notices()) == 4


# --- faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("update_job:reset:2", Fault(method="update_job", kind="reset", times=2)),
        ("acquire_jobs:delay=3:1", Fault(method="acquire_jobs", kind="delay", value=3)),
        ("*:503:0", Fault(method="*", kind="status", value=503, times=0)),
        ("update_job:5xx", Fault(method="update_job", kind="status", value=503)),
        (
            "update_job@finished:garbage:1:after",
            Fault(method="update_job", kind="garbage", state="finished", after=True),
        ),
    ],
)
def test_faults_can_be_written_short(text: str, fault: Fault) -> None:
    assert parse(text) == fault


@pytest.mark.parametrize(
    "text", ["", "update_job", "update_job:explode", "a:200", "a:delay=x", "a:reset:1:2", "a:reset:-1"]
)
def test_what_is_no_fault_is_refused(server: LocalDevServer, text: str) -> None:
    with pytest.raises(FaultError):
        parse(text)
    with pytest.raises(DevServerError):
        server.fault(text)


@pytest.mark.parametrize("after", [False, True])
def test_a_reset_loses_the_call_or_only_its_answer(server: LocalDevServer, after: bool) -> None:
    server.submit({})
    server.fault(f"update_job:reset:1{':after' if after else ''}")
    with pytest.raises(ConnectionResetError):
        update(server, 1, "running")
    assert server.job(1)["state"] == ("running" if after else "activated")
    assert update(server, 1, "running") == "NULL"
    assert server.counters()["faults"] == {"reset": 1}


def test_a_status_is_answered_as_often_as_asked_for(server: LocalDevServer) -> None:
    server.fault("update_job:502:2")
    sent = {"Content_Type": "application/json"}
    answers = [exchange(server, "/api/v1/pilot/update_job", b"{}", **sent)[0] for _ in range(3)]
    assert answers == [502, 502, 200]


def test_a_fault_hits_both_generations_and_only_the_state_it_is_for(server: LocalDevServer) -> None:
    server.submit([{}, {}])
    server.fault(Fault(method="update_job", kind="garbage", times=0, state="finished"))
    assert update(server, 1, "running") == "NULL"
    for call in (lambda: update(server, 1, "finished"), lambda: legacy(server, "updateJob", jobId=2, state="finished")):
        with pytest.raises(json.JSONDecodeError):
            call()
    server.clear_faults()
    assert update(server, 1, "finished") == "NULL"
    assert server.job(2)["state"] == "activated"


@pytest.mark.parametrize("after", [False, True])
def test_a_delay_comes_before_the_call_or_before_its_answer(server: LocalDevServer, after: bool) -> None:
    server.submit({})
    server.fault(Fault(method="update_job", kind="delay", value=0.4, after=after))
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        late = pool.submit(update, server, 1, "running")
        while not server.counters()["calls"].get("update_job"):
            assert time.monotonic() - begun < 5
        time.sleep(0.1)  # the delay is on; the call, if it comes first, has been carried out
        assert server.job(1)["state"] == ("running" if after else "activated")
        assert late.result(timeout=5) == "NULL"
        assert time.monotonic() - begun >= 0.4


def test_faults_of_files_and_of_everything(server: LocalDevServer) -> None:
    server.fault("cache:500")
    server.fault("*:404")
    assert exchange(server, "/cache/x", method="GET")[1] == "injected fault"
    assert exchange(server, "/api/v1/system/is_alive", method="GET") == (404, "injected fault")
    assert exchange(server, "/api/v1/system/is_alive", method="GET")[0] == 200


def test_closing_does_not_wait_for_a_delay() -> None:
    server = LocalDevServer()
    server.fault("is_alive:delay=30")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(exchange, server, "/api/v1/system/is_alive", b"", "GET")
        while not server.counters()["calls"]:
            pass
        begun = time.monotonic()
        server.close()
        assert time.monotonic() - begun < 2
        assert call.exception(timeout=5) is not None or call.result()


# --- its own API


def test_the_devserver_api_takes_json_only_and_names_what_is_wrong(server: LocalDevServer) -> None:
    assert exchange(server, "/devserver/jobs", b"{}", Content_Type="text/plain")[0] == 415
    assert exchange(server, "/devserver/jobs", b"{", Content_Type="application/json")[0] == 400
    assert exchange(server, "/devserver/jobs/1/command", b"{}", Content_Type="application/json")[0] == 400
    assert exchange(server, "/devserver/nonsense", method="GET")[0] == 404


def test_a_request_takes_about_a_millisecond(server: LocalDevServer) -> None:
    """The benchmark needs 30 calls a second. Asked for is three times that, so that a busy machine passes."""
    server.submit({})
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    body = json.dumps({"job_id": 1, "job_status": "running", "pilot_log": "x" * 1000}).encode()
    begun = time.monotonic()
    for _ in range(300):
        connection.request("POST", "/api/v1/pilot/update_job", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
    spent = time.monotonic() - begun
    connection.close()
    assert spent < 3
