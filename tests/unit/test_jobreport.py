"""What the server is told of a job is what became of it, in the shape and within the limits the server has."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import Code, PilotError
from pilot.experiment import Experiment, words
from pilot.job import File, Job, Kind
from pilot.jobreport import PILOT_LOG_LIMIT, Reporter, Speaker
from pilot.outcome import PHASES, FileOutcome, Outcome, Stopwatch, internal_error
from pilot.server.report import State, Usage
from pilot.version import __version__

JOB = Job(job_id=4711, attempt=2, cores=8)
SPEAKER = Speaker(node="slot1@wn7", queue="QUEUE", gtag="https://logs/7.out", batch_type="Condor", batch_id="7.0#1")
FINAL = [State.FINISHED, State.FAILED]
RUNNING = [State.STARTING, State.RUNNING, State.TRANSFERRING]


def done(lfn, kind, **checksums):
    file = File(lfn=lfn, kind=kind, guid=f"guid-{lfn}", endpoint="DISK")
    return FileOutcome(file=file, url=f"root://se//{lfn}", size=5, checksums=checksums or {"adler32": "0a1b2c3d"})


def outcome(job=JOB, **fields):
    files = [
        done("log.tgz", Kind.LOG),
        done("in", Kind.INPUT),
        done("out1", Kind.OUTPUT),
        done("out2", Kind.OUTPUT, md5="ab"),
    ]
    return Outcome(job, files=files, **fields)


def report(state, what=None, *, experiment=None, speaker=SPEAKER, **options):
    return Reporter(speaker, experiment or Experiment(), what or outcome(), 1.5).report(state, **options)


# ------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("state", RUNNING)
def test_an_update_on_the_way_says_who_and_how_far_and_nothing_of_the_end(state):
    what = outcome(error=PilotError(Code.STAGEOUTFAILED), exit_code=3, usage=Usage(cpu_time=9, max_pss=70))
    sent = report(state, what, pilot_log="lines", metadata="{}")
    assert (sent.job_id, sent.attempt, sent.state, sent.node, sent.queue) == (4711, 2, state, "slot1@wn7", "QUEUE")
    assert (sent.core_count, sent.batch_id, sent.scheduler_id) == (8, "7.0#1", "unknown")
    assert sent.usage == Usage(cpu_time=9, max_pss=70)
    assert (sent.error_code, sent.error_diag, sent.trans_exit_code, sent.files) == (0, "", None, ())
    assert (sent.timings, sent.end_time, sent.pilot_log, sent.metadata) == (None, None, "", "")


def test_the_times_of_a_job_are_one_start_for_all_updates_and_an_end():
    before = time.time()
    reporter = Reporter(SPEAKER, Experiment(), outcome())
    first, last = reporter.report(State.STARTING), reporter.report(State.FINISHED)
    assert before <= first.start_time == last.start_time <= last.end_time <= time.time()


def test_a_good_end_has_files_with_the_log_last_and_no_inputs():
    sent = report(State.FINISHED, metadata='{"a": 1}')
    assert [(file.lfn, file.guid, file.size, file.surl, file.endpoint) for file in sent.files] == [
        (name, f"guid-{name}", 5, f"root://se//{name}", "DISK") for name in ("out1", "out2", "log.tgz")
    ]
    assert [dict(file.checksums) for file in sent.files] == [
        {"adler32": "0a1b2c3d"},
        {"md5": "ab"},
        {"adler32": "0a1b2c3d"},
    ]
    assert (sent.error_code, sent.error_diag, sent.trans_exit_code) == (0, "", 0)
    assert (sent.n_input_files, sent.metadata) == (1, '{"a": 1}')


def test_a_failure_is_told_by_its_first_error_and_the_payloads_own_words():
    what = outcome(exit_code=1, exe_code=40, exe_diag="no events")
    what.fail(PilotError(Code.PAYLOADEXECUTIONFAILURE, "exit status 1"))
    what.fail(PilotError(Code.LOGCREATIONTIMEOUT, "later"))
    sent = report(what.state, what, pilot_log="x" * 2000 + "end")
    assert (sent.state, sent.error_code) == (State.FAILED, 1305)
    assert sent.error_diag == "Failed to execute payload: exit status 1"
    assert (sent.exe_code, sent.exe_diag, sent.trans_exit_code) == (40, "no events", 1)
    assert len(sent.pilot_log) == PILOT_LOG_LIMIT
    assert sent.pilot_log.endswith("xend")


@pytest.mark.parametrize("status", [0, 1, 127, 254, 255])
def test_the_exit_status_is_reported_as_it_is(status):
    """PILOT3 10.5, defect 2: 255 became 0."""
    assert report(State.FAILED, outcome(exit_code=status)).trans_exit_code == status


def test_a_signal_is_reported_as_a_shell_shows_it():
    assert report(State.FAILED, outcome(signum=9)).trans_exit_code == 137


@pytest.mark.parametrize("analysis", [False, True])
@pytest.mark.parametrize(
    "code", [Code.STAGEOUTFAILED, Code.PUTMD5MISMATCH, Code.STAGEOUTTIMEOUT, Code.PUTGLOBUSSYSERR, Code.STAGEINFAILED]
)
def test_only_a_recoverable_error_of_an_analysis_job_is_negative(code, analysis):
    what = outcome(Job(job_id=1, is_analysis=analysis), error=PilotError(code))
    negative = analysis and code is not Code.STAGEINFAILED
    assert report(State.FAILED, what).error_code == (-code if negative else code)


def test_seconds_per_phase_are_in_the_places_the_server_has_for_them():
    what = outcome(timings={"stagein": 2.0, "setup": 0.5, "payload": 60.0, "stageout": 3.0, "log": 1.0, "total": 67.0})
    times = report(State.FINISHED, what).timings
    assert (times.getjob, times.stagein, times.payload, times.stageout, times.setup) == (1.5, 2.0, 60.0, 4.0, 0.5)
    assert report(State.FAILED, outcome()).timings.payload == 0


def test_measured_metrics_are_words_and_an_experiment_may_choose_them():
    class Lab(Experiment):
        name = "lab"

        def metrics(self, job, measured):
            return {"nEvents": measured["events"], "GPU": "Tesla V100 32GB"}

    what = outcome(metrics={"events": "7"})
    assert report(State.RUNNING, what, experiment=Lab()).metrics == "nEvents=7 GPU=Tesla_V100_32GB"
    assert report(State.RUNNING, what).metrics == "events=7"
    assert report(State.RUNNING, what, metrics="x=1").metrics == "x=1"


# ----------------------------------------------------------------------------------------------------------- pilotID


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, f"https://logs/7.out|Condor|PR|{__version__}"),
        ({"batch_id": ""}, f"https://logs/7.out|PR|{__version__}"),
        ({"gtag": ""}, f"unknown|Condor|PR|{__version__}"),
        ({"version_tag": "RC"}, f"https://logs/7.out|Condor|RC|{__version__}"),
    ],
)
def test_the_pilot_id_has_the_parts_that_the_monitor_takes_apart(fields, expected):
    values = {"gtag": SPEAKER.gtag, "batch_type": "Condor", "batch_id": "7.0#1"} | fields
    assert report(State.RUNNING, speaker=Speaker(node="n", queue="q", **values)).pilot_id == expected


@given(st.text("abc/:|", max_size=400), st.text("xyz", max_size=20))
def test_the_pilot_id_fits_and_ends_with_the_version(gtag, batch_type):
    speaker = Speaker(node="n", queue="q", gtag=gtag, batch_type=batch_type, batch_id="1")
    found = report(State.RUNNING, speaker=speaker).pilot_id
    assert len(found) <= 200
    assert found.endswith(f"|PR|{__version__}")


def test_a_batch_id_fits_the_servers_column():
    assert len(report(State.RUNNING, speaker=Speaker(node="n", queue="q", batch_id="7" * 300)).batch_id) == 80


# ------------------------------------------------------------------------------------------------------------- metrics


@given(
    st.dictionaries(st.text("abcXYZ_", min_size=1, max_size=9), st.text("ab 1\n\t", max_size=40), max_size=40),
    st.integers(0, 600),
)
def test_metrics_are_whole_words_within_the_limit(metrics, limit):
    found = words(metrics, limit)
    assert len(found) <= limit
    every = words(metrics, 10**6)
    assert found == "" or (every + " ").startswith(found + " ")
    assert all(word.count("=") == 1 for word in found.split(" ") if word)


# ------------------------------------------------------------------------------------------------------------- outcome


def test_an_outcome_is_good_until_it_failed_and_keeps_its_first_error():
    what = outcome()
    assert (what.state, what.code) == (State.FINISHED, 0)
    first, second = PilotError(Code.LOOPINGJOB), PilotError(Code.SIGTERM)
    what.fail(first)
    what.fail(second)
    assert (what.state, what.code, what.error) == (State.FAILED, 1150, first)


def test_a_result_has_everything_that_a_program_wants_to_read():
    what = outcome(exit_code=3, usage=Usage(cpu_time=2, max_rss=100), metrics={"events": "7"})
    what.timings = {"stagein": 0.12345, "total": 1.0}
    what.fail(PilotError(Code.PAYLOADEXECUTIONFAILURE, "exit status 3"))
    result = what.as_dict()
    assert {key: result[key] for key in ("job_id", "state", "pilot_error_code", "payload")} == {
        "job_id": 4711, "state": "failed", "pilot_error_code": 1305, "payload": {"exit_code": 3, "signal": None},
    }  # fmt: skip
    assert result["pilot_error_diag"] == "Failed to execute payload: exit status 3"
    assert result["timings"] == {**dict.fromkeys(PHASES, 0.0), "stagein": 0.123, "total": 1.0}
    assert result["metrics"] == {"events": "7", "cpu_time": 2, "max_rss": 100}
    assert result["files"][0] == {
        "kind": "log", "lfn": "log.tgz", "guid": "guid-log.tgz", "size": 5, "adler32": "0a1b2c3d", "md5": None,
        "url": "root://se//log.tgz",
    }  # fmt: skip


def test_a_job_that_never_began_has_a_result_too():
    result = Outcome(Job(job_id=1)).as_dict()
    assert (result["state"], result["files"], result["metrics"]) == ("finished", [], {})
    assert set(result["timings"]) == {"stagein", "setup", "payload", "stageout", "log", "report", "total"}


def test_a_stopwatch_adds_up_phases_that_follow_one_another():
    watch = Stopwatch()
    for phase in ("stagein", "payload", "stagein", ""):
        time.sleep(0.02)
        watch.enter(phase)
    assert set(watch.timings) == {"stagein", "payload", "total"}
    assert watch.timings["stagein"] >= 0.04
    assert math.isclose(
        watch.timings["total"], 0.02 + watch.timings["stagein"] + watch.timings["payload"], abs_tol=0.02
    )


def test_our_own_bug_is_an_error_of_the_table():
    error = internal_error(KeyError("no such key"))
    assert error.code is Code.INTERNALPILOTPROBLEM
    assert "KeyError: 'no such key'" in error.diag
