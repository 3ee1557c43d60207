"""What a payload can plant in its directory to have the pilot open, send or overwrite what the payload may not touch.

The payload is an adversary in a container: the pilot, outside, reads and writes by names that the payload can make
links, pipes, sockets or directories. The doors are tried one by one, then with real pilots. Their runtime is `none`,
which the pilot takes for a container like any other; with podman and apptainer: `test_containers.py`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from copytools._remote import LastMoment
from copytools.mv import _copy_bytes
from pilot.debugcommands import Place, answer
from pilot.earlyout import _listed
from pilot.errors import PilotError
from pilot.experiment import NOTE
from pilot.job import File, Job, Kind
from pilot.journal import read
from pilot.left import followed, regular
from pilot.logarchive import make_log_archive, masked_copy
from pilot.logship.tail import Tail
from pilot.maskfile import MASKS, MaskFile
from pilot.masking import Masker
from pilot.nodemap import NODE_MAP, copy_maps
from pilot.payload.container import SCRIPT, write_file
from pilot.payload.diagnose import ERROR_REPORT, MATCHERS, diagnose
from pilot.payload.process import Ended, tail
from pilot.removal import remove_tree
from pilot.server.report import Report, State
from pilot.staging.checksum import Hasher, file_checksums
from pilot.staging.mover import Mover
from pilot.staging.toolbox import ToolBox
from pilot.undelivered import Note, _encoded, _new
from pilot.watch.meter import Sample, Tally
from pilot.watch.timeline import SUMMARY, TABLE, Timeline
from pilot.zipmap import make_archives
from plugins.experiments._atlas_catalogue import METADATA, read_metadata
from plugins.experiments.atlas import Atlas
from tests.grid import Grid, Scenarios, until
from tests.grid import Job as Done

SECRET = "token-of-the-pilot-93b1"
#: What each reader would take for its own.
TEXT = json.dumps({"error_code": 7, "error_diag": SECRET, "exitCode": 1, "exitMsg": SECRET, "step": SECRET, "time": 1})
XML = f'<x><File ID="a"><logical><lfn name="{SECRET}"/></logical></File></x>'


@contextmanager
def patience(seconds: int = 5) -> Iterator[None]:
    """To open a pipe waits for ever; a signal gets out of that."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it still waits after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plant(path: Path, trick: str, target: Path) -> None:
    """Put something in the place of a file."""
    path.unlink(missing_ok=True)
    if trick == "link":
        path.symlink_to(target)
    elif trick == "way":
        (path.parent / "d").symlink_to(target.parent)
        path.symlink_to(f"d/{target.name}")
    elif trick == "pipe":
        os.mkfifo(path)
    elif trick == "directory":
        path.mkdir()
    elif trick == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 42)


def zipped(top: Path, **more: Any) -> Any:
    """What is in an archive of the file `in`, an input, that the pilot makes."""
    file = File(lfn="in", kind=Kind.INPUT)
    job = Job(job_id=1, inputs=(file,), outputs=(File(lfn="z.zip", kind=Kind.OUTPUT),), zip_map="z.zip:in")
    return [zipfile.ZipFile(top / name).read("in") for name in make_archives(job, top)]


def masked(top: Path) -> str:
    masker = Masker()
    MaskFile(top, masker).read()
    return SECRET if masker.mask(SECRET) != SECRET else ""


def copied(top: Path) -> bytes:
    masked_copy(top / "payload.log", top / "copy", Masker())
    return (top / "copy").read_bytes()


def packed(top: Path) -> bytes:
    import gzip

    return gzip.decompress(make_log_archive(top, top / "log.tgz", folder="x", masker=Masker()).path.read_bytes())


def said(command: str) -> Callable[[Path], str]:
    return lambda top: answer(command, Place(workdir=top, pids=list, path=os.environ["PATH"]), str).split("\n", 1)[-1]


def ended(top: Path) -> Any:
    bad = Ended(exit_code=1, signum=None, stopped=False, seconds=1, cpu_time=1)
    return diagnose(Job(job_id=1), bad, top, trusts_report=True)


def inspected(top: Path) -> bytes:
    """An output of a payload in a container, as the staging engine looks at it and then reads it."""
    tools = ToolBox(options=lambda name: {}, launch_dir=top, settings={}, environ={})
    Mover(tools, ("adler32",)).inspect(File(lfn="out", kind=Kind.OUTPUT), top / "out", top)
    return (top / "out").read_bytes()


