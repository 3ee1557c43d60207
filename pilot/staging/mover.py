"""One transfer by one tool, verified on both ends: blocking code, run by the engine in a thread of its own."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.left import LedOutError, followed
from pilot.staging.checksum import computable, differing, file_checksums, normal
from pilot.staging.copytool import CopyTool, Handle, Stored, Transfer
from pilot.staging.faults import Direction, of_os_error
from pilot.staging.plan import Candidate
from pilot.staging.result import StagedFile, shown, unsigned, without
from pilot.staging.toolbox import ToolBox

logger = logging.getLogger(__name__)

#: Seconds: 400 and one more for each MB, at most 3 hours (PILOT3 4.4); the latter too for a file of unknown size.
TIMEOUT_BASE, TIMEOUT_RATE, TIMEOUT_MAX = 400.0, 1e6, 10800.0


def transfer_timeout(size: int | None) -> float:
    """Seconds that a transfer of so many bytes may take."""
    return TIMEOUT_MAX if size is None else min(TIMEOUT_BASE + size / TIMEOUT_RATE, TIMEOUT_MAX)


#: Nanoseconds after a change in which another one may get the same times: the kernel's clock for files ticks every 4 to
#: 10 ms.
FRESH = 100_000_000


class Identity(NamedTuple):
    """What is not the same of a file that was changed. The time of the inode cannot be set back, others can."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    links: int

    @classmethod
    def of(cls, info: os.stat_result) -> Identity:
        """The identity of a file."""
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_nlink)

    def same(self, other: Identity) -> bool:
        """Whether it is the file, unchanged. Another link to it changes the time of the inode, too."""
        return self[:4] == other[:4] and (self.changed == other.changed or self.links != other.links)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """An output as it lies in the job's directory before it is taken out.

    Attributes:
        identity: what a change would change.
        fresh: it was written a moment ago: the next change might leave the same times.
        checksums: as far as they are known by now.
    """

    file: File
    path: Path
    size: int
    identity: Identity
    fresh: bool
    checksums: dict[str, str] = field(default_factory=dict)


