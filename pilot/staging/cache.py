"""Inputs that are kept on the node for later jobs, by content: `adler32-0a1b2c3d-1048576-...` in `DIRECTORY/0a/`.

Several pilots may use one directory. A file gets its name when it is whole (rename), and only who holds the lock of the
directory removes any, the one that was not asked for the longest first. Beside each file is a note with what its inode
was when it was verified; its time is when the file was last asked for. A file that does not fit its note is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from pilot.job import File
from pilot.staging.checksum import BLOCK, Hasher, computable, differing, normal
from pilot.staging.copytool import Handle
from pilot.staging.result import StagedFile
from pilot.staging.room import Room

logger = logging.getLogger(__name__)

#: The name of the way, where others have that of a copy tool.
NAME = "cache"

#: Best first: a longer checksum tells more files apart.
_KINDS = ("md5", "crc32c", "adler32")

#: Those of 32 bits are the same for two files by chance once in a while, so that a name goes with them.
_SHORT = {"crc32c", "adler32"}

_NOTE, _PARTIAL = ".note", ".partial"

#: Seconds to wait for the lock, which others hold for milliseconds, between two looks, and from when on a file without
#: a name is one that a pilot left behind.
_PATIENCE, _PAUSE, _ABANDONED = 10.0, 0.05, 86400.0

#: ioctl(2) FICLONE of linux/fs.h: a copy that shares its blocks until one of both is written to (Btrfs, XFS).
_FICLONE = 0x40049409

_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES}


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used: float


class InputCache:
    """A directory of inputs.

    Args:
        directory: is made.
        limit: bytes that its files may have together.
        room: that is reserved on the node's disks: files are not kept at the cost of those.
        link: give jobs hard links instead of copies. It costs nothing, but a payload that writes into its input then
            writes into that of others.
    """

    def __init__(self, directory: Path, limit: int, room: Room, *, link: bool = False) -> None:
        self._directory = directory
        self._limit = limit
        self._room = room
        self._link = link

    def fetch(self, file: File, path: Path, handle: Handle) -> StagedFile | None:
        """Make an input at `path` from what is here; None if it is not, or cannot be had.

        Raises:
            PilotError: the transfer must end.
        """
        place = self._place(file)
        if place is None:
            return None
        started = time.monotonic()
        try:
            with open(place, "rb", buffering=0) as source:
                if not self._give(place, source.fileno(), file, path, handle):
                    self._drop(place, os.fstat(source.fileno()).st_ino, handle)
                    return None
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("input cache: %s for %s: %s", place, file.lfn, error)
            return None
        logger.info("stage-in of %s: from the input cache", file.lfn)
        return StagedFile(
            file=file,
            path=path,
            url=str(place),
            size=path.stat().st_size,
            checksums=dict(file.checksums),
            tool=NAME,
            seconds=time.monotonic() - started,
            local=not self._link,
        )

    def keep(self, staged: StagedFile, handle: Handle) -> None:
        """Keep a copy of an input that has just been verified. No job fails because that does not work.

        Raises:
            PilotError: the transfer must end.
        """
        place, size = self._place(staged.file), staged.size
        if place is None or not staged.local or size > self._limit or place.exists():
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not self._link and self._room.left(place.parent) < size:
                logger.info("input cache: no room for %s", staged.file.lfn)
                return
            self._add(staged, place, handle)
        except OSError as error:
            logger.warning("input cache: %s is not kept: %s", staged.file.lfn, error)

    def _place(self, file: File) -> Path | None:
        """Where the content of a file would be; None for a file of which the catalogue does not know enough."""
        kind = next((kind for kind in _KINDS if kind in file.checksums and computable(kind)), None)
        if kind is None or not file.size:
            return None
        value = normal(kind, file.checksums[kind])
        if not value.isalnum():  # it becomes a name
            return None
        words = [kind, value, str(file.size)]
        if kind in _SHORT:
            words.append(sha1(f"{file.scope}:{file.lfn}".encode(), usedforsecurity=False).hexdigest()[:16])
        return self._directory / value[:2] / "-".join(words)

    def _give(self, place: Path, source: int, file: File, path: Path, handle: Handle) -> bool:
        """False if what is here is not what it was."""
        note = _read_note(place)
        if note is None or note != _identity(os.fstat(source)):
            return False
        with _partial(path) as partial:
            if self._link:
                os.link(place, partial)
                if _identity(partial.stat()) != note:
                    return False
            elif not _copy(source, partial, file.checksums, handle):
                return False
            partial.replace(path)
        with suppress(OSError):
            os.utime(_note(place))
        return True

    def _add(self, staged: StagedFile, place: Path, handle: Handle) -> None:
        """Copies are verified again; a link is the file that was verified."""
        with _partial(place) as partial:
            if self._link:
                os.link(staged.path, partial)
                partial.chmod(0o444)
            else:
                with open(staged.path, "rb", buffering=0) as source:
                    if not _copy(source.fileno(), partial, staged.file.checksums, handle):
                        raise OSError(errno.EIO, "the copy is not what was verified")
            note = json.dumps(_identity(partial.stat()))
            with self._alone(handle):
                if not place.exists():  # else another pilot was quicker
                    self._evict(self._limit - staged.size)
                    _write_note(place, note)
                    partial.replace(place)

    def _drop(self, place: Path, inode: int, handle: Handle) -> None:
        """Remove a file that is not what it was, unless somebody has just replaced it."""
        with self._alone(handle):
            if place.stat().st_ino == inode:
                logger.warning("input cache: %s is not what it was, it is removed", place)
                _remove(place)

    def _evict(self, limit: int) -> None:
        """Remove what was not asked for the longest, until the rest is within `limit` bytes. Needs the lock."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= limit:
                return
            _remove(entry.path)
            total -= entry.size

    def _entries(self) -> Iterator[_Entry]:
        """All files that are whole; what a pilot left behind that was killed is removed on the way."""
        for folder in self._directory.iterdir():
            for path in folder.iterdir() if folder.is_dir() else ():
                with suppress(FileNotFoundError):
                    info = path.stat()
                    if path.suffix == _PARTIAL:
                        if info.st_mtime < time.time() - _ABANDONED:
                            path.unlink()
                    elif path.suffix != _NOTE:
                        yield _Entry(path, info.st_size, _used(path))

    @contextmanager
    def _alone(self, handle: Handle) -> Iterator[None]:
        """The lock of the directory. A network file system may never answer: nobody waits for it for long."""
        end = time.monotonic() + _PATIENCE
        with open(self._directory / ".lock", "wb") as lock:
            while not _try_lock(lock.fileno()):
                handle.check()
                if time.monotonic() > end:
                    raise TimeoutError(errno.ETIMEDOUT, "the lock is held by others")
                time.sleep(_PAUSE)
            yield


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identity(info: os.stat_result) -> list[int]:
    """What a change of the content changes. Not the time of the inode: each link to it changes that."""
    return [info.st_ino, info.st_size, info.st_mtime_ns]


def _note(place: Path) -> Path:
    return place.with_name(place.name + _NOTE)


def _read_note(place: Path) -> list[int] | None:
    try:
        found = json.loads(_note(place).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, list) else None


def _write_note(place: Path, text: str) -> None:
    with _partial(_note(place)) as partial:
        partial.write_text(text)
        partial.replace(_note(place))


def _used(path: Path) -> float:
    try:
        return _note(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> None:
    for one in (path, _note(path)):
        one.unlink(missing_ok=True)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A name beside `path` for what is not whole yet."""
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}{_PARTIAL}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: int, target: Path, checksums: Mapping[str, str], handle: Handle) -> bool:
    """Clone a file, or copy it and look whether it has its checksums; False if it has not."""
    with open(target, "xb", buffering=0) as out:
        if _clone(source, out.fileno()):
            return True
        hasher = Hasher(kind for kind in checksums if computable(kind))
        buffer = memoryview(bytearray(BLOCK))
        while count := os.readv(source, [buffer]):
            handle.advance(count)
            hasher.update(buffer[:count])
            left = buffer[:count]
            while left:
                left = left[out.write(left) or 0 :]
    return differing(checksums, hasher.digests()) is None


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True
