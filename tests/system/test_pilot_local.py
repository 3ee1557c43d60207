"""`pilot local`: every key of a job file, the result file whatever happens, limits, exit codes, what a person sees."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.grid import ENVIRON, ROOT, Grid, Pilot, processes_with, until

COMMAND = (sys.executable, "-m", "pilot.cli.main", "local")


class Local:
    """Runs of `pilot local` in a directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.temporary = top / "tmp"
        self.temporary.mkdir()
        self.result_file = top / "result.json"
        self.env = {**ENVIRON, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        self.pilots: list[Pilot] = []

    def write(self, text: str, name: str = "job.yaml") -> Path:
        path = self.top / name
        path.write_text(text)
        return path

    def start(self, job: str | Path, *options: str, **more: Any) -> Pilot:
        path = job if isinstance(job, Path) else self.write(job)
        argv = [*COMMAND, str(path), "--result", str(self.result_file), *options]
        self.pilots.append(Pilot(argv, cwd=self.top / "cwd", env=self.env, **more))
        return self.pilots[-1]

    def run(self, job: str | Path, *options: str, code: int = 0) -> dict[str, Any]:
        pilot = self.start(job, *options)
        assert pilot.wait() == code, pilot.text
        assert "Traceback" not in pilot.text
        return self.result()

    def result(self) -> dict[str, Any]:
        value = json.loads(self.result_file.read_text())
        self.result_file.unlink()
        return value


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    local = Local(tmp_path)
    yield local
    for pilot in local.pilots:
        pilot.close()
    assert list(local.temporary.iterdir()) == [], "a job directory was left"


# --- the job file


def test_every_key_of_the_short_form_does_what_it_says(local: Local) -> None:
    words = b"one two three\n"
    (local.top / "data").mkdir()
    (local.top / "data" / "words.txt").write_bytes(words)
    checksum = f"{zlib.adler32(words):08x}"
    result = local.run(
        f"""\
payload: |
  wc -w words.txt > count.txt
  cat other.name >> count.txt
  echo "$GREETING $THREADS $PandaID" > greeting.txt
inputs:
  - {{url: data/words.txt, checksum: "adler32:{checksum}", size: {len(words)}}}
  - {{url: "{(local.top / "data" / "words.txt").as_uri()}", lfn: other.name, guid: G-1}}
outputs:
  - {{lfn: count.txt, destination: out/}}
  - {{lfn: greeting.txt, destination: {local.top}/elsewhere/deep}}
log: {{lfn: log.tgz, destination: out/}}
cores: 1
limits: {{memory: 2 GB, walltime: 1 h, disk: 10 GB}}
environment: {{GREETING: hello, THREADS: 4}}
"""
    )
    assert (local.top / "out" / "count.txt").read_text() == f"3 words.txt\n{words.decode()}"
    assert (local.top / "elsewhere" / "deep" / "greeting.txt").read_text() == "hello 4 1\n"
    assert (local.top / "data" / "words.txt").read_bytes() == words
    assert (result["state"], result["pilot_error_code"], result["pilot_error_diag"]) == ("finished", 0, "")
    assert result["payload"] == {"exit_code": 0, "signal": None}
    files = {(file["kind"], file["lfn"]): file for file in result["files"]}
    assert list(files) == [
        ("input", "words.txt"), ("input", "other.name"), ("output", "count.txt"), ("output", "greeting.txt"),
        ("log", "log.tgz"),
    ]  # fmt: skip
    assert files["input", "words.txt"]["adler32"] == checksum
    assert files["input", "other.name"]["guid"] == "G-1"
    for (kind, lfn), file in files.items():
        path = Path(file["url"].removeprefix("file://"))
        assert file["size"] == path.stat().st_size, lfn
        if kind != "input":
            assert file["adler32"] == f"{zlib.adler32(path.read_bytes()):08x}"
            assert file["guid"]
    assert set(result["timings"]) >= {"stagein", "payload", "stageout", "log", "total"}
    assert set(result["metrics"]) >= {"cpu_time", "max_rss", "max_pss"}


def test_a_transformation_with_parameters_is_copied_and_run(local: Local) -> None:
    script = local.top / "analyse.sh"
    script.write_text('#!/bin/bash\nprintf "%s|" "$@" > args.txt\n')
    local.run(
        "transformation: analyse.sh\n"
        'parameters: --events 100 \'two words\' "$HOME" "über"\n'
        "outputs: [{lfn: args.txt, destination: .}]\n"
    )
    assert (local.top / "args.txt").read_text() == "--events|100|two words|/nonexistent|über|"
    assert not os.access(script, os.X_OK)


def test_a_job_definition_of_a_server_runs_with_the_queue_and_storage_from_files(local: Local) -> None:
    with Grid(local.top / "grid") as grid:
        secret = json.dumps({"DOCKER_TOKENS": "word-of-a-job-5519"})
        command = "cat in.txt in.txt > twice.txt; cat panda_secrets.json >&2"
        job = grid.job(command, inputs={"in.txt": b"ab"}, outputs=["twice.txt"], secrets=secret)
        path = local.write(json.dumps(job), "job.json")
        files = ["--queuedata", str(grid.files / "Q.json"), "--storagedata", str(grid.files / "storages.json")]
        result = local.run(path, *files)
        assert result["job_id"] == job["PandaID"]
        assert grid.stored("twice.txt").read_bytes() == b"abab"
        assert grid.stored("in.txt").read_bytes() == b"ab"
        with tarfile.open(grid.stored(job["logFile"])) as log:
            (member,) = [name for name in log.getnames() if name.endswith("payload.stderr")]
            assert b"*" * len("word-of-a-job-5519") in log.extractfile(member).read()  # type: ignore[union-attr]
        assert "word-of-a-job-5519" not in json.dumps(result)
        result = local.run(
            local.write(json.dumps(job | {"jobPars": "-c 'cat panda_secrets.json >&2; exit 1'"}), "bad.json"),
            *files,
            code=1,
        )
        assert "exit status 1" in result["pilot_error_diag"]
        assert "word-of-a-job-5519" not in json.dumps(result)
        result = local.run(path, code=77)
        assert result["pilot_error_code"] == 1331
        assert "in.txt" in result["pilot_error_diag"]


@pytest.mark.parametrize("name", ["job.yaml", "job", "my job (1).txt", "naïve.yml"])
def test_the_example_runs_under_any_name(local: Local, name: str) -> None:
    done = subprocess.run([*COMMAND, "--example"], env=local.env, capture_output=True, text=True, check=True)
    result = local.run(local.write(done.stdout, name))
    assert result["state"] == "finished"
    assert (local.top / "pilot-example" / "sum.txt").read_text() == "the sum is 500500\n"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("payload: [", 1, "job file"),
        ("payload: 'true'\noutput: []", 1, "did you mean 'outputs'"),
        ("payload: 'true'\ninputs: [{url: a/../.., lfn: ..}]", 1, "inputs[0].lfn"),
        ("payload: 'true'\nlimits: {memory: 2}", 1, "limits.memory"),
        ("payload: 'true'\ntransformation: x", 1, "payload"),
        ("payload: 'true'\ninputs: [{url: missing.txt}]", 77, "missing.txt"),
        ("payload: 'true'\noutputs: [{lfn: never.txt, destination: .}]", 1, "never.txt"),
        ("payload: 'true'\noutputs: [{lfn: journal.jsonl, destination: .}]", 1, "journal.jsonl"),
        ("payload: 'true'\ninputs: [{url: 'nowhere://x/y'}]", 1, "pilot plugins"),
    ],
    ids=lambda value: None if isinstance(value, int) else value.splitlines()[-1][:40],
)
def test_a_job_that_cannot_run_ends_with_a_result_and_one_message(
    local: Local, text: str, code: int, words: str
) -> None:
    pilot = local.start(text)
    assert pilot.wait() == code
    result = local.result()
    assert result["state"] == "failed"
    assert words in result["pilot_error_diag"]
    assert result["fault"] == "user" or words in ("journal.jsonl", "pilot plugins", "missing.txt")
    assert pilot.text.count("✗") == 1
    assert words in pilot.text
    assert "Traceback" not in pilot.text


