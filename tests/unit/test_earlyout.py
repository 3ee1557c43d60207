"""Outputs that leave early: what counts as finished, and what a catalogue that knows a file forbids."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from pilot.earlyout import EarlyOut
from pilot.errors import Code, PilotError
from pilot.job import File, Kind
from pilot.staging.result import StagedFile, StagingResult
from pilot.stop import Stop
from pilot.watch import inotify
from pilot.watch.inotify import Directory


class Engine:
    """Says that a file is out; keeps what it had in it."""

    confined = False

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def stage_out(self, files: Any, workdir: Path, stop: Stop, paths: Any) -> StagingResult:
        done = []
        for file in files:
            path = paths.get(file.lfn, workdir / file.lfn)
            self.sent.append((file.lfn, path.read_text()))
            done.append(
                StagedFile(file=file, path=path, url=f"x://{file.lfn}", size=1, checksums={}, tool="x", seconds=0)
            )
        return StagingResult(staged=tuple(done))


class Store:
    def __init__(self) -> None:
        self.removed: list[str] = []

    async def remove(self, tool: str, url: str, stop: Stop) -> None:
        self.removed.append(url)


def early(tmp_path: Path, names: str, **more: Any) -> tuple[EarlyOut, Engine, Store]:
    engine, store = Engine(), Store()
    files = [File(lfn=name, kind=Kind.OUTPUT) for name in names.split()]
    more = {"quiet": 0.1, **more}
    made = EarlyOut(tmp_path, lambda: files, engine, store, Stop(), lambda result: None, **more)  # type: ignore[arg-type]
    return made, engine, store


async def sent(engine: Engine, count: int) -> None:
    async with asyncio.timeout(5):
        while len(engine.sent) < count:
            await asyncio.sleep(0.01)


def test_a_file_that_goes_on_growing_waits_and_one_that_is_no_output_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        out, engine, _ = early(tmp_path, "a empty", quiet=0.3)
        async with out:
            (tmp_path / "other").write_text("x")
            (tmp_path / "empty").touch()
            (tmp_path / "link").symlink_to("/etc/hostname")
            for part in "one", "two":
                (tmp_path / "a").write_text(part)
                await asyncio.sleep(0.15)
            assert engine.sent == []
            await sent(engine, 1)
        assert engine.sent == [("a", "two")]
        assert await out.rest([File(lfn="a", kind=Kind.OUTPUT)], lambda file: None) == []

    asyncio.run(scenario())


def test_a_link_in_the_place_of_an_output_is_not_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        out, engine, _ = early(tmp_path, "a")
        async with out:
            (tmp_path / "x").symlink_to("/etc/hostname")
            (tmp_path / "x").rename(tmp_path / "a")
            await asyncio.sleep(0.1)
        assert engine.sent == []

    asyncio.run(scenario())


def test_the_file_itself_is_read_where_proc_is_of_another_pid_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 2)

    async def scenario() -> None:
        out, engine, _ = early(tmp_path, "a")
        engine.confined = True
        async with out:
            (tmp_path / "a").write_text("one")
            await sent(engine, 1)
        assert engine.sent == [("a", "one")]

    asyncio.run(scenario())


def test_what_changed_is_removed_and_sent_again_unless_the_catalogue_knows_it(tmp_path: Path) -> None:
    async def scenario(registers: bool) -> list[str]:
        async def register(stop: Stop) -> None:
            pass

        out, engine, store = early(tmp_path, "a", register=register if registers else None)
        async with out:
            (tmp_path / "t").write_text("one")
            (tmp_path / "t").rename(tmp_path / "a")
            await sent(engine, 1)
            await asyncio.sleep(0.01)
            (tmp_path / "a").write_text("longer")
        forgotten: list[File] = []
        left = await out.rest([File(lfn="a", kind=Kind.OUTPUT)], forgotten.append)
        assert [file.lfn for file in left] == [file.lfn for file in forgotten] == ["a"]
        return store.removed

    assert asyncio.run(scenario(False)) == ["x://a"]
    with pytest.raises(PilotError, match="changed after it was staged out and registered") as caught:
        asyncio.run(scenario(True))
    assert caught.value.code is Code.STAGEOUTFAILED


def test_a_catalogue_that_is_away_is_asked_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def register(stop: Stop) -> None:
            raise PilotError(Code.RUCIOSERVICEUNAVAILABLE, "away")

        out, engine, store = early(tmp_path, "a", register=register)
        async with out:
            (tmp_path / "t").write_text("one")
            (tmp_path / "t").rename(tmp_path / "a")
            await sent(engine, 1)
        assert await out.rest([File(lfn="a", kind=Kind.OUTPUT)], lambda file: None) == []
        assert store.removed == []

    asyncio.run(scenario())


def test_files_that_arrive_while_the_catalogue_is_asked_are_registered_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        calls = []

        async def register(stop: Stop) -> None:
            calls.append(len(engine.sent))
            await asyncio.sleep(0.1)

        out, engine, _ = early(tmp_path, "a b c d", register=register)
        async with out:
            for name in "abcd":
                (tmp_path / "t").write_text(name)
                (tmp_path / "t").rename(tmp_path / name)
                await sent(engine, 1)
            await sent(engine, 4)
        assert await out.rest([File(lfn=name, kind=Kind.OUTPUT) for name in "abcd"], lambda file: None) == []
        assert calls == [1, 4]

    asyncio.run(scenario())


def test_a_job_that_fails_before_the_stage_out_waits_for_nothing_that_is_on_its_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def register(stop: Stop) -> None:
            await stop.guard(asyncio.sleep(60))

        out, engine, _ = early(tmp_path, "a", register=register)
        async with out:
            (tmp_path / "t").write_text("one")
            (tmp_path / "t").rename(tmp_path / "a")
            await sent(engine, 1)
        async with asyncio.timeout(2):
            await out.give_up()
            await out.give_up()

    asyncio.run(scenario())


@pytest.mark.parametrize("kernel", [True, False])
def test_finished_files_are_told_of_with_and_without_the_kernel(
    tmp_path: Path, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inotify, "LOOK", 0.02)

    async def scenario() -> list[str]:
        told: list[str] = []
        (tmp_path / "before").touch()
        watch = Directory(tmp_path, lambda name, moved: told.append(name), kernel=kernel)
        watch.start()
        (tmp_path / "name with 'quotes'; $(x)").write_text("x")
        async with asyncio.timeout(5):
            while not told:
                await asyncio.sleep(0.01)
        watch.close()
        (tmp_path / "after").write_text("x")
        await asyncio.sleep(0.05)
        return told

    assert asyncio.run(scenario()) == ["name with 'quotes'; $(x)"]


def test_many_files_cost_a_bounded_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        asked = 0
        out, engine, _ = early(tmp_path, "")

        def outputs() -> list[File]:
            nonlocal asked
            asked += 1
            time.sleep(0.005)
            return [File(lfn=path.name, kind=Kind.OUTPUT) for path in tmp_path.iterdir()]

        monkeypatch.setattr(out, "_outputs", outputs)
        async with out:
            for number in range(100):
                (tmp_path / "t").write_text("x")
                (tmp_path / "t").rename(tmp_path / str(number))
            await sent(engine, 100)
        assert asked < 20

    asyncio.run(scenario())