#: Names that the pilot reads, and how.
READERS: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    "job report": ("jobReport.json", lambda top: (Atlas().payload_metadata(top), ended(top))),
    "error report": (ERROR_REPORT, ended),
    "matchers": (MATCHERS, ended),
    "stderr": ("payload.stderr", lambda top: (ended(top), tail(top / "payload.stderr"))),
    "metadata.xml": (METADATA, read_metadata),
    "mask file": (MASKS, masked),
    "journal": ("journal.jsonl", lambda top: read(top / "journal.jsonl")),
    "manifest": ("ready", lambda top: _listed(top / "ready")),
    "live log": ("a.log", lambda top: Tail(top / "a.log", Masker().stream(), top=top).read()),
    "debug tail": ("a.log", said("tail a.log")),
    "debug ls": ("a.log", said("ls -l a.log")),
    "debug du": ("a.log", said("du a.log")),
    "plain log": ("payload.log", copied),
    "log archive": ("a.log", packed),
    "zip of an input": ("in", zipped),
    "output": ("out", inspected),
}
#: A file of 4 TiB is all right for those: they read what they must, or are limited where they are called.
_LARGE = ("plain log", "log archive", "zip of an input", "output")


@pytest.mark.parametrize("trick", ["link", "way", "pipe", "socket", "directory", "large"])
@pytest.mark.parametrize("door", READERS)
def test_no_reader_waits_or_gets_what_is_not_the_payloads(tmp_path: Path, door: str, trick: str) -> None:
    if trick == "large" and door in _LARGE:
        pytest.skip("its bytes are wanted")
    top, outside = tmp_path / "job", tmp_path / "home/token"
    top.mkdir()
    outside.parent.mkdir()
    name, look = READERS[door]
    outside.write_text((XML if name == METADATA else SECRET if name == MASKS else TEXT) + "\n")
    (top / "payload.stdout").touch()
    plant(top / name, trick, outside)
    found: Any = ""
    with patience():
        try:
            found = look(top)
        except (OSError, PilotError) as error:
            found = error
    assert SECRET not in repr(found)
    assert outside.read_text().strip() in (TEXT, XML, SECRET)


def test_links_inside_the_job_directory_are_followed_and_so_is_any_without_a_container(tmp_path: Path) -> None:
    (tmp_path / "job/d").mkdir(parents=True)
    (tmp_path / "job/d/f").write_text("inside")
    (tmp_path / "scratch").write_text("outside")
    (tmp_path / "job/a").symlink_to("d/f")
    (tmp_path / "job/b").symlink_to(tmp_path / "scratch")
    alias = tmp_path / "alias"
    alias.symlink_to("job")
    for path, within in ((alias / "a", alias), (alias / "a", tmp_path / "job"), (alias / "b", None)):
        assert followed(path, within) == path.stat()
    with open(alias / "a", opener=regular) as file:
        assert os.get_blocking(file.fileno())


@pytest.mark.parametrize("reads", [
    lambda path: file_checksums(path, ["md5"]),
    lambda path: _copy_bytes(path, path.with_name("copy"), Hasher(["md5"]), LastMoment(), False),
])  # fmt: skip
def test_what_became_a_pipe_after_it_was_looked_at_is_not_waited_for(tmp_path: Path, reads: Any) -> None:
    os.mkfifo(tmp_path / "out")
    with patience(), pytest.raises(OSError, match="not a regular file"):
        reads(tmp_path / "out")


def timeline(top: Path) -> None:
    line, tally = Timeline(top), Tally()
    line.add(Sample(seconds=1.0, processes=1))
    tally.add(Sample(seconds=1.0, processes=1))
    line.close(tally)


def maps(top: Path) -> None:
    (top.parent / NODE_MAP).write_text("{}")
    copy_maps(top.parent, top)


#: Names that the pilot writes while a payload may have made them something else, and how.
WRITERS: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    "time line": (TABLE, timeline),
    "summary": (SUMMARY, timeline),
    "node map": (NODE_MAP, maps),
    "script": (SCRIPT, lambda top: write_file(top / SCRIPT, "x", 0o755)),
    "script, before": (f".{SCRIPT}.new", lambda top: write_file(top / SCRIPT, "x", 0o755)),
    "log": ("log.tgz", packed),
    "log, before": ("log.tgz.partial", packed),
    "archive": ("z.zip", zipped),
    "archive, before": ("z.zip.partial", zipped),
    "note": (NOTE, lambda top: _new(top / NOTE, "x").close()),
}


