"""A payload that fails is explained: the right code, and the line of its output that a person would look for."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot.errors import DIAG_LIMIT, Code
from pilot.job import Access, File, Job, Kind
from pilot.payload.diagnose import ERROR_REPORT, Diagnosis, diagnose
from pilot.payload.process import Ended

JOB = Job(job_id=1)
DIRECT = Job(job_id=1, inputs=(File(lfn="a.root", kind=Kind.INPUT, access=Access.DIRECT),))


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


@pytest.mark.parametrize(("status", "code"), [(2, 1378), (3, 1368), (1, 1305), (4, 1305)])
def test_2_and_3_mean_the_check_of_remote_files_only_where_there_was_one(tmp_path, status, code):
    """PILOT3 10.5, defect 4: any payload that ended with 2 or 3 was told to be that check."""
    assert verdict(tmp_path, status, job=DIRECT, remote_io=True).error.code == code
    assert verdict(tmp_path, status, job=DIRECT).error.code == Code.PAYLOADEXECUTIONFAILURE


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
