"""The input cache: a hit is what the catalogue says, and nothing that is wrong with it fails a job."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilot.errors import PilotError
from pilot.job import File, Kind
from pilot.staging import cache as module
from pilot.staging.cache import InputCache
from pilot.staging.call import StagingLimits
from pilot.staging.engine import StagingEngine
from pilot.staging.plan import Candidate
from pilot.staging.result import StagedFile
from pilot.staging.room import Room
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop
from pilot.testing.copytool import Programs, WatchfulHandle, checksums, content

MIB = 1 << 20


@pytest.fixture(params=[False, True], ids=["copy", "link"])
def linked(request) -> bool:
    return request.param


@pytest.fixture
def make(tmp_path, linked):
    def make(limit: int = 10 * MIB, room: Room | None = None) -> InputCache:
        return InputCache(tmp_path / "cache", limit, room or Room(), link=linked)

    (tmp_path / "job").mkdir()
    return make


def keep(cache: InputCache, path: Path, data: bytes, **facts) -> File:
    """An input as it is after stage-in, kept."""
    path.write_bytes(data)
    file = File(lfn=path.name, kind=Kind.INPUT, scope="s", size=len(data), checksums=checksums(data), **facts)
    cache.keep(staged(file, path), WatchfulHandle())
    return file


def staged(file: File, path: Path, local: bool = True) -> StagedFile:
    return StagedFile(
        file=file, path=path, url="u", size=path.stat().st_size, checksums={}, tool="t", seconds=0, local=local
    )


def files(tmp_path: Path) -> list[Path]:
    return [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and path.suffix != ".note" and path.name != ".lock"
    ]


def test_what_was_kept_comes_back_and_is_named_by_its_content(make, tmp_path, linked):
    data = content(3 * MIB + 5)
    file = keep(make(), tmp_path / "job" / "a", data)
    (entry,) = files(tmp_path)
    assert entry.name == f"md5-{checksums(data)['md5']}-{len(data)}"
    found = make().fetch(file, tmp_path / "job" / "b", WatchfulHandle())
    assert (tmp_path / "job" / "b").read_bytes() == data
    assert (found.tool, found.size, found.local, found.checksums) == ("cache", len(data), not linked, checksums(data))
    assert ((tmp_path / "job" / "b").stat().st_ino == entry.stat().st_ino) is linked
    assert list((tmp_path / "job").glob(".*")) == []


def test_what_was_not_kept_is_not_there(make, tmp_path):
    file = File(lfn="a", kind=Kind.INPUT, size=3, checksums=checksums(b"abc"))
    assert make().fetch(file, tmp_path / "job" / "a", WatchfulHandle()) is None
    assert not (tmp_path / "job" / "a").exists()


@pytest.mark.parametrize(
    "facts", [{"checksums": {}}, {"size": None}, {"size": 0}, {"checksums": {"adler32": "../../etc"}}]
)
def test_a_file_that_the_catalogue_knows_too_little_of_is_not_kept(make, tmp_path, facts):
    path = tmp_path / "job" / "a"
    path.write_bytes(b"abc")
    file = File(**{"lfn": "a", "kind": Kind.INPUT, "size": 3, "checksums": checksums(b"abc"), **facts})
    make().keep(staged(file, path), WatchfulHandle())
    assert not (tmp_path / "cache").exists()
    assert make().fetch(file, tmp_path / "job" / "b", WatchfulHandle()) is None


def test_a_checksum_of_32_bits_does_not_make_one_file_of_two(make, tmp_path):
    adler = {"adler32": checksums(b"abc")["adler32"]}
    path = tmp_path / "job" / "a"
    path.write_bytes(b"abc")
    file = File(lfn="a", kind=Kind.INPUT, scope="s", size=3, checksums=adler)
    make().keep(staged(file, path), WatchfulHandle())
    other = File(lfn="b", kind=Kind.INPUT, scope="s", size=3, checksums=adler)
    assert make().fetch(other, tmp_path / "job" / "b", WatchfulHandle()) is None
    assert make().fetch(file, tmp_path / "job" / "b", WatchfulHandle())


def test_what_is_only_a_link_to_elsewhere_is_not_kept(make, tmp_path):
    path = tmp_path / "job" / "a"
    path.write_bytes(b"abc")
    file = File(lfn="a", kind=Kind.INPUT, size=3, checksums=checksums(b"abc"))
    make().keep(staged(file, path, local=False), WatchfulHandle())
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------------------- damage


def write_inside(entry: Path) -> None:
    entry.chmod(0o644)
    with open(entry, "r+b") as file:
        file.write(b"!")


def cut_short(entry: Path) -> None:
    os.truncate(entry, 10)


def replace(entry: Path) -> None:
    other = entry.with_name("x")
    other.write_bytes(entry.read_bytes())
    other.replace(entry)


def lose_the_note(entry: Path) -> None:
    entry.with_name(entry.name + ".note").unlink()


def spoil_the_note(entry: Path) -> None:
    entry.with_name(entry.name + ".note").write_text("{[")


@pytest.mark.parametrize("damage", [write_inside, cut_short, replace, lose_the_note, spoil_the_note])
def test_what_is_not_what_it_was_is_dropped_and_not_given(make, tmp_path, damage):
    file = keep(make(), tmp_path / "job" / "a", content(1000))
    time.sleep(0.02)  # the clock of files ticks
    damage(files(tmp_path)[0])
    assert make().fetch(file, tmp_path / "job" / "b", WatchfulHandle()) is None
    assert not (tmp_path / "job" / "b").exists()
    assert files(tmp_path) == []
    keep(make(), tmp_path / "job" / "a", content(1000))
    assert make().fetch(file, tmp_path / "job" / "b", WatchfulHandle())


def test_bytes_that_rot_without_a_trace_are_found_when_they_are_copied(tmp_path):
    cache = InputCache(tmp_path / "cache", MIB, Room())
    file = keep(cache, tmp_path / "a", content(1000))
    (entry,) = files(tmp_path)
    before = entry.stat()
    write_inside(entry)
    os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = cache.fetch(file, tmp_path / "b", WatchfulHandle())
    assert found is None or (tmp_path / "b").stat().st_blocks  # a clone shares its blocks and is not read
    assert found or files(tmp_path) == []


# --------------------------------------------------------------------------------------------------------------- size


def test_the_least_recently_used_go_first(make, tmp_path):
    cache = make(3000)
    kept = {}
    for name, data in (("a", b"a" * 1000), ("b", b"b" * 1000), ("c", b"c" * 1000)):
        kept[name] = keep(cache, tmp_path / "job" / name, data)
        time.sleep(0.02)
    cache.fetch(kept["a"], tmp_path / "job" / "again", WatchfulHandle())
    time.sleep(0.02)
    kept["d"] = keep(cache, tmp_path / "job" / "d", b"d" * 1500)
    there = {name for name, file in kept.items() if cache.fetch(file, tmp_path / "job" / "x", WatchfulHandle())}
    assert there == {"a", "d"}
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 3000


def test_a_file_larger_than_the_cache_is_not_kept(make, tmp_path):
    keep(make(100), tmp_path / "job" / "a", b"a" * 101)
    assert not (tmp_path / "cache").exists()


def test_room_that_jobs_count_on_is_not_taken(tmp_path):
    room = Room(lambda directory: 1000)
    cache = InputCache(tmp_path / "cache", MIB, room)
    with room.reserved("the inputs", 500, tmp_path, lambda: 0):
        keep(cache, tmp_path / "a", b"a" * 501)
        assert files(tmp_path) == []
        keep(cache, tmp_path / "a", b"a" * 500)
        assert len(files(tmp_path)) == 1


def test_what_a_killed_pilot_left_is_removed_later(make, tmp_path):
    keep(make(), tmp_path / "job" / "a", b"a")
    left = files(tmp_path)[0].with_name(".1-left.partial")
    left.write_bytes(b"half")
    keep(make(), tmp_path / "job" / "b", b"b")
    assert left.exists()  # maybe somebody is at it
    os.utime(left, (0, 0))
    keep(make(), tmp_path / "job" / "c", b"c")
    assert not left.exists()


# ------------------------------------------------------------------------------------------------------------ together

_PILOT = """
import random, sys
from pathlib import Path
from pilot.job import File, Kind
from pilot.staging.cache import InputCache
from pilot.staging.room import Room
from tests.unit.test_staging_cache import staged
from pilot.testing.copytool import WatchfulHandle, checksums
top, me, link = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
cache, dice, hits = InputCache(top / "cache", 12000, Room(), link=link), random.Random(me), 0
(top / me).mkdir()
for number in range(150):
    name = str(dice.randrange(12))
    data = name.encode() * (2000 // len(name))
    file = File(lfn=name, kind=Kind.INPUT, size=len(data), checksums=checksums(data))
    path = top / me / str(number)
    if cache.fetch(file, path, WatchfulHandle()):
        hits += 1
        assert path.read_bytes() == data, name
    else:
        path.write_bytes(data)
        cache.keep(staged(file, path), WatchfulHandle())
    path.unlink()
print(hits)
"""


def test_several_pilots_share_it_and_none_gets_what_is_not_whole(tmp_path, linked):
    argv = [sys.executable, "-c", _PILOT, str(tmp_path)]
    pilots = [
        subprocess.Popen([*argv, f"p{one}", str(linked)], stdout=-1, stderr=-1, cwd=Path(__file__).parents[2])
        for one in range(3)
    ]
    for pilot in pilots:
        out, err = pilot.communicate(timeout=60)
        assert pilot.returncode == 0, err.decode()[-2000:]
        assert b"not what it was" not in err
        assert int(out) > 20
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 12000
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_lock_that_is_never_given_costs_no_job(make, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    monkeypatch.setattr(module, "_try_lock", lambda file: False)
    keep(make(), tmp_path / "job" / "a", b"a")
    assert files(tmp_path) == []
    assert "is not kept" in caplog.text


def test_a_stop_does_not_wait_for_the_lock(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_try_lock", lambda file: False)
    path = tmp_path / "job" / "a"
    path.write_bytes(b"a")
    handle = WatchfulHandle()
    handle.stop.reason = handle.stopped_by
    with pytest.raises(PilotError) as caught:
        make().keep(staged(File(lfn="a", kind=Kind.INPUT, size=1, checksums=checksums(b"a")), path), handle)
    assert caught.value is handle.stopped_by


def test_a_directory_that_is_none_costs_no_job(make, tmp_path, caplog):
    (tmp_path / "cache").write_bytes(b"")
    file = keep(make(), tmp_path / "job" / "a", b"a")
    assert make().fetch(file, tmp_path / "job" / "b", WatchfulHandle()) is None
    assert "input cache" in caplog.text


class There:
    """A plan: all inputs lie in one directory."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def sources(self, file: File) -> list[Candidate]:
        return [Candidate(tool="mv", url=str(self.top / file.lfn))]

    destinations = sources


def test_the_engine_counts_hits_and_misses(make, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    tools = ToolBox(launch_dir=tmp_path, settings={"mv_stagein": "copy"})
    limits = StagingLimits(pause=0.001, attempts_in=1)
    engine = StagingEngine(plan=There(there), tools=tools, launcher=Programs(), limits=limits, cache=make())
    wanted = []
    for name in ("a", "b"):
        (there / name).write_bytes(name.encode() * 100)
        data = checksums(name.encode() * 100)
        wanted.append(File(lfn=name, kind=Kind.INPUT, size=100, checksums=data))

    def bring(*inputs: File):
        async def main():
            return await engine.stage_in(inputs, tmp_path / "job", Stop())

        return asyncio.run(main())

    first = bring(wanted[0])
    assert first.metrics == {"inputCacheHits": "0", "inputCacheMisses": "1"}
    (there / "a").unlink()  # only the cache has it now
    second = bring(*wanted)
    assert second.error is None
    assert second.metrics == {"inputCacheHits": "1", "inputCacheMisses": "1"}
    assert [one.tool for one in second.staged] == ["cache", "mv"]
    assert (tmp_path / "job" / "a").read_bytes() == b"a" * 100
