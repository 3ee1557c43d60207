"""Copy tool `gfal`: whatever the gfal2 programs of the node have a plug-in for, above all srm and gsiftp.

Exit codes are errnos (a number above 255 is only in the text). A URL is escaped, also `root://`, where XRootD's
own programs take it as it is. `gfal2-util` starts Python for each call: 0.07 s and more.
"""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from copytools._remote import CannotRename, RemoteTool, escaped, escaped_beside, speakable
from copytools._site import SitePrograms
from copytools._xrootd_programs import settings
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import normal
from pilot.staging.copytool import Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction
from pilot.staging.result import shown
from pilot.staging.room import free_space

#: What `gfal-rename` says where it is not possible.
_NO_RENAME = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL}

#: What the same again does not change.
_FINAL = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EPROTONOSUPPORT, errno.EROFS}


class GfalError(TransferError):
    """A program said no; `number` is its errno."""

    def __init__(self, text: str, status: int, direction: Direction, url: str) -> None:
        said = re.search(r"gfal-\w+ error: (\d+) [^\n]*", text)
        self.number = int(said[1]) if said else status
        code, trait = _meaning(self.number, text, direction)
        words = said[0].partition(" error: ")[2] if said else text.strip()[-300:] or f"exit code {status}"
        super().__init__(code, f"{shown(url)}: {words}", trait)


