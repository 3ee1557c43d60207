"""A payload that fails is explained: the right code, and the line of its output that a person would look for."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot.errors import DIAG_LIMIT, Code, Fault
from pilot.job import Job
from pilot.matchers import row
from pilot.payload.diagnose import ERROR_REPORT, MATCHERS, Diagnosis, diagnose
from pilot.payload.extract import last_words
from pilot.payload.process import Ended

JOB = Job(job_id=1)


def ended(exit_code=0, signum=None):
    return Ended(exit_code=None if signum else exit_code, signum=signum, stopped=False, seconds=1.0, cpu_time=0.1)


def verdict(workdir, exit_code=1, *, signum=None, job=JOB, stderr="", stdout="", **options):
    for name, text in (("payload.stderr", stderr), ("payload.stdout", stdout)):
        (workdir / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return diagnose(job, ended(exit_code, signum), workdir, **options)


def report(workdir, **fields):
    (workdir / ERROR_REPORT).write_text(json.dumps(fields))


# --------------------------------------------------------------------------------------------------------------- codes


def test_a_payload_that_ends_well_has_nothing_to_explain_whatever_it_wrote(tmp_path):
    assert verdict(tmp_path, 0, stderr="FATAL: all is lost\n") == Diagnosis()


@pytest.mark.parametrize(
    ("status", "code"),
    [(1, 1305), (2, 1305), (3, 1305), (127, 1305), (255, 1305), (146, 1246), (251, 1315), (139, 1328), (160, 1305)],
)
def test_the_exit_status_chooses_the_code(tmp_path, status, code):
    found = verdict(tmp_path, status)
    assert (found.error.code, found.exe_code) == (code, status)


@pytest.mark.parametrize("status", [160, 161, 162])
def test_the_end_of_a_loop_over_points_is_good_for_hpo_jobs_alone(tmp_path, status):
    assert verdict(tmp_path, status, job=Job(job_id=1, is_hpo=True)) == Diagnosis()
    assert verdict(tmp_path, status).error.code == Code.PAYLOADEXECUTIONFAILURE


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGSEGV, 1328), (signal.SIGKILL, 1305), (signal.SIGTERM, 1305), (signal.SIGRTMAX, 1305)],
)
def test_a_signal_that_is_not_ours_is_named(tmp_path, signum, code):
    found = verdict(tmp_path, signum=signum)
    assert (found.error.code, found.exe_code) == (code, 128 + signum)
    assert str(signum.name).split("RT")[0] in found.error.detail
    assert "which the pilot did not send" in found.error.detail


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (1, "exit status 1"),
        (128, "exit status 128"),
        (137, "exit status 137 (a child was killed by SIGKILL)"),
        (134, "exit status 134 (a child was killed by SIGABRT)"),
        (146, "exit status 146"),  # SIGCONT kills nobody
        (255, "exit status 255"),
    ],
)
def test_an_exit_status_is_told_in_words(tmp_path, status, text):
    assert verdict(tmp_path, status).error.detail == text


# ----------------------------------------------------------------------------------------------- the payload's report


def test_what_the_payload_reports_itself_wins_even_over_a_good_exit_status(tmp_path):
    report(tmp_path, error_code=40, error_diag="no  events\nselected")
    found = verdict(tmp_path, 0, stderr="FATAL: other\n")
    assert (found.exe_code, found.exe_diag) == (40, "no events selected")
    assert found.error.code is Code.PAYLOADEXECUTIONFAILURE
    assert found.error.detail == "the payload reported error 40: no events selected"


def test_an_error_without_a_text_reads_well(tmp_path):
    report(tmp_path, error_code="7")
    assert verdict(tmp_path, 0).error.detail == "the payload reported error 7"


@pytest.mark.parametrize(
    "fields", [{}, {"error_code": 0, "error_diag": "fine"}, {"error_code": None}, {"error_code": ""}]
)
def test_a_report_without_an_error_changes_nothing(tmp_path, fields):
    report(tmp_path, **fields)
    assert verdict(tmp_path, 0) == Diagnosis()
    assert verdict(tmp_path, 5).error.detail == "exit status 5"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", '"text"', "null", "[" * 100_000, "\ufeff{}"),
        *('{"error_code": "many"}', '{"error_code": [1]}', '{"error_code": Infinity}', '{"error_code": NaN}'),
        *('{"error_code": 99999999999999999999}', '{"error_code": 1' + "0" * 9999 + "}"),
    ],
)
def test_a_report_that_is_none_is_passed_over(tmp_path, text):
    (tmp_path / ERROR_REPORT).write_text(text)
    assert verdict(tmp_path, 0) == Diagnosis()
    assert verdict(tmp_path, 9).error.detail == "exit status 9"


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "dir", "link"]
)
def test_what_is_no_file_is_no_report(tmp_path, make):
    make(tmp_path / ERROR_REPORT)
    assert verdict(tmp_path, 9).error.detail == "exit status 9"


# ----------------------------------------------------------------------------------------------------- the telling line

CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    1 / 0
    ~~^~~
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
    raise lsst.Odd("no such detector")
lsst.Odd: no such detector
"""


