"""`pilot run` as a worker node starts it: command line, environment, exit codes, the slot's loop, what is reported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.grid import ROOT, Grid, Job, Pilot, Scenarios, until

PILOT_PY = (sys.executable, str(ROOT / "pilot.py"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


def good_job(grid: Grid, queue: str) -> dict[str, object]:
    lfn, out = f"{queue}.words", f"{queue}.out"
    return grid.job(f"cat {lfn} > {out}", inputs={lfn: b"some words\n"}, outputs=[out], queue=queue)


def finish(grid: Grid, pilot: Pilot, *ids: int, code: int = 0) -> list[Job]:
    """Wait for the end of a pilot and give the jobs it had."""
    assert pilot.wait() == code, pilot.text
    return [grid.job_of(job_id) for job_id in ids]


# --- Pilot 3's command line


@pytest.mark.parametrize("served", ["v1", "legacy", "both"])
def test_pilot_3s_command_line_runs_jobs_on_every_generation_of_the_server(tmp_path: Path, served: str) -> None:
    with Grid(tmp_path, api=served) as grid:
        spoken = ["auto", "v1", "legacy"] if served == "both" else ["auto", served]
        runs = []
        for number, api in enumerate([*spoken, "auto"]):
            queue = grid.queue(f"Q{number}")
            (job_id,) = grid.submit(good_job(grid, queue))
            by_wrapper = number == len(spoken)
            how = {"command": PILOT_PY} if by_wrapper else {}
            runs.append((api, job_id, grid.pilot("--server-api", api, queue=queue, **how)))
        for api, job_id, pilot in runs:
            (job,) = finish(grid, pilot, job_id)
            assert (job.state, job.states) == ("finished", ["starting", "running", "finished"]), pilot.text
            expected = served if served != "both" else {"auto": "v1"}.get(api, api)
            assert {update["api"] for update in job.known["updates"]} == {expected}
            assert job.path(f"{job.known['queue']}.out").read_bytes() == b"some words\n"


def test_the_installed_command_is_the_same(grid: Grid) -> None:
    queue = grid.queue("INSTALLED")
    (job_id,) = grid.submit(good_job(grid, queue))
    command = Path(sys.executable).with_name("pilot")
    if not command.exists():
        pytest.skip("this Python has the package on its path but not installed")
    (job,) = finish(grid, grid.pilot(queue=queue, command=(str(command), "run"), env={"PYTHONPATH": ""}), job_id)
    assert job.state == "finished"


def test_a_server_that_speaks_another_generation_than_the_one_asked_for_is_a_communication_failure(
    tmp_path: Path,
) -> None:
    with Grid(tmp_path, api="v1") as grid:
        assert grid.pilot("--server-api", "legacy").wait() == 79


# --- exit codes


def test_each_reason_not_to_run_has_its_exit_code(grid: Grid, tmp_path: Path) -> None:
    grid.queue("BROKEN", state="BROKEN")
    grid.queue("OFFLINE", status="offline")
    grid.queue("FULL", params={"pilot_free_space_limit": 1 << 60})
    grid.queue("ODD", params={"pilot_grace": "soon"})
    garbled = tmp_path / "garbled.json"
    garbled.write_text("{")
    grid.queue("EMPTY")
    a_file = tmp_path / "file"
    a_file.touch()
    nowhere = ["--url", "http://127.0.0.1:9"]
    cases = [
        (grid.pilot(queue="BROKEN"), 78, "1359"),
        (grid.pilot(queue="OFFLINE"), 83, "1386"),
        (grid.pilot(queue="NO_SUCH_QUEUE"), 71, "1116"),
        (grid.pilot("--queuedata-url", str(garbled), queue="EMPTY"), 71, "1116"),
        (grid.pilot(queue="ODD"), 72, "pilot_grace"),
        (grid.pilot(queue="FULL"), 69, "1098"),
        (grid.pilot(queue="EMPTY"), 0, "no more jobs"),
        (grid.pilot("-a", str(a_file / "x"), queue="EMPTY"), 66, "1199"),
        (grid.pilot(*nowhere, queue="EMPTY"), 79, "refused"),
        (grid.pilot("--url", "http://panda.example.org", queue="EMPTY"), 79, "--allow-http"),
        (grid.pilot("--heartbeats", "1", queue="EMPTY"), 2, "--heartbeats"),
        (grid.pilot("--grace", "soon", queue="EMPTY"), 2, "--grace"),
    ]
    for pilot, code, words in cases:
        assert pilot.wait() == code, pilot.text
        assert words in pilot.text
        assert "Traceback" not in pilot.text


def test_the_queue_must_be_named(tmp_path: Path) -> None:
    done = subprocess.run([*PILOT_PY, "--pilot-user", "generic"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--queue" in done.stderr


def test_each_signal_ends_a_pilot_that_waits_for_jobs_at_once_with_its_exit_code(grid: Grid) -> None:
    grid.queue("WAITING", params={"pilot_no_job_wait_min": 60, "pilot_no_job_wait_max": 60})
    codes = {
        signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGQUIT: 131, signal.SIGXCPU: 152,
        signal.SIGHUP: 137,
    }  # fmt: skip
    harvester = {"HARVESTER_ID": "h", "HARVESTER_WORKER_ID": "17"}
    pilots = {number: grid.pilot("-v", "3", queue="WAITING", env=harvester) for number in codes}
    for number, pilot in pilots.items():
        pilot.says("asking again in 60 s")
        sent = pilot.signal(number)
        assert pilot.wait() == codes[number]
        assert time.monotonic() - sent < 2
    assert not grid.main_dirs()


def test_a_pilot_that_nohup_started_does_not_end_with_its_terminal(grid: Grid) -> None:
    grid.queue("NOHUP", params={"pilot_no_job_wait_min": 60, "pilot_no_job_wait_max": 60})
    command = ("sh", "-c", 'trap \'\' HUP; exec "$0" "$@"', sys.executable, "-m", "pilot.cli.main", "run")
    pilot = grid.pilot("-v", "2", queue="NOHUP", command=command)
    pilot.says("asking again in 60 s")
    pilot.signal(signal.SIGHUP)
    pilot.signal(signal.SIGTERM)
    assert pilot.wait() == 143


# --- the loop of a slot


def test_harvester_hears_that_the_worker_started_and_finished(grid: Grid) -> None:
    queue = grid.queue("WORKER")
    (job_id,) = grid.submit(good_job(grid, queue))
    env = {"HARVESTER_ID": "harvester-1", "HARVESTER_WORKER_ID": "4711"}
    finish(grid, grid.pilot(queue=queue, env=env), job_id)
    told = [note["arguments"] for note in grid.server.notices("update_worker_status")]
    told = [values for values in told if values["harvester_id"] == "harvester-1"]
    assert [values["status"] for values in told] == ["started", "finished"]
    assert {str(values["worker_id"]) for values in told} == {"4711"}


def test_without_harvester_and_with_k_the_worker_status_is_not_told(grid: Grid) -> None:
    queue = grid.queue("SILENT")
    env = {"HARVESTER_ID": "harvester-2", "HARVESTER_WORKER_ID": "4712"}
    pilots = [grid.pilot(queue=queue), grid.pilot("-k", queue=queue, env=env)]
    assert [pilot.wait() for pilot in pilots] == [0, 0]
    assert "harvester-2" not in json.dumps(grid.server.notices("update_worker_status"))


@pytest.mark.parametrize(
    ("name", "fields", "options", "run"),
    [
        ("many", {}, [], 5),
        ("time floor 0 is one job", {"timefloor": 0}, [], 1),
        ("the lifetime is over", {}, ["-l", "180"], 1),
        ("the queue's maxtime is over", {"maxtime": 180}, [], 1),
    ],
)
def test_a_slot_runs_as_many_jobs_as_it_has_time_for(
    grid: Grid, name: str, fields: dict[str, int], options: list[str], run: int
) -> None:
    queue = grid.queue(name.upper().replace(" ", "_").replace("'", ""), **fields)
    ids = grid.submit(*(grid.job(queue=queue) for _ in range(5)))
    jobs = finish(grid, grid.pilot(*options, queue=queue), *ids)
    assert [job.state for job in jobs] == ["finished"] * run + ["activated"] * (5 - run)


@pytest.mark.parametrize(
    ("options", "fault", "asked"),
    [(["-v", "3"], "", 3), (["-v", "5", "-x", "2"], "acquire_jobs:503:0", 2), (["-v", "1"], "acquire_jobs:503:0", 1)],
    ids=["-v 3 and no jobs", "-x 2 and errors", "-v 1 and an error"],
)
def test_it_asks_for_jobs_as_often_as_it_was_told(tmp_path: Path, options: list[str], fault: str, asked: int) -> None:
    with Grid(tmp_path, faults=[fault] if fault else [], api="v1") as grid:
        assert grid.pilot(*options).wait() == (79 if fault else 0)
        assert grid.server.counters()["calls"]["acquire_jobs"] == asked


def test_with_z_the_server_is_not_spoken_to_and_nothing_is_waited_for(grid: Grid) -> None:
    grid.queue("UNASKED", params={"pilot_no_job_wait_min": 60, "pilot_no_job_wait_max": 60})
    before = grid.server.counters()["calls"]
    pilot = grid.pilot("-z", "-v", "3", queue="UNASKED", env={"HARVESTER_ID": "h", "HARVESTER_WORKER_ID": "1"})
    assert pilot.wait(10) == 0
    after = grid.server.counters()["calls"]
    assert {name: count for name, count in after.items() if count != before.get(name) and name != "cache"} == {}


@pytest.mark.parametrize("folder", ["pilot3", "pilot3-4.0"])
def test_the_ids_of_its_jobs_are_left_for_the_wrapper(grid: Grid, folder: str) -> None:
    queue = grid.queue("IDS")
    ids = grid.submit(
        grid.job(queue=queue), {**grid.job(queue=queue), "outFiles": "a/b"}, grid.job("false", queue=queue)
    )
    launch = grid.top / f"launch-{folder}"
    (launch / folder).mkdir(parents=True)
    environ = {} if folder == "pilot3" else {"PANDA_PILOT_SOURCE": f"{folder}/"}
    finish(grid, grid.pilot(queue=queue, cwd=launch, env=environ))
    assert [int(line) for line in (launch / folder / "pandaIDs.out").read_text().split()] == ids


def test_the_main_directory_is_removed_or_kept_as_it_was_told(grid: Grid, tmp_path: Path) -> None:
    queue = grid.queue("KEPT")
    ids = grid.submit(*(grid.job(queue=queue) for _ in range(2)))
    finish(grid, grid.pilot("-a", str(tmp_path / "work"), "--cleanup", "False", queue=queue))
    (main_dir,) = (tmp_path / "work").iterdir()
    assert main_dir.name.startswith("PanDA_Pilot3_")
    assert main_dir.stat().st_mode & 0o7777 == 0o770
    assert {path.name for path in main_dir.glob("PanDA_Pilot-*")} == {f"PanDA_Pilot-{job_id}" for job_id in ids}
    assert (main_dir / "pilotlog.txt").read_text().count("ready for new job") == 2
    grid.submit(grid.job(queue=queue))
    finish(grid, grid.pilot("-a", str(tmp_path / "gone"), queue=queue))
    assert list((tmp_path / "gone").iterdir()) == []


def test_without_workdir_it_works_where_it_was_started_and_leaves_that_directory(grid: Grid) -> None:
    queue = grid.queue("HERE")
    (job_id,) = grid.submit(good_job(grid, queue))
    pilot = grid.pilot("-a", "", queue=queue)
    (job,) = finish(grid, pilot, job_id)
    assert job.state == "finished"
    names = {path.name for path in pilot.cwd.iterdir()}
    assert "pilotlog.txt" in names
    assert f"PanDA_Pilot-{job_id}" not in names


# --- credentials and trust


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with a certificate for 127.0.0.1, and a CA that nobody knows."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates of this test, and is not installed")
    where = tmp_path_factory.mktemp("keys")
    (where / "host.cnf").write_text("subjectAltName=IP:127.0.0.1")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=where, check=True, capture_output=True, timeout=20)

    for name in ("ca", "stranger"):
        openssl(
            "req", "-x509", *new, "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"
        )
    openssl("req", *new, "-subj", "/CN=127.0.0.1", "-keyout", "host.key", "-out", "host.csr")
    signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "host.cnf"]
    openssl("x509", "-req", "-in", "host.csr", *signer, "-out", "host.pem", "-days", "2")
    for name in ("ca", "stranger"):
        (where / f"{name}.d").mkdir()
        shutil.copy(where / f"{name}.pem", where / f"{name}.d")
    return where


def test_a_server_is_trusted_by_the_cas_that_were_named_and_by_no_others(tmp_path: Path, keys: Path) -> None:
    with Grid(tmp_path, cert=keys / "host.pem", key=keys / "host.key", ca=keys / "ca.pem") as grid:
        trusted = {
            "CAPATH": (["--capath", str(keys / "ca.d")], {}),
            "FILE": ([], {"SSL_CERT_FILE": str(keys / "ca.pem")}),
            "BUNDLE": ([], {"REQUESTS_CA_BUNDLE": str(keys / "ca.pem")}),
            "X509": ([], {"X509_CERT_DIR": str(keys / "ca.d")}),
        }
        runs = []
        for name, (options, env) in trusted.items():
            grid.queue(name)
            (job_id,) = grid.submit(good_job(grid, name))
            runs.append((job_id, grid.pilot(*options, queue=name, env=env)))
        grid.queue("LOST")
        (untouched,) = grid.submit(good_job(grid, "LOST"))
        local = [
            "--queuedata-url",
            str(grid.files / "LOST.json"),
            "--storagedata-url",
            str(grid.files / "storages.json"),
        ]
        strangers = [
            grid.pilot(*local, queue="LOST"),
            grid.pilot(*local, "--capath", str(keys / "stranger.d"), queue="LOST"),
        ]
        no_queue = grid.pilot(queue="LOST")
        for job_id, pilot in runs:
            (job,) = finish(grid, pilot, job_id)
            assert job.state == "finished"
        for pilot in strangers:
            assert pilot.wait() == 79
            assert "its certificate is not trusted" in pilot.text
        assert no_queue.wait() == 71
        assert grid.job_of(untouched).state == "activated"


def test_a_token_may_end_in_a_newline_and_is_read_again_when_it_was_renewed(tmp_path: Path) -> None:
    with Grid(tmp_path, token="the-right-token-of-today", origin="vo.production") as grid:
        (job_id,) = grid.submit(good_job(grid, "Q"))
        token = tmp_path / "token"
        token.write_text("the-token-of-yesterday\n")
        env = {"PANDA_AUTH_TOKEN": str(token), "PANDA_AUTH_ORIGIN": "vo.production"}
        pilot = grid.pilot("-v", "1000", "-x", "1000", "-l", "400", env=env)
        pilot.says("Token authentication failed")
        renewed = tmp_path / "new"
        renewed.write_text("the-right-token-of-today\n")
        renewed.rename(token)
        until(lambda: grid.job_of(job_id).state == "finished")
        pilot.signal()
        assert pilot.wait() == 143
        assert "the-right-token-of-today" not in pilot.text
        assert "the-token-of-yesterday" not in pilot.text


def test_a_token_file_that_is_missing_is_named_and_has_the_exit_code_of_credentials(grid: Grid, tmp_path: Path) -> None:
    queue = grid.queue("TOKENLESS")
    pilot = grid.pilot(queue=queue, env={"PANDA_AUTH_TOKEN": str(tmp_path / "nothing")})
    assert pilot.wait() == 68
    assert str(tmp_path / "nothing") in pilot.text


# --- what is reported


def test_a_good_job_is_reported_with_everything_the_server_wants(grid: Grid) -> None:
    queue = grid.queue("REPORT")
    command = "head -c 100000 /dev/zero > report.dat; head -c 50000000 /dev/zero | cat > /dev/null; sleep 1.2"
    (job_id,) = grid.submit(grid.job(command, inputs={"r.txt": b"x"}, outputs=["report.dat"], queue=queue))
    env = {"SLURM_JOB_ID": "991", "GTAG": "https://logs.example.org/1", "PANDA_JSID": "factory"}
    (job,) = finish(grid, grid.pilot(queue=queue, env=env), job_id)
    fields = job.fields
    assert job.states == ["starting", "running", "finished"]
    assert set(job.files) == {"report.dat", job.known["definition"]["logFile"]}
    for lfn, entry in job.files.items():
        assert entry["fsize"] == job.path(lfn).stat().st_size
        assert entry["endpoint"] == "TEST_DISK"
        assert len(entry["adler32"]) == 8
        assert entry["guid"]
    assert (fields["pilot_error_code"], fields["trans_exit_code"], fields["exe_error_code"]) == (0, 0, 0)
    assert fields["batch_id"] == "991"
    assert fields["pilot_id"].startswith("https://logs.example.org/1|SLURM|PR|")
    assert fields["scheduler_id"] == "factory"
    timing = [int(part) for part in fields["pilot_timing"].split("|")]
    assert len(timing) == 6
    assert 1 <= timing[2] <= 3
    assert fields["n_input_files"] == 1
    for name in ("rss", "pss", "vmem"):
        assert fields[f"max_{name}"] >= fields[f"avg_{name}"] > 0
    assert fields["start_time"] <= fields["end_time"]


def test_what_a_site_has_set_for_pilot_3_counts_or_is_told_to_have_no_effect(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "xrd.log").write_text("what XRootD's client says")
    queue = grid.queue("HPC", catchall="nopenfiles=4,HPC_HPC")
    (job_id,) = grid.submit(grid.job("true", queue=queue, coreCount="3"))
    env = {"XRD_LOGFILE": str(tmp_path / "xrd.log"), "ATHENA_PROC_NUMBER": "8", "HARVESTER_PYTHONPATH": "/x"}
    pilot = grid.pilot(queue=queue, env=env)
    (job,) = finish(grid, pilot, job_id)
    assert job.log()["xrd.log"] == b"what XRootD's client says"
    assert job.known["fields"]["core_count"] == 3
    assert "here it has no effect: nopenfiles in catchall, HARVESTER_PYTHONPATH\n" in pilot.text


def test_a_failed_job_is_reported_with_its_cause_and_its_true_exit_status(grid: Grid) -> None:
    queue = grid.queue("FAILED")
    ids = grid.submit(
        grid.job("echo 'FATAL: no calibration' >&2; exit 255", queue=queue),
        grid.job('echo \'{"error_code": 99, "error_diag": "bad run"}\' > payload_error_report.json', queue=queue),
        grid.job("true", outputs=["missing.dat"], queue=queue),
        grid.job("kill -SEGV $$", queue=queue),
    )
    env = {"XRD_LOGFILE": f"/{'x' * 300}"}  # as a name in a directory of another user: no job's log fails for that
    status, own, missing, signalled = finish(grid, grid.pilot(queue=queue, env=env), *ids)
    for job in (status, own, missing, signalled):
        assert job.states == ["starting", "running", "failed"]
        assert job.state == "failed"
        assert "payload.stderr" in job.log()
    assert (status.code, status.fields["trans_exit_code"], status.fields["exe_error_code"]) == (1305, 255, 255)
    assert "exit status 255: FATAL: no calibration" in status.diag
    assert "no calibration" in status.fields["pilot_log"]
    assert (own.code, own.fields["exe_error_code"], own.fields["exe_error_diag"]) == (1305, 99, "bad run")
    assert (missing.code, missing.fields["trans_exit_code"]) == (1165, 0)
    assert "missing.dat" in missing.diag
    assert (signalled.code, signalled.fields["trans_exit_code"]) == (1328, 139)


scenario = Scenarios()


@scenario
def heartbeats_tell_what_the_payload_uses_while_it_runs(top: Path) -> None:
    with Grid(top) as grid:
        (job_id,) = grid.submit(grid.job("sleep 3"))
        (job,) = finish(grid, grid.pilot("--heartbeat", "1"), job_id)
        running = [update for update in job.known["updates"] if update["state"] == "running"]
        assert len(running) in (3, 4)
        assert running[-1]["fields"]["max_rss"] > 0
        assert job.reported_once()


@scenario.for_each(v1=("v1",), legacy=("legacy",))
def a_job_that_the_server_kills_ends_at_once_in_every_phase_and_the_next_one_runs(top: Path, api: str) -> None:
    with Grid(top, api=api) as grid:
        gate = grid.gated_queue("GATED")
        pilot = None
        for phase, mark in (("stage-in", "get-1.txt"), ("payload", "payload"), ("stage-out", "put-out.dat")):
            (gate / "open").unlink(missing_ok=True)
            command = f"touch out.dat {gate}/payload; echo x > out.dat; sleep {600 if phase == 'payload' else 0}"
            inputs = {"1.txt": b"x"} if phase == "stage-in" else {}
            (job_id,) = grid.submit(grid.job(command, inputs=inputs, outputs=["out.dat"], queue="GATED"))
            pilot = pilot or grid.pilot("--heartbeat", "1", "-v", "1000", "-x", "1000", queue="GATED")
            until(lambda mark=mark: (gate / mark).exists(), why=mark)
            until(lambda job_id=job_id: grid.job_of(job_id).state in ("starting", "running"))
            killed = time.monotonic()
            grid.server.command(job_id, "tobekilled")
            pilot.says(f"job {job_id}: 1144")
            (gate / "open").touch()  # for the log
            until(lambda job_id=job_id: grid.job_of(job_id).finals, 10)
            job = grid.job_of(job_id)
            assert time.monotonic() - killed < 5
            assert (job.finals, job.code) == (["failed"], 1144), (phase, pilot.text)
        (last,) = grid.submit(grid.job("true", queue="GATED"))
        until(lambda: grid.job_of(last).state == "finished")
        pilot.signal()
        assert pilot.wait() == 143


running = scenario.fixture()
test_scenario = scenario.test()