@pytest.mark.parametrize("trick", ["link", "dangling", "pipe"])
@pytest.mark.parametrize("door", WRITERS)
def test_no_writer_writes_through_what_is_planted(tmp_path: Path, door: str, trick: str) -> None:
    top, outside = tmp_path / "job", tmp_path / "precious"
    top.mkdir()
    (top / "in").write_text("x")
    name, write = WRITERS[door]
    if trick != "dangling":
        outside.write_text("mine")
    plant(top / name, trick.replace("dangling", "link"), outside)
    with patience():
        write(top)
    assert not outside.exists() if trick == "dangling" else outside.read_text() == "mine"


def dig(top: Path, depth: int) -> None:
    """Directories in directories, deeper than a path may be long."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        above, here = here, os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)


def test_a_directory_is_removed_to_its_bottom_without_a_look_behind_its_links(tmp_path: Path) -> None:
    (tmp_path / "home/private").mkdir(parents=True)
    (tmp_path / "home/private").chmod(0o750)
    (tmp_path / "job/closed/below").mkdir(parents=True)
    (tmp_path / "job/link").symlink_to(tmp_path / "home")
    (tmp_path / "job/closed").chmod(0)
    dig(tmp_path / "job", 3000)
    (tmp_path / "service").symlink_to(tmp_path / "home")
    for name in ("job", "service"):
        remove_tree(tmp_path / name)
        assert not os.path.lexists(tmp_path / name)
    assert (tmp_path / "home/private").stat().st_mode & 0o777 == 0o750


# ------------------------------------------------------------------------------------------------------- real pilots

scenario = Scenarios()


class Case:
    """A grid with a secret of the pilot's user beside it."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.secret = grid.top / "home/token"
        self.secret.parent.mkdir()
        self.secret.write_text(SECRET)
        self.queue()

    def queue(self, **fields: Any) -> None:
        self.grid.queue("Q", container_type="none:pilot", **fields)

    def submit(self, command: str, *outputs: str, **fields: Any) -> int:
        fields = {"container_name": "any", **fields}
        return self.grid.submit(self.grid.job(command.format(secret=self.secret), outputs=outputs, **fields))[0]

    def run(self, *jobs: int) -> list[Done]:
        pilot = self.grid.pilot()
        assert pilot.wait(40) == 0, pilot.text
        return [self.grid.job_of(job) for job in jobs]

    def leaks(self) -> list[Path]:
        """Files in the storage with the secret in them."""
        found = [path for path in self.grid.storage.rglob("*") if path.is_file()]
        return [path for path in found if SECRET.encode() in path.read_bytes()]


