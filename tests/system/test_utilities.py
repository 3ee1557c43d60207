"""Commands beside a payload, hooks and services, under a whole pilot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.grid import IDS, Scenarios, processes_with
from tests.watched import Watched
from tests.watched import watched as watched_one

scenario = Scenarios(workers=4)


def watched(top: Path, payload: str, *options: str, **fields: Any) -> Watched:
    """With a number that no other job has at the same time."""
    return watched_one(top, payload, *options, PandaID=next(IDS), **fields)


def ran(done: Watched, code: int = 0) -> Watched:
    assert done.code == code, (done.diag, done.log[-6000:])
    assert processes_with(f"PandaID={done.job['id']}") == []
    return done


def text(done: Watched, name: str) -> str:
    return done.files[name].decode()


@scenario
def pre_co_and_postprocess_run_in_their_order_with_their_output_in_files(top: Path) -> None:
    payload = "until [ -f co ]; do sleep 0.02; done; echo payload >> order; cat order"
    done = ran(
        watched(
            top,
            payload,
            preprocess={"command": "echo pre", "args": ">> order; echo out; echo err >&2"},
            coprocess={"command": "touch co; echo beside; echo $$ > co.pid; exec sleep", "args": "600"},
            postprocess={"command": "echo", "args": "post $PILOT_EXEC_ITERATION_COUNT $(tr '\\n' , < order)"},
        )
    )
    assert text(done, "preprocess_stdout.txt") == "out\n"
    assert text(done, "preprocess_stderr.txt") == "err\n"
    assert text(done, "payload.stdout") == "pre\npayload\n"
    assert text(done, "coprocess_stdout.txt") == "beside\n"
    assert text(done, "postprocess_stdout.txt") == "post 0 pre,payload,\n"
    assert not Path(f"/proc/{text(done, 'co.pid').strip()}").exists()


@scenario
def a_command_that_is_a_url_is_fetched(top: Path) -> None:
    (top / "files").mkdir()
    (top / "files" / "pre.sh").write_text("#!/bin/bash\necho fetched $1\n")
    pre = {"command": f"file://{top}/files/pre.sh", "args": "'a  b'"}
    (top / "again").mkdir()
    done = ran(watched(top / "again", "true", preprocess=pre))
    assert text(done, "preprocess_stdout.txt") == "fetched a b\n"


HPO_PRE = "n=$PILOT_EXEC_ITERATION_COUNT; echo point $n; [ $n -lt 3 ] || exit {code}"


@scenario
def hpo_goes_on_until_there_are_no_more_points(top: Path) -> None:
    done = ran(
        watched(
            top,
            "echo run $PILOT_EXEC_ITERATION_COUNT; echo x >> total",
            preprocess={"command": HPO_PRE.format(code=160)},
            postprocess={"command": "echo post"},
            isHPO=True,
        )
    )
    assert text(done, "payload.stdout") == "run 0\nrun 1\nrun 2\n"
    assert text(done, "preprocess_stdout.txt") == "point 0\npoint 1\npoint 2\npoint 3\n"
    assert text(done, "postprocess_stdout.txt") == "post\n" * 3
    assert done.report["trans_exit_code"] == 0


@scenario
def without_points_there_need_not_be_outputs(top: Path) -> None:
    outputs = {"outFiles": "hpo.out,watched.log.tgz", "scopeOut": "watched", "realDatasets": "o,o"}
    endpoints = {"ddmEndPointOut": "WATCHED_DISK,WATCHED_DISK"}
    pre = {"command": "exit", "args": "162"}
    done = ran(watched(top, "echo ran > hpo.out", preprocess=pre, isHPO=True, **outputs, **endpoints))
    assert "payload.stdout" not in done.files


@scenario
def with_horovod_there_is_no_payload(top: Path) -> None:
    done = ran(watched(top, "touch ran", postprocess={"command": "touch post"}, environ={"HARVESTER_HOROVOD": "True"}))
    assert "post" in done.files and "ran" not in done.files


@scenario.for_each(
    preprocess=("preprocess", 1356, "Pre-process command failed: exit status 7: no license"),
    postprocess=("postprocess", 1357, "Post-process command failed: exit status 7: no license"),
)
def one_that_fails_is_named(top: Path, name: str, code: int, diag: str) -> None:
    done = ran(watched(top, "touch ran", **{name: {"command": "echo no license >&2; exit 7"}}), code)
    assert done.diag == diag
    assert ("ran" in done.files) == (name == "postprocess")


@scenario
def after_a_payload_that_failed_there_is_no_postprocess(top: Path) -> None:
    done = ran(watched(top, "exit 3", postprocess={"command": "touch post"}), 1305)
    assert "post" not in done.files


@scenario
def a_preprocess_that_hangs_is_under_watch(top: Path) -> None:
    pre = {"command": "trap '' TERM; sleep 600; sleep 600"}
    done = ran(watched(top, "touch ran", preprocess=pre, settings="looping_limit_default = 1\ngrace = 3"), 1150)
    assert "ran" not in done.files


@scenario
def a_coprocess_that_cannot_be_started_leaves_no_payload_behind(top: Path) -> None:
    pre = {"command": "mkdir coprocess_stdout.txt"}  # in the place of its output
    done = ran(watched(top, "sleep 600", preprocess=pre, coprocess={"command": "true"}), 1310)
    assert "coprocess could not be started" in done.diag


@scenario
def what_a_preprocess_used_is_counted(top: Path) -> None:
    burn = {"command": "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; times"}
    done = ran(watched(top, "true", preprocess=burn))
    assert done.report["cpu_consumption_time"] >= 1


# --- hooks


def hooks(top: Path, **texts: str) -> Path:
    place = top / "hooks"
    for name, script in texts.items():
        path = place / f"{name.replace('_', '-')}.d" / "10-it"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    return place


SAY = 'echo $PILOT_PHASE >> "$PILOT_JOB_DIR/phases"'


@scenario
def hooks_run_around_each_phase_and_what_they_set_is_there(top: Path) -> None:
    phases = ("start", "pre_stagein", "post_stagein", "post_payload", "pre_stageout", "post_stageout")
    (top / "x").mkdir()
    place = hooks(
        top,
        **dict.fromkeys(phases, SAY),
        pre_payload=f"""{SAY}; echo '{{"environment": {{"CACHE": "near"}}, "metrics": {{"probe": 5}}}}'""",
        end=f"{SAY}; cat > end.json",
    )
    done = ran(watched(top / "x", "echo payload $CACHE | tee -a phases", "--hooks", str(place)))
    order = "start pre-stagein post-stagein pre-payload payload near post-payload pre-stageout post-stageout end"
    assert " ".join(text(done, "phases").split()) == order
    assert "probe=5" in done.report["job_metrics"]
    end = json.loads(done.files["end.json"])
    assert (end["job_id"], end["exit_code"], end["error_code"], end["phase"]) == (done.job["id"], 0, 0, "end")


@scenario
def a_hook_that_fails_fails_the_job_and_the_last_one_hears_of_it(top: Path) -> None:
    (top / "x").mkdir()
    place = hooks(top, pre_payload="echo the scratch is broken >&2; exit 4", end="cat > end.json")
    done = ran(watched(top / "x", "touch ran", queue={"params": {"pilot_hooks": str(place)}}), 1110)
    assert done.diag == "Failed during payload setup: hook 10-it of pre-payload: exit status 4: the scratch is broken"
    assert "fault=site" in done.report["job_metrics"]  # of a payload 1110 is the user's
    assert "ran" not in done.files
    assert json.loads(done.files["end.json"])["error_code"] == 1110


@scenario
def a_stop_does_not_wait_for_a_hook(top: Path) -> None:
    (top / "x").mkdir()
    place = hooks(top, pre_payload="kill -TERM $PPID; sleep 600", end="sleep 600")
    done = ran(watched(top / "x", "touch ran", "--hooks", str(place), "--grace", "10"), 1201)
    assert "ran" not in done.files


@scenario
def a_stop_of_a_delivered_job_waits_for_no_hook_and_leaves_nothing_of_it(top: Path) -> None:
    for phase in ("post_stageout", "end"):
        (top / phase / "x").mkdir(parents=True)
        place = hooks(top / phase, **{phase: f"setsid sleep 600 & echo $! > {top}/daemon; kill -TERM $PPID; sleep 600"})
        done = ran(watched(top / phase / "x", "true", "--hooks", str(place), "--grace", "10"))
        assert not Path("/proc", (top / "daemon").read_text().strip()).exists(), done.text


# --- a service of the node

ALRB = """
lsetup() { :; }
xcache() {
  case $1 in
    start) mkdir -p "$3"; touch "$3/block"; (setsid sleep 600 & echo $! > daemon.pid)
           echo "xcache started successful.  Messages logs: $PWD/messages"; echo log > messages
           echo 'ALRB_XCACHE_PROXY = "root://localhost:1094//"'; echo "ALRB_XCACHE_MYPROCESS = $(cat daemon.pid)" ;;
    kill) kill "$3" && echo "killed $3" ;;
  esac
}
"""


@scenario
def a_cache_runs_beside_the_job_and_is_stopped(top: Path) -> None:
    (top / "alrb" / "user").mkdir(parents=True)
    (top / "alrb" / "user" / "atlasLocalSetup.sh").write_text(ALRB)
    (top / "x").mkdir()
    near = f"[Information]\nqueues_url = {top}/x/files/queue.json\nstorages_url = {top}/x/files/storages.json"
    payload = "[ -d /proc/$(cat daemon.pid) ] && echo alive $ALRB_XCACHE_PROXY"
    done = ran(
        watched(
            top / "x", payload, "--pilot-user", "atlas", "-b", settings=near,
            queue={"catchall": "mv_final_destination pilotXcache"},
            environ={"ATLAS_LOCAL_ROOT_BASE": str(top / "alrb")}, preprocess={"command": "true"},
        )
    )  # fmt: skip
    pid = text(done, "daemon.pid").strip()
    assert text(done, "payload.stdout") == "alive root://localhost:1094//\n"
    assert text(done, "xcache_kill_stdout.txt") == f"killed {pid}\n"
    assert text(done, "xcache-messages.log") == "log\n"
    assert not any("block" in name for name in done.files)
    assert not Path(f"/proc/{pid}").exists()


running = scenario.fixture()
test_scenario = scenario.test()
