"""A payload loops when no file of its job was written for too long; time in which nobody ran does not count."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from pilot.errors import Code, PilotError
from pilot.watch.looping import Looping
from pilot.watch.stacks import log_stacks, process_tree

START = 1_800_000_000.0


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("pilot.watch.looping._changed_at", lambda found: found.st_mtime)  # which can be set
    return Clock()


def write(path, when):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.utime(path, (when, when))


def looping(workdir, clock, **options):
    return Looping(workdir, 7200, 900, own=("pilotlog.txt",), clock=clock, **options)


def pass_time(look, clock, seconds):
    """Look as often as is asked for until `seconds` have passed."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += min(look.look(), end - clock.now)
    return look.look()


def test_silence_for_the_whole_limit_is_1150_and_says_which_file_was_the_last(tmp_path, clock):
    write(tmp_path / "sub" / "last.txt", START)
    write(tmp_path / "first.txt", START - 5)
    explained = []
    look = looping(tmp_path, clock, explain=lambda: explained.append(clock.now))
    with pytest.raises(PilotError) as caught:
        pass_time(look, clock, 7200)
    assert caught.value.code is Code.LOOPINGJOB
    assert caught.value.detail == "no file was written for 7200 s, the last one last.txt; the limit is 7200 s"
    assert explained == [START + 7200]


def test_nothing_happens_before(tmp_path, clock):
    write(tmp_path / "last.txt", START)
    assert pass_time(looping(tmp_path, clock), clock, 7199) == 1


def test_a_file_that_was_written_begins_the_time_anew(tmp_path, clock):
    look = looping(tmp_path, clock)
    pass_time(look, clock, 7000)
    write(tmp_path / "sub" / "new.txt", START + 7000)
    pass_time(look, clock, 7000)
    with pytest.raises(PilotError):
        pass_time(look, clock, 300)


def test_the_next_look_is_when_the_limit_would_be_reached(tmp_path, clock):
    look = looping(tmp_path, clock)
    assert look.look() == 900
    clock.now += 900
    assert pass_time(look, clock, 6000) == 300


def test_the_pilots_own_files_and_links_do_not_count(tmp_path, clock):
    look = looping(tmp_path, clock)
    write(tmp_path / "elsewhere" / "x", START)
    (tmp_path / "link").symlink_to("/proc/self/stat")
    with pytest.raises(PilotError):
        for _ in range(100):
            write(tmp_path / "pilotlog.txt", clock.now)
            clock.now += look.look()


def test_a_file_of_that_name_further_down_is_the_payloads(tmp_path, clock):
    look = looping(tmp_path, clock)
    for _ in range(100):
        write(tmp_path / "sub" / "pilotlog.txt", clock.now)
        clock.now += look.look()


def test_time_in_which_the_machine_was_suspended_does_not_count(tmp_path, clock):
    write(tmp_path / "last.txt", START)
    look = looping(tmp_path, clock)
    pass_time(look, clock, 3600)
    clock.now += 100_000
    pass_time(look, clock, 2000)
    with pytest.raises(PilotError):
        pass_time(look, clock, 3000)


def test_a_file_of_the_future_is_one_of_now(tmp_path, clock):
    look = looping(tmp_path, clock)
    write(tmp_path / "future", START + 1e6)
    with pytest.raises(PilotError):
        pass_time(look, clock, 7200)


@pytest.mark.parametrize("when", [0, 4e9], ids=["years ago", "years ahead"])
def test_a_file_is_written_when_it_changes_whatever_time_an_archive_gives_it(tmp_path, when):
    now = time.time() - 7190
    look = Looping(tmp_path, 7200, 10, clock=lambda: now)
    write(tmp_path / "old", when)
    for step in range(730):
        now += look.look()
        if step == 715:
            write(tmp_path / "new", when)


def test_an_input_that_another_job_shares_is_not_written_by_that(tmp_path):
    clock = Clock()
    clock.now = time.time() - 7190
    look = looping(tmp_path / "job", clock)
    write(tmp_path / "cached", 0)
    (tmp_path / "job").mkdir()
    os.link(tmp_path / "cached", tmp_path / "job/in.root")
    pass_time(look, clock, 3600)
    os.link(tmp_path / "cached", tmp_path / "other")
    with pytest.raises(PilotError, match=r"last one in\.root"):
        pass_time(look, clock, 3600)


def test_a_directory_that_goes_away_while_we_look_is_no_error(tmp_path, clock):
    look = looping(tmp_path / "gone", clock)
    assert look.look() == 900


def test_the_tree_shows_children_under_their_parents():
    shell = subprocess.Popen(["bash", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    child = int(shell.stdout.readline())
    try:
        while not Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep\0"):
            time.sleep(0.01)  # it is still the shell
        parent_line, child_line = process_tree([shell.pid, child]).splitlines()
        assert parent_line.startswith(f"{shell.pid} ") and "bash -c" in parent_line
        assert child_line.startswith(f"  {child} ") and child_line.endswith("sleep 60")
    finally:
        os.kill(child, 9)
        shell.stdout.close()
        shell.wait()


def test_a_debugger_that_is_there_is_asked_for_a_stack(tmp_path, caplog):
    tool = tmp_path / "py-spy"
    tool.write_text('#!/bin/sh\necho "Thread of $3: spin (loop.py:3)"\n')
    tool.chmod(0o755)
    with caplog.at_level("WARNING"):
        log_stacks([os.getpid()], str(tmp_path))
    assert f"stack of pid {os.getpid()} (py-spy):\nThread of {os.getpid()}: spin (loop.py:3)" in caplog.text


def test_no_debugger_or_a_broken_one_is_no_error(tmp_path, caplog):
    tool = tmp_path / "gdb"
    tool.write_text("#!/bin/sh\nexit 1\n")
    tool.chmod(0o755)
    with caplog.at_level("WARNING"):
        log_stacks([os.getpid(), 2**22 + 1], str(tmp_path))
    assert "stack of" not in caplog.text
    assert "processes of the payload:" in caplog.text
