"""What is in the log archive, what must never be, and that nothing the payload does can break it."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.errors import Code, PilotError
from pilot.logarchive import ArchiveResult, archive_folder, make_log_archive
from pilot.masking import HOLD, Masker

TOKEN = "Zk3-q9_aLpQw81xTrY6m"
FOLDER = "tarball_PandaJob_4711_BNL_PROD"
CORE = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x04\x00" + bytes(100)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    directory = tmp_path / "main" / "PanDA_Pilot-4711"
    directory.mkdir(parents=True)
    (directory / "payload.stdout").write_text("hello\n")
    return directory


@pytest.fixture
def pack(job: Path, tmp_path: Path) -> Callable[..., ArchiveResult]:
    def make(**options: Any) -> ArchiveResult:
        options = {"target": tmp_path / "log.tgz", "folder": FOLDER, "masker": Masker([TOKEN])} | options
        return make_log_archive(job, options.pop("target"), **options)

    return make


def contents(result: ArchiveResult) -> dict[str, bytes]:
    """Regular files by their path below the folder."""
    with tarfile.open(result.path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
        assert all(name.startswith(f"{FOLDER}/") for name in files)
        return {name.removeprefix(f"{FOLDER}/"): file.read() for name, file in files.items() if file}


def reasons(result: ArchiveResult) -> dict[str, str]:
    lines = contents(result).get("_missing.txt", b"").decode().splitlines()
    assert lines == list(result.missing)
    return dict(line.split(": ", 1) for line in lines)


def test_the_folder_has_the_name_that_log_viewers_look_for() -> None:
    assert archive_folder(4711, "BNL_PROD") == "tarball_PandaJob_4711_BNL_PROD"
    assert archive_folder(1, "A/../B") == "tarball_PandaJob_1_A_.._B"


def test_the_archive_is_a_gzipped_tar_of_the_job_directory(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "sub" / "deep").mkdir(parents=True)
    (job / "sub" / "deep" / "a.log").write_bytes(b"x" * 1000)
    (job / "empty").touch()
    result = pack()
    assert contents(result) == {"payload.stdout": b"hello\n", "empty": b"", "sub/deep/a.log": b"x" * 1000}
    with tarfile.open(result.path) as tar:
        assert tar.getnames() == [
            FOLDER,
            *(f"{FOLDER}/{n}" for n in ("empty", "payload.stdout", "sub", "sub/deep", "sub/deep/a.log")),
        ]
        assert result.members == len(tar.getnames())
    assert subprocess.run(["tar", "tzf", result.path], capture_output=True, check=True).stderr == b""
    assert len(gzip.decompress(result.path.read_bytes())) % 10240 == 0
    assert result.missing == ()


def test_size_and_checksums_are_those_of_the_file(pack: Callable[..., ArchiveResult]) -> None:
    result = pack()
    data = result.path.read_bytes()
    assert result.size == len(data)
    assert result.checksums == {"adler32": f"{zlib.adler32(data):08x}", "md5": hashlib.md5(data).hexdigest()}


def test_the_same_directory_gives_the_same_bytes(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    for name in "cab":
        (job / name).write_text(name)
    first = pack().path.read_bytes()
    assert first[4:8] == bytes(4)  # the time in the header of gzip
    assert pack().path.read_bytes() == first


def test_users_and_set_id_bits_are_left_out_and_times_kept(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "payload.stdout").chmod(0o6711)
    os.utime(job / "payload.stdout", (1_700_000_000, 1_700_000_000.9))
    with tarfile.open(pack().path) as tar:
        member = tar.getmember(f"{FOLDER}/payload.stdout")
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
    assert (member.mode, member.mtime) == (0o711, 1_700_000_000)


def test_inputs_outputs_secrets_and_the_archive_itself_are_left_out(
    job: Path, pack: Callable[..., ArchiveResult]
) -> None:
    for name in ("in.root", "out.root", "panda_secrets.json", "log.tgz", "log.tgz.partial", "sub/x"):
        (job / name).parent.mkdir(exist_ok=True)
        (job / name).write_text("unwanted")
    (job / "copy.root").symlink_to("out.root")
    (job / "peek").symlink_to("panda_secrets.json")
    result = pack(target=job / "log.tgz", exclude=["in.root", job / "out.root", "sub"])
    assert set(contents(result)) == {"payload.stdout", "_missing.txt"}
    assert set(reasons(result)) == {"copy.root", "peek"}


def test_redundant_files_are_left_out_and_work_directories_kept(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    for name in (
        "a.py", "sub/a.py", "sub/b.pyc", "sub/__pycache__/x", "x.partial", "tmp1", "jobReport.tmp", "src/x", "src/y/z",
        "workDir/x", "a+b", "cores/x", "sub/x.root",
    ):  # fmt: skip
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        (job / name).touch()
    redundant = ["*.py", "tmp*", "*.tmp", "src/*", "a+b", "/cores", "**/*.root"]
    kept = set(contents(pack(redundant=redundant, keep=["jobReport"])))
    assert kept == {"payload.stdout", "sub/a.py", "jobReport.tmp", "workDir/x"}


def test_core_dumps_are_left_out_unless_debugging(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "core.123").write_bytes(CORE)
    (job / "core").write_text("the core of the matter")
    (job / "short").write_bytes(b"\x7fELF")
    result = pack()
    assert set(contents(result)) == {"payload.stdout", "core", "short", "_missing.txt"}
    assert reasons(result) == {"core.123": f"core dump of {len(CORE)} bytes"}
    assert contents(pack(debug=True))["core.123"] == CORE


def test_links_are_followed_inside_only(job: Path, tmp_path: Path, pack: Callable[..., ArchiveResult]) -> None:
    (tmp_path / "proxy").write_text("outside")
    (tmp_path / "main" / "PanDA_Pilot-47110").mkdir()
    (tmp_path / "main" / "PanDA_Pilot-47110" / "x").write_text("outside")
    (job / "dir").mkdir()
    (job / "dir" / "real").write_text("inside")
    links = {
        "relative": "dir/real", "absolute": job / "dir" / "real", "chain": "relative", "todir": "dir", "self": ".",
        "out": tmp_path / "proxy", "up": "../../proxy", "next": "../PanDA_Pilot-47110/x", "outdir": tmp_path,
        "throughdir": "outdir/proxy", "broken": "nothing", "loop": "loop", "device": "/dev/zero",
    }  # fmt: skip
    for name, target in links.items():
        (job / name).symlink_to(target)
    (job / "dir" / "back").symlink_to(job)
    result = pack()
    assert {name for name, data in contents(result).items() if data == b"inside"} == {
        "relative",
        "absolute",
        "chain",
        "dir/real",
    }
    assert b"outside" not in b"".join(contents(result).values())
    assert set(reasons(result)) == {"out", "up", "next", "outdir", "throughdir"}
    with tarfile.open(result.path) as tar:
        assert {member.name: member.linkname for member in tar if member.issym()} == {
            f"{FOLDER}/todir": "dir", f"{FOLDER}/self": ".", f"{FOLDER}/dir/back": "..",
        }  # fmt: skip


def test_the_archive_can_be_extracted_with_the_safest_filter(
    job: Path, tmp_path: Path, pack: Callable[..., ArchiveResult]
) -> None:
    (job / "abs").symlink_to("/etc")
    (job / "todir").symlink_to("locked")
    (job / "locked").mkdir()
    (job / "locked" / "x").write_text("x")
    (job / "locked").chmod(0o111 | 0o400)
    with tarfile.open(pack().path) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out" / FOLDER / "todir" / "x").read_text() == "x"


def test_pipes_sockets_and_devices_are_left_out_and_do_not_block(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    os.mkfifo(job / "pipe")
    (job / "topipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(job)  # the path of a socket is short
        unix.bind("socket")
        os.chdir(here)
        assert set(contents(pack())) == {"payload.stdout"}


def test_names_of_any_kind_are_kept(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    names = ["x" * 255, "new\nline", "b\udcff", "é€", " ", "-rf", "a\\b", "*"]
    deep = "/".join(["d" * 200] * 8)
    (job / deep).mkdir(parents=True)
    for name in [*names, f"{deep}/f"]:
        (job / name).write_text(name.encode("utf-8", "replace").decode())
    assert set(contents(pack())) == {"payload.stdout", f"{deep}/f", *names}


def test_what_cannot_be_read_is_listed_and_not_fatal(
    job: Path, pack: Callable[..., ArchiveResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    (job / "locked").write_text("x")
    real = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if str(path) == "locked":  # the tests may run as root, whom no mode stops
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    result = pack()
    assert reasons(result) == {"locked": "Permission denied"}
    assert "payload.stdout" in contents(result)


def test_a_tree_deeper_than_any_path_is_packed_as_far_as_it_can_be_named(
    job: Path, pack: Callable[..., ArchiveResult]
) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(job)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    os.fchdir(here)
    os.close(here)
    result = pack()
    assert "payload.stdout" in contents(result)
    assert list(reasons(result).values()) == ["File name too long"]
    subprocess.run(["rm", "-rf", "d" * 200], cwd=job, check=True)


def test_secrets_are_covered_in_text_and_known_ones_in_binary_files(
    job: Path, pack: Callable[..., ArchiveResult]
) -> None:
    text = f"a {TOKEN} password=hunter2\n"
    (job / "text").write_text(text)
    (job / "binary").write_bytes(b"\0" + text.encode())
    found = contents(pack())
    assert found["text"] == b"a " + b"*" * len(TOKEN) + b" password=*******\n"
    assert found["binary"] == b"\0a " + b"*" * len(TOKEN) + b" password=hunter2\n"


def test_a_secret_is_covered_wherever_the_blocks_end(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    block = 256 << 10
    for number, shift in enumerate(range(0, len(TOKEN) + 1, 5)):
        (job / f"lines{number}").write_bytes(b"x\n" * ((block - shift) // 2) + TOKEN.encode() + b"\nend")
        (job / f"oneline{number}").write_bytes(b"x" * (block - shift) + TOKEN.encode() + b"x" * block + b"end")
    found = contents(pack())
    for name, data in found.items():
        assert TOKEN.encode() not in data
        assert len(data) == (job / name).stat().st_size
        assert name == "payload.stdout" or (data.endswith(b"end") and b"*" * len(TOKEN) in data)


def test_of_a_file_over_the_limit_head_and_tail_are_kept(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    lines = [b"line %07d\n" % number for number in range(100_000)]
    (job / "big").write_bytes(b"".join(lines))
    found = contents(pack(file_limit=100_000))["big"]
    assert len(found) < 100_100
    assert found.startswith(b"line 0000000\n")
    assert found.endswith(b"line 0099999\n")
    assert b"--- left out here by the pilot: 1200000 bytes of 1300000 ---" in found


@pytest.mark.parametrize("shift", range(-2, len(TOKEN) + 3, 4))
@pytest.mark.parametrize("place", ["head", "tail"])
def test_a_secret_at_the_cut_of_a_big_file_is_covered(
    job: Path, pack: Callable[..., ArchiveResult], shift: int, place: str
) -> None:
    limit, size = 2 * HOLD, 12 * HOLD
    at = limit // 2 - shift if place == "head" else size - limit // 2 - shift
    data = b"." * at + TOKEN.encode() + b"." * (size - at - len(TOKEN))
    (job / "big").write_bytes(data)
    found = contents(pack(file_limit=limit))["big"]
    assert not any(TOKEN[i : i + 2].encode() in found for i in range(len(TOKEN) - 1))
    assert found.count(b"*") == max(0, min(shift if place == "head" else len(TOKEN) - shift, len(TOKEN)))


def test_a_sparse_file_of_a_terabyte_is_cut(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    with (job / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert len(contents(pack(file_limit=1 << 20))["sparse"]) < (1 << 20) + 200


def test_the_pilots_log_is_its_header_and_the_jobs_part(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    log = job.parent / "pilotlog.txt"
    header, other, mine = "header\n", f"other job {TOKEN}\n" * 5000, f"my job {TOKEN}\n"
    log.write_text(header + other + mine)
    (job / "pilotlog.txt").symlink_to(log)
    start = len(header + other)
    found = contents(pack(pilot_log=(log, len(header), start)))
    assert found["pilotlog.txt"].decode() == header + mine.replace(TOKEN, "*" * len(TOKEN))
    first = contents(pack(pilot_log=(log, len(header), len(header))))["pilotlog.txt"]
    assert len(first) == log.stat().st_size
    assert TOKEN.encode() not in first


def test_the_pilots_log_is_not_the_one_the_payload_made(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "pilotlog.txt").write_text("forged")
    (job.parent / "pilotlog.txt").write_text("true\n")
    assert contents(pack(pilot_log=(job.parent / "pilotlog.txt", 0, 0)))["pilotlog.txt"] == b"true\n"
    gone = pack(pilot_log=(job.parent / "gone", 0, 0))
    assert reasons(gone) == {"pilotlog.txt": "No such file or directory"}


def test_files_from_elsewhere_stand_beside_the_others(
    job: Path, tmp_path: Path, pack: Callable[..., ArchiveResult]
) -> None:
    (tmp_path / "gpu_map.json").write_text("{}")
    (job / "gpu_map.json").write_text("the payload's")
    result = pack(extra=[tmp_path / "gpu_map.json", tmp_path / "gone.json"])
    assert contents(result)["gpu_map.json"] == b"{}"
    assert reasons(result) == {"gone.json": "No such file or directory"}


def test_a_file_that_shrinks_is_filled_up(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "a").write_bytes(b"x" * 2_000_000)
    (job / "b").write_bytes(b"after")
    calls = iter(range(1_000_000))

    def check() -> None:
        if next(calls) == 4 and (job / "a").stat().st_size > 1_000_000:
            os.truncate(job / "a", 1_000_000)

    result = pack(check=check)
    found = contents(result)
    assert found["a"].rstrip(b"\0") == b"x" * 1_000_000
    assert (len(found["a"]), found["b"]) == (2_000_000, b"after")
    assert reasons(result) == {"a": "1000000 bytes could not be read, there are zeros instead"}


def test_a_disk_that_fails_in_the_middle_of_a_file_costs_only_its_rest(
    job: Path, pack: Callable[..., ArchiveResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    (job / "a").write_bytes(b"x\n" * 500_000)
    real = os.pread

    def fail(fd: int, count: int, offset: int) -> bytes:
        if offset > 0 and os.fstat(fd).st_size == 1_000_000:
            raise OSError(5, "Input/output error")
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", fail)
    result = pack()
    found = contents(result)
    assert found["a"] == b"x\n" * (128 << 10) + bytes(1_000_000 - (256 << 10))
    assert found["payload.stdout"] == b"hello\n"
    assert result.missing[0] == "a: Input/output error"


def test_a_directory_exchanged_for_a_link_is_not_entered(
    job: Path, tmp_path: Path, pack: Callable[..., ArchiveResult]
) -> None:
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "x").write_text("outside")
    missing: list[str] = []
    for moment in range(12):  # every call of check is a moment at which the payload could do it
        deep = job / f"sub{moment}" / "deep"
        deep.mkdir(parents=True)
        (deep / "x").write_text("inside")
        calls = iter(range(1_000))

        def check(moment: int = moment, sub: Path = deep.parent, calls: Iterator[int] = calls) -> None:
            if next(calls) == moment:
                sub.rename(tmp_path / f"was{moment}")
                sub.symlink_to(tmp_path / "outside")

        result = pack(check=check)
        assert b"outside" not in contents(result).values()
        missing += result.missing
        shutil.rmtree(tmp_path / f"was{moment}")
        deep.parent.unlink()
    assert any(line.endswith("/deep: moved while the log was made") for line in missing)


def test_a_payload_that_goes_on_writing_cannot_break_the_archive(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    done = threading.Event()

    def write() -> None:
        dice = random.Random(1)
        while not done.is_set():
            path = job / f"f{dice.randrange(20)}"
            try:
                match dice.randrange(6):
                    case 0:
                        path.unlink()
                    case 1:
                        os.truncate(path, dice.randrange(200_000))
                    case 2:
                        path.mkdir()
                        path.rmdir()
                    case 3:
                        path.symlink_to(f"f{dice.randrange(20)}")
                    case _:
                        with path.open("ab") as file:
                            file.write(b"y" * dice.randrange(100_000))
            except OSError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            assert contents(pack())["payload.stdout"] == b"hello\n"
    finally:
        done.set()
        writer.join()


@pytest.fixture
def unchanged(tmp_path: Path) -> Iterator[None]:
    yield
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main"]


@pytest.mark.usefixtures("unchanged")
def test_what_check_raises_ends_the_work_and_leaves_nothing(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "big").write_bytes(bytes(3_000_000))
    calls = iter(range(1_000_000))

    def check() -> None:
        if next(calls) == 6:
            raise PilotError(Code.LOGCREATIONTIMEOUT)

    with pytest.raises(PilotError) as error:
        pack(check=check)
    assert error.value.code is Code.LOGCREATIONTIMEOUT


@pytest.mark.usefixtures("unchanged")
def test_a_missing_job_directory_is_an_error_with_a_code(job: Path, pack: Callable[..., ArchiveResult]) -> None:
    (job / "payload.stdout").unlink()
    job.rmdir()
    with pytest.raises(PilotError) as error:
        pack()
    assert error.value.code is Code.LOGFILECREATIONFAILURE
    assert "No such file or directory" in error.value.diag


def test_a_disk_that_takes_no_more_is_an_error_with_a_code(job: Path, tmp_path: Path) -> None:
    (job / "noise").write_bytes(random.Random(1).randbytes(2_000_000))
    code = """
