"""Bad cases by https, gfal, lsm and gs, with real servers and programs: each has its code, and nothing is left.

By the engine, as a job would move its files. For `xrdcp` and `s3` see their own modules.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pilot.errors import Code, Trait
from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.staging.call import StagingLimits
from pilot.staging.engine import StagingEngine
from pilot.staging.pace import PaceLimits
from pilot.staging.plan import Candidate
from pilot.staging.result import StagingResult
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop
from pilot.testing.copytool import checksums, content
from tests.contract.test_copytool_gfal import PACKAGES, SETUP
from tests.contract.test_copytool_lsm import COMMON, PROGRAMS
from tests.parts import debian, wait_until
from tests.parts.disk import small_disk
from tests.parts.gcs import GcsServer, start_gcs
from tests.parts.proxy import Throttle
from tests.parts.xrootd import XrootdServer, server, xrootd  # noqa: F401 - a fixture

#: What neither a shell nor a parser of URLs may see.
NAME = 'it\'s "a" $(touch INJECTED);touch INJECTED; 日本 %41#b&c.root'


class Place:
    """A directory of a storage, and an engine that has the one tool for it."""

    tool = ""

    def __init__(self, top: Path) -> None:
        self.options: dict[str, Any] = {"setup": SETUP} if self.tool == "gfal" else {}
        self.top = top
        self.job = top / "job"
        self.job.mkdir()
        self.folder = uuid.uuid4().hex
        self.environ: dict[str, str] = dict(os.environ)

    def url(self, name: str) -> str:
        raise NotImplementedError

    def store(self, name: str, data: bytes) -> None:
        raise NotImplementedError

    def fetch(self, name: str) -> bytes | None:
        raise NotImplementedError

    def sources(self, file: File) -> list[Candidate]:
        return [Candidate(tool=self.tool, url=self.url(file.lfn))]

    destinations = sources

    def engine(self, **limits: Any) -> StagingEngine:
        limits = {"attempts_in": 1, "attempts_out": 1, "pause": 0.01, **limits}
        tools = ToolBox(options=lambda name: self.options, launch_dir=self.top, settings={}, environ=self.environ)
        return StagingEngine(
            plan=self, tools=tools, launcher=Processes(), limits=StagingLimits(**limits), environment=self.environ
        )

    def get(
        self, name: str, into: Path | None = None, *, limits: Mapping[str, Any] = {}, **facts: Any
    ) -> StagingResult:
        files = [File(lfn=name, kind=Kind.INPUT, scope="s", **facts)]
        return _run(lambda stop: self.engine(**limits).stage_in(files, into or self.job, stop))

    def put(self, name: str, data: bytes, kind: Kind = Kind.OUTPUT) -> StagingResult:
        (self.job / name).write_bytes(data)
        return _run(lambda stop: self.engine().stage_out([File(lfn=name, kind=kind, scope="s")], self.job, stop))


def _run(call: Callable[[Stop], Any]) -> StagingResult:
    async def main() -> StagingResult:
        found: StagingResult = await call(Stop())
        return found

    return asyncio.run(main())


class Https(Place):
    tool = "https"

    def __init__(self, top: Path, remote: XrootdServer) -> None:
        super().__init__(top)
        self.remote = remote
        self.port = remote.http_port

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{self.folder}/{name}"

    def path(self, name: str) -> Path:
        return self.remote.data / self.folder / name

    def store(self, name: str, data: bytes) -> None:
        self.remote.write(f"{self.folder}/{name}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.path(name).read_bytes() if self.path(name).exists() else None

    def forbid(self, name: str) -> None:
        self.path(name).chmod(0)

    def throttled(self, free: int, speed: float = 0) -> Throttle:
        proxy = Throttle(self.port, free, speed)
        self.port = proxy.port
        return proxy


class Gfal(Https):
    tool = "gfal"

    def url(self, name: str) -> str:
        return f"dav://127.0.0.1:{self.port}/{self.folder}/{quote(name)}"


class Lsm(Place):
    tool = "lsm"

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.storage = top / "storage"
        self.storage.mkdir()
        self.programs = top / "programs"
        self.programs.mkdir()
        for name, text in PROGRAMS.items():
            self.program(name, COMMON + text)
        self.options = {"setup": f'export STORAGE="{self.storage}" PATH="{self.programs}:$PATH"'}

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def url(self, name: str) -> str:
        return f"root://storage.site/{name}"

    def store(self, name: str, data: bytes) -> None:
        (self.storage / name).write_bytes(data)

    def fetch(self, name: str) -> bytes | None:
        path = self.storage / name
        return path.read_bytes() if path.exists() else None


class Gs(Place):
    tool = "gs"

    def __init__(self, top: Path, remote: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(top)
        self.remote = remote
        self.monkeypatch = monkeypatch
        self.at(remote.port)

    def at(self, port: int) -> None:
        """Speak to that port; Google's library reads the variable itself."""
        endpoint = f"http://127.0.0.1:{port}"
        self.monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        self.environ["STORAGE_EMULATOR_HOST"] = endpoint

    def url(self, name: str) -> str:
        return f"gs://{self.remote.bucket}/{self.folder}/{name}"

    def store(self, name: str, data: bytes) -> None:
        self.remote.store(f"{self.folder}/{name}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.remote.fetch(f"{self.folder}/{name}")

    def throttled(self, free: int, speed: float = 0) -> Throttle:
        proxy = Throttle(self.remote.port, free, speed)
        self.at(proxy.port)
        return proxy


@pytest.fixture
def https(tmp_path: Path, xrootd: XrootdServer) -> Https:  # noqa: F811
    return Https(tmp_path, xrootd)


@pytest.fixture
def gfal(tmp_path: Path, xrootd: XrootdServer) -> Gfal:  # noqa: F811
    debian(*PACKAGES, provides=["gfal-copy", "gfal-rename"])
    return Gfal(tmp_path, xrootd)


@pytest.fixture
def lsm(tmp_path: Path) -> Lsm:
    return Lsm(tmp_path)


@pytest.fixture
def gs(tmp_path: Path, gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Gs:
    return Gs(tmp_path, gcs_server, monkeypatch)


@pytest.fixture(params=["https", "gfal", "lsm", "gs"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def nothing_in(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == []


# ------------------------------------------------------------------------------------------------------ what is stored


def test_a_source_that_is_not_what_the_catalogue_says_is_told_and_kept(place: Place) -> None:
    data = content(5000)
    place.store("in", data)
    cases: list[tuple[dict[str, Any], Code, str]] = [
        ({"checksums": {"adler32": "00000001"}}, Code.GETADMISMATCH, "not 00000001"),
        ({"checksums": {"md5": "0" * 32}}, Code.GETMD5MISMATCH, "md5"),
        ({"size": 5001}, Code.STAGEINFAILED, "5000 bytes, not 5001"),
        ({"size": 4999, "checksums": {"adler32": checksums(data)["adler32"]}}, Code.STAGEINFAILED, "not 4999"),
    ]
    for facts, code, words in cases:
        error = place.get("in", **facts).error
        assert error is not None
        assert (error.code, getattr(error, "trait", None)) == (code, Trait.NEXT), error
        assert words in error.detail
        nothing_in(place.job)
    assert place.fetch("in") == data


def test_a_file_that_is_not_there_is_1331(place: Place) -> None:
    error = place.get("missing").error
    assert error is not None
    assert error.code is Code.MISSINGINPUTFILE
    nothing_in(place.job)


def test_a_name_is_only_a_name_both_ways(place: Place) -> None:
    data = content(1000)
    out = place.put(NAME, data)
    assert out.error is None, out.error
    assert place.fetch(NAME) == data
    (place.top / "back").mkdir()
    back = place.get(NAME, place.top / "back", size=1000, checksums=checksums(data))
    assert back.error is None, back.error
    assert (place.top / "back" / NAME).read_bytes() == data
    assert not list(place.top.rglob("INJECTED"))
    assert not Path("INJECTED").exists()


def test_a_file_of_no_byte_is_good_for_a_log_and_an_input_and_1191_for_an_output(place: Place) -> None:
    assert place.put("empty.log", b"", Kind.LOG).error is None
    assert place.fetch("empty.log") == b""
    error = place.put("empty.root", b"").error
    assert error is not None
    assert error.code is Code.ZEROFILESIZE
    assert place.fetch("empty.root") is None
    (place.top / "back").mkdir()
    back = place.get("empty.log", place.top / "back", size=0, checksums=checksums(b""))
    assert back.error is None, back.error
    assert (place.top / "back" / "empty.log").read_bytes() == b""


def test_another_file_of_that_name_is_1221_and_stays(place: Place) -> None:
    place.store("there", b"theirs")
    error = place.put("there", b"not it").error
    assert error is not None
    assert error.code is Code.FILEEXISTS
    assert place.fetch("there") == b"theirs"


# -------------------------------------------------------------------------------------------------------------- rights


@pytest.mark.parametrize("way", ["https", "gfal"])
def test_a_file_that_may_not_be_read_is_no_missing_file(way: str, request: pytest.FixtureRequest) -> None:
    place: Https = request.getfixturevalue(way)
    place.store("secret", b"x")
    place.forbid("secret")
    error = place.get("secret").error
    assert error is not None
    assert (error.code, getattr(error, "trait", None)) == (Code.STAGEINFAILED, Trait.NEXT)
    nothing_in(place.job)


@pytest.mark.parametrize("kind", [Https, Gfal])
def test_who_is_not_known_to_the_storage_may_neither_read_nor_write(kind: type[Https], tmp_path: Path) -> None:
    debian(*PACKAGES, provides=["gfal-copy", "gfal-rename"])
    with server(extra="ofs.authorize 1\nacc.authdb {base}/authdb\n", authdb="u somebody / a\n") as strict:
        place = kind(tmp_path, strict)
        place.store("in", b"x")
        got, sent = place.get("in").error, place.put("out", b"data").error
        assert got is not None
        assert sent is not None
        assert (got.code, getattr(got, "trait", None)) == (Code.STAGEINFAILED, Trait.NEXT)
        assert (sent.code, getattr(sent, "trait", None)) == (Code.STAGEOUTFAILED, Trait.NEXT)
        assert place.fetch("out") is None


def test_credentials_that_google_does_not_know_are_refused_before_a_byte_moves(gs: Gs) -> None:
    gs.monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    del gs.environ["STORAGE_EMULATOR_HOST"]
    gs.options = {"credentials_file": str(gs.top / "key.json")}
    (gs.top / "key.json").write_text('{"type": "service_account", "private_key": "wrong"}')
    got, sent = gs.get("in").error, gs.put("out", b"data").error
    assert got is not None
    assert sent is not None
    assert "wrong" not in got.detail
    assert {getattr(got, "trait", None), getattr(sent, "trait", None)} == {Trait.NEXT}
    assert {got.code, sent.code} <= {
        Code.STAGEINAUTHENTICATIONFAILURE, Code.STAGEOUTAUTHENTICATIONFAILURE, Code.MISSINGCREDENTIALS, Code.NOPROXY
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "trait"), [(202, Trait.NEXT), (207, Trait.NEXT)], ids=["no permission", "wrong credentials"]
)
def test_what_a_sites_program_says_of_rights_is_told(lsm: Lsm, status: int, trait: Trait) -> None:
    lsm.program("lsm-get", f"#!/bin/sh\necho 'Permission denied' >&2; exit {status}\n")
    error = lsm.get("in").error
    assert error is not None
    assert (error.code, getattr(error, "trait", None)) == (Code.STAGEINFAILED, trait)
    assert "Permission denied" in error.detail


# ---------------------------------------------------------------------------------------------------------- full disks


def test_our_own_disk_that_is_full_is_1098_and_left_clean(place: Place) -> None:
    place.store("big", content(3 << 20))
    with small_disk(place.top / "small") as small:
        error = place.get("big", small).error
        assert error is not None
        assert error.code is Code.NOLOCALSPACE, error
        nothing_in(small)


@pytest.mark.parametrize("way", ["https", "gfal"])
def test_a_storage_that_is_full_is_told_and_keeps_no_half_file(way: str, request: pytest.FixtureRequest) -> None:
    place: Https = request.getfixturevalue(way)
    with small_disk(place.remote.data / place.folder, owner="xrootd") as small:
        error = place.put("big", content(3 << 20)).error
        assert error is not None
        assert error.code in (Code.NOREMOTESPACE, Code.STAGEOUTFAILED), error
        nothing_in(small)


def test_a_site_that_is_full_is_1333(lsm: Lsm) -> None:
    lsm.program("lsm-put", "#!/bin/sh\nexit 213\n")
    error = lsm.put("out", b"data").error
    assert error is not None
    assert error.code is Code.NOREMOTESPACE


# ------------------------------------------------------------------------------------------------ servers in the middle

BIG, FREE = 48 << 20, 8 << 20


@pytest.mark.parametrize("way", ["gfal", "gs"])
def test_a_storage_that_hangs_in_mid_transfer_is_ended_soon(way: str, request: pytest.FixtureRequest) -> None:
    place: Gfal | Gs = request.getfixturevalue(way)
    place.store("big", bytes(BIG))
    with place.throttled(FREE):
        error = place.get("big", size=BIG, limits={"pace": PaceLimits(idle=1.0)}).error
    assert error is not None
    assert error.code is Code.STAGEINTIMEOUT, error
    wait_until(lambda: not list(place.job.iterdir()), "what was begun is removed")


def test_a_sites_program_that_hangs_is_ended_with_its_children(lsm: Lsm) -> None:
    lsm.program("lsm-get", '#!/bin/sh\nhead -c 1000 /dev/zero > "$2"; sleep 600 & echo $! > "$STORAGE/pid"; wait\n')
    error = lsm.get("in", size=2000, limits={"pace": PaceLimits(idle=0.5)}).error
    assert error is not None
    assert error.code is Code.STAGEINTIMEOUT
    nothing_in(lsm.job)
    child = Path("/proc", (lsm.storage / "pid").read_text().strip(), "stat")
    wait_until(lambda: not child.exists() or ") Z" in child.read_text(), "the program's child has ended")


@pytest.fixture
def own() -> Iterator[XrootdServer]:
    with server() as one:
        yield one


@pytest.mark.parametrize("kind", [Https, Gfal])
def test_a_server_that_dies_in_mid_transfer_leaves_nothing_here(
    kind: type[Https], own: XrootdServer, tmp_path: Path
) -> None:
    debian(*PACKAGES, provides=["gfal-copy", "gfal-rename"])
    place = kind(tmp_path, own)
    place.store("big", b"")
    os.truncate(place.path("big"), BIG)
    with place.throttled(FREE, FREE):
        killer = threading.Thread(target=_kill_when_begun, args=(own.pid, place.job))
        killer.start()
        error = place.get("big", size=BIG).error
        killer.join()
    assert error is not None
    assert error.code in (Code.STAGEINFAILED, Code.STAGEINTIMEOUT), error
    assert getattr(error, "trait", None) is Trait.RETRY
    nothing_in(place.job)


def test_a_cloud_that_dies_in_mid_transfer_leaves_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copytools.gs._PATIENCE", 2.0, raising=False)
    (tmp_path / "server").mkdir()
    remote = start_gcs(tmp_path / "server")
    try:
        place = Gs(tmp_path, remote, monkeypatch)
        place.store("big", bytes(BIG))
        with place.throttled(FREE, FREE):
            killer = threading.Thread(target=_kill_when_begun, args=(remote.process.pid, place.job))
            killer.start()
            error = place.get("big", size=BIG, limits={"pace": PaceLimits(idle=3.0)}).error
            killer.join()
    finally:
        remote.end()
    assert error is not None
    assert getattr(error, "trait", None) is Trait.RETRY, error
    wait_until(lambda: not list(place.job.iterdir()), "what was begun is removed")


def _kill_when_begun(pid: int, folder: Path) -> None:
    """What tests/parts started, by its pid, when the first bytes are here."""
    wait_until(lambda: any(path.stat().st_blocks for path in folder.iterdir()), "a transfer has begun")
    os.kill(pid, signal.SIGKILL)
