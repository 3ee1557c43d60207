"""Commands of debug mode: what they show, and what they do not."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilot.debugcommands import LIMIT, Place, answer, is_command
from pilot.masking import Masker


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    workdir = tmp_path / "job"
    (workdir / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "token").write_text("outside text\n")
    (workdir / "link").symlink_to(tmp_path / "outside")
    (workdir / "token").symlink_to(tmp_path / "outside" / "token")
    for age, (name, text) in enumerate(
        [("binary.root", "a\0b"), ("journal.jsonl", "own"), ("sub/log.new", "new\n"), ("log.old", "old\n")]
    ):
        (workdir / name).write_text(text)
        os.utime(workdir / name, (time.time() - 10 * age,) * 2)
    (workdir / "panda_secrets.json").write_text("secret")
    return workdir


@pytest.fixture
def show(workdir: Path) -> Callable[..., str]:
    def show(text: str, pids: list[int] | None = None, path: str | None = None) -> str:
        place = Place(
            workdir=workdir,
            pids=lambda: pids or [],
            hidden=("panda_secrets.json",),
            own=("journal.jsonl",),
            path=path or os.environ["PATH"],
        )
        return answer(text, place, Masker(["pass-word-1"]).mask)

    return show


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("text", ["tail", "ls -l", "ps -ef", "du", "gdb --pid 1"])
def test_these_are_commands(text: str) -> None:
    assert is_command(text)


@pytest.mark.parametrize("text", ["", " ", "rm -rf .", "tobekilled", "tailor x", "debug"])
def test_these_are_none(text: str) -> None:
    assert not is_command(text)


def test_tail_shows_the_newest_text_file_that_is_not_the_pilots(show: Callable[..., str]) -> None:
    assert show("tail") == "sub/log.new\nnew\n"


def test_tail_of_a_name_shows_the_newest_match_anywhere_below(show: Callable[..., str], workdir: Path) -> None:
    assert show("tail log.*") == "sub/log.new\nnew\n"
    assert show("tail -n 20 log.old") == "log.old\nold\n"
    assert show("tail sub/log.new") == "sub/log.new\nnew\n"
    assert show("tail journal.jsonl") == "journal.jsonl\nown"
    assert show("tail none") == "tail none: no file none"


def test_an_answer_is_cut_to_what_the_server_takes_and_a_tail_keeps_its_end(
    show: Callable[..., str], workdir: Path
) -> None:
    (workdir / "long.log").write_text("".join(f"line {number}\n" for number in range(10_000)))
    shown = show("tail long.log")
    assert len(shown) <= LIMIT
    assert shown.startswith("long.log\n")
    assert shown.endswith("line 9999\n")
    for number in range(300):
        (workdir / f"file-{number}-with-a-long-name").touch()
    assert len(show("ls -l")) <= LIMIT


def test_secrets_are_masked_and_a_file_of_them_is_not_shown(show: Callable[..., str], workdir: Path) -> None:
    (workdir / "a.log").write_text("login pass-word-1 ok\n")
    assert "pass-word-1" not in show("tail a.log")
    assert "login" in show("tail a.log")
    assert show("tail panda_secrets.json") == "tail panda_secrets.json: no file panda_secrets.json"


@pytest.mark.parametrize(
    "text",
    [
        "tail token",
        "tail link/token",
        "tail ../outside/token",
        "tail /etc/passwd",
        "ls link/",
        "ls ../outside",
        "ls /etc",
        "ls link/token",
        "ls sub/../../outside",
        "du link/",
        "du -L link",
        "ls -L",
        "ls --dereference",
        "ls $(cat token)",
        "ls; cat token",
        "ls `cat token`",
        "du --files0-from=token",
        "du -X token",
    ],
)
def test_nothing_outside_the_job_directory_is_shown(show: Callable[..., str], text: str) -> None:
    shown = show(text).removeprefix(f"{text}: ")
    assert "outside text" not in shown
    assert "passwd" not in shown.replace("/etc/passwd", "")
    assert not shown.startswith("token")


def test_a_directory_that_becomes_a_link_while_we_look_is_not_followed(tmp_path: Path, workdir: Path) -> None:
    def swap() -> list[int]:
        return []

    place = Place(workdir=workdir, pids=swap, path=os.environ["PATH"])
    (workdir / "sub" / "log.new").unlink()
    (workdir / "sub").rmdir()
    (workdir / "sub").symlink_to(tmp_path / "outside")
    shown = answer("ls sub/token", place, str)
    assert shown.startswith("ls sub/token: ")
    assert answer("tail sub/token", place, str) == "tail sub/token: no file sub/token"


def test_ls_and_du_of_places_below(show: Callable[..., str], workdir: Path) -> None:
    assert show("ls").split() == sorted(os.listdir(workdir), key=str.lower) or "log.old" in show("ls")
    assert show("ls sub") == "log.new"
    assert show("ls -1 *.old binary*") == "log.old\nbinary.root"
    assert "log.new" in show("ls -lR .")
    assert show("du -sh sub").endswith(".")
    assert show("ls none") == "ls none: no none"
    assert show("ls -l link").count("->") == 1


def test_a_file_that_is_called_like_an_option_is_a_file(show: Callable[..., str], workdir: Path) -> None:
    (workdir / "--help").touch()
    assert show("ls ?-help") == "--help"


def test_ps_shows_the_processes_of_the_payload_and_no_others(show: Callable[..., str], sleeper: int) -> None:
    shown = show("ps aux", [sleeper])
    assert "sleep 60" in shown
    assert len(shown.splitlines()) == 2
    assert show("ps") == "ps: the payload does not run"


def test_without_a_program_for_it_ps_shows_the_tree(show: Callable[..., str], sleeper: int, tmp_path: Path) -> None:
    assert "sleep 60" in show("ps", [sleeper], str(tmp_path))


def test_gdb_looks_at_the_payload_only_and_does_nothing_else(
    show: Callable[..., str], sleeper: int, tmp_path: Path
) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "gdb").write_text('#!/bin/sh\necho "args: $@"\n')
    (bin_dir / "gdb").chmod(0o755)
    path = f"{bin_dir}:/usr/bin:/bin"
    assert show("gdb --pid 1 -ex 'shell id'", [sleeper], path).endswith("no such process of the payload")
    shown = show(f"gdb --pid {sleeper} -ex 'shell touch {tmp_path}/x'", [sleeper], path)
    assert shown.startswith(f"pid {sleeper} (gdb):\nargs: ")
    assert "shell" not in shown
    assert "thread apply all bt" in show("gdb --pid %", [sleeper], path)
    assert "sleep 60" in show("gdb", [sleeper], str(tmp_path))


def test_a_program_that_hangs_or_does_not_end_is_cut_off(
    show: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.debugcommands._TIMEOUT", 0.3)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, script in (("ls", "exec sleep 60"), ("du", "while :; do echo line; done")):
        (bin_dir / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_dir / name).chmod(0o755)
    began = time.monotonic()
    assert show("ls", path=f"{bin_dir}:/usr/bin:/bin") == ""
    assert show("du", path=f"{bin_dir}:/usr/bin:/bin").startswith("line\nline")
    assert time.monotonic() - began < 5