def test_a_job_file_that_is_not_there_has_a_result_and_the_exit_code_for_it(local: Local) -> None:
    result = local.run(local.top / "no-such.yaml", code=67)
    assert "no-such.yaml" in result["pilot_error_diag"]


def test_a_result_that_cannot_be_written_is_said_before_the_job_runs(local: Local) -> None:
    job = local.write(f"payload: touch {local.top}/ran")
    argv = [*COMMAND, str(job), "--result", str(local.top / "no" / "result.json")]
    done = subprocess.run(argv, env=local.env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--result" in done.stderr
    assert not (local.top / "ran").exists()


# --- ends


def test_a_stop_is_in_the_result_and_the_log_is_kept(local: Local) -> None:
    started = local.top / "started"
    log = "log: {lfn: log.tgz, destination: out}"
    payload = f"payload: |\n  trap '' TERM\n  touch {started}\n  while :; do sleep 600; done\n"
    pilot = local.start(payload + log, "--grace", "4")
    until(started.exists)
    sent = pilot.signal()
    assert pilot.wait() == 143
    assert time.monotonic() - sent < 4.5
    result = local.result()
    assert (result["state"], result["pilot_error_code"]) == ("failed", 1201)
    assert result["payload"] == {"exit_code": None, "signal": 9}
    assert [file["kind"] for file in result["files"]] == ["log"]
    assert (local.top / "out" / "log.tgz").is_file()
    assert processes_with(f"PWD={local.temporary}") == []


def test_ctrl_c_ends_a_job_with_130(local: Local) -> None:
    started = local.top / "started"
    pilot = local.start(f"payload: touch {started}; sleep 600", start_new_session=True)
    until(started.exists)
    os.killpg(pilot.pid, signal.SIGINT)
    assert pilot.wait() == 130
    assert local.result()["pilot_error_code"] == 1208


@pytest.mark.parametrize(
    ("status", "exit_code", "signum"), [("exit 1", 1, None), ("exit 255", 255, None), ("kill -KILL $$", None, 9)]
)
def test_the_true_end_of_the_payload_is_in_the_result(
    local: Local, status: str, exit_code: int | None, signum: int | None
) -> None:
    result = local.run(f"payload: {status}", code=1)
    assert result["payload"] == {"exit_code": exit_code, "signal": signum}
    assert result["pilot_error_code"] == 1305


@pytest.mark.parametrize(
    ("limit", "payload", "code", "shell"),
    [
        ("memory: 50 MB", f"{sys.executable} -c 'x = bytearray(200 << 20); input()' < <(sleep 60)", (1235, 1212), 1),
        ("walltime: 1 s", "sleep 60", (1213,), 81),
        ("disk: 5 MB", "head -c 50M /dev/zero > big; sleep 60", (1104,), 1),
    ],
)  # 1212: where payloads have a control group the kernel is quicker
def test_a_job_that_uses_more_than_its_limit_is_stopped(
    local: Local, limit: str, payload: str, code: tuple[int, ...], shell: int
) -> None:
    begun = time.monotonic()
    result = local.run(f"payload: {json.dumps(payload)}\nlimits: {{{limit}}}", code=shell)
    assert result["pilot_error_code"] in code, result
    assert time.monotonic() - begun < 12
    assert "limit" in result["pilot_error_diag"] or "may run 1 s" in result["pilot_error_diag"]


# --- what is left, what is seen


def test_a_job_can_be_run_again_and_its_new_results_take_the_place_of_the_old(local: Local) -> None:
    for text in ("first", "second"):
        result = local.run(
            f"payload: echo {text} > a.txt\n"
            "outputs: [{lfn: a.txt, destination: out}]\n"
            "log: {lfn: log.tgz, destination: out}\n"
        )
        (output,) = [file for file in result["files"] if file["kind"] == "output"]
        assert Path(output["url"].removeprefix("file://")).read_text() == f"{text}\n"


def test_every_file_of_a_result_has_both_checksums(local: Local) -> None:
    (local.top / "in.txt").write_text("hello\n")
    result = local.run(
        f"payload: cat in.txt > out.txt\n"
        f"inputs: [{{url: {local.top / 'in.txt'}}}]\n"
        "outputs: [{lfn: out.txt, destination: out}]\n"
        "log: {lfn: log.tgz, destination: out}\n"
    )
    sums = {file["kind"]: (file["adler32"], file["md5"]) for file in result["files"]}
    assert sums["input"] == sums["output"] == ("084b021f", "b1946ac92492d2347c6235b4d2611184")
    (log,) = [file for file in result["files"] if file["kind"] == "log"]
    data = Path(log["url"].removeprefix("file://")).read_bytes()
    assert sums["log"] == (f"{zlib.adler32(data):08x}", hashlib.md5(data).hexdigest())


def test_the_job_directory_is_kept_where_it_was_told(local: Local) -> None:
    workdir = local.top / "here"
    local.run("payload: echo kept > file.txt", "--keep", "--workdir", str(workdir))
    (kept,) = workdir.glob("*/PanDA_Pilot-1/file.txt")
    assert kept.read_text() == "kept\n"
    local.run("payload: echo gone > file.txt", "--workdir", str(local.top / "there"))
    assert list((local.top / "there").iterdir()) == []


def test_the_log_can_be_read_at_several_places_while_the_job_runs(local: Local) -> None:
    first, second = local.top / "first.jsonl", local.top / "second.jsonl"
    go = local.top / "go"
    text = f"payload: 'echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo over'"
    pilot = local.start(text, "--realtime-logging-server", f"file;{first},logserver=file;{second}")
    until(lambda: all(path.exists() and '"begun"' in path.read_text() for path in (first, second)))
    go.touch()
    assert pilot.wait() == 0
    assert '"over"' in first.read_text()
    assert first.read_text() == second.read_text()
    wrong = local.start(text, "--realtime-logging-server", "nosuch")
    assert wrong.wait() == 2
    assert "nosuch" in wrong.text


def test_quiet_says_nothing_unless_the_job_fails(local: Local) -> None:
    quiet = local.start("payload: echo noise; echo noise >&2", "--quiet")
    assert quiet.wait() == 0
    assert quiet.text == ""
    failing = local.start("payload: exit 9", "--quiet")
    assert failing.wait() == 1
    assert "exit status 9" in failing.text
    assert failing.text.count("\n") == 1


def test_without_a_terminal_there_are_plain_lines(local: Local) -> None:
    pilot = local.start("payload: echo x > x.txt\noutputs: [{lfn: x.txt, destination: .}]")
    assert pilot.wait() == 0
    assert "\x1b" not in pilot.text
    assert "\r" not in pilot.text
    lines = pilot.text.splitlines()
    assert "job 1: running" in lines
    assert any(line.startswith("✓ job 1 job finished in ") for line in lines)
    assert any("x.txt" in line and "->" in line for line in lines)


def test_on_a_terminal_a_live_line_shows_the_phase_and_the_time(local: Local) -> None:
    job = local.write("payload: sleep 0.8")
    main, side = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, str(job)], env={**local.env, "TERM": "xterm"}, stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    seen = b""
    while select.select([main], [], [], 20)[0]:
        try:
            seen += os.read(main, 65536)
        except OSError:  # the other side was closed
            break
    os.close(main)
    assert process.wait(20) == 0
    text = seen.decode()
    times = [float(found) for found in re.findall(r"running (\d\.\d) s", text)]
    assert len(set(times)) >= 3
    assert max(times) >= 0.5
    assert "\r\x1b[K" in text
    assert "✓" in text


