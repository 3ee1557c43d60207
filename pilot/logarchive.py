"""The log of a job: a gzip-compressed tar file of what is worth keeping of its directory, with the secrets masked.

Everything of the job directory goes in, except the files named by the caller (inputs, outputs), `panda_secrets.json`,
`pilot_masks.txt` and what matches the patterns of redundant files. `pilotlog.txt` is the part of the pilot's log that
is about this job.

The payload made these files and may still be changing them, so nothing it did is trusted:
- Links are followed only to regular files inside the directory (checked on the open file, so they cannot be exchanged
  meanwhile). A link to a directory inside is kept as a link. Links that lead out are left out: there lie the proxy and
  other people's files. So the archive can be extracted with tarfile's `data` filter.
- Directories on other file systems are not entered; sockets, pipes, devices and broken links are left out.
- Secrets are covered with as many `*`, so the size in the header of a member is right. Known secrets are covered in
  every file, secret shapes in text files only.
- A file may grow or shrink while it is read; of one over the limit head and tail are kept.
What should be there and is not, is listed in `_missing.txt`, with the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pilot.errors import Code, PilotError
from pilot.maskfile import MASKS
from pilot.masking import HOLD, Masker

if TYPE_CHECKING:
    from tarfile import TarInfo

PILOT_LOG = "pilotlog.txt"
MISSING = "_missing.txt"
#: Never in the archive, whatever the caller says.
SECRETS = "panda_secrets.json"

#: Files of no use to anybody who reads a log. `*` stays within a name, `**/` is any depth. Core dumps go by content.
REDUNDANT = ("**/*.pyc", "**/__pycache__", "**/*.partial")

#: Bytes kept of one file: `local_size_limit_stdout` of Pilot 3.
FILE_LIMIT = 2 << 30
#: gzip level of zlib-ng. For a log: 1 gives 650 MB/s and 5.9 times smaller, 2 gives 420 MB/s and 8.5 times, 3 gives
#: 270 MB/s and 8.8 times; zlib's usual 6 gives 120 MB/s and 8.7 times (measured, one core). Level 1 makes random data
#: 5 % larger.
LEVEL = 2
#: Bytes read at once.
BLOCK = 256 << 10
#: tar's block and record.
_UNIT, _RECORD = 512, 10240

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """What was made.

    Attributes:
        path: the archive. size: its bytes.
        checksums: `adler32` and `md5`, computed while it was written.
        members: files, directories and links in it.
        missing: lines of `_missing.txt`.
    """

    path: Path
    size: int
    checksums: Mapping[str, str]
    members: int
    missing: tuple[str, ...]


def archive_folder(job_id: int, queue: str) -> str:
    """The folder inside the archive, by which log viewers find the files (PILOT3 5.7)."""
    return f"tarball_PandaJob_{job_id}_{queue.replace('/', '_')}"


def make_log_archive(
    jobdir: Path,
    target: Path,
    *,
    folder: str,
    masker: Masker,
    exclude: Collection[str | Path] = (),
    redundant: Collection[str] = (),
    keep: Collection[str] = (),
    pilot_log: tuple[Path, int, int] | None = None,
    extra: Collection[Path] = (),
    debug: bool = False,
    file_limit: int = FILE_LIMIT,
    check: Callable[[], None] = lambda: None,
) -> ArchiveResult:
    """Pack a job directory. Blocks; nothing in it is changed.

    Args:
        jobdir: the job directory.
        target: the archive; it may lie in the job directory. It appears when it is complete (`.partial` before).
        folder: see `archive_folder`.
        masker: covers the secrets.
        exclude: files and directories to leave out, absolute or relative to the job directory.
        redundant: patterns of paths in it to leave out beside `REDUNDANT`.
        keep: a path with one of these texts in it is kept, even if it is redundant.
        pilot_log: the pilot's log file, where its header ends, where this job's part begins (bytes).
        extra: files from elsewhere, to be put beside the others.
        debug: keep core dumps.
        file_limit: bytes kept of one file.
        check: called between blocks; what it raises ends the work.

    Raises:
        PilotError: LOGFILECREATIONFAILURE (1320), the archive cannot be written.
    """
    replaced = [path.name for path in extra] + [PILOT_LOG] * (pilot_log is not None)
    unwanted = [*exclude, *replaced, SECRETS, MASKS, target.absolute(), _partial(target).absolute()]
    selection = _Selection(jobdir.absolute(), unwanted, (*REDUNDANT, *redundant), keep)
    with _written(target) as file:
        packer = _Packer(_Tar(file, folder, check), masker, selection, debug=debug, file_limit=file_limit)
        packer.add_tree(jobdir)
        for path in extra:
            packer.add_extra(path)
        if pilot_log is not None:
            packer.add_pilot_log(*pilot_log)
        return packer.finish(target)


class _Selection:
    """Which paths of the job directory, relative to it, are left out."""

    def __init__(
        self, jobdir: Path, exclude: Iterable[str | Path], redundant: Iterable[str], keep: Collection[str]
    ) -> None:
        self._exclude = {os.path.relpath(jobdir / name, jobdir) for name in exclude}
        self._redundant = re.compile("|".join(map(_pattern, redundant)), re.DOTALL).fullmatch
        self._keep = keep

    def leaves_out(self, path: str) -> bool:
        """True for a path that was named, or is redundant. What lies below a directory is not asked about."""
        if path in self._exclude:
            return True
        return self._redundant(path) is not None and not any(text in path for text in self._keep)

    def leaves_out_any(self, path: str) -> bool:
        """True if the path or a directory it is in is left out."""
        parts = path.split("/")
        return any(self.leaves_out("/".join(parts[:count])) for count in range(1, len(parts) + 1))


def _pattern(pattern: str) -> str:
    """A regular expression for a pattern of redundant files."""
    anywhere = pattern.startswith("**/")
    path = re.escape(pattern.removeprefix("**/").strip("/")).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return f"(?:.*/)?{path}" if anywhere else path


class _Packer:
    """Puts files into the archive, one after the other, and remembers what it could not."""

    def __init__(self, tar: _Tar, masker: Masker, selection: _Selection, *, debug: bool, file_limit: int) -> None:
        self._tar = tar
        self._masker = masker
        self._selection = selection
        self._debug = debug
        self._limit = file_limit
        self._missing: list[str] = []

    def add_tree(self, top: Path) -> None:
        """The directory and what is below, in the order of names, directories after the files beside them.

        Raises:
            OSError: the directory itself cannot be read.
        """
        root = os.path.realpath(top)
        device = os.stat(root).st_dev
        os.close(_open_directory(root, "", device))
        below = [""]
        while below:
            path = below.pop()
            with self._noting(path):
                below += reversed(self._add_directory(root, path, device))

    def _add_directory(self, root: str, path: str, device: int) -> list[str]:
        """One directory and what is in it but directories: these are returned."""
        folder = _open_directory(root, path, device)
        try:
            self._tar.add(path, os.fstat(folder))
            directories = []
            for name in sorted(os.listdir(folder)):
                inside = f"{path}/{name}" if path else name
                if not self._selection.leaves_out(inside):
                    with self._noting(inside):
                        if self._add_entry(root, inside, name, folder):
                            directories.append(inside)
        finally:
            os.close(folder)
        return directories

    def _add_entry(self, root: str, path: str, name: str, folder: int) -> bool:
        """True for a directory, whose turn comes later."""
        mode = os.lstat(name, dir_fd=folder).st_mode
        if stat.S_ISREG(mode):
            with _opened(name, folder, os.O_NOFOLLOW) as fd:
                self._add_file(path, fd)
        elif stat.S_ISLNK(mode):
            self._add_link(root, path, name, folder)
        return stat.S_ISDIR(mode)

    def _add_link(self, root: str, path: str, name: str, folder: int) -> None:
        try:
            target = os.stat(name, dir_fd=folder)
        except OSError:  # broken, or a loop
            return
        if stat.S_ISREG(target.st_mode):
            with _opened(name, folder) as fd:
                if self._inside(root, os.readlink(f"/proc/self/fd/{fd}")):
                    self._add_file(path, fd)
                else:
                    raise _LeftOutError("a link out of the job directory, or to a file that is left out")
        elif stat.S_ISDIR(target.st_mode):
            real = os.path.realpath(os.path.join(root, path))
            if not self._inside(root, real):
                raise _LeftOutError("a link out of the job directory, or to a directory that is left out")
            self._tar.add(
                path,
                os.lstat(name, dir_fd=folder),
                link=os.path.relpath(real, os.path.dirname(os.path.join(root, path))),
            )

    def _inside(self, root: str, real: str) -> bool:
        inside = os.path.relpath(real, root)
        return inside != ".." and not inside.startswith("../") and not self._selection.leaves_out_any(inside)

    def _add_file(self, path: str, fd: int) -> None:
        """A regular file, or its head and tail."""
        found = os.fstat(fd)
        head = os.pread(fd, 8192, 0)
        if not self._debug and is_core(head):
            raise _LeftOutError(f"core dump of {found.st_size} bytes")
        size = found.st_size
        parts: list[Span | bytes] = [(0, size)]
        if size > self._limit:
            half = self._limit // 2
            note = b"\n\n--- left out here by the pilot: %d bytes of %d ---\n\n" % (size - 2 * half, size)
            parts = [(0, half), note, (size - half, size)]
        self._store(path, found, fd, parts, text=b"\0" not in head)

    def add_pilot_log(self, path: Path, header_end: int, start: int) -> None:
        """The header and the job's part of the pilot's log."""
        with self._noting(PILOT_LOG), _opened(str(path)) as fd:
            found = os.fstat(fd)
            start = max(start, header_end, found.st_size - self._limit)
            self._store(PILOT_LOG, found, fd, [(0, header_end), (start, max(start, found.st_size))], text=True)

    def add_extra(self, path: Path) -> None:
        """A file from elsewhere."""
        with self._noting(path.name), _opened(str(path)) as fd:
            self._add_file(path.name, fd)

    def _store(self, path: str, found: os.stat_result, fd: int, parts: list[Span | bytes], *, text: bool) -> None:
        size = sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)
        lacking = self._tar.add(path, found, size, self._content(path, fd, parts, text=text))
        if lacking:
            self._missing.append(f"{path}: {lacking} bytes could not be read, there are zeros instead")

    def _content(self, path: str, fd: int, parts: list[Span | bytes], *, text: bool) -> Iterator[bytes]:
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            with self._noting(path):  # a disk that fails in the middle of a file: the rest is filled up
                yield from _masked(fd, part, self._masker, text=text)

    @contextmanager
    def _noting(self, path: str) -> Iterator[None]:
        """What cannot be read is noted and no reason to have no log at all."""
        try:
            yield
        except OSError as error:
            self._missing.append(f"{path or '.'}: {error.strerror}")

    def finish(self, target: Path) -> ArchiveResult:
        """The list of what is missing, and the end."""
        missing = tuple(self._masker.mask(" ".join(line.split())) for line in self._missing)
        if missing:
            self._tar.add_text(MISSING, "".join(f"{line}\n" for line in missing))
        return self._tar.finish(target, missing)


class _LeftOutError(OSError):
    """Something that must not be in the archive, with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