@pytest.mark.parametrize(
    ("stderr", "stdout", "cause"),
    [
        ("", "", ""),
        ("\n \n", "", ""),
        ("one\ntwo\n\n", "", "two"),
        ("", "only here\n", "only here"),
        ("noise\nERROR: first\nERROR: second\nbye\n", "", "ERROR: first"),
        ("ERROR: here\n", "12:00 CRITICAL the real one\n", "12:00 CRITICAL the real one"),
        (
            "WARNING: old syntax\nbash: line 1: athena: command not found\n",
            "",
            "bash: line 1: athena: command not found",
        ),
        (
            "WARNING: old syntax\nls: cannot access 'x': No such file or directory\n",
            "",
            "ls: cannot access 'x': No such file or directory",
        ),
        ("main.c:3:5: error: expected ';'\n1 error generated.\n", "", "main.c:3:5: error: expected ';'"),
        ("done\n", "WARNING: perhaps this\n", "WARNING: perhaps this"),
        ("Errors: 0\nlast\n", "", "last"),
        ("\x1b[1;31mERROR\x1b[0m: in red\n", "", "ERROR: in red"),
        ("\x1b]0;title\x07FATAL: titled\n", "", "FATAL: titled"),
        ("10%\r20%\rRuntimeError: after a progress bar\n", "", "RuntimeError: after a progress bar"),
        ("  Error:   far \t apart  \n", "", "Error: far apart"),
        ("Traceback (most recent call last):\n  File 'x'\nValueError: bad\n", "", "ValueError: bad"),
        ("Traceback (most recent call last):\n  File 'x'\nAssertionError\n", "", "AssertionError"),
        ("Traceback (most recent call last):\n  File 'x'\nMemoryError\nfailed\n", "", "MemoryError"),
        ("ERROR Traceback (most recent call last):\n  File 'x'\npkg.Odd: text\n", "", "pkg.Odd: text"),
        ("Traceback (most recent call last):\n  File 'x'\n", "", "Traceback (most recent call last):"),
        (CHAINED, "", "lsst.Odd: no such detector"),
        (b"ERROR: caf\xe9\0\x07 gone\n", "", "ERROR: caf\ufffd gone"),
    ],
)
def test_the_line_that_names_the_cause_is_found(tmp_path, stderr, stdout, cause):
    found = verdict(tmp_path, 1, stderr=stderr, stdout=stdout)
    assert found.exe_diag == cause
    assert found.error.detail == (f"exit status 1: {cause}" if cause else "exit status 1")


def test_a_real_python_traceback_names_its_error(tmp_path):
    text = (
        "import json\ntry:\n    json.loads('{')\nexcept ValueError as e:\n    raise LookupError('no such key') from e"
    )
    stderr = subprocess.run([sys.executable, "-c", text], capture_output=True).stderr
    assert verdict(tmp_path, 1, stderr=stderr).exe_diag == "LookupError: no such key"


def test_only_the_end_of_a_large_output_is_read(tmp_path):
    stderr = b"ERROR: long ago\n" + b"x" * 79 + b"\n" + (b"y" * 79 + b"\n") * 5000 + b"Error: now\n"
    assert verdict(tmp_path, 1, stderr=stderr).exe_diag == "Error: now"


def test_output_that_is_missing_or_no_file_is_borne(tmp_path):
    os.mkfifo(tmp_path / "payload.stderr")
    assert diagnose(JOB, ended(1), tmp_path).error.detail == "exit status 1"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(stderr=st.binary(max_size=300), stdout=st.binary(max_size=300), diag=st.text(max_size=700))