class Mover:
    """Moves single files with the tools of a box.

    Args:
        tools: to choose from.
        checksum_types: that every output gets, and inputs too if they are several; the first is also asked for when an
            input has none in the catalogue.
        empty_outputs: outputs of no byte are good, too.
        opens: open inputs that the payload reads over the network, to see whether it can.
    """

    def __init__(
        self, tools: ToolBox, checksum_types: Sequence[str], empty_outputs: bool = False, opens: bool = True
    ) -> None:
        self._tools = tools
        self._types = tuple(checksum_types)
        self._empty_outputs = empty_outputs
        self._opens = opens

    def bring(self, candidate: Candidate, file: File, path: Path, handle: Handle) -> StagedFile:
        """Get an input to `path` and verify it; what is not as it should be is removed.

        One that the payload reads over the network stays where it is.

        Raises:
            PilotError: with a trait if it is a `TransferError`; the stop's reason if it was stopped.
        """
        if candidate.direct:
            return self._leave(candidate, file, path, handle)
        with _door(Direction.IN, candidate.tool):
            tool = self._tools.get(candidate.tool)
            transfer = self._transfer(candidate, file, path, file.size, file.checksums)
            stored = tool.get(transfer, handle)
            arrived = time.monotonic()
            try:
                size, checksums = _verified(transfer, stored, handle)
                checksums = {**file_checksums(path, self._further(checksums), handle.check), **checksums}
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return StagedFile(
            file=transfer.file,
            path=path,
            url=unsigned(candidate.surl or stored.url),
            size=size,
            checksums=checksums,
            tool=candidate.tool,
            seconds=0.0,
            verifying=time.monotonic() - arrived,
            local=tool.fills_disk(),
        )

    def _leave(self, candidate: Candidate, file: File, path: Path, handle: Handle) -> StagedFile:
        """An input that the payload reads where it is; it must open there (1361), with the right size."""
        size = self._remote_size(candidate, handle) if self._opens else None
        if size is not None and file.size not in (None, size):
            raise _not_opened(candidate, f"has {size} bytes, not {file.size}", Trait.NEXT)
        return StagedFile(
            file=replace(file, endpoint=candidate.endpoint or file.endpoint, turl=candidate.url, near=candidate.near),
            path=path,
            url=unsigned(candidate.url),
            size=file.size or size or 0,
            checksums=file.checksums,
            tool=candidate.tool,
            seconds=0.0,
            local=False,
        )

    def _remote_size(self, candidate: Candidate, handle: Handle) -> int | None:
        try:
            with _door(Direction.IN, candidate.tool):
                seen = self._tools.get(candidate.tool).probe(candidate.url, handle)
        except PilotError as error:
            handle.check()  # a stop, and that it took too long, are told as they are
            raise _not_opened(candidate, error.detail, getattr(error, "trait", Trait.NEXT)) from error
        if seen is None:
            raise _not_opened(candidate, "there is no such file", Trait.NEXT)
        return seen.size

    def _further(self, known: Mapping[str, str]) -> list[str]:
        """Types to add for an input: none when one type is wanted, as on a grid, where the catalogue's is enough."""
        return [kind for kind in self._types if kind not in known] if len(self._types) > 1 else []

    def inspect(self, file: File, path: Path, within: Path | None = None) -> LocalFile:
        """What an output is: it must be there (1165), be a file, and not be empty unless it is the log (1191).

        One that leads out of the directory `within` is as good as none: its payload is in a container.
        """
        with _door(Direction.OUT, "pilot"):
            try:
                info = followed(path, within)
            except (FileNotFoundError, NotADirectoryError):
                raise TransferError(Code.MISSINGOUTPUTFILE, f"there is no {path}", Trait.FATAL) from None
            except LedOutError as error:
                advice = "the payload is in a container, and must leave the file itself in the job directory"
                text = f"{path} is {error.strerror}; {advice}"
                raise TransferError(Code.MISSINGOUTPUTFILE, text, Trait.FATAL) from None
            if not stat.S_ISREG(info.st_mode):
                raise TransferError(Code.MISSINGOUTPUTFILE, f"{path} is not a regular file", Trait.FATAL)
            if info.st_size == 0 and file.kind is not Kind.LOG and not self._empty_outputs:
                raise TransferError(Code.ZEROFILESIZE, str(path), Trait.FATAL)
        fresh = time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns) < FRESH
        return LocalFile(file=file, path=path, size=info.st_size, identity=Identity.of(info), fresh=fresh)

    def take(self, candidate: Candidate, local: LocalFile, handle: Handle) -> StagedFile:
        """Put an output to its destination and verify it there; a bad copy is removed.

        Raises:
            PilotError: as for `bring`.
        """
        with _door(Direction.OUT, candidate.tool):
            tool = self._tools.get(candidate.tool)
            if not self._summed_on_the_way(tool, candidate, local):
                self._sum_up(local, handle)
            transfer = self._transfer(candidate, local.file, local.path, local.size, local.checksums)
            stored = tool.put(transfer, handle)
            arrived = time.monotonic()
            try:
                _verify_far(tool, transfer, stored, handle)
                _verify_unchanged(local)
                local.checksums.update(
                    {kind: stored.checksums[kind] for kind in self._types if kind in stored.checksums}
                )
                self._sum_up(local, handle)
            except TransferError:
                if local.path.exists():  # else it was moved, and what is out there is the only copy
                    _discard(tool, transfer, stored, handle)
                raise
        return StagedFile(
            file=transfer.file,
            path=local.path,
            url=unsigned(candidate.surl or stored.url),
            size=local.size,
            checksums=local.checksums,
            tool=candidate.tool,
            seconds=0.0,
            verifying=time.monotonic() - arrived,
            place=transfer.url if candidate.surl else "",
        )

    def _summed_on_the_way(self, tool: CopyTool, candidate: Candidate, local: LocalFile) -> bool:
        """Whether to leave the checksum to the tool: that an output did not change is told by its identity then."""
        one_type = not set(self._types[1:]) and not local.file.checksums
        return tool.sums_source() and one_type and not (local.checksums or local.fresh or candidate.onward)

    def _sum_up(self, local: LocalFile, handle: Handle) -> None:
        """Add the checksums that an output must have and that nobody has computed yet."""
        types = (*self._types, *(kind for kind in local.file.checksums if computable(kind)))
        missing = [kind for kind in types if kind not in local.checksums]
        if missing:
            local.checksums.update(file_checksums(local.path, missing, handle.check))

    def _transfer(
        self, candidate: Candidate, file: File, path: Path, size: int | None, checksums: Mapping[str, str]
    ) -> Transfer:
        return Transfer(
            file=replace(file, endpoint=candidate.endpoint or file.endpoint),
            url=candidate.url,
            path=path,
            size=size,
            checksums={kind: normal(kind, value) for kind, value in checksums.items()},
            checksum_type=next(iter(checksums), self._types[0]),
            timeout=transfer_timeout(size),
            onward=candidate.surl if candidate.onward else "",
        )


