# ruff: noqa: D102 - the names of the cases say what must be so
"""The conformance suite: a class that passes it is a copy tool, ours or a third party's.

A tool's test module derives from `CopyToolConformance`, and pytest runs its cases::

    class TestVault(CopyToolConformance):
        @pytest.fixture(autouse=True)
        def place(self, tmp_path):
            self.root = tmp_path / "vault"

        @pytest.fixture
        def tool(self):
            return Vault(ToolContext(options={"directory": str(self.root)}))

        def remote_url(self, name):
            return f"vault://{quote(name)}"

        def store(self, name, data): ...

        def fetch(self, name): ...

No case asserts more than the interface promises: a tool may notice a wrong checksum itself or leave that to the engine,
but what it says of a file must be true, and a file under its final name must be whole.
"""

from __future__ import annotations

import random
import subprocess
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path
from typing import Any

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import CopyTool, Stored, Transfer
from pilot.staging.faults import Direction
from pilot.staging.handle import TransferHandle
from pilot.stop import Stop

#: Names that break tools which let a shell or a URL parser see them.
NAMES = (
    "plain.root",
    "two  words.txt",
    'quote\'s "and" `ticks`',
    "a;touch INJECTED;b",
    "$(touch INJECTED)${HOME}$HOME",
    "naïve-Ω-日本.dat",
    "percent%41#hash?query&and=more",
    "-rf",
    "*[a-z]?",
    "back\\slash",
    "x" * 255,
)

#: Bytes of a file that goes in several parts or blocks by every tool: object stores have parts of 16 MiB.
BIG = 36 << 20


