"""Copy tool `mv`: files on mounted file systems, copied, linked or moved.

Where the batch system delivers (ARC), outputs are left in the launch directory and announced in `output.list`, one line
a file (PILOT3 4.6): `lfn turl:checksumtype=adler32:checksumvalue=X`.

Measured for 1 GiB in the page cache, ext4, 2 idle cores, medians: `cp` 0.39 s; copy_file_range 0.35 s and then still
without a checksum; read, adler32 and write in blocks of 1 MiB 0.35 s, 0.24 s into space reserved by fallocate(2). So
bytes go by hand, are summed as they pass, and what was written is read back before it gets its name.

A copy is not synced to disk unless `mv_fsync` says so, as `cp` does not either: it costs the time of the disk for every
file. Network file systems flush at close, where their errors show; a node that loses its power within seconds after a
job was reported is the case that stays open.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import unquote_to_bytes

from pilot.errors import Code, Trait, TransferError
from pilot.left import regular
from pilot.staging.checksum import BLOCK, Hasher, computable, differing, file_checksums
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction, of_os_error

logger = logging.getLogger(__name__)

MODES = ("copy", "link", "move")

#: Longest file name of every file system in use, bytes.
NAME_MAX = 255

#: Seconds between two looks whether a copy is still wanted.
LOOK = 0.2

#: What link(2) says where there are no hard links (FAT, FUSE, AFS), or not to files of others (protected_hardlinks).
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}

#: When only a copy helps. Two bind mounts of one file system say EXDEV although their device number is the same.
_ONLY_COPY = _NO_HARD_LINKS | {errno.EXDEV}


class Mv(CopyTool):
    """Copies, links or moves files on mounted file systems.

    Settings: `mv_stagein` and `mv_stageout`, each `copy`, `link` or `move`; inputs are linked and outputs moved if
    nothing is said, as Pilot 3 does. An input is linked by a symbolic link, an output by a hard link, since its
    directory goes away. Where that is not possible (another file system), it becomes a copy; and so it does for a
    symbolic link, since what it points to may be somebody else's.

    A different file at the destination is in the way (1221), unless `mv_replace` is set, as `pilot local` does: whoever
    runs a job file again wants the new results.
    """

    name = "mv"
    schemes = frozenset({"file"})
    checksums = frozenset({"adler32", "md5"})

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._in = _mode(context.settings, "mv_stagein", "link")
        self._out = _mode(context.settings, "mv_stageout", "move")
        self._sync = bool(context.settings.get("mv_fsync", False))
        self._replaces = bool(context.settings.get("mv_replace", False))

    def fills_disk(self) -> bool:
        """False if inputs are linked."""
        return self._in != "link"

    def sums_source(self) -> bool:
        """True if outputs are copied."""
        return self._out == "copy"

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring a file into the job's directory."""
        source, target = local_path(transfer.url), transfer.path
        with _faults(Direction.IN, f"{self._in} {source} to {target}"):
            size = _regular_size(source, Direction.IN)
            if transfer.size not in (None, size):
                raise Direction.IN.fault(f"{source} has {size} bytes, not {transfer.size}", Trait.NEXT)
            _make_parents(target)
            if _is_same_path(source, target):
                return Stored(url=transfer.url, size=size)
            bring = {"copy": self._copy_in, "link": _link_in, "move": self._move_in}[self._in]
            return Stored(url=transfer.url, size=size, checksums=bring(source, transfer, handle))

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Take a file of the job to where its URL says."""
        source, target = transfer.path, local_path(transfer.url)
        with _faults(Direction.OUT, f"{self._out} {source} to {target}"):
            _regular_size(source, Direction.OUT)
            line = _arc_line(transfer) if transfer.onward else ""
            _make_parents(target)
            try:
                checksums = self._deliver(source, target, transfer, handle)
            except FileExistsError:
                checksums = self._settle(source, target, transfer, handle)
            if self._out == "move" and not _is_same_path(source, target):
                _remove_moved(source)
            if line:
                _announce(self.context.launch_dir / "output.list", line)
            return Stored(url=transfer.onward or transfer.url, size=target.stat().st_size, checksums=checksums)

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size of a file."""
        path = local_path(url)
        with _faults(Direction.OUT, f"stat {path}"):
            try:
                info = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return Stored(url=url, size=info.st_size)

    def remove(self, url: str, handle: Handle) -> None:
        """Delete a file."""
        path = local_path(url)
        with _faults(Direction.OUT, f"remove {path}"):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                pass

    def _copy_in(self, source: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        with _partial(transfer.path) as partial:
            checksums = self._copy(source, partial, transfer, Direction.IN, handle)
            partial.replace(transfer.path)
        return checksums

    def _move_in(self, source: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Verified before it is moved: a bad copy is removed by the engine, and this one would be the only one."""
        found: Mapping[str, str] = file_checksums(source, _types(transfer), handle.check)
        _verify(found, transfer.checksums, Direction.IN, source)
        if _moves(source, lambda: source.replace(transfer.path)):
            return found
        found = self._copy_in(source, transfer, handle)
        _remove_moved(source)
        return found

    def _deliver(self, source: Path, target: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Make `target`, or raise `FileExistsError`."""
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        keep = self._out == "link"
        if self._out != "copy" and _moves(source, lambda: _give_name(source, target, keep=keep)):
            return {}
        with _partial(target) as partial:
            checksums = self._copy(source, partial, transfer, Direction.OUT, handle)
            _give_name(partial, target, keep=False)
        return checksums

    def _settle(self, source: Path, target: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """What is there already will do if it is the same; else it is in the way, or is replaced if that is wanted."""
        try:
            return _same_content(source, target, transfer, handle)
        except TransferError:
            if not self._replaces:
                raise
        with _partial(target) as partial:
            checksums = self._copy(source, partial, transfer, Direction.OUT, handle)
            partial.replace(target)
        return checksums

    def _copy(
        self, source: Path, partial: Path, transfer: Transfer, direction: Direction, handle: Handle
    ) -> Mapping[str, str]:
        """Copy, verify what was read, then read back what was written and verify that."""
        hasher = Hasher(_types(transfer))
        with closing(_ReadBack(partial, _types(transfer))) as back:
            _copy_bytes(source, partial, [hasher.update, back.follow], handle, self._sync)
            written = back.digests(handle.check)
        seen = hasher.digests()
        _verify(seen, transfer.checksums, direction, source)
        _verify(written, seen, direction, partial, Trait.RETRY)
        return written


def local_path(url: str) -> Path:
    """The path of `file:///p`, `file://localhost/p` (both with %-escapes) or of a bare path, taken as it is.

    Raises:
        TransferError: another host's file, or a name with NUL.
    """
    path = url
    if url.startswith("file:"):
        rest = url.removeprefix("file:")
        if rest.startswith("//"):
            host, slash, rest = rest[2:].partition("/")
            if host not in ("", "localhost"):
                raise TransferError(Code.UNKNOWNCOPYTOOL, f"mv cannot reach the host in {url}", Trait.NEXT)
            rest = slash + rest
        path = os.fsdecode(unquote_to_bytes(rest))
    if not path or "\0" in path:
        raise TransferError(Code.NOSUCHFILE, f"no path in {url!r}", Trait.NEXT)
    return Path(path)


def _mode(settings: Mapping[str, object], name: str, default: str) -> str:
    mode = str(settings.get(name) or default)
    if mode not in MODES:
        raise TransferError(Code.BADQUEUECONFIGURATION, f"{name} is {mode!r}, must be one of {', '.join(MODES)}")
    return mode


@contextmanager
def _faults(direction: Direction, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise of_os_error(error, direction, what) from error


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A name beside `target` that no other pilot uses; what has that name afterwards is removed."""
    suffix = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    stem = os.fsencode(target.name)[: NAME_MAX - len(suffix)]
    path = target.with_name(os.fsdecode(stem) + suffix)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _regular_size(path: Path, direction: Direction) -> int:
    """Bytes of a file. A directory, pipe or device is refused: opening a pipe would wait for ever."""
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        trait = Trait.NEXT if direction is Direction.IN else Trait.FATAL
        raise TransferError(direction.missing, f"there is no {path}", trait) from None
    if not stat.S_ISREG(info.st_mode):
        raise direction.fault(f"{path} is not a regular file", Trait.NEXT)
    if not os.access(path, os.R_OK, effective_ids=True):  # a link to it would be made, and fail the payload
        raise direction.fault(f"{path} may not be read by us", Trait.NEXT)
    return info.st_size


def _make_parents(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TransferError(Code.MKDIR, f"{target.parent}: {error.strerror}", Trait.NEXT) from error


def _types(transfer: Transfer) -> list[str]:
    """The checksum types to compute: those to verify, else the one that is asked for."""
    return [kind for kind in transfer.checksums if computable(kind)] or [transfer.checksum_type]


def _verify(
    found: Mapping[str, str], expected: Mapping[str, str], direction: Direction, path: Path, trait: Trait = Trait.NEXT
) -> None:
    if kind := differing(expected, found):
        raise TransferError(direction.mismatch(kind), f"{path} has {kind} {found[kind]}, not {expected[kind]}", trait)


def _link_in(source: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
    with _partial(transfer.path) as partial:
        partial.symlink_to(source.absolute())
        partial.replace(transfer.path)
    return {}


class _ReadBack:
    """Reads and sums up what was written to a file, in a thread behind the one that writes.

    On a node with two cores that takes the time of the last block and not that of the file. A file system that shows a
    file only once it is closed, such as some mounts of object stores, is read afterwards.
    """

    def __init__(self, path: Path, types: Sequence[str]) -> None:
        self._path = path
        self._types = types
        self._hasher = Hasher(types)
        self._blocks: SimpleQueue[int] = SimpleQueue()
        self._failed = False
        self._over = False
        self._thread = threading.Thread(target=self._read, name="read back", daemon=True)

    def follow(self, block: memoryview) -> None:
        """So much has been written."""
        if not self._thread.ident:
            self._thread.start()
        self._blocks.put(len(block))

    def digests(self, check: Callable[[], None]) -> Mapping[str, str]:
        """Type to hex digits of what is there once it is closed; `check` raises if nobody waits for it any more."""
        self._blocks.put(0)
        while self._thread.is_alive():
            self._thread.join(LOOK)
            check()
        return file_checksums(self._path, self._types, check) if self._failed else self._hasher.digests()

    def close(self) -> None:
        """No more is wanted, however much there still is to read."""
        self._over = True
        self._blocks.put(0)
        if self._thread.ident:
            self._thread.join()

    def _read(self) -> None:
        buffer = memoryview(bytearray(BLOCK))
        try:
            with open(self._path, "rb", buffering=0) as file:
                while (left := self._blocks.get()) and not self._over:
                    while left:
                        count = file.readinto(buffer[:left])
                        if not count:
                            raise EOFError
                        self._hasher.update(buffer[:count])
                        left -= count
        except (OSError, EOFError):
            self._failed = True


def _copy_bytes(
    source: Path, partial: Path, hear: Sequence[Callable[[memoryview], None]], handle: Handle, sync: bool
) -> None:
    """Copy into a new file of mode 0644 less the umask; `hear` is told each block once it is written."""
    buffer = memoryview(bytearray(BLOCK))
    with open(source, "rb", buffering=0, opener=regular) as reader, open(_create(partial), "wb", buffering=0) as writer:
        size = os.fstat(reader.fileno()).st_size
        _reserve(writer.fileno(), size)
        while count := reader.readinto(buffer):
            handle.advance(count)
            _write(writer.fileno(), buffer[:count])
            for told in hear:
                told(buffer[:count])
            if reader.tell() > size:  # it grows: who knows for how long
                break
        if reader.tell() != size:
            raise OSError(errno.EAGAIN, f"size changed from {size} to {reader.tell()} bytes while it was copied")
        if sync:
            os.fsync(writer.fileno())


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _reserve(file: int, size: int) -> None:
    """Take the space before the bytes come: a full disk shows at once, and the copy is a quarter faster.

    fallocate(2) itself, since `os.posix_fallocate` writes every block where a file system cannot reserve (NFSv3).
    """
    if size and ctypes.CDLL(None, use_errno=True).fallocate(file, 0, ctypes.c_longlong(0), ctypes.c_longlong(size)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))


def _moves(source: Path, act: Callable[[], object]) -> bool:
    """Link or move without copying by `act`; False if only a copy can do it."""
    if source.is_symlink():
        return False
    try:
        act()
    except OSError as error:
        if error.errno not in _ONLY_COPY:
            raise
        return False
    return True


def _give_name(source: Path, target: Path, *, keep: bool) -> None:
    """Give a file its final name, never instead of another file: link(2) refuses where rename(2) replaces.

    Raises:
        FileExistsError: there is something of that name.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if keep or error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.rename(target)
    else:
        if not keep:
            source.unlink()


def _same_content(source: Path, target: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
    """Checksums of what is at `target` already, if it has the content of `source`; FILEEXISTS (1221) if not."""
    if _is_same_path(source, target):
        return {}
    found: Mapping[str, str] = {}
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        expected = transfer.checksums or file_checksums(source, _types(transfer), handle.check)
        found = file_checksums(target, _types(transfer), handle.check)
        if not differing(expected, found):
            return found
    raise TransferError(Code.FILEEXISTS, f"{target} is there with other content", Trait.NEXT)


def _is_same_path(source: Path, target: Path) -> bool:
    return target.exists() and source.resolve() == target.resolve()


def _remove_moved(source: Path) -> None:
    try:
        source.unlink(missing_ok=True)
    except OSError as error:  # the file arrived: that is what counts
        logger.warning("mv: cannot remove %s after it was moved: %s", source, error.strerror)


def _announce(output_list: Path, line: str) -> None:
    """Append a line for ARC, once. One write to a file opened for appending cannot mix with another's."""
    file = os.open(output_list, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    with open(file, "r+b", buffering=0) as lines:
        if line.encode() not in (lines.readall() or b"").split(b"\n"):
            lines.write(line.encode() + b"\n")


def _arc_line(transfer: Transfer) -> str:
    """The file's line in `output.list`. A name with a line break would be a line of its own there."""
    line = f"{transfer.file.lfn} {_arc_url(transfer)}"
    if not line.isprintable():
        raise TransferError(Code.BADOUTPUTFILENAME, f"{line!r} cannot stand in output.list", Trait.FATAL)
    return line


def _arc_url(transfer: Transfer) -> str:
    """The URL with ARC's options; object stores go by way of Rucio's proxy (PILOT3 4.6)."""
    if transfer.onward.startswith("s3://"):
        gate = "rucio://rucio-lb-prod.cern.ch;failureallowed=yes/objectstores"
        return f"{gate}/s3+rucio{transfer.onward.removeprefix('s3')}/{transfer.file.endpoint}/write"
    kinds = sorted(transfer.checksums, key=lambda kind: kind != transfer.checksum_type)
    if not kinds:
        return transfer.onward
    return f"{transfer.onward}:checksumtype={kinds[0]}:checksumvalue={transfer.checksums[kinds[0]]}"