import pathlib, resource, sys
from pilot.logarchive import make_log_archive
from pilot.masking import Masker
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # like a full disk
job, target = map(pathlib.Path, sys.argv[1:])
try:
    make_log_archive(job, target, folder="x", masker=Masker())
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", code, job, tmp_path / "log.tgz"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout.startswith(
        "PilotError 1320 LOGFILECREATIONFAILURE: Failed during creation of log file: File too large"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main"]


def test_a_link_put_in_the_place_of_the_archive_is_not_written_through(
    job: Path, tmp_path: Path, pack: Callable[..., ArchiveResult]
) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("log.tgz", "log.tgz.partial"):
        (job / name).symlink_to(tmp_path / "precious")
    result = pack(target=job / "log.tgz")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not result.path.is_symlink()
    assert set(contents(result)) == {"payload.stdout"}


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e", "f/g/h"]), st.binary(max_size=2000)),
    st.integers(600, 3000),
)
def test_whatever_the_files_hold_the_archive_is_whole(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], limit: int
) -> None:
    top = tmp_path_factory.mktemp("t")
    for name, data in files.items():
        (top / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "job" / name).write_bytes(data)
    (top / "job").mkdir(exist_ok=True)
    result = make_log_archive(top / "job", top / "x.tgz", folder=FOLDER, masker=Masker(), file_limit=limit)
    found = contents(result)
    assert set(found) == set(files)
    masker = Masker()
    for name, data in files.items():
        if len(data) <= limit:
            assert found[name] == (data if b"\0" in data else masker.mask_bytes(data, keep_length=True))


def test_an_empty_job_is_packed_in_milliseconds(pack: Callable[..., ArchiveResult]) -> None:
    def seconds() -> float:
        begun = time.perf_counter()
        pack()
        return time.perf_counter() - begun

    assert min(seconds() for _ in range(10)) < 0.02  # about 1 ms; the bound allows for a busy machine
