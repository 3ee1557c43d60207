"""Files moved by hand, with the copy tools of the pilot: what `pilot stage` does."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, unquote_to_bytes

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.signals import hold, listen
from pilot.staging.call import StagingLimits
from pilot.staging.checksum import file_checksums, normal
from pilot.staging.copytool import CopyTool, Handle, Stored
from pilot.staging.engine import StagingEngine
from pilot.staging.faults import Direction, of_os_error
from pilot.staging.handle import TransferHandle
from pilot.staging.mover import transfer_timeout
from pilot.staging.plan import LOCAL_TOOL, Candidate
from pilot.staging.result import FailedFile, StagedFile, StagingObserver, StagingResult, shown
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop, in_thread

T = TypeVar("T")

#: Seconds from a signal to the end, and from asking a program to end to ending it.
GRACE, LINGER = 5.0, 1.0

#: Schemes whose URLs have %-escapes.
_ESCAPED = {"file", "http", "https", "dav", "davs"}


class UsageError(Exception):
    """What was asked for makes no sense; nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How files shall be moved.

    Attributes:
        tool: by which; empty: by the one for the scheme of the URL.
        checksum_type: to compute, and to compare with the storage.
        checksum: that the one file must have; empty if nobody knows.
        parallel: files at once.
        replace: local files that are there already.
        allow_http: also to other nodes.
    """

    tool: str = ""
    checksum_type: str = "adler32"
    checksum: str = ""
    parallel: int = 4
    replace: bool = False
    allow_http: bool = False

    @property
    def checksums(self) -> dict[str, str]:
        """What the file must have, by type."""
        return {self.checksum_type: normal(self.checksum_type, self.checksum)} if self.checksum else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a file.

    Attributes:
        url: as a person may see it.
        path: on this node, None if none is concerned.
        size: bytes, None if unknown.
        error: None if all is well.
    """

    url: str
    path: str | None = None
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    tool: str = ""
    seconds: float = 0.0
    error: PilotError | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        error = self.error and {"code": int(self.error.code), "name": self.error.code.name, "text": self.error.diag}
        return {
            "url": self.url,
            "path": self.path,
            "size": self.size,
            "checksums": dict(self.checksums),
            "tool": self.tool,
            "seconds": round(self.seconds, 3),
            "error": error,
        }


class _Urls:
    """A plan that is a table: from the name of a file to its URL."""

    def __init__(self, tools: ToolBox, tool: str, urls: Mapping[str, str]) -> None:
        self._tools = tools
        self._tool = tool
        self._urls = urls

    def sources(self, file: File) -> Sequence[Candidate]:
        """The one place."""
        url = self._urls[file.lfn]
        return [Candidate(tool=tool_for(self._tools, self._tool, url), url=url)]

    destinations = sources