def test_any_bytes_give_one_line_that_can_be_sent(tmp_path, stderr, stdout, diag):
    (tmp_path / ERROR_REPORT).unlink(missing_ok=True)
    found = [verdict(tmp_path, 1, stderr=stderr, stdout=stdout)]
    report(tmp_path, error_code=3, error_diag=diag)
    found.append(verdict(tmp_path, 1))
    for one in found:
        assert len(one.exe_diag) <= DIAG_LIMIT and len(one.error.diag) <= DIAG_LIMIT
        one.error.diag.encode()
        assert one.exe_diag == " ".join(one.exe_diag.split())
        assert all(char.isprintable() or ord(char) > 0xA0 for char in one.exe_diag)


# ----------------------------------------------------------------------------------------- matchers, job report, blame


def job_report(workdir, **fields):
    (workdir / "jobReport.json").write_text(json.dumps(fields))


def test_a_known_problem_chooses_code_and_words(tmp_path):
    found = verdict(tmp_path, 1, stderr="FATAL: gave up\ncp: error writing 'x': No space left on device\n")
    assert (found.error.code, found.exe_code) == (Code.NOLOCALSPACE, 1)
    assert found.error.detail == "exit status 1: cp: error writing 'x': No space left on device"


def test_what_has_no_code_of_its_own_may_still_be_the_sites_fault(tmp_path):
    found = verdict(tmp_path, 1, stderr="open: /data/x: Stale file handle\n")
    assert (found.error.code, found.fault) == (Code.PAYLOADEXECUTIONFAILURE, Fault.SITE)


CORE = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x04\x00" + bytes(100)


@pytest.mark.parametrize(
    ("name", "how", "stderr", "code"),
    [
        ("core.12", {"exit_code": 134}, "", Code.COREDUMP),
        ("core", {"signum": signal.SIGFPE}, "", Code.COREDUMP),
        ("core.12", {"signum": signal.SIGSEGV}, "", Code.PAYLOADSIGSEGV),
        ("core.12", {"exit_code": 1}, "cp: error writing 'x': No space left on device\n", Code.NOLOCALSPACE),
        ("core.py", {"exit_code": 1}, "", Code.PAYLOADEXECUTIONFAILURE),
    ],
)
def test_a_core_is_named_and_is_the_cause_if_nothing_better_is_known(tmp_path, name, how, stderr, code):
    (tmp_path / name).write_bytes(CORE)
    found = verdict(tmp_path, stderr=stderr, **how)
    assert found.error.code is code
    assert (f"left {name} of {len(CORE)} bytes" in found.error.detail) == (name != "core.py")