def test_a_reader_that_has_gone_fails_no_job(local: Local) -> None:
    job = local.write("payload: sleep 0.3; echo x > x.txt\noutputs: [{lfn: x.txt, destination: .}]")
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, str(job)], env=local.env, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
    )
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    assert process.wait(20) == 0
    assert (local.top / "x.txt").exists()


def test_a_terminal_that_goes_away_ends_the_job(local: Local) -> None:
    started = local.top / "started"
    pilot = local.start(f"payload: touch {started}; sleep 600")
    until(started.exists)
    pilot.signal(signal.SIGHUP)
    assert pilot.wait() == 137
    assert local.result()["pilot_error_code"] == 1200


def test_nobodys_environment_gets_to_the_payload(local: Local) -> None:
    secrets: Mapping[str, str] = {
        "PANDA_AUTH_TOKEN": "/tokens/mine", "AWS_SECRET_ACCESS_KEY": "key-1234567", "SSH_AUTH_SOCK": "/ssh",
        "PYTHONSTARTUP": "x", "X509_USER_PROXY": "/proxy", "MY_API_KEY": "abcdefg",
    }  # fmt: skip
    local.env.update(secrets)
    local.run("payload: env > env.txt\noutputs: [{lfn: env.txt, destination: .}]")
    text = (local.top / "env.txt").read_text()
    assert "PandaID=1\n" in text
    assert [name for name in [*secrets, "PYTHONPATH"] if f"{name}=" in text] == []