def _not_opened(candidate: Candidate, why: str, trait: Trait) -> TransferError:
    where = shown(candidate.url)
    return TransferError(Code.REMOTEFILECOULDNOTBEOPENED, f"{where}: {without(why, where)}", trait)


@contextmanager
def _door(direction: Direction, tool: str) -> Iterator[None]:
    """What a tool raises becomes an error of the table, also when the tool is a third party's and has a bug."""
    try:
        yield
    except PilotError:
        raise
    except OSError as error:
        raise of_os_error(error, direction, f"{tool} {error.filename or ''}".rstrip()) from error
    except (Exception, SystemExit) as error:
        logger.exception("copy tool %s failed in a way it should not", tool)
        raise direction.fault(f"{tool}: {type(error).__name__}: {error}", Trait.NEXT) from error


def _verified(transfer: Transfer, stored: Stored, handle: Handle) -> tuple[int, Mapping[str, str]]:
    """Size and checksums of an input that has arrived, if they are as expected."""
    try:
        size = transfer.path.stat().st_size
    except FileNotFoundError:
        raise Direction.IN.fault(f"nothing at {transfer.path} after {shown(transfer.url)}", Trait.NEXT) from None
    if transfer.size not in (None, size):
        raise Direction.IN.fault(f"{shown(transfer.url)} gave {size} bytes, not {transfer.size}", Trait.NEXT)
    found = dict(stored.checksums)
    unknown = [kind for kind in transfer.checksums if kind not in found]
    usable = [kind for kind in unknown if computable(kind)]
    if unknown and not usable and not transfer.checksums.keys() & found.keys():
        usable = unknown  # nothing else vouches for the file: let the error say what is missing
    found |= file_checksums(transfer.path, usable, handle.check)
    if kind := differing(transfer.checksums, found):
        detail = f"{shown(transfer.url)} has {kind} {found[kind]}, not {transfer.checksums[kind]}"
        raise TransferError(Direction.IN.mismatch(kind), detail, Trait.NEXT)
    return size, found


def _verify_far(tool: CopyTool, transfer: Transfer, stored: Stored, handle: Handle) -> None:
    """Compare what the storage has with what was sent, as far as the storage can tell."""
    unknown = transfer.checksums and not stored.checksums.keys() & transfer.checksums.keys()
    if stored.size is None or (tool.checksums and unknown):
        seen = tool.stat(_place(transfer, stored), handle)
        if seen is None:
            raise Direction.OUT.fault(f"nothing at {shown(stored.url)} after the copy")
        stored = replace(stored, size=seen.size, checksums={**seen.checksums, **stored.checksums})
    if stored.size not in (None, transfer.size):
        raise Direction.OUT.fault(f"{shown(stored.url)} has {stored.size} bytes, not {transfer.size}")
    if kind := differing(transfer.checksums, stored.checksums):
        detail = f"{shown(stored.url)} has {kind} {stored.checksums[kind]}, not {transfer.checksums[kind]}"
        raise TransferError(Direction.OUT.mismatch(kind), detail)


def _verify_unchanged(local: LocalFile) -> None:
    """An output that changed while it was copied has a checksum that nobody knows (a tool may have moved it away)."""
    if local.path.exists() and not Identity.of(local.path.stat()).same(local.identity):
        raise Direction.OUT.fault(f"{local.path} changed while it was copied", Trait.FATAL)


def _discard(tool: CopyTool, transfer: Transfer, stored: Stored, handle: Handle) -> None:
    try:
        tool.remove(_place(transfer, stored), handle)
    except PilotError as error:
        logger.warning("a bad copy stays at %s: %s", shown(stored.url), error)


def _place(transfer: Transfer, stored: Stored) -> str:
    """Where the tool can see the file: one that is handed over is not yet at the URL it will have."""
    return transfer.url if transfer.onward else stored.url
