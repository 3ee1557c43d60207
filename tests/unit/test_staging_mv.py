"""Copy tool `mv` beyond conformance: modes, paths, ARC's output.list, full disks, and what may never be lost."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from copytools import mv
from copytools.mv import BLOCK, Mv, local_path
from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.checksum import Hasher
from pilot.staging.copytool import ToolContext, Transfer
from pilot.testing.copytool import WatchfulHandle, checksums, content

DATA = content(300_000)


def tool(launch_dir: Path = Path(), stagein: str = "copy", stageout: str = "copy", **more) -> Mv:
    return Mv(ToolContext(launch_dir=launch_dir, settings={"mv_stagein": stagein, "mv_stageout": stageout, **more}))


def incoming(url: object, path: Path, **facts) -> Transfer:
    return Transfer(file=File(lfn=path.name, kind=Kind.INPUT), url=str(url), path=path, **facts)


def outgoing(path: Path, url: object, lfn: str = "", endpoint: str = "", **facts) -> Transfer:
    file = File(lfn=lfn or path.name, kind=Kind.OUTPUT, endpoint=endpoint)
    facts = {"checksums": checksums(path.read_bytes()), "size": path.stat().st_size, **facts}
    return Transfer(file=file, url=str(url), path=path, **facts)


def made(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def failure(act) -> PilotError:
    with pytest.raises(PilotError) as caught:
        act()
    return caught.value


def other_device(monkeypatch) -> None:
    """Make every move or link fail as between two file systems."""

    def refuse(*args, **kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: real(path, to) if ".partial" in path.name else refuse())


# -------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("/a/b", "/a/b"),
        ("a/b", "a/b"),
        ("file:///a%20b/%25%23%3F", "/a b/%#?"),
        ("file:///a?b#c", "/a?b#c"),
        ("/a%20b", "/a%20b"),
        ("file:///%C3%A4", "/ä"),
        ("file:///%E4", "/\udce4"),
    ],
)
def test_urls_and_bare_paths_are_understood(url, path):
    assert local_path(url) == Path(path)


@pytest.mark.parametrize("url", ["file://other.host/a", "file:///a%00b", "", "a\0b"])
def test_what_is_no_local_file_is_refused(url):
    assert isinstance(failure(lambda: local_path(url)), TransferError)


def test_an_unknown_mode_is_refused():
    assert failure(lambda: tool(stagein="teleport")).code is Code.BADQUEUECONFIGURATION


# -------------------------------------------------------------------------------------------------------------- modes


def test_without_settings_inputs_are_linked_and_outputs_moved(tmp_path):
    plain = Mv(ToolContext())
    plain.get(incoming(made(tmp_path / "s" / "f"), tmp_path / "in"), WatchfulHandle())
    assert (tmp_path / "in").is_symlink()
    assert not plain.fills_disk()
    plain.put(outgoing(made(tmp_path / "out"), tmp_path / "d" / "out"), WatchfulHandle())
    assert not (tmp_path / "out").exists()


def test_a_moved_output_keeps_its_inode(tmp_path):
    source = made(tmp_path / "f")
    inode = source.stat().st_ino
    tool(stageout="move").put(outgoing(source, tmp_path / "d" / "f"), WatchfulHandle())
    assert (tmp_path / "d" / "f").stat().st_ino == inode


@pytest.mark.parametrize("mode", ["move", "link"])
def test_between_file_systems_an_output_is_copied_and_verified(tmp_path, monkeypatch, mode):
    other_device(monkeypatch)
    monkeypatch.setattr(mv, "_give_name", _give_name_by_rename_of_partials)
    source = made(tmp_path / "f")
    stored = tool(stageout=mode).put(outgoing(source, tmp_path / "d" / "f"), WatchfulHandle())
    assert (tmp_path / "d" / "f").read_bytes() == DATA
    assert dict(stored.checksums) == checksums(DATA)
    assert source.exists() is (mode == "link")


def _give_name_by_rename_of_partials(source, target, *, keep):
    if ".partial" not in source.name:
        raise OSError(18, "Invalid cross-device link")
    source.rename(target)


def test_between_file_systems_an_input_is_copied_and_then_removed(tmp_path, monkeypatch):
    other_device(monkeypatch)
    source = made(tmp_path / "s" / "f")
    stored = tool(stagein="move").get(incoming(source, tmp_path / "f", checksums=checksums(DATA)), WatchfulHandle())
    assert (tmp_path / "f").read_bytes() == DATA
    assert dict(stored.checksums) == checksums(DATA)
    assert not source.exists()


def test_where_there_are_no_hard_links_a_move_is_a_rename(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for mode in ("move", "copy"):
        tool(stageout=mode).put(outgoing(made(tmp_path / mode), tmp_path / "d" / mode), WatchfulHandle())
        assert (tmp_path / "d" / mode).read_bytes() == DATA
    again = made(tmp_path / "move", b"other")
    assert failure(lambda: tool(stageout="move").put(outgoing(again, tmp_path / "d" / "move"), WatchfulHandle())).code
    assert (tmp_path / "d" / "move").read_bytes() == DATA


@pytest.mark.parametrize("mode", ["move", "link"])
def test_an_output_that_is_a_link_leaves_what_it_points_to(tmp_path, mode):
    """Else `ln -s INPUT OUTPUT` in a payload would move a user's data away, as a linked input is the original."""
    original = made(tmp_path / "user" / "data")
    link = tmp_path / "job" / "out"
    link.parent.mkdir()
    link.symlink_to(original)
    tool(stageout=mode).put(outgoing(link, tmp_path / "d" / "out"), WatchfulHandle())
    stored = tmp_path / "d" / "out"
    assert stored.read_bytes() == original.read_bytes() == DATA
    assert not stored.is_symlink()
    assert stored.stat().st_ino != original.stat().st_ino