def content(size: int) -> bytes:
    """Bytes at random, the same each time; they repeat after 1 MiB and a bit, so no two blocks of a copy are alike."""
    piece = random.Random(1).randbytes(min(size, (1 << 20) + 7))
    return (piece * (size // max(1, len(piece)) + 1))[:size]


def checksums(data: bytes) -> dict[str, str]:
    """The checksums of `data` that every tool may be asked for."""
    return {"adler32": f"{zlib.adler32(data):08x}", "md5": md5(data, usedforsecurity=False).hexdigest()}


class Programs:
    """Starts the programs of a tool; stands where a pilot has `pilot.processes.Processes`."""

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a session of its own."""
        return subprocess.Popen(argv, start_new_session=True, **options)

    def forget(self, process: subprocess.Popen[Any]) -> None:
        """Nothing is kept."""


class WatchfulHandle(TransferHandle):
    """A handle that looks at the world whenever bytes have passed, and requests a stop after `stop_after` bytes."""

    def __init__(self, look: Callable[[], None] = lambda: None, stop_after: int | None = None) -> None:
        self.stop = Stop()
        self.stopped_by = PilotError(Code.SIGTERM, "stopped by the conformance suite")
        late = TransferError(Code.COMMANDTIMEDOUT, "the suite does not wait any longer")
        super().__init__(self.stop, Programs(), 60.0, late, {})
        self._look = look
        self._stop_after = stop_after

    def advance(self, count: int) -> None:
        """Look first: this is the moment when half a file may show."""
        self._look()
        if self._stop_after is not None and self.moved + count >= self._stop_after:
            self.stop.request(self.stopped_by)
        super().advance(count)


class CopyToolConformance(ABC):
    """The cases. Give a fixture `tool`, and the three methods below."""

    @abstractmethod
    def remote_url(self, name: str) -> str:
        """The URL of `name` in the storage under test; `name` may have `/` in it."""

    @abstractmethod
    def store(self, name: str, data: bytes) -> None:
        """Make `name` in the storage by other means than the tool."""

    @abstractmethod
    def fetch(self, name: str) -> bytes | None:
        """The content of `name` in the storage, by other means than the tool; None if there is no such file."""

    def forbid(self, name: str) -> bool:
        """Make `name` unreadable for the tool; False if that makes no sense here."""
        return False

    def get(self, tool: CopyTool, name: str, path: Path, handle: TransferHandle | None = None, **facts: Any) -> Stored:
        """Get `name` with the tool."""
        return tool.get(self._transfer(name, Kind.INPUT, path, **facts), handle or WatchfulHandle())

    def put(self, tool: CopyTool, name: str, path: Path, handle: TransferHandle | None = None, **facts: Any) -> Stored:
        """Put a local file as `name`, with its true size and checksums if nothing else is said."""
        if path.exists():
            data = path.read_bytes()
            facts = {"size": len(data), "sums": checksums(data), **facts}
        return tool.put(self._transfer(name, Kind.OUTPUT, path, **facts), handle or WatchfulHandle())

    def _transfer(
        self, name: str, kind: Kind, path: Path, size: int | None = None, sums: Mapping[str, str] | None = None
    ) -> Transfer:
        file = File(lfn=name.rpartition("/")[2], kind=kind, scope="test")
        return Transfer(file=file, url=self.remote_url(name), path=path, size=size, checksums=sums or {})

    # ------------------------------------------------------------------------------------------------- what it says

    def test_it_introduces_itself(self, tool: CopyTool) -> None:
        scheme = self.remote_url("x").partition("://")[0]
        _must(bool(tool.name) and tool.name == tool.name.lower(), f"name {tool.name!r} must be lower case")
        _must(scheme in tool.schemes, f"{scheme} must be among its schemes {set(tool.schemes)}")
        _must(tool.unavailable() is None, f"it says it cannot work: {tool.unavailable()}")

    # -------------------------------------------------------------------------------------------- files of all kinds

    def test_a_file_goes_out_and_comes_back(self, tool: CopyTool, tmp_path: Path) -> None:
        self._round_trip(tool, tmp_path, "some.root", content(1_234_567))

    def test_an_empty_file_goes_out_and_comes_back(self, tool: CopyTool, tmp_path: Path) -> None:
        self._round_trip(tool, tmp_path, "empty.log", b"")

    def test_a_big_file_goes_out_and_comes_back(self, tool: CopyTool, tmp_path: Path) -> None:
        self._round_trip(tool, tmp_path, "big.root", content(BIG))

    def test_any_name_is_only_a_name(self, tool: CopyTool, tmp_path: Path) -> None:
        with ThreadPoolExecutor(4) as pool:  # a tool has a thread for each transfer in a pilot, too
            for done in [pool.submit(self._round_trip, tool, tmp_path, name, name.encode()) for name in NAMES]:
                done.result()
        _must(not list(tmp_path.rglob("INJECTED*")), "a name was run by a shell")
        _must(not Path("INJECTED").exists(), "a name was run by a shell")

    def test_parents_of_a_destination_are_made(self, tool: CopyTool, tmp_path: Path) -> None:
        self.put(tool, "one/two/three/file", _written(tmp_path / "file", b"deep"))
        _must(self.fetch("one/two/three/file") == b"deep", "the file is not below its new directories")

    # ---------------------------------------------------------------------------------------------- right and wrong

    def test_right_checksums_are_accepted(self, tool: CopyTool, tmp_path: Path) -> None:
        data = content(100_000)
        for kind, value in checksums(data).items():
            self.store("right", data)  # again: a tool may move its sources
            stored = self.get(tool, "right", tmp_path / kind, size=len(data), sums={kind: value})
            _must((tmp_path / kind).read_bytes() == data, f"content is wrong after a get with {kind}")
            _true(stored, data)

    def test_wrong_checksum_of_a_source_is_not_hidden(self, tool: CopyTool, tmp_path: Path) -> None:
        data = content(100_000)
        for kind, value in checksums(content(9)).items():
            self.store("wrong", data)
            stored = self._not_hidden(
                lambda kind=kind, value=value: self.get(tool, "wrong", tmp_path / kind, sums={kind: value}),  # type: ignore[misc]
                Direction.IN.mismatch(kind),
                data,
            )
            _must(stored is not None or not (tmp_path / kind).exists(), "a refused file has its final name")
            _must(stored is not None or self.fetch("wrong") == data, "a refused source is gone")

    def test_wrong_size_of_a_source_is_not_hidden(self, tool: CopyTool, tmp_path: Path) -> None:
        self.store("short", b"short")
        target = tmp_path / "short"
        stored = self._not_hidden(lambda: self.get(tool, "short", target, size=6), Direction.IN.failed, b"short")
        _must(stored is not None or not target.exists(), "a refused file has its final name")

    def test_wrong_checksum_of_an_output_is_not_hidden(self, tool: CopyTool, tmp_path: Path) -> None:
        data = content(100_000)
        for kind, value in checksums(content(9)).items():
            path = _written(tmp_path / f"out-{kind}", data)
            stored = self._not_hidden(
                lambda kind=kind, value=value, path=path: self.put(tool, f"out-{kind}", path, sums={kind: value}),  # type: ignore[misc]
                Direction.OUT.mismatch(kind),
                data,
            )
            _must(stored is not None or self.fetch(f"out-{kind}") is None, "a refused file has its final name")

    # --------------------------------------------------------------------------------------------- what is not there

    def test_missing_source_is_an_error_that_no_retry_helps(self, tool: CopyTool, tmp_path: Path) -> None:
        error = _error(lambda: self.get(tool, "missing", tmp_path / "missing"))
        _must(error.code is Code.MISSINGINPUTFILE, f"must be MISSINGINPUTFILE (1331), is {error}")
        _must(_trait(error) is not Trait.RETRY, "the same again cannot help")
        _must(not (tmp_path / "missing").exists(), "a file was made out of nothing")

    def test_missing_output_is_an_error(self, tool: CopyTool, tmp_path: Path) -> None:
        _error(lambda: self.put(tool, "missing", tmp_path / "missing", size=3, sums=checksums(b"abc")))
        _must(self.fetch("missing") is None, "a file was made out of nothing")

    def test_stat_tells_size_and_absence(self, tool: CopyTool) -> None:
        self.store("there", b"12345")
        stored = tool.stat(self.remote_url("there"), WatchfulHandle())
        _must(stored is not None and stored.size == 5, f"size must be 5: {stored}")
        _true(stored, b"12345")
        _must(tool.stat(self.remote_url("not-there"), WatchfulHandle()) is None, "stat of nothing must be None")
        _must(tool.stat(self.remote_url("no/such/dir"), WatchfulHandle()) is None, "stat of nothing must be None")

    def test_probe_tells_size_and_absence(self, tool: CopyTool) -> None:
        for name, data in (("opens", b"12345"), ("opens-empty", b"")):
            self.store(name, data)
            stored = tool.probe(self.remote_url(name), WatchfulHandle())
            _must(stored is not None and stored.size == len(data), f"size must be {len(data)}: {stored}")
            _true(stored, data)
        _must(tool.probe(self.remote_url("not-there"), WatchfulHandle()) is None, "probe of nothing must be None")

    def test_probe_of_a_forbidden_file_is_an_error(self, tool: CopyTool) -> None:
        if type(tool).probe is CopyTool.probe:
            _skip("this tool only looks")
        self.store("secret", b"x")
        if not self.forbid("secret"):
            _skip("this storage cannot forbid a file to the tool here")
        error = _error(lambda: tool.probe(self.remote_url("secret"), WatchfulHandle()))
        _must(error.code is not Code.MISSINGINPUTFILE, "a forbidden file is not a missing one")
        _must(_trait(error) is not Trait.RETRY, "the same again cannot help")

    def test_remove_can_be_repeated(self, tool: CopyTool) -> None:
        self.store("gone", b"x")
        tool.remove(self.remote_url("gone"), WatchfulHandle())
        _must(self.fetch("gone") is None, "the file is still there")
        tool.remove(self.remote_url("gone"), WatchfulHandle())
        tool.remove(self.remote_url("no/such/dir"), WatchfulHandle())

    def test_forbidden_source_is_an_error(self, tool: CopyTool, tmp_path: Path) -> None:
        self.store("secret", b"x")
        if not self.forbid("secret"):
            _skip("this storage cannot forbid a file to the tool here")
        error = _error(lambda: self.get(tool, "secret", tmp_path / "secret"))
        _must(error.code is not Code.MISSINGINPUTFILE, "a forbidden file is not a missing one")
        _must(_trait(error) is not Trait.RETRY, "the same again cannot help")

    # ------------------------------------------------------------------------------------------- what is already there

    def test_same_file_at_the_destination_is_success(self, tool: CopyTool, tmp_path: Path) -> None:
        data = content(300_000)
        self.store("same", data)
        stored = self.put(tool, "same", _written(tmp_path / "same", data))
        _true(stored, data)
        _must(self.fetch("same") == data, "the file was harmed")

    def test_other_file_at_the_destination_is_left_alone(self, tool: CopyTool, tmp_path: Path) -> None:
        for name, there in (("shorter", b"abc"), ("as-long", b"abcdef")):
            self.store(name, there)
            path = _written(tmp_path / name, b"ABCDEF")
            error = _error(lambda name=name, path=path: self.put(tool, name, path))  # type: ignore[misc]
            _must(error.code is Code.FILEEXISTS, f"must be FILEEXISTS (1221), is {error}")
            _must(self.fetch(name) == there, "somebody else's file was harmed")
            _must(path.read_bytes() == b"ABCDEF", "the output is gone")

    def test_local_file_of_an_earlier_try_is_replaced(self, tool: CopyTool, tmp_path: Path) -> None:
        self.store("again", b"new")
        self.get(tool, "again", _written(tmp_path / "again", b"from an earlier try"), size=3)
        _must((tmp_path / "again").read_bytes() == b"new", "the old file is still there")

    # ------------------------------------------------------------------------------------------ whole or not at all

    def test_no_half_file_has_its_final_name_on_the_way_in(self, tool: CopyTool, tmp_path: Path) -> None:
        data = content(BIG)
        self.store("half-in", data)
        target = tmp_path / "half-in"

        def look() -> None:
            _must(not target.exists() or target.stat().st_size == BIG, "half a file has its final name")

        self.get(tool, "half-in", target, WatchfulHandle(look), size=BIG, sums=checksums(data))
        self.store("half-in", data)
        self._ended_by_stop(tool, lambda handle: self.get(tool, "half-in", tmp_path / "stopped", handle, size=BIG))
        stopped = tmp_path / "stopped"
        _must(not stopped.exists() or stopped.read_bytes() == data, "half a file has its final name")
        left = {path.name for path in tmp_path.iterdir() if path.is_file()} - {"half-in", "stopped"}
        _must(not left, f"a stopped transfer left {left} behind")

    def test_no_half_file_has_its_final_name_on_the_way_out(self, tool: CopyTool, tmp_path: Path) -> None:
        data = content(BIG)

        def look() -> None:
            there = self.fetch("half-out")
            _must(there is None or len(there) == BIG, "half a file has its final name")

        self.put(tool, "half-out", _written(tmp_path / "half-out", data), WatchfulHandle(look))
        path = _written(tmp_path / "stopped", data)
        self._ended_by_stop(tool, lambda handle: self.put(tool, "stopped", path, handle))
        _must(self.fetch("stopped") in (None, data), "half a file has its final name")
        _must(path.exists() or self.fetch("stopped") == data, "the output is gone")

    # --------------------------------------------------------------------------------------------------------- helpers

    def _round_trip(self, tool: CopyTool, tmp_path: Path, name: str, data: bytes) -> None:
        shown = name[:40]
        stored = self.put(tool, name, _written(tmp_path / "out" / name, data))
        _must(self.fetch(name) == data, f"{shown}: what is stored is not what was put")
        _true(stored, data)
        target = tmp_path / "in" / name
        stored = self.get(tool, name, target, size=len(data), sums=checksums(data))
        _must(target.read_bytes() == data, f"{shown}: what came back is not what was stored")
        _true(stored, data)

    def _not_hidden(self, act: Callable[[], Stored], code: Code, data: bytes) -> Stored | None:
        """A tool notices itself and says so with the right code (None), or tells the truth and the engine notices."""
        try:
            stored = act()
        except TransferError as error:
            _must(error.code is code, f"must be {code.name} ({int(code)}), is {error}")
            return None
        _true(stored, data)
        return stored

    def _ended_by_stop(self, tool: CopyTool, act: Callable[[WatchfulHandle], Stored]) -> None:
        """A stop in mid-transfer ends it with the stop's own reason; a tool that has no middle just finishes."""
        handle = WatchfulHandle(stop_after=BIG // 4)
        try:
            act(handle)
        except PilotError as error:
            _must(error is handle.stopped_by, f"the reason of the stop must come through, not {error}")
        else:
            _must(not handle.stop.requested, f"{tool.name} went on after it was stopped")


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _true(stored: Stored | None, data: bytes) -> None:
    """What a tool says of a file must be so; it need not say anything."""
    if stored is None:
        return
    real = checksums(data)
    wrong = {kind: value for kind, value in stored.checksums.items() if value != real.get(kind, value)}
    _must(stored.size in (None, len(data)), f"it says {stored.size} bytes where there are {len(data)}")
    _must(not wrong, f"it says {wrong} where there is {real}")


def _error(act: Callable[[], object]) -> PilotError:
    try:
        done = act()
    except PilotError as error:
        return error
    raise AssertionError(f"there must be an error; it said {done}")


def _trait(error: PilotError) -> Trait:
    _must(isinstance(error, TransferError), f"must be a TransferError with a trait: {error!r}")
    return error.trait if isinstance(error, TransferError) else Trait.FATAL


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _skip(why: str) -> None:
    import pytest  # only those who run the suite have it

    pytest.skip(why)