class StageRun:
    """Moves files by hand.

    Args:
        wish: how.
        environ: of tools and their programs.
        observer: hears of every file.
    """

    def __init__(self, wish: Wish, environ: Mapping[str, str], observer: StagingObserver | None = None) -> None:
        self._wish = wish
        self._environ = environ
        self._observer = observer
        self._processes = Processes()
        self.stop_reason: PilotError | None = None
        settings = {"allow_http": wish.allow_http, "mv_stagein": "copy", "mv_stageout": "copy"}
        self._tools = ToolBox(launch_dir=Path.cwd(), settings=settings, environ=environ)

    def run(self, work: Callable[[Stop], Awaitable[list[Done]]]) -> list[Done]:
        """What `work` gives; a signal ends it, and then `stop_reason` says so."""

        async def main() -> list[Done]:
            stop = Stop()
            listen(stop, lambda: GRACE, self._processes)
            try:
                return await work(stop)
            finally:
                self.stop_reason = stop.reason
                hold()

        return asyncio.run(main())

    async def get(self, urls: Sequence[str], target: str, stop: Stop) -> list[Done]:
        """Bring files to a path, or into a directory.

        Raises:
            UsageError: it cannot be meant so.
        """
        paths = targets(urls, target, self._wish)
        done: dict[str, Done] = {}
        by_name = {path.name: url for path, url in zip(paths, urls, strict=True)}
        wanted = [self._file(path.name, Kind.INPUT) for path in paths]
        for path, url in zip(paths, urls, strict=True):
            if error := self._in_the_way(path) or self._no_tool(url):
                done[path.name] = Done(url=shown(url), path=str(path), error=error)
        engine = self._engine(by_name)
        files = [file for file in wanted if file.lfn not in done]
        result = await engine.stage_in(files, paths[0].parent, stop, together=False)
        done |= _told(result, by_name, {path.name: path for path in paths})
        return [done[path.name] for path in paths]

    async def put(self, files: Sequence[str], target: str, stop: Stop) -> list[Done]:
        """Take files to a URL, or into a directory.

        Raises:
            UsageError: it cannot be meant so.
        """
        paths = {path.name: path for path in map(_absolute, files)}
        by_name = destinations(files, target, self._wish)
        done: dict[str, Done] = {}
        for name, url in by_name.items():
            if error := self._no_tool(url) or await in_thread(self._other_content, paths[name]):
                done[name] = Done(url=shown(url), path=str(paths[name]), error=error)
        wanted = [self._file(name, Kind.OUTPUT) for name in by_name if name not in done]
        result = await self._engine(by_name).stage_out(wanted, Path(), stop, paths=paths)
        done |= _told(result, by_name, paths)
        return [done[name] for name in by_name]

    async def stat(self, urls: Sequence[str], stop: Stop) -> list[Done]:
        """What storages say of files."""
        return await self._each(urls, stop, self._stat)

    async def remove(self, urls: Sequence[str], stop: Stop) -> list[Done]:
        """Delete files; one that is not there is an error."""
        return await self._each(urls, stop, _remove)

    def _file(self, name: str, kind: Kind) -> File:
        return File(lfn=name, kind=kind, checksums=self._wish.checksums if kind is Kind.INPUT else {})

    def _engine(self, urls: Mapping[str, str]) -> StagingEngine:
        limits = StagingLimits(
            parallel=self._wish.parallel, checksum_types=(self._wish.checksum_type,), empty_outputs=True
        )
        return StagingEngine(
            plan=_Urls(self._tools, self._wish.tool, urls),
            tools=self._tools,
            launcher=self._processes,
            limits=limits,
            observer=self._observer,
            environment=self._environ,
        )

    def _in_the_way(self, path: Path) -> PilotError | None:
        """Why a file cannot go there, whose directory is made: `--force` does not replace a device or a pipe."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = path.stat().st_mode
        except FileNotFoundError:
            return None
        except OSError as error:
            return of_os_error(error, Direction.IN, str(path))
        if not stat.S_ISREG(mode):
            what = "directory" if stat.S_ISDIR(mode) else "device or a pipe"
            return TransferError(Code.FILEEXISTS, f"{path} is a {what}", Trait.FATAL)
        if not self._wish.replace:
            return TransferError(Code.FILEEXISTS, f"{path} is there; --force replaces it", Trait.FATAL)
        return None

    def _no_tool(self, url: str) -> PilotError | None:
        try:
            tool_for(self._tools, self._wish.tool, url)
        except PilotError as error:
            return error
        return None

    def _other_content(self, path: Path) -> PilotError | None:
        """Why a file to put is not what its user takes it for."""
        if not self._wish.checksum:
            return None
        kind = self._wish.checksum_type
        try:
            found = file_checksums(path, [kind])[kind]
        except OSError as error:
            return TransferError(Code.MISSINGOUTPUTFILE, f"{path}: {error.strerror}", Trait.FATAL)
        except PilotError as error:
            return error
        return _mismatch(str(path), kind, found, self._wish, Direction.OUT)

    async def _each(
        self, urls: Sequence[str], stop: Stop, act: Callable[[CopyTool, str, Wish, Handle], Stored | None]
    ) -> list[Done]:
        places = asyncio.Semaphore(self._wish.parallel)

        async def one(url: str) -> Done:
            started = time.monotonic()
            async with places:
                try:
                    stop.check()
                    tool = await in_thread(lambda: self._tools.get(tool_for(self._tools, self._wish.tool, url)))
                    stored = await self._ask(partial(act, tool, url, self._wish), stop)
                except PilotError as error:
                    return Done(url=shown(url), error=error)
            size, sums = (stored.size, stored.checksums) if stored else (None, {})
            seconds = time.monotonic() - started
            return Done(url=shown(url), size=size, checksums=sums, tool=tool.name, seconds=seconds)

        return list(await asyncio.gather(*map(one, urls)))

    async def _ask(self, work: Callable[[Handle], T], stop: Stop) -> T:
        """The result of blocking `work(handle)`, whose programs end at a stop."""
        timeout = transfer_timeout(0)
        late = TransferError(Code.COMMANDTIMEDOUT, f"no answer within {timeout:.0f} s", Trait.FATAL)
        handle = TransferHandle(stop, self._processes, timeout, late, self._environ)
        task = asyncio.ensure_future(in_thread(work, handle))
        stopping = asyncio.ensure_future(stop.wait(timeout))
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for end in (handle.terminate, handle.kill):
            if not task.done():
                end()
                await asyncio.wait({task}, timeout=LINGER)
        if not task.done():
            raise handle.reason
        return task.result()

    @staticmethod
    def _stat(tool: CopyTool, url: str, wish: Wish, handle: Handle) -> Stored | None:
        stored = _there(tool, url, handle)
        if tool.name == LOCAL_TOOL:
            try:
                sums = file_checksums(_path_of(url), [wish.checksum_type], handle.check)
            except OSError as fault:
                raise of_os_error(fault, Direction.IN, f"{shown(url)} cannot be read") from fault
            stored = replace(stored, checksums=sums)
        found = stored.checksums.get(wish.checksum_type, "")
        if wish.checksum and not found:
            detail = f"{shown(url)}: the storage has no {wish.checksum_type}"
            raise TransferError(Code.UNKNOWNCHECKSUMTYPE, detail, Trait.FATAL)
        if error := _mismatch(shown(url), wish.checksum_type, found, wish, Direction.IN):
            raise error
        return stored


def tool_for(tools: ToolBox, wanted: str, url: str) -> str:
    """The name of the tool for a URL.

    Raises:
        TransferError: UNKNOWNCOPYTOOL (1323).
    """
    scheme, mark, _ = url.partition("://")
    scheme = scheme if mark else "file"
    if wanted:
        tool = tools.get(wanted)
        if scheme not in tool.schemes:
            detail = f"{wanted} does not move {shown(url)}, only {', '.join(sorted(tool.schemes))}"
            raise TransferError(Code.UNKNOWNCOPYTOOL, detail, Trait.FATAL)
        return wanted
    if scheme == "file":
        return LOCAL_TOOL
    signed = "X-Amz-Signature=" in url  # good for one request: other tools ask what is there before
    names = tools.for_scheme(scheme, ["s3"] if signed else [])
    if not names:
        detail = f"no tool of this installation moves {shown(url)}; `pilot plugins` shows what there is"
        raise TransferError(Code.UNKNOWNCOPYTOOL, detail, Trait.FATAL)
    return names[0]


def targets(urls: Sequence[str], target: str, wish: Wish) -> list[Path]:
    """Where each URL goes.

    Raises:
        UsageError: it cannot be meant so.
    """
    place = Path(target)
    folder = target.endswith("/") or place.is_dir()
    if len(urls) > 1 and not folder:
        raise UsageError(f"{target} is no directory, and there are {len(urls)} files for it")
    _one_checksum(urls, wish)
    place = place.absolute()
    return [place / name for name in _distinct(map(name_of, urls))] if folder else [place]


def destinations(files: Sequence[str], target: str, wish: Wish) -> dict[str, str]:
    """Name of each file to the URL it goes to.

    Raises:
        UsageError: it cannot be meant so.
    """
    names = _distinct(Path(name).name for name in files)
    folder = target.endswith("/") or ("://" not in target and Path(target).is_dir())
    if len(files) > 1 and not folder:
        raise UsageError(f"{shown(target)} does not end with a slash, and there are {len(files)} files for it")
    _one_checksum(files, wish)
    if not folder:
        return {names[0]: target}
    is_url = target.startswith("file:")
    return {name: target.rstrip("/") + "/" + (quote(name) if is_url else name) for name in names}


def name_of(url: str) -> str:
    """The name of a file, as its URL says.

    Raises:
        UsageError: it says none.
    """
    scheme, mark, rest = url.partition("://")
    rest = rest if mark else url
    if mark and scheme in _ESCAPED | {"root", "roots", "xroot", "xroots"}:
        rest = rest.partition("?")[0]
    name = rest.partition("#")[0].rpartition("/")[2] if mark and scheme in _ESCAPED else rest.rpartition("/")[2]
    name = unquote(name) if mark and scheme in _ESCAPED else name
    if name in ("", ".", "..") or "/" in name or "\0" in name or (mark and "/" not in rest):
        raise UsageError(f"{shown(url)} names no file")
    return name


def _distinct(names: Iterable[str]) -> list[str]:
    found = list(names)
    twice = next((name for name in found if found.count(name) > 1), "")
    if twice or "" in found:
        raise UsageError(f"two files have the name {twice}" if twice else "a directory is no file")
    return found


def _one_checksum(files: Sequence[str], wish: Wish) -> None:
    if wish.checksum and len(files) > 1:
        raise UsageError("a checksum with a value is that of one file")


def _told(result: StagingResult, urls: Mapping[str, str], paths: Mapping[str, Path]) -> dict[str, Done]:
    """The result of a call by names."""

    def told(each: StagedFile | FailedFile) -> Done:
        name = each.file.lfn
        plain = Done(url=shown(urls[name]), path=str(paths[name]))
        if isinstance(each, FailedFile):
            return replace(plain, error=each.error)
        return replace(plain, size=each.size, checksums=each.checksums, tool=each.tool, seconds=each.seconds)

    return {each.file.lfn: told(each) for each in result.staged} | {each.file.lfn: told(each) for each in result.failed}


def _there(tool: CopyTool, url: str, handle: Handle) -> Stored:
    stored = tool.stat(url, handle)
    if stored is None:
        raise TransferError(Code.NOSUCHFILE, f"there is no {shown(url)}", Trait.FATAL)
    return stored


def _remove(tool: CopyTool, url: str, wish: Wish, handle: Handle) -> None:
    try:
        _there(tool, url, handle)
    except TransferError as error:
        if error.code is not Code.NOTIMPLEMENTED:  # a site's own programs may not tell
            raise
    tool.remove(url, handle)


def _mismatch(what: str, kind: str, found: str, wish: Wish, direction: Direction) -> TransferError | None:
    if not wish.checksum or normal(kind, found) == wish.checksums[kind]:
        return None
    return TransferError(
        direction.mismatch(kind), f"{what} has {kind} {found}, not {wish.checksums[kind]}", Trait.FATAL
    )


def _absolute(name: str) -> Path:
    return Path(name).absolute()


def _path_of(url: str) -> Path:
    if not url.startswith("file:"):
        return Path(url)
    path = url.removeprefix("file:").removeprefix("//localhost").removeprefix("//")
    return Path(os.fsdecode(unquote_to_bytes(path)))
