"""Storages that hang or trickle in mid-transfer, real ones behind a proxy that makes them so."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from pilot.errors import Code, Trait
from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.staging import call
from pilot.staging.call import StagingLimits
from pilot.staging.engine import StagingEngine
from pilot.staging.pace import PaceLimits
from pilot.staging.plan import Candidate
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop
from tests.parts.proxy import Throttle
from tests.parts.xrootd import XrootdServer, xrootd  # noqa: F401 - a fixture

BIG, FREE = 64 << 20, 8 << 20

#: Name of the case to tool, its way, and scheme.
WAYS = {"xrdcp bindings": ("xrdcp", "bindings"), "xrdcp programs": ("xrdcp", "programs"), "https": ("https", "")}


class Through:
    """An engine whose files are in a storage, behind a proxy."""

    def __init__(self, way: str, server: XrootdServer, top: Path, **limits: object) -> None:
        self.tool, use = WAYS[way]
        self.server = server
        self.top = top
        self.url = ""
        options = {"use": use} if use else {}
        tools = ToolBox(options=lambda name: options, launch_dir=top, settings={})
        self.engine = StagingEngine(
            plan=self,
            tools=tools,
            launcher=Processes(),
            limits=StagingLimits(**{"attempts_in": 1, "attempts_out": 1, "pause": 0.01, **limits}),
            environment=os.environ,
        )

    def proxy(self, **how: float) -> Throttle:
        port = self.server.http_port if self.tool == "https" else self.server.port
        proxy = Throttle(port, FREE, **how)
        self.url = f"http://127.0.0.1:{proxy.port}/" if self.tool == "https" else f"root://127.0.0.1:{proxy.port}//"
        return proxy

    def sources(self, file: File) -> list[Candidate]:
        return [Candidate(tool=self.tool, url=self.url + file.lfn)]

    destinations = sources

    def run(self, kind: Kind):
        """The result of moving file `big` and the seconds that took."""
        size = BIG if kind is Kind.INPUT else None
        files = [File(lfn="big", kind=kind, scope="s", size=size)]
        move = self.engine.stage_in if kind is Kind.INPUT else self.engine.stage_out

        async def main():
            return await move(files, self.top, Stop())

        began = time.monotonic()
        return asyncio.run(main()), time.monotonic() - began


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A thread that hangs in a library is left alone sooner than a batch system would need it."""
    monkeypatch.setattr(call, "LINGER", 0.4)


@pytest.fixture
def remote(xrootd):  # noqa: F811
    path = xrootd.write("big", b"")
    os.truncate(path, BIG)
    yield xrootd
    path.unlink(missing_ok=True)


def only_the_file_left(folder: Path, *names: str) -> None:
    assert {path.name for path in folder.iterdir()} == set(names)


@pytest.mark.parametrize("way", WAYS)
def test_an_input_that_hangs_is_ended_soon_and_leaves_nothing(way, remote, tmp_path):
    place = Through(way, remote, tmp_path, pace=PaceLimits(idle=0.5))
    with place.proxy():
        result, seconds = place.run(Kind.INPUT)
    assert (result.error.code, result.error.trait) == (Code.STAGEINTIMEOUT, Trait.RETRY)
    assert "too slow: no byte for" in result.error.detail
    assert seconds < 6
    time.sleep(0.3)  # a thread that was left alone has just been cut off, and cleans up
    only_the_file_left(tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_an_input_that_trickles_is_given_up(way, remote, tmp_path):
    place = Through(way, remote, tmp_path, pace=PaceLimits(idle=60, speed=20 << 20, window=0.5))
    with place.proxy(speed=4 << 20):
        result, seconds = place.run(Kind.INPUT)
    assert (result.error.code, result.error.trait) == (Code.STAGEINTIMEOUT, Trait.NEXT)
    assert "bytes/s" in result.error.detail
    assert seconds < 6


def test_a_slow_start_is_no_reason_to_end_a_transfer(remote, tmp_path):
    """As of a file that comes from tape."""
    place = Through("https", remote, tmp_path, pace=PaceLimits(idle=0.2, speed=1 << 20, window=0.2))
    proxy = place.proxy()
    proxy._listener.listen(8)  # connections are made, and wait for who answers

    async def main():
        call = asyncio.ensure_future(
            place.engine.stage_in([File(lfn="big", kind=Kind.INPUT, size=BIG)], tmp_path, Stop())
        )
        await asyncio.sleep(0.6)
        proxy._slow = 0
        with proxy:
            return await call

    assert asyncio.run(main()).error is None


def test_a_connection_that_hangs_is_not_that_of_the_next_try(remote, tmp_path):
    place = Through("https", remote, tmp_path, pace=PaceLimits(idle=0.5), attempts_in=2)
    with place.proxy(connections=1) as proxy:
        result, _ = place.run(Kind.INPUT)
        assert proxy.accepted == 2
    assert result.error is None
    (staged,) = result.staged
    assert [attempt.error.code for attempt in staged.attempts] == [Code.STAGEINTIMEOUT]
    assert (tmp_path / "big").stat().st_size == BIG


@pytest.mark.parametrize("way", ["xrdcp bindings", "https"])
def test_an_output_that_hangs_is_ended_soon(way, xrootd, tmp_path):  # noqa: F811
    with open(tmp_path / "big", "wb") as file:
        file.truncate(BIG)
    place = Through(way, xrootd, tmp_path, pace=PaceLimits(idle=0.5))
    with place.proxy():
        result, seconds = place.run(Kind.OUTPUT)
    assert result.error.code is Code.STAGEOUTTIMEOUT
    assert seconds < 6
    assert not (xrootd.data / "big").exists()


def test_a_storage_that_hangs_does_not_block_another(remote, tmp_path):
    remote.write("small", b"data")
    place = Through("https", remote, tmp_path, pace=PaceLimits(idle=0.8), parallel=2)
    with place.proxy():
        slow, quick = place.url, remote.http_url + "/"
        place.sources = lambda file: [
            Candidate(tool="https", url=(slow + "big") if file.lfn.startswith("big") else quick + "small")
        ]
        files = [File(lfn=f"big{one}", kind=Kind.INPUT, size=BIG) for one in range(2)]
        files += [File(lfn=f"small{one}", kind=Kind.INPUT, size=4) for one in range(6)]

        async def main():
            return await place.engine.stage_in(files, tmp_path, Stop(), together=False)

        result = asyncio.run(main())
    assert [staged.file.lfn for staged in result.staged] == [f"small{one}" for one in range(6)]
    assert {failed.file.lfn for failed in result.failed} == {f"big{one}" for one in range(2)}
