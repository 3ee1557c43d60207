"""A payload that does not keep to its limits: right code, text and numbers in the report, and nothing of it left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.watched import watched

PYTHON = sys.executable
#: Memory that grows by 20 MB each 0.05 s.
SLOWLY = (
    f'exec {PYTHON} -c \'import time\nkept = []\nwhile True:\n    kept.append(bytearray(b"x" * 20_000_000))\n'
    "    time.sleep(0.05)'"
)
LEFT = f"sleep 7654.{os.getpid()}"


def nothing_left():
    """No process runs `LEFT`, which a payload of the test had in the background."""
    found = subprocess.run(["pgrep", "-f", f"^{LEFT}"], capture_output=True, text=True, check=False).stdout
    return not found.split()


def local(tmp_path, payload, limits):
    job = tmp_path / "job.json"
    text = "\n".join(f"  {line}" for line in payload.splitlines())
    yaml = "\n".join(f"  {name}: {value}" for name, value in limits.items())
    job = tmp_path / "job.yaml"
    job.write_text(f"payload: |\n{text}\nlimits:\n{yaml}\n")
    command = [PYTHON, "-m", "pilot.cli.main", "local", str(job), "--quiet", "--result", str(tmp_path / "result.json")]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run(command, env=env, cwd=tmp_path, timeout=60, check=False, capture_output=True)
    return json.loads((tmp_path / "result.json").read_text())


def test_memory_that_grows_slowly_is_1235_with_numbers(tmp_path):
    queue = {"params": {"pilot_kill_for_memory": True, "pilot_rss_grace": 0}}
    done = watched(tmp_path, f"{LEFT} &\n{SLOWLY}", queue=queue, resource_type="SCORE_LOMEM")
    assert done.code == 1235, done.log
    assert done.diag.startswith("Payload exceeded maximum allowed memory: ")
    assert "the limit is 1024000 kB (1000 MB a core of SCORE_LOMEM, times 1 of the queue)" in done.diag
    used = int(done.diag.split(": ")[1].split()[0])
    assert 1_024_000 < used < 1_400_000
    assert used <= done.report["max_pss"] < used * 1.1  # it went on growing until it was dead
    assert "the payload is near its memory limit" in done.log
    assert nothing_left()


def test_memory_is_no_reason_to_end_a_job_where_the_experiment_does_not_say_so(tmp_path):
    eat = f"{PYTHON} -c 'import time; x = b\"x\" * 200_000_000; time.sleep(1)'"
    done = watched(tmp_path, eat, queue={"maxrss": 100}, resource_type="SCORE_VHIMEM")
    assert done.job["state"] == "finished", done.log
    assert 195_000 < done.report["max_pss"] < 220_000


@pytest.mark.parametrize("payload", [SLOWLY, SLOWLY.replace("20_000_000", "800_000_000")], ids=["slowly", "at once"])
def test_the_memory_limit_of_a_local_job_holds(tmp_path, payload):
    result = local(tmp_path, payload, {"memory": "300 MB"})
    if result["pilot_error_code"] == 1212:  # in a control group of its own: the kernel may be quicker
        assert "limit 322264 kB" in result["pilot_error_diag"], result
    else:
        assert result["pilot_error_code"] == 1235, result
        assert "the limit is 292968 kB (limit of the job file)" in result["pilot_error_diag"]


def test_a_job_directory_that_grows_is_1104(tmp_path):
    fill = "for i in $(seq 200); do head -c 1000000 /dev/zero > file$i; sleep 0.05; done"
    result = local(tmp_path, fill, {"disk": "3 MB"})
    assert result["pilot_error_code"] == 1104
    assert result["pilot_error_diag"].startswith("User work directory too large: ")


def test_a_large_stdout_is_1106_and_its_ends_are_in_the_log(tmp_path):
    flood = "while :; do head -c 100000 /dev/zero | tr '\\0' x; sleep 0.01; done"
    done = watched(tmp_path, f"{LEFT} &\necho first; {flood}", settings="local_size_limit_stdout = 1000")
    assert done.code == 1106, done.log
    assert done.diag.startswith("Payload log or stdout file too big: payload.stdout has ")
    assert "the limit is 1024000 bytes" in done.diag
    assert done.files["payload.stdout"].startswith(b"first")
    assert nothing_left()


def test_an_output_that_is_too_large_is_1124(tmp_path):
    done = watched(tmp_path, "head -c 2000000 /dev/zero > big.dat; sleep 60", outFiles="big.dat,watched.log.tgz",
                   scopeOut="watched", ddmEndPointOut="WATCHED_DISK,WATCHED_DISK", realDatasets="o,o",
                   settings="maximum_output_file_size = 1 MB")  # fmt: skip
    assert done.code == 1124, done.log
    assert re.fullmatch(r"Output file too large: big.dat has \d+ bytes, the limit is 1048576 bytes", done.diag)


def test_a_payload_that_does_nothing_is_1150_and_its_tree_is_in_the_log(tmp_path):
    started = time.monotonic()
    done = watched(tmp_path, f"echo begun; {LEFT} & {LEFT}", settings="looping_limit_default = 3")
    assert done.code == 1150, done.log
    assert done.diag.startswith("Looping job killed by pilot: no file was written for ")
    assert done.diag.endswith(" s, the last one payload.stdout; the limit is 3 s")
    assert time.monotonic() - started < 20
    assert f" {LEFT}" in done.log and "processes of the payload:" in done.log
    assert nothing_left()


def test_a_payload_that_writes_now_and_then_is_not_looping(tmp_path):
    done = watched(tmp_path, "for i in 1 2 3 4; do sleep 1; echo $i > sub; done", settings="looping_limit_default = 2")
    assert done.job["state"] == "finished", done.log


def test_a_job_may_switch_the_looping_check_off(tmp_path):
    done = watched(tmp_path, "sleep 2.5", settings="looping_limit_default = 1", loopingCheck=False)
    assert done.job["state"] == "finished", done.log


def test_the_walltime_of_a_job_is_1213_where_the_queue_says_so(tmp_path):
    queue = {"params": {"job_maxwalltime": True, "pilot_walltime_grace": 100}}
    done = watched(tmp_path, "sleep 60", queue=queue, maxWalltime=1)
    assert done.code == 1213, done.log
    assert done.diag == "Reached batch system time limit: maxWalltime of the job is 1 s, times 2 of the queue"


def test_a_machine_that_goes_down_ends_its_job_in_time(tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "shutdowntime").write_text(f"{time.time() + 605:.0f}\n")
    done = watched(tmp_path, "sleep 60", environ={"MACHINEFEATURES": str(tmp_path / "features")})
    assert done.code == 1213, done.log
    assert "the machine will be shut down at " in done.diag


def test_the_kill_file_is_1363(tmp_path):
    done = watched(tmp_path, "touch pilot_kill_payload; sleep 60")
    assert done.code == 1363, done.log
    assert done.diag.startswith("Raythena has decided to kill payload: ")


def test_too_many_processes_are_1344(tmp_path):
    done = watched(tmp_path, f"for i in $(seq 30); do {LEFT} & done; wait", settings="max_processes = 20")
    assert done.code == 1344, done.log
    assert re.search(r"the payload has (2[1-9]|3[01]) processes, the limit is 20", done.diag)
    assert nothing_left()
