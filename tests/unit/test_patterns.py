"""Outputs by pattern, for every experiment; archives of a zip map."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest

from pilot import patterns
from pilot.errors import Code, JobDefinitionError
from pilot.job import File, Job, Kind
from pilot.patterns import check_patterns, expanded
from pilot.zipmap import linked_inputs, make_archives, parse


def job(*lfns: str, zip_map: str = "", inputs: tuple[str, ...] = ()) -> Job:
    outputs = tuple(File(lfn=lfn, kind=Kind.OUTPUT, guid=f"guid-of-{lfn}") for lfn in lfns)
    given = tuple(File(lfn=lfn, kind=Kind.INPUT) for lfn in inputs)
    return Job(job_id=1, outputs=outputs, inputs=given, zip_map=zip_map)


def names(top: Path, *lfns: str, there: str) -> list[str]:
    for name in there.split():
        (top / name).write_text("x")
    return [file.lfn for file in expanded(job(*lfns), top, ("payload.stdout",))]


@pytest.mark.parametrize(
    ("lfns", "there", "found"),
    [
        (["*.root"], "b.root a.root a.root.tmp payload.stdout", ["a.root", "b.root"]),
        (["part-?.dat", "log.txt"], "part-1.dat part-10.dat log.txt", ["part-1.dat", "log.txt"]),
        (["x[12]"], "x1 x2 x3", ["x1", "x2"]),
        (["x[1]"], "x1 x[1]", ["x[1]"]),
        (["*"], "payload.stdout a", ["a"]),
        (["*.none"], "a", ["*.none"]),
        ([r"regex|^DST_\d+"], "DST_1.root xDST_2", ["DST_1.root"]),
        (["plain"], "", ["plain"]),
    ],
)
def test_a_pattern_stands_for_the_files_that_match(
    tmp_path: Path, lfns: list[str], there: str, found: list[str]
) -> None:
    assert names(tmp_path, *lfns, there=there) == found


def test_each_file_of_a_pattern_has_a_guid_of_its_own_the_same_each_time(tmp_path: Path) -> None:
    names(tmp_path, there="a.x b.x")
    first, second = (expanded(job("*.x"), tmp_path, ()) for _ in range(2))
    assert first == second
    assert len({file.guid for file in first}) == 2
    (tmp_path / "a.x").unlink()  # it may have left early
    assert expanded(job("*.x"), tmp_path, ()) == first[1:]


@pytest.mark.parametrize("lfn", ["regex|a(", "regex|a{99999999999}"])
def test_an_expression_that_is_none_is_refused_and_the_log_that_asks_again_is_told_the_same(
    tmp_path: Path, lfn: str
) -> None:
    for ask in (lambda: check_patterns(job(lfn)), lambda: expanded(job(lfn), tmp_path, ())):
        with pytest.raises(JobDefinitionError) as caught:
            ask()
        assert caught.value.code is Code.BADOUTPUTFILENAME


def test_an_archive_that_the_payload_did_not_make_is_made_and_can_be_read(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"input")
    (tmp_path / "in").symlink_to(target)
    for name in ("a.root", "b.root"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    wanted = job(
        "all.zip", "done.zip", zip_map="all.zip:a.root,b.root,in done.zip:a.root other.zip:a.root", inputs=("in",)
    )
    (tmp_path / "done.zip").write_text("the payload's")
    assert make_archives(wanted, tmp_path, links=linked_inputs(wanted, tmp_path)) == ["all.zip"]
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a.root", "b.root", "in"]
        assert archive.read("b.root") == b"b.root" * 1000
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert (tmp_path / "done.zip").read_text() == "the payload's"
    assert not list(tmp_path.glob("*.partial"))
    assert not (tmp_path / "other.zip").exists()


@pytest.mark.parametrize("name", ["missing", "../out", "link", "/etc/hostname"])
def test_an_archive_holds_nothing_but_files_of_the_job_directory(tmp_path: Path, name: str) -> None:
    top = tmp_path / "job"
    top.mkdir()
    (tmp_path / "out").write_text("not the job's")
    (top / "link").symlink_to("/etc/hostname")
    assert make_archives(job("all.zip", zip_map=f"all.zip:{name}"), top) == []


def test_a_zip_map_is_read_as_the_server_reads_it() -> None:
    assert parse("z.zip:a,b y.zip:c nonsense") == {"z.zip": ["a", "b"], "y.zip": ["c"]}
    assert parse("") == {}


def test_a_pattern_that_takes_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_TIME", 0.1)
    (tmp_path / ("a" * 60 + "b")).touch()
    started = time.monotonic()
    with pytest.raises(JobDefinitionError, match="take too long") as caught:
        expanded(job("regex|^(a+)+$"), tmp_path, ())
    assert caught.value.code is Code.BADOUTPUTFILENAME
    assert time.monotonic() - started < 5
