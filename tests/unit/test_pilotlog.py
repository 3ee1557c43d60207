"""The pilot's log as wrappers, people and the log archive find it."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.errors import Code, PilotError
from pilot.masking import Masker, Secret
from pilot.pilotlog import PilotLog

TOKEN = "Zk3-q9_aLpQw81xTrY6m"
LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \| (DEBUG|INFO|WARNING|ERROR|CRITICAL) *\| [\w.]+ *\| [\w<>]+ *\| .*$"
)
logger = logging.getLogger("pilot.test")


@pytest.fixture
def console() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def log(tmp_path: Path, console: tuple[int, int]) -> Iterator[PilotLog]:
    with PilotLog.open(tmp_path, Masker([TOKEN]), console=console[1]) as log:
        yield log


def text(log: PilotLog) -> str:
    assert log.path is not None
    return log.path.read_text()


def test_a_line_has_the_columns_of_pilot_3_and_utc(log: PilotLog) -> None:
    logger.info("queue %s is %s", "BNL", "online")
    line = text(log)
    assert LINE.match(line)
    columns = "| INFO     | pilot.test                       | test_a_line_has_the_columns_of_pilot_3_and_utc | BNL"
    assert line.startswith(f"{columns.replace('BNL', '')}", 24)
    assert line.endswith("| queue BNL is online\n")
    shown = time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
    assert abs(time.mktime(shown) - time.mktime(time.gmtime())) < 10


def test_the_batch_log_has_the_same_lines(log: PilotLog, console: tuple[int, int]) -> None:
    logger.warning("one\ntwo")
    assert os.read(console[0], 1000).decode() == text(log)
    assert text(log).endswith("| one\ntwo\n")


def test_message_arguments_and_traceback_are_masked(log: PilotLog, console: tuple[int, int]) -> None:
    try:
        raise ValueError(f"server said {TOKEN}")
    except ValueError:
        logger.exception("failed with %s and %s", TOKEN, Secret(TOKEN))
    logger.info(f"literal {TOKEN}")
    shown = text(log) + os.read(console[0], 10_000).decode()
    assert TOKEN not in shown
    assert "ValueError: server said ***" in shown
    assert "Traceback (most recent call last)" in shown


def test_a_file_name_that_is_no_utf8_is_logged(log: PilotLog) -> None:
    logger.info("file %s", os.fsdecode(b"a\xff"))
    assert text(log).endswith("| file a\\udcff\n")


def test_libraries_are_logged_from_warning_up(log: PilotLog) -> None:
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("retry %s", TOKEN)
    assert "chatter" not in text(log)
    assert "| some.library " in text(log)
    assert "retry ***" in text(log)


@pytest.mark.parametrize("name", ["pilot.slot", "copytools.mv", "plugins.meters.procfs"])
@pytest.mark.parametrize("debug", [True, False])
def test_our_own_packages_are_logged_from_info_or_debug_up(tmp_path: Path, name: str, debug: bool) -> None:
    with PilotLog.open(tmp_path, Masker(), debug=debug, quiet=True) as log:
        logging.getLogger(name).debug("detail")
        logging.getLogger(name).info("information")
        assert ("detail" in text(log)) is debug
        assert "information" in text(log)


def test_warnings_of_python_are_in_the_log(log: PilotLog) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"old function {TOKEN}", stacklevel=1)
    assert "UserWarning: old function ***" in text(log)
    assert "| WARNING  | py.warnings " in text(log)


def test_quiet_leaves_only_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with PilotLog.open(tmp_path, Masker(), quiet=True) as log:
        logger.info("x")
        assert text(log).endswith("| x\n")
    assert capfd.readouterr() == ("", "")


def test_without_a_file_only_the_batch_log_is_written(tmp_path: Path, console: tuple[int, int]) -> None:
    with PilotLog.open(tmp_path, Masker(), file=False, console=console[1]) as log:
        logger.info("x")
        assert log.path is None
        assert (log.position(), log.header_end, log.part(0)) == (0, 0, None)
        log.link_into(tmp_path)
    assert os.read(console[0], 1000).endswith(b"| x\n")
    assert list(tmp_path.iterdir()) == []


def test_a_jobs_part_of_the_log_can_be_found(log: PilotLog) -> None:
    logger.info("start")
    assert log.header_end == log.position()
    log.end_header()
    header = log.position()
    logger.info("first job")
    log.end_header()
    start = log.position()
    logger.info("second job")
    assert log.part(start) == (log.path, header, start)
    content = text(log)
    assert content[:header].endswith("start\n")
    assert content[start:].endswith("second job\n")
    assert "first" not in content[:header] + content[start:]


def test_the_log_is_linked_into_a_job_directory(log: PilotLog, tmp_path: Path) -> None:
    directory = tmp_path / "job"
    directory.mkdir()
    log.link_into(directory)
    log.link_into(directory)
    logger.info("x")
    assert (directory / "pilotlog.txt").is_symlink()
    assert (directory / "pilotlog.txt").read_text().endswith("| x\n")


def test_closing_puts_the_loggers_back(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers), logging.getLogger("pilot").level, warnings.showwarning
    log = PilotLog.open(tmp_path, Masker(), quiet=True, debug=True)
    log.close()
    assert (list(logging.getLogger().handlers), logging.getLogger("pilot").level, warnings.showwarning) == before
    logger.warning("too late")
    assert text(log) == ""


def test_an_older_log_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pilotlog.txt").write_text("old\n")
    with PilotLog.open(tmp_path, Masker(), quiet=True) as log:
        assert log.position() == 0


def test_a_directory_that_cannot_be_written_is_an_error_with_a_code(tmp_path: Path) -> None:
    with pytest.raises(PilotError) as error:
        PilotLog.open(tmp_path / "missing", Masker())
    assert error.value.code is Code.FILEHANDLINGFAILURE
    assert "missing/pilotlog.txt: No such file" in error.value.diag


def test_a_batch_log_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with PilotLog.open(tmp_path, Masker(), console=writer) as log:
        logger.info("one")
        logger.info("two")
        assert text(log).count("\n") == 2
    os.close(writer)


def test_lines_that_found_no_room_are_counted(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with PilotLog.open(tmp_path, Masker(), file=False, console=writer):
        for _ in range(3):
            logger.info("x" * 60_000)  # a pipe takes 64 KiB
        os.read(reader, 1 << 20)
        logger.info("room again")
    shown = os.read(reader, 1 << 20).decode()
    assert shown.startswith("\n2 log lines were lost\n")
    assert shown.endswith("| room again\n")
    os.close(reader)
    os.close(writer)


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=30, check=False)


def test_a_killed_pilot_keeps_its_last_line(tmp_path: Path) -> None:
    code = """