def test_what_only_has_the_name_of_a_core_is_none_and_one_fails_no_good_payload(tmp_path, caplog):
    (tmp_path / "elsewhere").write_bytes(CORE)
    (tmp_path / "core.1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "core").write_text("the core of the matter")
    os.mkfifo(tmp_path / "core.2")
    assert verdict(tmp_path, 1).error.code is Code.PAYLOADEXECUTIONFAILURE
    (tmp_path / "core.3").write_bytes(CORE)
    assert verdict(tmp_path, 0) == Diagnosis()
    assert f"left core.3 of {len(CORE)} bytes" in caplog.text


@pytest.mark.parametrize(("signum", "fault"), [(signal.SIGKILL, Fault.SITE), (signal.SIGFPE, None)])
def test_a_signal_that_nobody_sends_himself_is_the_sites(tmp_path, signum, fault):
    assert verdict(tmp_path, signum=signum).fault is fault


def test_a_job_brings_matchers_and_broken_ones_are_left_out(tmp_path):
    (tmp_path / MATCHERS).write_text('[{"regex": "no (\\\\w+) today", "message": "out of {1}", "code": 1110}]')
    found = verdict(tmp_path, 1, stdout="sorry, no beam today\n")
    assert (found.error.code, found.error.detail) == (Code.SETUPFAILURE, "exit status 1: out of beam")
    (tmp_path / MATCHERS).write_text("[")
    assert verdict(tmp_path, 1, stdout="sorry, no beam today\n").error.code is Code.PAYLOADEXECUTIONFAILURE


def test_a_secret_is_masked_before_a_matcher_quotes_it(tmp_path):
    known = [row("token (.*)", message="{1}")]
    found = verdict(tmp_path, 1, stderr="token s3cret\n", known=known, mask=lambda text: text.replace("s3cret", "***"))
    assert found.exe_diag == "***"


REPORT = {
    "exitCode": 65,
    "exitMsg": "Non-zero return code from RAWtoALL (65)",
    "executor": [{"logfileReport": {"details": {"ERROR": [{"message": "std::bad_alloc thrown"}]}}}],
    "resource": {"transform": {"processedEvents": 500}, "dbTimeTotal": 1.5, "dbDataTotal": 7,
                 "executor": {"a": {"resimevents": 3}, "b": {"resimevents": None}}},
}  # fmt: skip


def test_a_job_report_that_is_trusted_fails_a_good_exit_and_its_counts_are_kept(tmp_path):
    job_report(tmp_path, exitCode=1, exitMsg="only half was done", resource=REPORT["resource"])
    found = verdict(tmp_path, 0, trusts_report=True)
    assert (found.error.code, found.exe_code, found.exe_diag) == (Code.UNKNOWNPAYLOADFAILURE, 1, "only half was done")
    assert found.error.detail == "the job report has exit code 1: only half was done"
    assert found.metrics == {"nEvents": "500", "dbTime": "1", "dbData": "7", "resimevents": "3"}
    assert verdict(tmp_path, 0) == Diagnosis()


@pytest.mark.parametrize(
    ("counted", "events"), [({}, {"nEvents": "7", "nEventsW": "5"}), (REPORT["resource"], {"nEvents": "500"})]
)
def test_events_that_no_report_counts_are_those_of_the_first_summary_of_athena(tmp_path, counted, events):
    for name, when, count in (("AthSummary.txt", 10, 7), ("AthenaSummary_2.txt", 20, 9)):
        (tmp_path / name).write_text(f"Job name: x\nEvents Read:    {count}\nEvents Written: {count - 2}\n")
        os.utime(tmp_path / name, (when, when))
    if counted:
        job_report(tmp_path, exitCode=0, resource=counted)
    found = verdict(tmp_path, 0, trusts_report=True)
    assert {name: value for name, value in found.metrics.items() if "Events" in name} == events


@pytest.mark.parametrize(
    ("message", "more", "code", "words"),
    [
        ("plain", {}, Code.PAYLOADEXECUTIONFAILURE, "plain"),
        ("athena got a SIGSEGV signal", {}, Code.PAYLOADSIGSEGV, "athena got a SIGSEGV signal"),
        ("failed", {"executor": REPORT["executor"]}, Code.BADALLOC, "std::bad_alloc thrown"),
    ],
)
def test_the_words_of_a_job_report_come_before_those_of_the_output(tmp_path, message, more, code, words):
    job_report(tmp_path, exitCode=65, exitMsg=message, **more)
    found = verdict(tmp_path, 3, stderr="ERROR: something\n", trusts_report=True)
    assert (found.error.code, found.exe_code) == (code, 65)
    assert found.error.detail == f"exit status 3: {words}"


def test_frontier_is_found_in_the_details_of_a_message(tmp_path):
    text = "12:00 Cannot find a valid frontier connection for (serverurl=x)"
    entry = {"message": "IOVSvc error", "moreDetails": {"abnormalLines": {"message0": text}}}
    job_report(tmp_path, exitCode=2, exitMsg="failed", executor=[{"logfileReport": {"details": {"FATAL": [entry]}}}])
    found = verdict(tmp_path, 2, trusts_report=True)
    assert (found.error.code, found.exe_diag) == (Code.FRONTIER, text)


@pytest.mark.parametrize(
    "text", ["", "[]", "7", '{"exitCode": "x", "executor": [7], "resource": []}', '{"executor": {}}', "[" * 100_000,
             '{"exitCode": 1e99}', '{"exitCode": true, "exitMsg": [1]}'],
)  # fmt: skip
def test_a_job_report_that_is_none_changes_nothing(tmp_path, text):
    (tmp_path / "jobReport.json").write_text(text)
    assert verdict(tmp_path, 9, trusts_report=True).error.code is Code.PAYLOADEXECUTIONFAILURE


def test_the_last_words_are_those_of_who_failed(tmp_path):
    verdict(tmp_path, 1, stderr="\n \n", stdout="\x1b[31mred\x1b[0m\n\nlast\x00\n\n")
    assert last_words(tmp_path, Code.PAYLOADEXECUTIONFAILURE, str) == "red\nlast"
    (tmp_path / "preprocess_stderr.txt").write_text("pre\n")
    assert last_words(tmp_path, Code.PREPROCESSFAILURE, str) == "pre"
    assert last_words(tmp_path, Code.POSTPROCESSFAILURE, str) == ""
