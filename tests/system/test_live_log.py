"""A job's log can be read while it runs: every line, from stage-in to the last, also of one that is stopped."""

import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from pilot.demo.campaign import ENDPOINT, QUEUE, SCOPE, queue_record, storage_record
from pilot.devserver.client import DevServer
from tests.parts import wait_until


@pytest.fixture
def server():
    with DevServer(adder_delay=0) as server:
        yield server


def start(server, top, text, *options, catchall="mv_final_destination", **fields):
    """A pilot for one job with this payload; returns its process and the job's id."""
    (top / "queue.json").write_text(json.dumps(queue_record() | {"catchall": catchall, "timefloor": 0}))
    (top / "storage.json").write_text(json.dumps({ENDPOINT: storage_record(top / "storage")}))
    (job,) = server.submit(
        {
            "transformation": "bash",
            "jobPars": f"-c '{text}'",
            "outFiles": "log.tgz",
            "logFile": "log.tgz",
            "realDatasets": "d",
            "scopeLog": SCOPE,
            "ddmEndPointOut": ENDPOINT,
            "taskID": 77,
            "secrets": json.dumps({"key": "very-secret-value"}),
            **fields,
        }
    )
    argv = [sys.executable, "-m", "pilot.cli.main", "run", "-q", QUEUE, "-j", "managed", "--pilot-user", "generic"]
    argv += ["--url", server.url, "-p", "0", "--queuedata-url", str(top / "queue.json"), "--grace", "8"]
    argv += ["--storagedata-url", str(top / "storage.json"), "-a", str(top / "work"), "-v", "1", *options]
    with open(top / "batch.log", "wb") as log:
        return subprocess.Popen(argv, cwd=top, stdout=log, stderr=subprocess.STDOUT), job