import logging, os, signal, sys, pathlib
from pilot.masking import Masker
from pilot.pilotlog import PilotLog
log = PilotLog.open(pathlib.Path(sys.argv[1]), Masker())
for n in range(100):
    logging.getLogger("pilot").info("line %d", n)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = run(code, str(tmp_path))
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "pilotlog.txt").read_text().endswith("| line 99\n")
    assert ended.stdout.endswith("| line 99\n")


def test_a_wrong_log_call_is_told_of_and_shows_no_secret(tmp_path: Path) -> None:
    code = """
import logging, sys, pathlib
from pilot.masking import Masker
from pilot.pilotlog import PilotLog
log = PilotLog.open(pathlib.Path(sys.argv[1]), Masker([sys.argv[2]]))
logging.getLogger("pilot").info("count %d", sys.argv[2])
logging.getLogger("pilot").info("after")
"""
    ended = run(code, str(tmp_path), TOKEN)
    lines = (tmp_path / "pilotlog.txt").read_text()
    assert "'count %d' from <string>:6 cannot be formatted: TypeError" in lines
    assert lines.endswith("| after\n")
    assert TOKEN not in lines + ended.stdout + ended.stderr
    assert ended.stderr == ""


def test_stdout_is_redirected_for_the_pilot_and_its_children(tmp_path: Path) -> None:
    code = """
import logging, subprocess, sys, pathlib
from pilot.masking import Masker
from pilot.pilotlog import PilotLog
main, target = map(pathlib.Path, sys.argv[1:])
with PilotLog.open(main, Masker(), redirect_stdout=target):
    logging.getLogger("pilot").info("logged")
    print("printed", flush=True)
    subprocess.run(["echo", "child"])
"""
    ended = run(code, str(tmp_path), str(tmp_path / "out.txt"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[0].endswith("| logged")
    assert lines[1:] == ["printed", "child"]
    assert (tmp_path / "pilotlog.txt").read_text().endswith("| logged\n")


def test_a_full_stdout_does_not_change_the_exit_code(tmp_path: Path) -> None:
    code = """
import logging, sys, pathlib
from pilot.masking import Masker
from pilot.pilotlog import PilotLog
PilotLog.open(pathlib.Path(sys.argv[1]), Masker(), redirect_stdout="/dev/full")
logging.getLogger("pilot").info("logged")
"""
    ended = run(code, str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "pilotlog.txt").read_text().endswith("| logged\n")
