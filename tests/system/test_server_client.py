"""The client against the embedded server, on both API generations: a job from request to final report."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time

import pytest

from pilot.devserver.client import DevServer
from pilot.errors import ServerError
from pilot.server.auth import Auth
from pilot.server.client import PandaServer
from pilot.server.report import FileReport, JobRequest, Report, State, Timings, Usage
from pilot.server.transport import Transport
from pilot.stop import Deadline

REQUEST = JobRequest(
    queue="Q", computing_element="Q", label="managed", node="slot1@wn1", memory=24105, disk=20000, cpu_speed=2000.0,
    harvester_id="h", worker_id="11", remaining_time=3600,
)  # fmt: skip
JOB = {"outFiles": "out.dat,job.log.tgz", "logFile": "job.log.tgz", "jobPars": "x"}
FILES = tuple(
    FileReport(
        lfn=lfn, guid=f"1234{size}", size=size, checksums={"adler32": "00000001"}, surl=f"file:///{lfn}", endpoint="E"
    )
    for lfn, size in (("out.dat", 10), ("job.log.tgz", 20))
)


@pytest.fixture(scope="module", params=["v1", "legacy", "both"])
def server(request):
    with DevServer(api=request.param, adder_delay=0.05) as devserver:
        devserver.api = request.param
        yield devserver


@pytest.fixture
def panda(server):
    server.clear_faults()
    return PandaServer(Transport(server.url), Auth(), first_pause=0.02, settle=0.2)


def report(job_id: int, state: State, **fields) -> Report:
    return Report(
        job_id=job_id, attempt=1, state=state, node="slot1@wn1", queue="Q", scheduler_id="s", pilot_id="u|PR|1",
        batch_id="b1", start_time=time.time() - 60, core_count=1, cpu_unit="s+CPU", cpu_level="x86_64-v3",
        metrics="nEvents=5", source_site="A", destination_site="B", n_input_files=1, n_events=5,
        usage=Usage(
            cpu_time=17, cores=1.6, max_rss=1000, max_vmem=2, max_swap=0, max_pss=4, avg_rss=5, avg_vmem=6, avg_swap=7,
            avg_pss=8, tot_rchar=9, tot_wchar=10, tot_rbytes=11, tot_wbytes=12, rate_rchar=13, rate_wchar=14,
            rate_rbytes=15, rate_wbytes=16,
        ),
        **fields,
    )  # fmt: skip


def final(job_id: int, state: State = State.FINISHED, **fields) -> Report:
    timings = Timings(getjob=1, stagein=2, payload=60, stageout=3, setup=1)
    fields = {"files": FILES, "trans_exit_code": 0, "timings": timings, "metadata": '{"a": 1}'} | fields
    return report(job_id, state, end_time=time.time(), **fields)


def take(server, panda) -> int:
    """A job that is running."""

    async def work() -> int:
        server.submit(JOB)
        (job,) = await panda.acquire(REQUEST)
        await panda.update(report(int(job["PandaID"]), State.STARTING), Deadline(5))
        await panda.update(report(int(job["PandaID"]), State.RUNNING), Deadline(5))
        return int(job["PandaID"])

    return asyncio.run(work())


def test_a_job_goes_from_request_to_finished_and_all_it_says_is_taken(server, panda):
    job_id = take(server, panda)
    assert server.states()[job_id] == "running"
    asyncio.run(panda.update(final(job_id), Deadline(5)))
    assert server.wait([job_id])[job_id] == "finished"
    job = server.job(job_id)
    assert [update["state"] for update in job["updates"]] == ["starting", "running", "finished"]
    assert {update["api"] for update in job["updates"]} == {"legacy" if server.api == "legacy" else "v1"}
    assert all(update["answer"]["StatusCode"] == 0 for update in job["updates"])
    assert {lfn: entry["fsize"] for lfn, entry in job["files"].items()} == {"out.dat": 10, "job.log.tgz": 20}
    fields = job["fields"]
    assert fields["pilot_timing"] == "1|2|60|3|0|1"
    assert fields["max_rss"] == 1000
    assert fields["mean_core_count"] == (1.6 if server.api == "legacy" else 2)
    assert fields["batch_id"] == "b1"
    assert fields["meta_data"] == '{"a": 1}'


def test_a_failed_job_tells_its_error(server, panda):
    job_id = take(server, panda)
    failed = final(job_id, State.FAILED, error_code=1305, error_diag="Failed to execute payload: x", exe_code=65)
    asyncio.run(panda.update(failed, Deadline(5)))
    assert server.wait([job_id])[job_id] == "failed"
    fields = server.job(job_id)["fields"]
    assert (fields["pilot_error_code"], fields["exe_error_code"]) == (1305, 65)
    assert fields["pilot_error_diag"] == "Failed to execute payload: x"


def test_no_job_is_an_empty_list(panda):
    assert asyncio.run(panda.acquire(REQUEST)) == []


def test_a_job_killed_on_the_server_hears_of_it(server, panda):
    job_id = take(server, panda)
    server.kill(job_id)
    assert asyncio.run(panda.update(report(job_id, State.RUNNING), Deadline(5))).command == "tobekilled"


def test_debug_mode_brings_its_command(server, panda):
    job_id = take(server, panda)
    server.command(job_id, "debug")
    assert asyncio.run(panda.update(report(job_id, State.RUNNING, stdout="tail"), Deadline(5))).command == "debug"


@pytest.mark.parametrize(
    "fault",
    ["reset:2", "503:2", "garbage:2", "reset:2:after", "503:1:after", "garbage:1:after"],
)
def test_a_final_report_survives(fault, server, panda):
    job_id = take(server, panda)
    server.fault(f"update_job@finished:{fault}")
    asyncio.run(panda.update(final(job_id), Deadline(20)))
    assert server.wait([job_id])[job_id] == "finished"
    updates = server.job(job_id)["updates"]
    assert [update["state"] for update in updates][:3] == ["starting", "running", "finished"]


def test_a_hanging_heartbeat_does_not_hold_up_the_final_report(server, panda):
    job_id = take(server, panda)
    server.fault("update_job@running:delay=30")

    async def work():
        beat = asyncio.ensure_future(panda.update(report(job_id, State.RUNNING), Deadline(60)))
        await asyncio.sleep(0.2)
        await panda.update(final(job_id), Deadline(20))
        await beat

    start = time.monotonic()
    asyncio.run(work())
    assert time.monotonic() - start < 3
    assert server.wait([job_id])[job_id] == "finished"


def test_a_request_for_jobs_that_fails_is_an_error(server, panda):
    server.fault("acquire_jobs:503")
    with pytest.raises(ServerError, match="503"):
        asyncio.run(panda.acquire(REQUEST))


def test_workers_nodes_and_resource_types(server, panda):
    async def work():
        await panda.worker_status("started", "11", "h", "wn1", "Q")
        await panda.update_worker_node({"site": "S", "host_name": "wn1", "cpu_model": "c", "total_memory": 24000})
        return await panda.resource_types()

    types = asyncio.run(work())
    assert "SCORE" in [entry["resource_name"] for entry in types]
    told = server.notices("update_worker_status")[-1]["arguments"]
    assert "started" in told.values()
    assert len(server.notices("update_worker_node")) == (0 if server.api == "legacy" else 1)


def test_states_of_jobs_can_be_asked_for(server, panda):
    job_id = take(server, panda)
    assert asyncio.run(panda.get_job_status([job_id, 999999])) == {
        job_id: ("running", 1),
        999999: ("not found", 0),
    }


def test_a_token_is_needed_and_a_renewed_one_is_used(tmp_path):
    token = tmp_path / "token"
    environ = {"PANDA_AUTH_TOKEN": str(token), "PANDA_AUTH_ORIGIN": "vo.production"}
    with DevServer(token="right-token", origin="vo.production") as server:
        panda = PandaServer.at(server.url, environ=environ)
        for text, words in (("wrong-token", "Token authentication failed"), ("right-token\n", "")):
            token.write_text(text)
            if words:
                with pytest.raises(ServerError, match=words):
                    asyncio.run(panda.acquire(REQUEST))
            else:
                assert asyncio.run(panda.acquire(REQUEST)) == []
        roleless = PandaServer.at(server.url, environ=environ | {"PANDA_AUTH_ORIGIN": "vo"})
        with pytest.raises(ServerError, match="role"):
            asyncio.run(roleless.acquire(REQUEST))


def test_tls_with_a_client_certificate(tmp_path):
    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=tmp_path, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-x509")
    openssl("req", *key, "-keyout", "s.key", "-out", "s.pem", "-subj", "/CN=s", "-addext",
            "subjectAltName=IP:127.0.0.1")  # fmt: skip
    openssl("req", *key, "-keyout", "c.key", "-out", "c.pem", "-subj", "/CN=Some One")
    proxy = tmp_path / "proxy"
    proxy.write_text((tmp_path / "c.pem").read_text() + (tmp_path / "c.key").read_text())
    paths = {name: tmp_path / f"{name[0]}.{'key' if name.endswith('key') else 'pem'}" for name in ("s", "s_key", "c")}
    with DevServer(cert=paths["s"], key=paths["s_key"], client_ca=paths["c"]) as server:
        trust = {"SSL_CERT_FILE": str(paths["s"])}
        panda = PandaServer.at(server.url, environ=trust | {"X509_USER_PROXY": str(proxy)})
        assert asyncio.run(panda.acquire(REQUEST)) == []
        with pytest.raises(ServerError):
            asyncio.run(PandaServer.at(server.url, environ=trust, cacert="").acquire(REQUEST))
        with pytest.raises(ServerError, match="not trusted"):
            asyncio.run(PandaServer.at(server.url, environ={"X509_USER_PROXY": str(proxy)}).acquire(REQUEST))


def test_everything_sent_is_recorded_as_taken(tmp_path):
    record = tmp_path / "record.jsonl"
    with DevServer(api="v1", record=record) as server:
        panda = PandaServer.at(server.url, environ={})
        job_id = take(server, panda)
        asyncio.run(panda.update(final(job_id), Deadline(5)))
    exchanges = [json.loads(line) for line in record.read_text().splitlines()]
    answers = [line["response_body"] for line in exchanges if line["path"].endswith("/update_job")]
    assert [json.loads(answer)["success"] for answer in answers] == [True] * 3
