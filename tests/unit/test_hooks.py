"""Programs of a site around the phases of a job: found, fed, heard, ended, and never anybody else's."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from pilot.errors import Code, PilotError
from pilot.hooks import PHASES, Hooks, JobHooks, find_hooks
from pilot.processes import Processes, children, is_zombie
from pilot.stop import Stop

JOB = {"job_id": 17, "queue": "Q"}


@pytest.fixture(scope="module")
def processes():
    return Processes()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "hooks" / "pre-stagein.d").mkdir(parents=True)
    return tmp_path


def hook(place: Path, name: str, text: str, phase: str = "pre-stagein", mode: int = 0o755) -> Path:
    path = place / "hooks" / f"{phase}.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(mode)
    return path


def run(place: Path, processes: Processes, phase: str = "pre-stagein", timeout: float = 5.0) -> JobHooks:
    async def main():
        environ = {"PATH": os.environ["PATH"]}
        hooks = Hooks(directory=str(place / "hooks"), timeout=timeout, processes=processes, environ=environ)
        of_job = JobHooks(hooks=hooks, workdir=place / "work")
        try:
            await of_job.run(phase, JOB, Stop())
        finally:
            processes.reap()
        return of_job

    return asyncio.run(main())


def test_they_run_by_name_with_the_job_on_stdin_and_no_shell(place, processes):
    hook(place, "20-second", 'echo "second $# $PILOT_PHASE $PILOT_JOB_ID $PWD" >> seen')
    hook(place, "10-first", 'echo first >> seen; cat > job.json; echo "[$(env | grep -c SECRET)]" >> seen')
    hook(place, "30-other-phase", "echo never >> seen", phase="end")
    run(place, processes)
    work = place / "work"
    assert (work / "seen").read_text() == f"first\n[0]\nsecond 0 pre-stagein 17 {work}\n"
    assert json.loads((work / "job.json").read_text()) == {**JOB, "phase": "pre-stagein"}


def test_a_single_executable_is_a_hook_too(place, processes):
    path = place / "hooks" / "end"
    path.write_text("#!/bin/sh\ntouch ended\n")
    path.chmod(0o755)
    run(place, processes, "end")
    assert (place / "work" / "ended").exists()


@pytest.mark.parametrize("more", ["", "echo some words first; "])
def test_what_it_answers_is_kept(place, processes, more):
    answer = {"environment": {"SITE_CACHE": "http://x", "PandaID": "1", "a b": "c"}, "metrics": {"disk": 7}}
    hook(place, "10-answer", f"{more}echo '{json.dumps(answer)}'")
    found = run(place, processes)
    assert (found.environment, found.metrics) == ({"SITE_CACHE": "http://x"}, {"disk": "7"})


@pytest.mark.parametrize(
    ("text", "phase", "code", "words"),
    [
        ("exit 3", "pre-stagein", 1110, "hook 10-it of pre-stagein: exit status 3"),
        ("echo no license >&2; exit 1", "pre-payload", 1110, "exit status 1: no license"),
        ("echo x >&2; exit 1", "post-payload", 1357, "exit status 1: x"),
        ("""echo '{"code": 1098, "message": "full"}'; exit 1""", "pre-stagein", 1098, "exit status 1: full"),
        ("""echo '{"code": 1377, "message": "no /cvmfs"}'""", "start", 1377, "no /cvmfs"),
        ("""echo '{"code": "odd"}'""", "start", 1110, "exit status 0"),
        ("kill -9 $$", "end", 1357, "killed by signal 9"),
        ("echo '[1]'; exit 2", "end", 1357, "exit status 2"),
        ("head -c 200000 /dev/urandom; head -c 200000 /dev/urandom >&2; exit 2", "end", 1357, "exit status 2"),
    ],
)
def test_one_that_fails_fails_the_job_with_its_own_words(place, processes, text, phase, code, words):
    hook(place, "10-it", text, phase=phase)
    hook(place, "20-next", "touch next", phase=phase)
    with pytest.raises(PilotError) as caught:
        run(place, processes, phase)
    assert caught.value.code == code
    assert words in caught.value.diag
    assert not (place / "work" / "next").exists()


def test_its_time_is_limited_and_nothing_of_it_is_left(place, processes):
    hook(place, "10-slow", "trap '' TERM; sleep 600 & echo $! > child; sleep 600; sleep 600")
    started = time.monotonic()
    with pytest.raises(PilotError) as caught:
        run(place, processes, timeout=0.3)
    assert caught.value.code is Code.COMMANDTIMEDOUT
    assert "it was ended after 0.3 s" in caught.value.diag
    assert time.monotonic() - started < 4
    child = int((place / "work" / "child").read_text())
    while not is_zombie(child):  # it was killed
        assert time.monotonic() - started < 10
        time.sleep(0.01)


def test_a_child_that_holds_its_output_keeps_nobody_waiting_and_is_ended(place, processes):
    hook(place, "10-daemon", "sleep 600 & echo '{}'")
    before = set(children())
    run(place, processes)
    end = time.monotonic() + 5
    while set(children()) - before and time.monotonic() < end:
        processes.reap()
        time.sleep(0.01)
    assert set(children()) - before == set()


def test_a_stop_ends_it_at_once(place, processes):
    hook(place, "10-slow", "touch begun; exec sleep 600")

    async def main():
        stop = Stop()
        hooks = Hooks(
            directory=str(place / "hooks"), timeout=60, processes=processes, environ={"PATH": "/bin:/usr/bin"}
        )
        running = asyncio.create_task(JobHooks(hooks=hooks, workdir=place / "work").run("pre-stagein", JOB, stop))
        while not (place / "work" / "begun").exists():
            await asyncio.sleep(0.01)
        stop.request(PilotError(Code.SIGTERM))
        started = time.monotonic()
        with pytest.raises(PilotError) as caught:
            await running
        return caught.value.code, time.monotonic() - started

    code, seconds = asyncio.run(main())
    assert code is Code.SIGTERM
    assert seconds < 0.9


def test_files_that_others_could_have_written_are_not_run(place, caplog):
    good = hook(place, "50-good", "true")
    hook(place, "10-open", "true", mode=0o757)
    hook(place, "20-plain", "true", mode=0o644)
    hook(place, "30-copy~", "true")
    hook(place, ".hidden", "true")
    (place / "hooks" / "pre-stagein.d" / "40-folder").mkdir()
    os.symlink(place / "hooks" / "pre-stagein.d" / "10-open", place / "hooks" / "pre-stagein.d" / "60-link")
    os.symlink("/nonexistent", place / "hooks" / "pre-stagein.d" / "70-broken")
    if os.geteuid() == 0:
        os.chown(hook(place, "80-strangers", "true"), 4711, 4711)
    assert find_hooks(str(place / "hooks"), "pre-stagein") == [good]
    assert "everybody may write" in caplog.text
    (place / "hooks").chmod(0o777)
    assert find_hooks(str(place / "hooks"), "pre-stagein") == []


def test_no_directory_means_no_hooks(tmp_path, caplog):
    assert [find_hooks(where, phase) for phase in PHASES for where in ("", str(tmp_path / "none"))] == [[]] * 16
    assert caplog.text.count("there are no hooks: ") == 1


def test_one_without_its_interpreter_is_told(place, processes):
    hook(place, "10-odd", "").write_text("#!/no/such/interpreter\n")
    with pytest.raises(PilotError, match="hook 10-odd of pre-stagein: it cannot be run: No such file"):
        run(place, processes)