class Gfal(RemoteTool):
    """Files by the gfal2 programs (srm, gsiftp, davs, https, root).

    Options of the queue: `setup`, a file to source before the programs.
    """

    name = "gfal"
    schemes = frozenset({"srm", "gsiftp", "https", "davs", "root", "http", "dav"})
    checksums = frozenset({"adler32", "md5"})
    works_by = ("gfal-copy",)

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._site = SitePrograms(context.options, settings())
        self._fixed: set[str] = set()

    def unavailable(self) -> str | None:
        """No programs."""
        missing = self._site.missing("gfal-copy", "gfal-stat", "gfal-sum", "gfal-rm", "gfal-rename")
        return f"no program {missing}: install gfal2-util, or name a `setup`" if missing else None

    def location(self, transfer: Transfer) -> str:
        """The URL, escaped."""
        return escaped(transfer.url, transfer.file.lfn)

    def download(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """`gfal-copy` without a checksum: we read the file ourselves, faster."""
        with speakable(path.parent) as folder:
            self._copy(handle, Direction.IN, transfer, url, url, f"file://{folder / path.name}", watch=path)
        self._check_whole(url, path, transfer, handle)
        return {}

    def upload(self, url: str, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """`gfal-copy`, parents made."""
        with speakable(transfer.path) as source:
            self._copy(handle, Direction.OUT, transfer, url, f"file://{source}", url)
        return {}

    def look(self, url: str, kinds: Sequence[str], handle: Handle) -> Stored | None:
        """Size by `gfal-stat`, checksum by `gfal-sum`."""
        try:
            size = re.search(r"Size:\s+(\d+)", self._run(handle, Direction.OUT, url, "gfal-stat", url).stdout)
        except GfalError as error:
            if error.number == errno.ENOENT:
                return None
            raise
        for kind in kinds:
            if found := self._sum(url, kind, handle):
                return Stored(url=url, size=int(size[1]) if size else None, checksums=found)
        return Stored(url=url, size=int(size[1]) if size else None)

    def renames(self, url: str) -> bool:
        """False for a storage that has refused it, and for names that would lose their escapes.

        A rename by http is WebDAV's MOVE, which XRootD 5.5 takes with the escapes for a name.
        """
        return _server(url) not in self._fixed and not (url.startswith(("http", "dav")) and "%" in url)

    def rename(self, url: str, to: str, handle: Handle) -> None:
        """`gfal-rename`."""
        try:
            self._run(handle, Direction.OUT, to, "gfal-rename", url, to)
        except GfalError as error:
            if error.number not in _NO_RENAME:
                raise
            self._fixed.add(_server(url))
            raise CannotRename(error.detail) from error

    def remove(self, url: str, handle: Handle) -> None:
        """`gfal-rm`."""
        try:
            self._run(handle, Direction.OUT, url, "gfal-rm", url)
        except GfalError as error:
            if error.number != errno.ENOENT:
                raise

    def beside(self, url: str, suffix: str) -> str:
        """The URL of a name beside."""
        return escaped_beside(url, suffix)

    def _check_whole(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> None:
        """`gfal-copy` (gfal2 2.21) calls it a success when our disk was full and the file is cut short."""
        expected = transfer.size
        if expected is None and not transfer.checksums:
            there = self.look(url, (), handle)
            expected = there.size if there else None
        size = path.stat().st_size
        if expected is None or size >= expected:
            return
        if free_space(path.parent) < expected - size:
            detail = f"{path.parent} is full: {size} of {expected} bytes of {shown(url)}"
            raise TransferError(Code.NOLOCALSPACE, detail, Trait.FATAL)
        raise Direction.IN.fault(f"{shown(url)} gave {size} bytes, not {expected}", Trait.NEXT)

    def _sum(self, url: str, kind: str, handle: Handle) -> dict[str, str]:
        """Empty where the storage has none of that type."""
        try:
            said = self._run(handle, Direction.OUT, url, "gfal-sum", url, kind.upper()).stdout.split()
        except GfalError:
            return {}
        return {kind: normal(kind, said[-1])} if said and re.fullmatch("[0-9a-fA-F]+", said[-1]) else {}

    def _copy(
        self,
        handle: Handle,
        direction: Direction,
        transfer: Transfer,
        url: str,
        source: str,
        target: str,
        watch: Path | None = None,
    ) -> None:
        seconds = str(max(1, int(transfer.timeout)))
        self._run(handle, direction, url, "gfal-copy", "-p", "-t", seconds, "-T", seconds, source, target, watch=watch)

    def _run(
        self, handle: Handle, direction: Direction, url: str, *argv: str, watch: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = self._site.run(handle, direction, argv, watch)
        if done.returncode:
            raise GfalError(done.stderr or done.stdout, done.returncode, direction, url)
        return done


def _server(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def _meaning(number: int, text: str, direction: Direction) -> tuple[Code, Trait]:
    """By what is said first, since several faults share a number; the order is that of Pilot 3 (PILOT3 4.6)."""
    said = (
        ("CheckSum error|checksum.*(mismatch|do(es)? not match)", direction.mismatch("adler32"), Trait.NEXT),
        ("globus_xio:", _globus(direction), Trait.RETRY),
        ("Could not establish context", Code.NOPROXY, Trait.NEXT),
        ("service is not available at the moment", Code.SERVICENOTAVAILABLE, Trait.RETRY),
        ("Network is unreachable", Code.UNREACHABLENETWORK, Trait.NEXT),
        ("SRM_FILE_BUSY", Code.FILEEXISTS, Trait.RETRY),
        ("HTTP 401|authentication (failed|error)", direction.refused, Trait.NEXT),
    )
    for pattern, code, trait in said:
        if re.search(pattern, text, re.I):
            return code, trait
    return _of_errno(number, direction)


def _of_errno(number: int, direction: Direction) -> tuple[Code, Trait]:
    if number == errno.ENOENT:
        return (direction.missing if direction is Direction.IN else Code.NOSUCHFILE), Trait.NEXT
    if number == errno.EEXIST:
        return Code.FILEEXISTS, Trait.NEXT
    if number in (errno.ETIMEDOUT, errno.ETIME):
        return direction.timed_out, Trait.RETRY
    if number in (errno.ENOSPC, errno.EDQUOT):
        return direction.no_space, Trait.NEXT
    return direction.failed, Trait.NEXT if number in _FINAL else Trait.RETRY


def _globus(direction: Direction) -> Code:
    return Code.GETGLOBUSSYSERR if direction is Direction.IN else Code.PUTGLOBUSSYSERR
