"""Copy tool `xrdcp`: files on XRootD servers, by the Python bindings where they are installed, else by the programs.

Measured on loopback with two busy cores (`python -m tests.benchmarks.bench_xrootd`), times as ratios to plain `xrdcp`
that verifies nothing, for 500 files to one `xrdcp` after another:

                                  bindings   programs
    1 GiB up, adler32 verified      0.45      0.98-1.13
    1 GiB down, adler32 verified    0.14-0.5  0.76-1.11
    500 files of 1 MiB up           0.16      11.5
    500 files of 1 MiB down         0.06      1.4
    peak memory, one big file       58 MiB    34 MiB and 29 MiB in xrdcp

The bindings keep one connection for all files, where each program makes its own and an upload takes five programs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from copytools import _xrootd
from copytools._remote import CannotRename, RemoteTool
from copytools._site import SitePrograms
from copytools._xrootd import Xrootd, XrootdError
from copytools._xrootd_programs import Programs, settings
from pilot.errors import Code, Trait, TransferError
from pilot.staging.copytool import Handle, Stored, ToolContext, Transfer

WAYS = ("bindings", "programs")


class Xrdcp(RemoteTool):
    """Files on XRootD servers (root, roots, xroot).

    Options of the queue: `setup`, a file to source before the programs; `use`, `bindings` or `programs`. If nothing is
    said the bindings are used when they are installed and there is no `setup`. With a user's proxy it is always the
    programs: the bindings have one proxy in all of a process, the pilot's.
    """

    name = "xrdcp"
    schemes = frozenset({"root", "roots", "xroot", "xroots"})
    checksums = frozenset({"adler32", "md5", "crc32c"})
    works_by = ("XRootD", "xrdcp")

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._site = SitePrograms(context.options, settings())
        self._use = str((not self._is_users and context.options.get("use")) or self._best())
        if self._use not in WAYS:
            raise TransferError(Code.BADQUEUECONFIGURATION, f"xrdcp: use is {self._use!r}, must be one of {WAYS}")
        self._fixed: set[str] = set()
        self._lock = threading.Lock()
        self._made: Xrootd | None = None

    def unavailable(self) -> str | None:
        """Neither bindings nor programs."""
        if self._use == "bindings":
            return None if _has_bindings() else "no module XRootD: pip install 'pilot-toolkit[xrootd]'"
        missing = self._site.missing("xrdcp", "xrdfs")
        return f"no program {missing}, nor the bindings: pip install 'pilot-toolkit[xrootd]'" if missing else None

    def location(self, transfer: Transfer) -> str:
        """The URL. A name with a question mark would silently become a shorter one."""
        lfn = transfer.file.lfn
        if "?" in lfn and transfer.url.endswith(lfn):
            raise TransferError(Code.BADOUTPUTFILENAME, f"{lfn!r}: XRootD takes no name with a '?'", Trait.NEXT)
        return transfer.url

    def download(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Bring a file."""
        return self._xrootd.download(url, path, transfer, handle)

    def upload(self, url: str, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """Send a file."""
        return self._xrootd.upload(url, transfer, handle)

    def look(self, url: str, kinds: Sequence[str], handle: Handle) -> Stored | None:
        """Size and checksum, as the server says. One that does not have a type may answer with another."""
        size = self._xrootd.size(url, handle)
        if size is None:
            return None
        for kind in kinds:
            found = self._xrootd.checksum(url, kind, handle)
            if kind in found:
                return Stored(url=url, size=size, checksums=found)
        return Stored(url=url, size=size)

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """Open a file and read a byte of it."""
        size = self._xrootd.probe(url, handle)
        return None if size is None else Stored(url=url, size=size)

    def renames(self, url: str) -> bool:
        """False for a server that has refused it."""
        return _xrootd.split(url)[0] not in self._fixed

    def rename(self, url: str, to: str, handle: Handle) -> None:
        """Rename, if the server has that and lets us."""
        try:
            self._xrootd.rename(url, to, handle)
        except XrootdError as error:
            if error.number not in (3010, 3013, 3025):  # not authorized, not supported, not here
                raise
            self._fixed.add(_xrootd.split(url)[0])
            raise CannotRename(error.detail) from error

    def remove(self, url: str, handle: Handle) -> None:
        """Delete a file."""
        self._xrootd.remove(url, handle)

    def beside(self, url: str, suffix: str) -> str:
        """The URL of a name beside."""
        return _xrootd.beside(url, suffix)

    @property
    def _is_users(self) -> bool:
        """Whether the credentials are those of a user on a unified queue."""
        environ = self.context.environ
        return bool(proxy := environ.get("X509_UNIFIED_DISPATCH")) and proxy == environ.get("X509_USER_PROXY")

    def _best(self) -> str:
        return "bindings" if _has_bindings() and not (self._site.prepared or self._is_users) else "programs"

    @property
    def _xrootd(self) -> Xrootd:
        with self._lock:  # loading the bindings takes 0.03 s and 10 MiB: only when there is a file to move
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Xrootd:
        if self._use == "programs":
            return Programs(self._site)
        from copytools._xrootd_bindings import Bindings

        if proxy := self.context.environ.get("X509_USER_PROXY"):
            os.environ["X509_USER_PROXY"] = proxy  # the library asks its process; the pilot's may be a copy
        return Bindings()


def _has_bindings() -> bool:
    return find_spec("XRootD") is not None