def test_an_input_that_is_wrong_is_not_moved(tmp_path):
    """The bad copy would be removed, and it would be the only one."""
    source = made(tmp_path / "s" / "f")
    wrong = incoming(source, tmp_path / "f", checksums={"adler32": "00000001"})
    assert failure(lambda: tool(stagein="move").get(wrong, WatchfulHandle())).code is Code.GETADMISMATCH
    assert source.read_bytes() == DATA
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("mode", ["copy", "move", "link"])
def test_a_file_that_is_in_its_place_already_stays_there(tmp_path, mode):
    """`--output-dir` may be the job directory."""
    path = made(tmp_path / "f")
    tool(stageout=mode).put(outgoing(path, path), WatchfulHandle())
    tool(stagein=mode).get(incoming(path, path), WatchfulHandle())
    assert path.read_bytes() == DATA
    assert not path.is_symlink()


def test_a_move_that_was_cut_off_between_link_and_unlink_is_finished(tmp_path):
    source = made(tmp_path / "f")
    (tmp_path / "d").mkdir()
    os.link(source, tmp_path / "d" / "f")
    tool(stageout="move").put(outgoing(source, tmp_path / "d" / "f"), WatchfulHandle())
    assert (tmp_path / "d" / "f").read_bytes() == DATA
    assert not source.exists()


def test_a_copy_has_mode_0644_less_the_umask(tmp_path):
    source = made(tmp_path / "f")
    source.chmod(0o700)
    before = os.umask(0o027)
    try:
        tool().put(outgoing(source, tmp_path / "d" / "f"), WatchfulHandle())
    finally:
        os.umask(before)
    assert (tmp_path / "d" / "f").stat().st_mode & 0o777 == 0o640


