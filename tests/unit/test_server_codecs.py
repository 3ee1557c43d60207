"""The two codecs: what is sent has the names and types of the contract, what comes back is read as it is meant."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from pilot.errors import ServerError
from pilot.masking import Secret
from pilot.server import legacy, v1, wire
from pilot.server.faults import (
    AuthRefusedError,
    KeyRefusedError,
    NotServedError,
    RefusedError,
    UnavailableError,
)
from pilot.server.report import FileReport, JobRequest, Report, State, Timings, Usage
from pilot.server.wire import Answer

WIRE = Path(__file__).parents[1] / "contract" / "wire"

NUMBER = (int, float)

# argument -> types, from SERVER.md and the signatures of panda-server 1.0.4; a bool is not taken for an int here
ACQUIRE = {
    "site_name": str, "timeout": int, "memory": int, "disk_space": int, "prod_source_label": str, "node": str,
    "computing_element": str, "prod_user_id": str, "get_proxy_key": str, "task_id": int, "n_jobs": int,
    "background": bool, "resource_type": str, "harvester_id": str, "worker_id": int, "scheduler_id": str,
    "job_type": str, "via_topic": bool, "remaining_time": int,
}  # fmt: skip
UPDATE = {
    "job_id": int, "job_status": str, "job_sub_status": str, "attempt_nr": int, "node": str, "site_name": str,
    "scheduler_id": str, "pilot_id": str, "batch_id": str, "start_time": str, "end_time": str,
    "job_output_report": str, "trans_exit_code": int, "pilot_error_code": int, "exe_error_code": int,
    "pilot_error_diag": str, "exe_error_diag": str, "job_metrics": str, "pilot_timing": str, "n_events": int,
    "n_input_files": int, "cpu_consumption_time": int, "cpu_consumption_unit": str, "cpu_conversion_factor": NUMBER,
    "cpu_architecture_level": str, "core_count": int, "mean_core_count": int,
    "max_rss": int, "max_vmem": int, "max_swap": int, "max_pss": int,
    "avg_rss": int, "avg_vmem": int, "avg_swap": int, "avg_pss": int,
    "tot_rchar": int, "tot_wchar": int, "tot_rbytes": int, "tot_wbytes": int,
    "rate_rchar": int, "rate_wchar": int, "rate_rbytes": int, "rate_wbytes": int,
    "corrupted_files": str, "grid": str, "source_site": str, "destination_site": str, "pilot_log": str,
    "meta_data": str, "stdout": str, "timeout": int,
}  # fmt: skip
# names from PILOT3.md 2.6, types from the recorded requests of Pilot 3
LEGACY_UPDATE = {
    "jobId": str, "state": str, "timestamp": str, "siteName": str, "node": str, "attemptNr": int, "schedulerID": str,
    "pilotID": str, "batchID": str, "startTime": float, "xml": str, "metaData": str, "coreCount": int,
    "cpuConsumptionUnit": str, "jobMetrics": str, "stdout": str, "meanCoreCount": float, "nEvents": int,
    "nInputFiles": int, "jobSubStatus": str, "corruptedFiles": str, "cpuConsumptionTime": int,
    "cpuConversionFactor": float, "cpu_architecture_level": str, "pilotTiming": str, "pilotLog": str, "endTime": float,
    "pilotErrorCode": int, "pilotErrorDiag": str, "transExitCode": int, "exeErrorCode": int, "exeErrorDiag": str,
    "source_site": str, "destination_site": str,
    **dict.fromkeys(("maxRSS", "maxVMEM", "maxSWAP", "maxPSS", "avgRSS", "avgVMEM", "avgSWAP", "avgPSS"), int),
    **dict.fromkeys(("totRCHAR", "totWCHAR", "totRBYTES", "totWBYTES"), int),
    **dict.fromkeys(("rateRCHAR", "rateWCHAR", "rateRBYTES", "rateWBYTES"), int),
}  # fmt: skip
FINAL_V1 = {"end_time", "pilot_error_code", "exe_error_code", "trans_exit_code", "pilot_timing", "job_output_report"}
FINAL_LEGACY = {"endTime", "pilotErrorCode", "exeErrorCode", "transExitCode", "pilotTiming", "pilotErrorDiag"}

REQUEST = JobRequest(
    queue="LOOPQ", computing_element="LOOPQ", label="managed", node="slot1@wn1", memory=24105, disk=20000,
    cpu_speed=2000.0, working_group="wg", country_group="cg", allow_other_country=False, user="/CN=me", task_id=7,
    job_type="managed", resource_type="SCORE", harvester_id="loopharv", worker_id="11", remaining_time=3600, n_jobs=2,
)  # fmt: skip
USAGE = Usage(
    cpu_time=17, cores=2.6, max_rss=1, max_vmem=2, max_swap=0, max_pss=4, avg_rss=5, avg_vmem=6, avg_swap=7, avg_pss=8,
    tot_rchar=10**13, tot_wchar=10, tot_rbytes=11, tot_wbytes=12, rate_rchar=13, rate_wchar=14, rate_rbytes=15,
    rate_wbytes=16,
)  # fmt: skip
FILES = (
    FileReport(lfn="a", guid="G1", size=3, checksums={"adler32": "0a", "md5": "ff"}, surl="root://s/a", endpoint="E"),
    FileReport(
        lfn="b", guid="G2", size=4, checksums={"md5": "d41d8cd98f00b204e9800998ecf8427e"}, surl="s", endpoint=""
    ),
)


def report(state: State = State.FINISHED, **changes) -> Report:
    fields = {
        "job_id": 13, "attempt": 1, "state": state, "sub_state": "sub", "node": "vm", "queue": "LOOPQ",
        "scheduler_id": "loop", "pilot_id": "unknown|PR|1", "batch_id": "b1", "start_time": 1795311199.911772,
        "end_time": 1795311213.95, "core_count": 1, "cpu_unit": "s+CPU", "cpu_level": "x86_64-v3",
        "error_code": 1305, "error_diag": "Failed", "exe_code": 65, "exe_diag": "boom", "trans_exit_code": 65,
        "files": FILES, "corrupted_files": ("x", "y"), "usage": USAGE, "n_events": 5, "n_input_files": 1,
        "timings": Timings(getjob=0.4, stagein=1.6, payload=60, stageout=2, initial_setup=0, setup=3.2),
        "metrics": "nEvents=5 leak=1", "pilot_log": "log", "stdout": "out", "metadata": '{"a": 1}',
        "source_site": "SCHEDD", "destination_site": "SITE",
    }  # fmt: skip
    return Report(**(fields | changes))


def v1_body(call) -> dict:
    request = call.request()
    raw = gzip.decompress(request.body) if request.headers.get("Content-Encoding") == "gzip" else request.body
    return json.loads(raw)


def legacy_body(call) -> dict:
    return json.loads(gzip.decompress(call.request().body))


def check_types(body: dict, table: dict) -> None:
    for key, value in body.items():
        assert key in table, key
        kinds = table[key] if isinstance(table[key], tuple) else (table[key],)
        assert type(value) in kinds, f"{key} is {type(value)}"


def json_answer(value, status=200) -> Answer:
    return Answer(status, "application/json", json.dumps(value).encode())


def text_answer(text: str, status=200) -> Answer:
    return Answer(status, "text/plain", text.encode())


def recorded(name: str, path: str) -> list[dict]:
    lines = [json.loads(line) for line in (WIRE / name).read_text().splitlines()]
    return [line for line in lines if line.get("path", "").startswith(path)]


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_v1_acquire_has_only_arguments_of_the_server_in_its_types():
    body = v1_body(v1.acquire(REQUEST))
    check_types(body, ACQUIRE)
    assert body["worker_id"] == 11
    assert body["n_jobs"] == 2
    assert body["memory"] == 24105


def test_v1_acquire_sends_nothing_it_does_not_know():
    assert v1_body(v1.acquire(JobRequest(queue="Q"))) == {"site_name": "Q"}
    assert "worker_id" not in v1_body(v1.acquire(JobRequest(queue="Q", worker_id="not-a-number")))


@pytest.mark.parametrize("state", State)
def test_v1_update_has_only_arguments_of_the_server_in_its_types(state):
    body = v1_body(v1.update(report(state)))
    check_types(body, UPDATE)
    if state.final:
        assert set(body) == set(UPDATE) - {"timeout", "grid"}
    else:
        assert not FINAL_V1 & set(body)


@pytest.mark.parametrize("state", State)
def test_legacy_update_has_the_names_and_types_of_pilot3(state):
    body = legacy_body(legacy.update(report(state)))
    check_types(body, LEGACY_UPDATE)
    if state.final:
        assert set(body) == set(LEGACY_UPDATE)
    else:
        assert not FINAL_LEGACY & set(body)


def test_every_recorded_v1_argument_is_in_the_tables():
    accepted = 0
    for name in ("v1-calls.jsonl", "v1-job-states.jsonl"):
        for line in recorded(name, "/api/v1/pilot/update_job"):
            answer = json.loads(line["response"])
            if line["path"].endswith("/update_job") and answer["success"]:
                check_types(json.loads(line["body"]), UPDATE)
                accepted += 1
    assert accepted > 20


def test_every_recorded_legacy_argument_is_in_the_table_and_sent_alike():
    recorded_calls = recorded("legacy-one-job-by-pilot3.jsonl", "/server/panda/updateJob")
    assert recorded_calls
    for line in recorded_calls:
        check_types(line["request_body"]["gzip_json"], LEGACY_UPDATE)
    ours = legacy.update(report()).request()
    theirs = recorded_calls[-1]
    assert (ours.method, ours.path) == (theirs["method"], theirs["path"])
    assert ours.headers["Content-Type"] == theirs["request_headers"]["Content-Type"]
    assert "Content-Encoding" not in ours.headers
    assert ours.headers["Accept"] == "application/json"


def test_legacy_getjob_is_what_pilot3_sent():
    (line,) = recorded("legacy-one-job-by-pilot3.jsonl", "/server/panda/getJob")
    theirs = line["request_body"]["gzip_json"]
    request = JobRequest(
        queue="LOOPQ", computing_element="LOOPQ", label="managed", disk=20000, cpu_speed=2000.0, memory=24105,
        node="vm", harvester_id="loopharv", worker_id="11",
    )  # fmt: skip
    ours = legacy_body(legacy.acquire(request))
    assert ours == theirs | {"mem": 24105}


def test_worker_status_is_what_the_servers_took():
    (line,) = recorded("v1-calls.jsonl", "/api/v1/pilot/update_worker_status")
    assert v1_body(v1.worker_status("started", "1", "loopharv", "wn1", "LOOPQ")) == json.loads(line["body"])
    line = recorded("legacy-one-job-by-pilot3.jsonl", "/server/panda/updateWorkerPilotStatus")[0]
    ours = legacy_body(legacy.worker_status("started", "11", "loopharv", "vm", "LOOPQ"))
    assert ours == line["request_body"]["gzip_json"]


def test_node_maps_are_sent_in_the_types_of_the_server():
    (line,) = recorded("v1-calls.jsonl", "/api/v1/pilot/update_worker_node")[:1]
    theirs = json.loads(line["body"])
    loose = theirs | {"clock_speed": 2500, "total_memory": "24000", "n_sockets": 1.0, "unknown": 1, "vram": None}
    assert v1_body(v1.worker_node(loose)) == theirs
    assert type(v1_body(v1.worker_node(loose))["clock_speed"]) is float
    line = recorded("v1-calls.jsonl", "/api/v1/pilot/update_worker_node_gpu")[0]
    theirs = json.loads(line["body"])
    assert v1_body(v1.worker_gpu(theirs | {"driver_version": None, "vram": "40960"})) == theirs
    with pytest.raises(NotServedError):
        legacy.worker_node({})


def test_get_arguments_stand_in_the_query_and_lists_repeat_the_key():
    request = v1.job_status([1, 999999]).request()
    assert (request.method, request.body) == ("GET", b"")
    assert "Content-Type" not in request.headers
    assert request.path == recorded("v1-calls.jsonl", "/api/v1/pilot/get_job_status")[0]["path"]
    query = parse_qs(urlsplit(v1.key_pair("a b", "c&d").request().path).query)
    assert query == {"public_key_name": ["a b"], "private_key_name": ["c&d"]}


def test_times_and_timings_have_the_format_of_each_generation():
    body = v1_body(v1.update(report()))
    assert body["start_time"] == "2026-11-22 01:33:19"
    assert body["end_time"] == "2026-11-22 01:33:33"
    assert body["pilot_timing"] == "0|2|60|2|0|3"
    body = legacy_body(legacy.update(report()))
    assert body["startTime"] == 1795311199.911772
    assert body["pilotTiming"] == "0|2|60|2|0|3"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", body["timestamp"])


def test_files_are_reported_with_the_checksum_the_server_knows():
    for text in (v1_body(v1.update(report()))["job_output_report"], legacy_body(legacy.update(report()))["xml"]):
        assert json.loads(text) == {
            "a": {"guid": "G1", "fsize": 3, "adler32": "0a", "surl": "root://s/a", "endpoint": "E"},
            "b": {
                "guid": "G2", "fsize": 4, "md5sum": "d41d8cd98f00b204e9800998ecf8427e", "surl": "s", "endpoint": "",
            },
        }  # fmt: skip


def test_the_mean_core_count_is_rounded_for_v1_only():
    assert v1_body(v1.update(report()))["mean_core_count"] == 3
    assert legacy_body(legacy.update(report()))["meanCoreCount"] == 2.6


@pytest.mark.parametrize("seconds", [0, -1, 10**9 + 1])
def test_cpu_time_that_cannot_be_is_not_sent(seconds):
    body = v1_body(v1.update(report(usage=Usage(cpu_time=seconds))))
    assert "cpu_consumption_time" not in body
    assert "cpu_conversion_factor" not in body


def test_texts_are_cut_to_what_the_server_stores():
    long = report(
        error_diag="é" * 400, exe_diag="x" * 600, metrics="key=value " * 60, pilot_id="p" * 300, batch_id="b" * 100,
        cpu_level="c" * 30, node="n" * 200,
    )  # fmt: skip
    body = v1_body(v1.update(long))
    assert body["pilot_error_diag"] == "é" * 250
    assert len(body["exe_error_diag"]) == 500
    assert body["job_metrics"] == ("key=value " * 50).strip()
    assert [len(body[key]) for key in ("pilot_id", "batch_id", "cpu_architecture_level", "node")] == [200, 80, 20, 128]
    old = legacy_body(legacy.update(long))
    assert old["pilotErrorDiag"] == "é" * 250
    assert old["jobMetrics"] == body["job_metrics"]


def test_a_text_no_database_takes_does_not_block_the_report():
    body = v1_body(v1.update(report(error_diag="a\0b\udcffc", stdout="\0")))
    assert body["pilot_error_diag"] == "ab?c"
    assert "stdout" not in body


def test_a_large_v1_body_is_compressed_and_says_so():
    request = v1.update(report(metadata="m" * 10000)).request()
    assert request.headers["Content-Encoding"] == "gzip"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(gzip.decompress(request.body))["meta_data"] == "m" * 10000


# --- what comes back --------------------------------------------------------------------------------------------------


def test_recorded_v1_answers_to_updates_are_read_as_they_are_meant():
    commands, errors = set(), set()
    for name in ("v1-calls.jsonl", "v1-job-states.jsonl"):
        for line in recorded(name, "/api/v1/pilot/update_job"):
            if not line["path"].endswith("/update_job"):
                continue
            try:
                commands.add(v1.update(report()).read(text_answer(line["response"], line["status"])).command)
            except ServerError as error:
                errors.add(type(error).__name__)
    assert commands == {"", "tobekilled", "alreadydone", "debug", "debug,ps -ef", "ps -ef"}
    assert errors == {"UnavailableError", "RefusedError", "KeyRefusedError"}


def test_recorded_legacy_answers_to_updates_are_read_as_they_are_meant():
    commands, errors = [], []
    for line in recorded("legacy-calls.jsonl", "/server/panda/updateJob"):
        if line["path"].endswith("/updateJob"):
            try:
                answer = text_answer(line["response"], line["status"])
                commands.append(legacy.update(report(metadata="")).read(answer).command)
            except ServerError as error:
                errors.append(str(error))
    assert set(commands) == {"", "tobekilled", "debug"}
    assert len(errors) == 3  # no jobId: 500; no role, twice
    assert sum("no production/pilot role" in error for error in errors) == 2


def test_recorded_jobs_are_found_in_every_form():
    ids = []
    for line in recorded("legacy-calls.jsonl", "/server/panda/getJob"):
        try:
            jobs = legacy.acquire(REQUEST).read(text_answer(line["response"], line["status"]))
        except ServerError:
            continue
        ids += [str(job["PandaID"]) for job in jobs]
    # the recording is cut in two of its lines, so those are garbage
    assert ids == ["7"]
    (line,) = recorded("legacy-one-job-by-pilot3.jsonl", "/server/panda/getJob")
    (job,) = legacy.acquire(REQUEST).read(text_answer(line["response_body"]))
    assert job["PandaID"] == "13"
    assert job["jobPars"] == "in.e2d5c4a5f392.dat out.e2d5c4a5f392.dat"
    full, none = (line["response_body"] for line in recorded("v1-harvester-push.jsonl", "/api/v1/pilot/acquire_jobs"))
    assert [job["PandaID"] for job in v1.acquire(REQUEST).read(text_answer(full))] == [28, 29]
    assert v1.acquire(REQUEST).read(text_answer(none)) == []


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        (json_answer({"StatusCode": 0, "PandaID": 6}), [6]),
        (json_answer({"StatusCode": "0", "jobs": [{"PandaID": 8}, {"PandaID": 9}]}), [8, 9]),
        (text_answer("StatusCode=0&jobs=%5B%7B%22PandaID%22%3A+8%7D%5D"), [8]),
        (json_answer({"StatusCode": 20, "errorDialog": "no jobs in PanDA"}), []),
        (text_answer("StatusCode=20"), []),
    ],
    ids=["flat", "list, code as text", "list as text in a=b", "none as JSON", "none as a=b"],
)
def test_legacy_jobs(answer, ids):
    assert [job["PandaID"] for job in legacy.acquire(REQUEST).read(answer)] == ids


@pytest.mark.parametrize(
    ("codec", "answer", "error", "words"),
    [
        (v1, json_answer({"success": True, "message": "Database error", "data": {"StatusCode": 30}}), UnavailableError,
         "another batch id"),
        (v1, json_answer({"success": True, "message": "Timed out", "data": {"StatusCode": 10}}), UnavailableError,
         "timeout"),
        (v1, json_answer({"success": False, "message": "Timed out", "data": None}), UnavailableError, "Timed out"),
        (v1, json_answer({"success": False, "message": "production or pilot role required", "data": None}),
         RefusedError, "role required"),
        (v1, json_answer({"success": False, "message": "Invalid job status: x", "data": {"StatusCode": 50}}),
         RefusedError, "Invalid job status: x"),
        (v1, json_answer({"success": True, "message": "", "data": None}), UnavailableError, "unusable"),
        (v1, json_answer([1]), UnavailableError, "unusable"),
        (v1, text_answer("{'success': True}"), UnavailableError, "not JSON"),
        (v1, text_answer("ERROR : Token authentication failed. Corrupted", 403), AuthRefusedError, "Corrupted"),
        (v1, text_answer("ERROR : Some One is banned", 403), AuthRefusedError, "banned"),
        (v1, text_answer("ERROR : method update_job is forbidden", 403), NotServedError, "not served"),
        (v1, text_answer("ERROR : update_job is forbidden", 403), NotServedError, "not served"),
        (v1, text_answer("<html><h1>Not Found</h1></html>", 404), NotServedError, "Not Found"),
        (v1, text_answer("forbidden", 403), RefusedError, "forbidden"),
        (v1, text_answer("ERROR : received invalid JSON", 500), UnavailableError, "invalid JSON"),
        (v1, text_answer("Bad Gateway", 502), UnavailableError, "502"),
        (v1, Answer(302, "", b"", "https://elsewhere/"), RefusedError, "https://elsewhere/"),
        (legacy, json_answer({"StatusCode": 60, "errorDialog": "no role"}), RefusedError, "no role"),
        (legacy, text_answer("StatusCode=30"), UnavailableError, "database"),
        (legacy, json_answer({"StatusCode": 70}), RefusedError, "not permitted"),
        (legacy, text_answer("<html>hello</html>"), UnavailableError, "unusable"),
        (legacy, text_answer(""), UnavailableError, "unusable"),
        (legacy, text_answer('{"StatusCode": '), UnavailableError, "not JSON"),
        (legacy, text_answer("ERROR : method updateJob is forbidden", 403), NotServedError, "not served"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_reply_says_what_to_do(codec, answer, error, words):
    with pytest.raises(ServerError) as caught:
        codec.update(report()).read(answer)
    assert type(caught.value) is error
    assert words in caught.value.detail


@pytest.mark.parametrize(
    ("codec", "answer", "key"),
    [
        (v1, json_answer({"success": False, "data": None,
                          "message": "Argument error: got an unexpected keyword argument 'grid'"}), "grid"),
        (v1, json_answer({"success": False, "data": None,
                          "message": "Type error: 'max_rss' must be of type int, got float."}), "max_rss"),
        (v1, json_answer({"success": True, "message": "Failed to add meta_data",
                          "data": {"StatusCode": 30, "ErrorDiag": "x"}}), "meta_data"),
        (legacy, text_answer("updateJob() got an unexpected keyword argument 'source_site'", 500), "source_site"),
        (legacy, json_answer({"StatusCode": 0}), "metaData"),
    ],
)  # fmt: skip
def test_a_refused_argument_is_named(codec, answer, key):
    with pytest.raises(KeyRefusedError) as caught:
        codec.update(report()).read(answer)
    assert caught.value.key == key


def test_garbage_is_not_shown_since_it_may_be_half_a_secret():
    answer = text_answer('{"success": true, "data": {"pilotSecrets": {"logstash_password": "hunter2')
    with pytest.raises(UnavailableError) as caught:
        v1.acquire(REQUEST).read(answer)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("command", [None, "NULL", "None", ""])
def test_all_ways_to_say_nothing_are_an_empty_command(command):
    answer = json_answer({"success": True, "message": "", "data": {"StatusCode": 0, "command": command}})
    assert v1.update(report()).read(answer).command == ""


@pytest.mark.parametrize("secrets", ['{"user": "u", "n": 1}', {"user": "u", "n": 1}])
def test_pilot_secrets_are_read_from_text_and_object_and_do_not_print(secrets):
    data = {"StatusCode": 0, "command": "debug", "pilotSecrets": secrets}
    reply = v1.update(report()).read(json_answer({"success": True, "message": "", "data": data}))
    assert reply.secrets == {"user": Secret("u"), "n": Secret("1")}
    assert "'u'" not in repr(reply)
    assert legacy.update(report()).read(json_answer(data)).secrets == reply.secrets


@pytest.mark.parametrize("secrets", ["{}", "", "not json", None, {}, [1]])
def test_pilot_secrets_may_be_nothing(secrets):
    data = {"StatusCode": 0, "command": None, "pilotSecrets": secrets}
    assert v1.update(report()).read(json_answer({"success": True, "message": "", "data": data})).secrets == {}


def test_succeeded_is_success():
    assert legacy.update(report()).read(text_answer("Succeeded")).command == ""
    legacy.worker_status("started", "1", "h", "n", "q").read(text_answer("Succeeded"))


def test_recorded_resource_types_and_states_are_alike_in_both_generations():
    new = v1.resource_types().read(
        text_answer(recorded("v1-calls.jsonl", "/api/v1/metaconfig/get_resource_types")[0]["response"])
    )
    old = recorded("legacy-calls.jsonl", "/server/panda/getResourceTypes")[0]["response"]
    assert new == legacy.resource_types().read(text_answer(old))
    assert [entry["resource_name"] for entry in new][1:3] == ["SCORE", "SCORE_HIMEM"]
    as_repr = f"StatusCode=0&ResourceTypes={new!r}".replace("&'", "&")
    assert legacy.resource_types().read(text_answer(as_repr)) == new

    line = recorded("v1-calls.jsonl", "/api/v1/pilot/get_job_status")[0]
    states = {1: ("running", 1), 999999: ("not found", 0)}
    assert v1.job_status([1, 999999]).read(text_answer(line["response"])) == states
    line = recorded("legacy-calls.jsonl", "/server/panda/getStatus")[0]
    assert legacy_body(legacy.job_status([6, 999999])) == {"ids": "6 999999"}
    assert legacy.job_status([6, 999999]).read(text_answer(line["response"])) == {
        6: ("running", 1),
        999999: ("not found", 0),
    }


def test_credentials_of_both_generations_come_as_secrets():
    def ok(data):
        return json_answer({"success": True, "message": "", "data": data})

    pem = Secret("-----BEGIN")
    assert v1.proxy("r", "").read(ok({"user_proxy": "-----BEGIN"})) == pem
    assert legacy.proxy("r", "").read(json_answer({"StatusCode": 0, "userProxy": "-----BEGIN"})) == pem
    assert v1.access_token("c", "k").read(ok({"user_proxy": "t"})) == Secret("t")
    assert legacy.access_token("c", "k").read(text_answer("StatusCode=0&userProxy=t")) == Secret("t")
    assert v1.key_pair("a", "b").read(ok({"public_key": "P", "private_key": "S"})) == ("P", Secret("S"))
    pair = json_answer({"StatusCode": 0, "publicKey": "P", "privateKey": "S"})
    assert legacy.key_pair("a", "b").read(pair) == ("P", Secret("S"))
    assert v1.user_secrets(["k"]).read(ok('{"k": "v"}')) == {"k": Secret("v")}
    assert legacy.user_secrets(["k"]).read(text_answer('[true, {"k": "v"}]')) == {"k": Secret("v")}
    assert legacy.user_secrets([]).read(text_answer('[true, "{}"]')) == {}
    for line in recorded("v1-calls.jsonl", "/api/v1/creds/"):
        if not line["path"].endswith("get_user_secrets"):
            with pytest.raises(RefusedError):
                v1.proxy("", "").read(text_answer(line["response"]))


def test_a_call_without_an_argument_is_the_same_otherwise():
    call = v1.update(report())
    smaller = call.without("max_rss")
    assert v1_body(smaller) == {key: value for key, value in v1_body(call).items() if key != "max_rss"}
    assert {"job_id", "job_status", "attempt_nr"} <= smaller.required


def test_metrics_are_cut_between_words():
    assert wire.clean_words("aa=1 bb=2", 7) == "aa=1"
    assert wire.clean_words("aa=1", 4) == "aa=1"