class _Tar:
    """Writes members to a gzip-compressed tar file and sums its bytes while they pass.

    The headers are tarfile's; its `TarFile` is not used, since it keeps every header in memory and reads contents
    through a file object. Names of users are left out: they say who ran the job.
    """

    def __init__(self, file: BinaryIO, folder: str, check: Callable[[], None]) -> None:
        from zlib_ng import zlib_ng

        self._file = file
        self._folder = folder
        self._check = check
        self._gzip = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, 31)  # 31: with the header of gzip, its time 0
        self._adler32 = zlib_ng.adler32
        self._sum, self._md5 = 1, hashlib.md5(usedforsecurity=False)
        self._size = self._length = self._members = 0

    def add(
        self, path: str, found: os.stat_result, size: int = 0, content: Iterable[bytes] = (), *, link: str = ""
    ) -> int:
        """A directory, link or file of `size` bytes, whatever `content` gives. Returns the bytes it did not give."""
        import tarfile

        info = tarfile.TarInfo(f"{self._folder}/{path}" if path else self._folder)
        info.mtime, info.size, info.linkname = max(0, int(found.st_mtime)), size, link
        # The owner must be able to read what is extracted; set-user-id bits have no place in a log.
        info.mode = stat.S_IMODE(found.st_mode) & 0o777 | 0o600
        if link:
            info.type, info.mode = tarfile.SYMTYPE, 0o777
        elif stat.S_ISDIR(found.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, info.mode | 0o100
        return self._member(info, content)

    def add_text(self, path: str, text: str) -> None:
        """A file made here."""
        import tarfile

        data = text.encode("utf-8", "surrogateescape")
        info = tarfile.TarInfo(f"{self._folder}/{path}")
        info.size, info.mtime = len(data), int(time.time())
        self._member(info, [data])

    def _member(self, info: TarInfo, content: Iterable[bytes]) -> int:
        from tarfile import GNU_FORMAT

        self._check()
        self._write(info.tobuf(GNU_FORMAT, "utf-8", "surrogateescape"))
        left = info.size
        for block in content:
            self._check()
            self._write(block[:left])
            left -= len(block[:left])
        self._fill(left + -info.size % _UNIT)
        self._members += 1
        return left

    def _fill(self, count: int) -> None:
        while count > 0:
            self._check()
            self._write(bytes(min(count, BLOCK)))
            count -= BLOCK

    def _write(self, data: bytes) -> None:
        self._length += len(data)
        self._out(self._gzip.compress(data))

    def _out(self, data: bytes) -> None:
        if data:
            try:
                self._file.write(data)
            except OSError as error:  # told apart here from errors of the files that are read
                raise _cannot_write(error) from error
            self._size += len(data)
            self._sum = self._adler32(data, self._sum)
            self._md5.update(data)

    def finish(self, target: Path, missing: tuple[str, ...]) -> ArchiveResult:
        """Two empty blocks, then up to a whole record: the end of a tar file."""
        self._fill(2 * _UNIT)
        self._fill(-self._length % _RECORD)
        self._out(self._gzip.flush())
        checksums = {"adler32": f"{self._sum:08x}", "md5": self._md5.hexdigest()}
        return ArchiveResult(target, self._size, checksums, self._members, missing)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


@contextmanager
def _written(target: Path) -> Iterator[BinaryIO]:
    """A new file that gets the name `target` at the end, or is gone if something went wrong."""
    partial = _partial(target)
    try:
        partial.unlink(missing_ok=True)
        # O_EXCL: the payload may have put a link in this place.
        with open(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb", buffering=0
        ) as file:
            yield file
        os.replace(partial, target)
    except OSError as error:
        raise _cannot_write(error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _cannot_write(error: OSError) -> PilotError:
    return PilotError(Code.LOGFILECREATIONFAILURE, f"{error.strerror} ({error.filename or 'while it was written'})")


@contextmanager
def _opened(name: str, folder: int | None = None, flags: int = 0) -> Iterator[int]:
    """A regular file. Never waits: what has become a pipe meanwhile is refused."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _LeftOutError("no regular file")
        yield fd
    finally:
        os.close(fd)


def _open_directory(root: str, path: str, device: int) -> int:
    """A directory below `root`, and really there: none of its parents became a link meanwhile."""
    expected = os.path.join(root, path) if path else root
    fd = os.open(expected, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.readlink(f"/proc/self/fd/{fd}") != expected:
            raise _LeftOutError("moved while the log was made")
        if os.fstat(fd).st_dev != device:
            raise _LeftOutError("on another file system")
    except OSError:
        os.close(fd)
        raise
    return fd


def masked_copy(
    source: Path, target: Path, masker: Masker, parts: Iterable[Span] = (), limit: int = FILE_LIMIT
) -> None:
    """A masked copy of a log file, of its last `limit` bytes at most. Blocks.

    Args:
        source: a regular file, not a link.
        target: a new file.
        masker: covers the secrets.
        parts: begin and end of what is wanted of it, bytes; all if none is given.
        limit: bytes.

    Raises:
        OSError: it cannot be read, or the copy not be written.
    """
    with _opened(str(source), flags=os.O_NOFOLLOW) as fd, open(target, "xb") as copy:
        size = os.fstat(fd).st_size
        text = b"\0" not in os.pread(fd, 8192, 0)
        for start, end in parts or [(0, size)]:
            for block in _masked(fd, (max(start, end - limit), end), masker, text=text):
                copy.write(block)


def is_core(head: bytes) -> bool:
    """True for an ELF file of type ET_CORE (4)."""
    return head[:4] == b"\x7fELF" and int.from_bytes(head[16:18], "little" if head[5:6] == b"\1" else "big") == 4


def _masked(fd: int, part: Span, masker: Masker, *, text: bool) -> Iterator[bytes]:
    """The bytes of a part of a file, masked; as much around it is looked at as a secret cut by its ends may have."""
    start, end = part
    stream = masker.stream(keep_length=True, patterns=text)
    place = read = max(0, start - HOLD)
    while place < end:
        block = os.pread(fd, min(BLOCK, end + HOLD - read), read) if read < end + HOLD else b""
        read += len(block)
        shown = stream.feed(block) if block else stream.finish()
        yield shown[max(0, start - place) : max(0, end - place)]
        place += len(shown)
        if not block and not shown:
            return  # the file is shorter than it was