def test_a_copy_can_be_synced_to_disk(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    tool().put(outgoing(made(tmp_path / "a"), tmp_path / "d" / "a"), WatchfulHandle())
    assert not synced
    tool(mv_fsync=True).put(outgoing(made(tmp_path / "b"), tmp_path / "d" / "b"), WatchfulHandle())
    assert len(synced) == 1


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_a_missing_input_is_1331(tmp_path):
    error = failure(lambda: tool().get(incoming(tmp_path / "none", tmp_path / "f"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.MISSINGINPUTFILE, Trait.NEXT)


def test_a_missing_output_is_1165(tmp_path):
    transfer = outgoing(made(tmp_path / "f"), tmp_path / "d")
    (tmp_path / "f").unlink()
    error = failure(lambda: tool().put(transfer, WatchfulHandle()))
    assert (error.code, error.trait) == (Code.MISSINGOUTPUTFILE, Trait.FATAL)


@pytest.mark.parametrize(("kind", "code"), [("adler32", Code.GETADMISMATCH), ("md5", Code.GETMD5MISMATCH)])
def test_an_input_with_a_wrong_checksum_is_1171_or_1145(tmp_path, kind, code):
    transfer = incoming(made(tmp_path / "s"), tmp_path / "f", checksums={kind: "0" * 8})
    assert failure(lambda: tool().get(transfer, WatchfulHandle())).code is code
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize(("kind", "code"), [("adler32", Code.PUTADMISMATCH), ("md5", Code.PUTMD5MISMATCH)])
def test_an_output_that_is_not_what_was_summed_up_is_1172_or_1141(tmp_path, kind, code):
    transfer = outgoing(made(tmp_path / "s"), tmp_path / "d" / "f", checksums={kind: "0" * 8})
    assert failure(lambda: tool().put(transfer, WatchfulHandle())).code is code
    assert os.listdir(tmp_path / "d") == []


def test_what_the_disk_made_of_it_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(mv, "_write", lambda file, data: os.write(file, bytes(len(data))))
    error = failure(lambda: tool().put(outgoing(made(tmp_path / "s"), tmp_path / "d" / "f"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.PUTADMISMATCH, Trait.RETRY)
    assert os.listdir(tmp_path / "d") == []


def test_a_directory_that_cannot_be_made_is_1199(tmp_path):
    made(tmp_path / "file")
    transfer = outgoing(made(tmp_path / "s"), tmp_path / "file" / "d" / "f")
    assert failure(lambda: tool().put(transfer, WatchfulHandle())).code is Code.MKDIR


def test_a_name_that_is_too_long_is_1190(tmp_path):
    transfer = outgoing(made(tmp_path / "s"), tmp_path / ("x" * 256))
    assert failure(lambda: tool().put(transfer, WatchfulHandle())).code is Code.LFNTOOLONG


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    error = failure(lambda: tool().get(incoming(tmp_path / "pipe", tmp_path / "f"), WatchfulHandle()))
    assert error.code is Code.STAGEINFAILED


def test_a_dangling_link_at_the_destination_is_1221(tmp_path):
    (tmp_path / "d").symlink_to(tmp_path / "nowhere")
    assert failure(lambda: tool().put(outgoing(made(tmp_path / "s"), tmp_path / "d"), WatchfulHandle())).code == 1221


def test_a_destination_that_appears_meanwhile_is_not_overwritten(tmp_path):
    def somebody_else() -> None:
        if not (tmp_path / "d").exists():
            (tmp_path / "d").write_bytes(b"theirs")

    transfer = outgoing(made(tmp_path / "s"), tmp_path / "d")
    assert failure(lambda: tool().put(transfer, WatchfulHandle(somebody_else))).code is Code.FILEEXISTS
    assert (tmp_path / "d").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["d", "s"]


def test_a_source_that_changes_meanwhile_is_not_taken(tmp_path):
    source = made(tmp_path / "s")

    def grow() -> None:
        with open(source, "ab") as file:
            file.write(b"more")

    error = failure(lambda: tool().get(incoming(source, tmp_path / "f"), WatchfulHandle(grow)))
    assert error.code is Code.STAGEINFAILED
    assert "changed" in error.detail
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("after", [15 << 20, 20 << 20])
def test_a_stop_does_not_wait_until_all_that_was_written_is_read_back(tmp_path, monkeypatch, after):
    """Whether it comes in the middle of the copy, or when only the reading back is left, on a slow file system."""
    real = Hasher.update

    def slow(hasher: Hasher, data: memoryview) -> None:
        if threading.current_thread().name == "read back":
            time.sleep(0.5)
        real(hasher, data)

    monkeypatch.setattr(Hasher, "update", slow)
    source, handle = made(tmp_path / "f", bytes(20 << 20)), WatchfulHandle(stop_after=after)
    if after == 20 << 20:
        handle = WatchfulHandle()
        threading.Timer(0.8, lambda: handle.stop.request(handle.stopped_by)).start()
    began = time.monotonic()
    error = failure(lambda: tool().put(outgoing(source, tmp_path / "out" / "f", checksums={}), handle))
    assert error is handle.stopped_by
    assert time.monotonic() - began < 5
    assert os.listdir(tmp_path / "out") == []


def test_a_copy_that_cannot_be_read_before_it_is_closed_is_read_then(tmp_path):
    """As on mounts of object stores: here it has no name while it is written."""
    source, hidden, seen = made(tmp_path / "f", content(3 * BLOCK)), tmp_path / "hidden", []

    def hide() -> None:
        if not seen:
            seen.append(next((tmp_path / "out").iterdir()))
            seen[0].rename(hidden)
        elif hidden.exists():
            for thread in [thread for thread in threading.enumerate() if thread.name == "read back"]:
                thread.join()
            hidden.rename(seen[0])

    stored = tool().put(outgoing(source, tmp_path / "out" / "f", checksums={}), WatchfulHandle(hide))
    assert stored.checksums == {"adler32": checksums(source.read_bytes())["adler32"]}


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill it")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_is_1098_on_the_way_in_and_1333_on_the_way_out(tmp_path, full_disk, monkeypatch, reserves):
    """Also where space cannot be reserved, and the disk is full only in the middle of the copy."""
    if not reserves:
        monkeypatch.setattr(mv, "_reserve", lambda file, size: None)
    source = made(tmp_path / "big", content(3 << 20))
    error = failure(lambda: tool().get(incoming(source, full_disk / "big"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.NOLOCALSPACE, Trait.FATAL)
    error = failure(lambda: tool().put(outgoing(source, full_disk / "big"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.NOREMOTESPACE, Trait.NEXT)
    assert os.listdir(full_disk) == []
    assert source.stat().st_size == 3 << 20


def test_a_move_to_another_file_system_really_copies(tmp_path, full_disk):
    source = made(tmp_path / "f")
    stored = tool(stageout="move").put(outgoing(source, full_disk / "d" / "f"), WatchfulHandle())
    assert (full_disk / "d" / "f").read_bytes() == DATA
    assert dict(stored.checksums) == checksums(DATA)
    assert not source.exists()


# --------------------------------------------------------------------------------------------------------- output.list


def handed_over(tmp_path: Path, name: str = "f", **facts) -> Transfer:
    return outgoing(made(tmp_path / "job" / name, b"123"), tmp_path / name, checksums={"adler32": "012d0097"}, **facts)


def test_a_file_for_arc_is_announced_in_output_list(tmp_path):
    turl = "root://eos//eos/user/x/01/9f/f"
    stored = tool(tmp_path, stageout="move").put(handed_over(tmp_path, onward=turl), WatchfulHandle())
    assert (tmp_path / "output.list").read_text() == f"f {turl}:checksumtype=adler32:checksumvalue=012d0097\n"
    assert (tmp_path / "f").exists()
    assert stored.url == turl


def test_an_object_store_is_announced_by_way_of_rucio(tmp_path):
    transfer = handed_over(tmp_path, onward="s3://cern.ch/bucket/f", endpoint="CERN-OS")
    tool(tmp_path, stageout="move").put(transfer, WatchfulHandle())
    gate = "rucio://rucio-lb-prod.cern.ch;failureallowed=yes/objectstores"
    assert (tmp_path / "output.list").read_text() == f"f {gate}/s3+rucio://cern.ch/bucket/f/CERN-OS/write\n"


def test_a_file_in_its_final_place_is_not_announced(tmp_path):
    tool(tmp_path).put(handed_over(tmp_path), WatchfulHandle())
    assert not (tmp_path / "output.list").exists()


def test_lines_of_files_that_go_out_together_do_not_mix(tmp_path):
    mover, names = tool(tmp_path, stageout="move"), [f"f{number}" for number in range(40)]
    transfers = [handed_over(tmp_path, name, onward=f"root://eos//{name}") for name in names]
    threads = [threading.Thread(target=mover.put, args=(transfer, WatchfulHandle())) for transfer in transfers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "output.list").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(names)


def test_a_file_that_is_put_again_is_announced_once(tmp_path):
    for _ in range(2):
        tool(tmp_path).put(handed_over(tmp_path, onward="root://eos//f"), WatchfulHandle())
    assert len((tmp_path / "output.list").read_text().splitlines()) == 1


def test_no_name_can_add_a_line(tmp_path):
    transfer = handed_over(tmp_path, lfn="a\nb root://evil", onward="root://eos//f")
    assert failure(lambda: tool(tmp_path).put(transfer, WatchfulHandle())).code is Code.BADOUTPUTFILENAME
    assert os.listdir(tmp_path) == ["job"]
