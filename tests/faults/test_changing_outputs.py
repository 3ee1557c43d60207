"""An output that changes while it is copied is stored by no tool: no report of it, no copy left (issue of sPHENIX)."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from copytools.https import Https
from copytools.mv import Mv
from copytools.s3 import S3
from copytools.xrdcp import Xrdcp
from pilot.errors import Code
from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.staging.call import StagingLimits
from pilot.staging.copytool import CopyTool, ToolContext
from pilot.staging.engine import StagingEngine
from pilot.staging.plan import Candidate
from pilot.staging.result import StagingResult
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop
from tests.parts.s3 import OWNER, S3Server
from tests.parts.xrootd import XrootdServer, xrootd

__all__ = ["xrootd"]

SIZE = 24 << 20

Fetch = Callable[[], bytes | None]


class Plan:
    """One place for every file."""

    def __init__(self, url: str) -> None:
        self._candidate = Candidate(tool="tool", url=url)

    def sources(self, file: File) -> list[Candidate]:
        return [self._candidate]

    destinations = sources


def stage_out(kind: type[CopyTool], options: dict[str, str], url: str, path: Path) -> StagingResult:
    settings = {"mv_stageout": "copy"}
    environ = {"S3_ACCESS_KEY": OWNER[0], "S3_SECRET_KEY": OWNER[1], "S3_ENDPOINT_URL": options.get("endpoint_url", "")}
    tool = kind(ToolContext(options=options, settings=settings, environ=environ, launch_dir=path.parent))
    tools = ToolBox(launch_dir=path.parent, settings=settings, find=lambda name: lambda context: tool)  # type: ignore[arg-type,return-value]
    limits = StagingLimits(pause=0.01, attempts_out=2)
    plan, variables = Plan(url), {"PATH": os.environ["PATH"]}
    engine = StagingEngine(plan=plan, tools=tools, launcher=Processes(), limits=limits, environment=variables)  # type: ignore[arg-type]

    async def run() -> StagingResult:
        return await engine.stage_out([File(lfn=path.name, kind=Kind.OUTPUT)], path.parent, Stop())

    return asyncio.run(run())


@contextmanager
def changing(path: Path, *, grows: bool) -> Iterator[None]:
    """Somebody writes to the file all the time."""
    over = threading.Event()

    def write() -> None:
        with open(path, "r+b", buffering=0) as file:
            number = 0
            while not over.wait(0.001):
                number += 1
                file.seek(0, os.SEEK_END) if grows else file.seek(number * 4096 % SIZE)
                file.write(number.to_bytes(8))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(params=["mv", "xrdcp by bindings", "xrdcp by programs", "s3", "https"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, xrootd: XrootdServer, s3_server: S3Server
) -> tuple[type[CopyTool], dict[str, str], str, Fetch]:
    name = uuid.uuid4().hex

    def read(path: Path) -> Fetch:
        return lambda: path.read_bytes() if path.exists() else None

    root = read(xrootd.data / "changing" / name)
    return {
        "mv": (Mv, {}, f"file://{tmp_path}/storage/{name}", read(tmp_path / "storage" / name)),
        "xrdcp by bindings": (Xrdcp, {"use": "bindings"}, f"{xrootd.url}//changing/{name}", root),
        "xrdcp by programs": (Xrdcp, {"use": "programs"}, f"{xrootd.url}//changing/{name}", root),
        "s3": (S3, {"endpoint_url": s3_server.endpoint}, s3_server.url(name), lambda: s3_server.fetch(name)),
        "https": (Https, {}, f"{xrootd.http_url}/changing/{name}", root),
    }[request.param]


@pytest.mark.parametrize("grows", [True, False], ids=["it grows", "it is written over"])
def test_what_changes_is_not_stored(
    place: tuple[type[CopyTool], dict[str, str], str, Fetch], tmp_path: Path, grows: bool
) -> None:
    kind, options, url, fetch = place
    path = tmp_path / "out"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    with changing(path, grows=grows):
        result = stage_out(kind, options, url, path)
    assert result.staged == ()
    assert result.error is not None
    assert result.error.code in (Code.STAGEOUTFAILED, Code.PUTADMISMATCH, Code.PUTMD5MISMATCH), result.error
    assert fetch() is None, "a copy of nobody knows what is left in the storage"
    still = stage_out(kind, options, url, path)  # now that it is finished
    assert still.error is None
    assert fetch() == path.read_bytes()