@scenario
def an_output_of_a_container_is_no_link_to_what_is_outside(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        jobs = case.run(
            case.submit("ln -s {secret} a", "a"),
            case.submit("ln -s $(dirname {secret}) d; ln -s d/token b", "b"),
            case.submit("ln -s /proc/self/environ c", "c"),
            case.submit("ln -s {secret} pat1", "regex|pat.*"),
            case.submit("mkfifo e", "e"),
        )
        for job, words in zip(jobs, [*["out of the job directory, to /"] * 4, "not a regular file"], strict=True):
            assert (job.state, job.code) == ("failed", 1165), job.diag
            assert words in job.diag
        assert str(case.secret) in jobs[0].diag
        assert "must leave the file itself in the job directory" in jobs[0].diag
        assert case.leaks() == []


@scenario
def links_inside_or_of_ours_and_without_a_container_to_anywhere_are_good(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        inside, scratch, zipped = case.run(
            case.submit("mkdir d; echo x > d/f; ln -s $PWD/d/f a", "a"),
            case.submit("ln -s {secret} b", "b", container_name=""),
            case.submit("test -L in <ZIP_MAP>z.zip:in</ZIP_MAP>", "z.zip", inputs={"in": b"x"}),
        )
        assert [job.diag for job in (inside, scratch, zipped) if job.state != "finished"] == []
        assert (inside.path("a").read_text(), scratch.path("b").read_text()) == ("x\n", SECRET)


@scenario
def what_is_planted_beside_the_outputs_neither_holds_up_the_job_nor_is_read_or_written(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        names = f"payload.stdout payload.log delivery.json .nocleanup {TABLE} {SUMMARY} workernode_map.json log.txt in"
        command = (
            f"rm -f in; for x in {names}; do ln -sfn {{secret}} $x; done; ln -s $(dirname {{secret}}) dir"
            "; for x in jobReport.json payload_error_report.json problem_matchers.json metadata.xml pilot_masks.txt"
            "; do mkfifo $x; done; ln -sf {secret} payload.stderr; exit 3"
        )
        (job,) = case.run(case.submit(command, inputs={"in": b"x"}))
        assert (job.state, job.code) == ("failed", 1305), job.diag
        assert case.leaks() == []
        assert SECRET not in json.dumps(job.known)
        assert SECRET.encode() not in b"".join(job.log().values())
        assert case.secret.read_text() == SECRET
        assert grid.main_dirs() == []


@scenario
def an_output_that_becomes_a_link_while_it_moves_is_sent_as_it_was(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        gate = top / "gate"
        gate.mkdir()
        room = {"pilot_free_space_limit": 0, "pilot_free_space_limit_running": 0}
        early = {"pilot_early_stageout": "closed", "pilot_early_quiet": 0.1}
        tools = {"copytools": {"gate": {"directory": str(gate)}}, "acopytools": {"w": ["gate"], "write_lan": ["gate"]}}
        case.queue(params=room | early, **tools)
        until_put = f"while [ ! -e {gate}/put-a ]; do sleep 0.02; done"
        job_id = case.submit(f"echo good > a; {until_put}; ln -sf {{secret}} a; touch {gate}/open; sleep 1", "a")
        (job,) = case.run(job_id)
        assert job.state == "finished", job.diag
        assert job.path("a").read_text() == "good\n"
        assert case.leaks() == []


@scenario
def a_note_that_a_payload_forged_is_nobodys_to_deliver(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        (other,) = grid.submit(grid.job(queue=grid.queue("OTHER")))
        report = Report(job_id=other, attempt=1, state=State.FINISHED, node="n", queue="Q")
        file = File(lfn="a", kind=Kind.OUTPUT, scope="test.scope", endpoint="TEST_DISK")
        forged = top / "forged.json"
        forged.write_text(_encoded(Note(job=Job(job_id=other, attempt=1), files=(file,), report=report, queue="Q")))
        plant_it = f"cp {forged} delivery.json; ln -s {{secret}} a; mkdir PanDA_Pilot-1; cp -P * PanDA_Pilot-1"
        stay = f"for i in $(seq 300); do [ -e {top}/over ] && break; sleep 0.1; done"  # its pilot is killed
        case.submit(f"{plant_it}; touch up {top}/up; {stay}")
        pilot = grid.pilot()
        until((top / "up").exists)
        for _ in range(2):  # of a pilot that lives, and of one that was killed
            delivers = grid.pilot(str(grid.work), command=(sys.executable, "-m", "pilot.cli.main", "deliver"))
            assert delivers.wait() == 0, delivers.text
            assert list(grid.work.glob("*/PanDA_Pilot-*/up"))
            pilot.close()
        (top / "over").touch()
        assert grid.job_of(other).states == []
        assert case.leaks() == []


@scenario
def what_runs_outside_after_a_payload_is_not_what_the_payload_makes_of_it(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        (grid.files / "post.sh").write_text("#!/bin/bash\necho mine\n")
        replace = "printf '#!/bin/bash\\ncat {secret}\\n' > post.sh; chmod +x post.sh"
        (job,) = case.run(case.submit(replace, postprocess={"command": f"file://{grid.files}/post.sh", "args": ""}))
        assert job.state == "finished", job.diag
        assert job.log()["postprocess_stdout.txt"] == b"mine\n"


@scenario
def to_keep_a_directory_makes_no_file_elsewhere(top: Path) -> None:
    with Grid(top) as grid:
        case = Case(grid)
        job_id = case.submit(
            f"ln -s {top}/made .nocleanup; touch {top}/up; while [ ! -e {top}/go ]; do sleep 0.1; done"
        )
        pilot = grid.pilot("--heartbeat", "1")
        until((top / "up").exists)
        grid.server.command(job_id, "nocleanup")
        pilot.says("the job directory will be kept", 40)
        (top / "go").touch()
        assert pilot.wait() == 0, pilot.text
        assert not (top / "made").exists()


running = scenario.fixture()
test_scenario = scenario.test()