def records(path):
    """Those that are written to their end."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def messages(path, source):
    return [record["message"] for record in records(path) if record["file"] == source]


def test_lines_are_there_while_the_payload_runs_and_all_at_the_end(server, tmp_path):
    target = tmp_path / "live.jsonl"
    pilot, job = start(
        server,
        tmp_path,
        "echo first; while [ ! -e go ]; do sleep 0.05; done; seq 1 2000; echo ERROR: bad >&2; cat panda_secrets.json",
        "--use-realtime-logging",
        f"--realtime-logging-server=logserver=file;{target}",
    )
    try:
        wait_until(lambda: "first" in messages(target, "payload.stdout"), "the first line at the sink")
        assert pilot.poll() is None
        (workdir,) = (tmp_path / "work").glob("*/PanDA_Pilot-*")
        (workdir / "go").touch()
        assert pilot.wait(30) == 0
    finally:
        pilot.kill()
        pilot.wait()
    out = [record for record in records(target) if record["file"] == "payload.stdout"]
    assert [record["message"] for record in out][1:2001] == [str(number) for number in range(1, 2001)]
    assert [record["seq"] for record in out] == list(range(1, len(out) + 1))
    assert {record["PandaJobID"] for record in out} == {str(job)}
    assert {record["TaskID"] for record in out} == {"77"}
    (error,) = [record for record in records(target) if record["file"] == "payload.stderr"]
    assert (error["severity"], error["phase"]) == ("ERROR", "payload")
    assert "very-secret-value" not in target.read_text()
    assert any("stagein" in text for text in messages(target, "pilotlog.txt"))


def test_the_queue_can_ask_for_it_and_the_last_lines_of_a_stopped_job_arrive(server, tmp_path):
    target = tmp_path / "live.jsonl"
    text = 'trap "echo last words; exit 3" TERM; echo up; while :; do sleep 0.05; done'
    pilot, job = start(server, tmp_path, text, catchall=f"mv_final_destination,logging=file;{target}")
    text_of = lambda: messages(target, "payload.stdout")  # noqa: E731
    try:
        wait_until(lambda: "up" in text_of(), "the first line at the sink")
        pilot.send_signal(signal.SIGTERM)
        assert pilot.wait(20) == 143
    finally:
        pilot.kill()
        pilot.wait()
    assert "last words" in text_of()
    assert server.job(job)["fields"]["pilot_error_code"] == 1201


def test_no_line_is_lost_of_a_job_that_is_stopped_while_it_writes(server, tmp_path):
    target = tmp_path / "live.jsonl"
    text = 'trap "echo end; exit 3" TERM; i=1; while :; do seq $i $((i+99)); i=$((i+100)); sleep 0.02; done'
    pilot, _ = start(server, tmp_path, text, catchall=f"mv_final_destination,logging=file;{target}")
    try:
        wait_until(lambda: len(records(target)) > 3000, "many lines at the sink")
        pilot.send_signal(signal.SIGTERM)
        assert pilot.wait(20) == 143
    finally:
        pilot.kill()
        pilot.wait()
    (archive,) = (tmp_path / "storage").rglob("log.tgz*")
    with tarfile.open(archive) as tar:
        (member,) = [each for each in tar.getmembers() if each.name.endswith("payload.stdout")]
        written = tar.extractfile(member).read().decode().splitlines()
    assert written[-1] == "end"
    assert messages(target, "payload.stdout") == written


def test_a_sink_that_is_not_there_costs_a_warning_and_no_job(server, tmp_path):
    began = time.monotonic()
    pilot, job = start(
        server,
        tmp_path,
        "echo hi",
        "--use-realtime-logging",
        "--realtime-logging-server=nosuchsink;https://localhost:1",
    )
    assert pilot.wait(30) == 0
    assert server.wait([job])[job] == "finished"
    assert "no live log" in (tmp_path / "batch.log").read_text()
    assert time.monotonic() - began < 20


def test_lines_over_the_rate_are_counted_in_the_stream_the_pilots_log_and_the_metrics(server, tmp_path):
    target = tmp_path / "live.jsonl"
    to = ("--use-realtime-logging", f"--realtime-logging-server=file;{target}", "--realtime-rate", "20")
    pilot, job = start(server, tmp_path, "seq 1 3000", *to)
    assert pilot.wait(30) == 0
    (lost,) = map(int, re.findall(r"logLinesLost=(\d+)", json.dumps(server.job(job)["fields"])))
    sent = messages(target, "payload.stdout")
    assert sent == [str(number) for number in range(1, len(sent) + 1)]
    assert 100 < len(sent) < 300
    assert lost >= 3000 - len(sent)
    assert messages(target, "pilot")[-1].endswith(f"{lost} in all")
    assert "lines were lost or kept back" in (tmp_path / "batch.log").read_text()


def test_what_a_payload_names_in_time_is_masked_in_its_live_log_its_error_and_its_archive(server, tmp_path):
    target = tmp_path / "live.jsonl"
    text = "T=my-own; T=$T-t0ken; echo begun; sleep 0.7; echo $T > $PILOT_MASK_FILE"
    text += "; echo ERROR: $T is no good | tee /dev/fd/2"
    text += "; echo bXktb3duLXQwa2Vu; exit 3"
    to = ("--use-realtime-logging", f"--realtime-logging-server=file;{target}")
    pilot, job = start(server, tmp_path, text, *to)
    assert pilot.wait(30) == 0
    assert messages(target, "payload.stdout") == ["begun", "ERROR: *** is no good", "***"]
    (archive,) = (tmp_path / "storage").rglob("log.tgz*")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        kept = [tar.extractfile(member).read() for member in tar.getmembers() if member.isfile()]
    assert "pilot_masks.txt" not in {Path(name).name for name in names}
    logs = target.read_bytes(), (tmp_path / "batch.log").read_bytes()
    for shown in (*kept, *logs, json.dumps(server.job(job)).encode()):
        assert b"my-own-t0ken" not in shown


def test_a_job_in_debug_mode_has_its_log_and_the_file_it_names(server, tmp_path):
    target = tmp_path / "live.jsonl"
    to = (f"--realtime-logging-server=file;{target}",)
    pilot, _ = start(server, tmp_path, "echo out; echo inside > my.log", *to, debug="True", debug_command="tail my.log")
    assert pilot.wait(30) == 0
    assert messages(target, "my.log") == ["inside"]
    assert messages(target, "payload.stdout") == ["out"]


def test_debug_mode_that_is_switched_on_later_begins_the_log_then(server, tmp_path):
    target = tmp_path / "live.jsonl"
    text = "echo out; echo inside > my.log; while [ ! -e go ]; do sleep 0.05; done"
    pilot, job = start(server, tmp_path, text, f"--realtime-logging-server=file;{target}")
    try:
        wait_until(lambda: list((tmp_path / "work").glob("*/PanDA_Pilot-*/my.log")), "the payload runs")
        assert not target.exists()
        server.command(job, "tail my.log")
        wait_until(lambda: messages(target, "my.log") == ["inside"], "the file that was named", 90)
        (file,) = (tmp_path / "work").glob("*/PanDA_Pilot-*/my.log")
        (file.parent / "go").touch()
        assert pilot.wait(30) == 0
    finally:
        pilot.kill()
        pilot.wait()
    assert messages(target, "payload.stdout") == ["out"]


def test_nothing_is_sent_that_nobody_asked_for(server, tmp_path):
    target = tmp_path / "live.jsonl"
    pilot, _ = start(server, tmp_path, "echo out", f"--realtime-logging-server=file;{target}")
    assert pilot.wait(30) == 0
    assert not target.exists()


def test_the_worker_log_of_our_pilot_tells_its_job_and_a_failure_in_one_piece(server, tmp_path):
    target = tmp_path / "worker.jsonl"
    text = 'echo begin; printf "Traceback (most recent call last):\\n  File x\\nValueError: bad\\n" >&2; exit 3'
    pilot, job = start(server, tmp_path, text, jobName="my.own.job")
    log = str(tmp_path / "batch.log")
    argv = [sys.executable, "-m", "pilot.cli.main", "logship", log, f"--server=file;{target}", f"--pid={pilot.pid}"]
    with subprocess.Popen(argv, cwd=tmp_path) as ship:
        assert pilot.wait(30) == 0
        assert ship.wait(30) == 0
    found = records(target)
    of_job = [record for record in found if record["PandaJobID"] == str(job)]
    assert {(record["jobName"], record["TaskID"]) for record in of_job} == {("my.own.job", "77")}
    assert 0 < len(of_job) < len(found)
    (block,) = [record for record in of_job if "payload stderr, last lines:" in record["message"]]
    assert block["severity"] == "ERROR"
    assert block["message"].endswith("Traceback (most recent call last):\n  File x\nValueError: bad")
    assert {"INFO", "ERROR"} <= {record["severity"] for record in found}
    assert "very-secret-value" not in target.read_text()
