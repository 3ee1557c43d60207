"""Copy tool `https`: files on web servers and WebDAV storages (https, davs; http and dav where that is allowed).

A file is sent to a name beside its own and moved (WebDAV MOVE) where the storage does that; else it is sent to its name
and deleted if that fails. What the storage has is asked by HEAD with `Want-Digest` (RFC 3230). A broken download goes
on where it broke.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from copytools._http import BLOCK, HttpError, Web, network_faults, plain
from copytools._remote import CannotRename, RemoteTool, checksum_types, escaped, escaped_beside
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import Hasher, normal
from pilot.staging.copytool import Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction
from pilot.staging.result import shown

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

#: How often a broken download goes on before the engine decides.
RESUMES = 3

#: What MOVE answers where it may be that only MOVE does not work.
_NO_MOVE = {400, 401, 403, 404, 405, 409, 500, 501, 502}

#: What MKCOL answers when a directory is there, or has been made.
_MADE = {200, 201, 301, 405}


class Https(RemoteTool):
    """Files on web servers and WebDAV storages (https, davs, http, dav).

    Options of the queue: `token_file`, `proxy`: credentials, before those of the variables BEARER_TOKEN_FILE and
    X509_USER_PROXY. A token stands before a proxy.
    """

    name = "https"
    schemes = frozenset({"https", "http", "davs", "dav"})
    checksums = frozenset({"adler32", "md5"})

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._web = Web(context)
        self._fixed: set[str] = set()
        self._servers: dict[str, str] = {}

    def location(self, transfer: Transfer) -> str:
        """The URL, escaped."""
        return escaped(transfer.url, transfer.file.lfn)

    def download(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """GET, and again for the rest when it breaks."""
        with open(path, "xb", buffering=0) as target:
            state = _Download(target, checksum_types(transfer))
            for left in range(RESUMES, -1, -1):
                before = state.position
                try:
                    with closing(self._web.request("GET", url, Direction.IN, state.headers())) as response:
                        state.take(response, url, handle)
                    return state.hasher.digests()
                except TransferError as error:
                    # only what the network did: an answer with an error is the storage's word
                    if isinstance(error, HttpError) or not left or state.position == before:
                        raise
        raise AssertionError("the last try returns or raises")

    def upload(self, url: str, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """PUT; when a parent is missing make them all, then PUT again."""
        size = transfer.path.stat().st_size
        hasher = Hasher(checksum_types(transfer))
        try:
            self._web.put(url, transfer.path, size, hasher, handle)
        except HttpError as error:
            if error.status not in (404, 409):
                raise
            self._make_parents(url)
            hasher = Hasher(checksum_types(transfer))
            self._web.put(url, transfer.path, size, hasher, handle)
        return hasher.digests()

    def look(self, url: str, kinds: Sequence[str], handle: Handle) -> Stored | None:
        """Size and checksum by HEAD; size by PROPFIND where there is no HEAD."""
        size: int | None = None
        for kind in kinds:
            handle.check()
            there = self._head(url, {"Want-Digest": kind})
            if there is None or kind in there.checksums:
                return there
            size = there.size
        return Stored(url=url, size=size)

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """GET of the first byte, if there is one: XRootD 5.5 promises it of an empty file, too."""
        handle.check()
        there = self._head(url, {})
        if there is None or there.size == 0:
            return there
        handle.check()
        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        with closing(self._web.request("GET", url, Direction.IN, headers)) as answer:
            if not 200 <= answer.status < 300:
                raise HttpError(answer.status, Direction.IN, url, "GET")
            with network_faults(Direction.IN, "GET", url):
                answer.read(1, decode_content=False)  # a server without ranges sends all: that is left
        return there

    def renames(self, url: str) -> bool:
        """False for a storage that has refused MOVE.

        XRootD 5.5 takes the escapes in a MOVE's destination for the name (and a `?`, escaped or not, for its end).
        """
        host = _host(url)
        if self._servers.get(host, "").startswith("XrootD"):
            if "%3F" in url.upper():
                raise TransferError(Code.BADOUTPUTFILENAME, f"{shown(url)}: XRootD takes no '?'", Trait.NEXT)
            return host not in self._fixed and "%" not in urlsplit(url).path
        return host not in self._fixed

    def rename(self, url: str, to: str, handle: Handle) -> None:
        """MOVE."""
        headers = {"Destination": plain(to), "Overwrite": "F"}
        with closing(self._web.request("MOVE", url, Direction.OUT, headers)) as answer:
            if answer.status in _NO_MOVE:
                self._fixed.add(_host(url))
                raise CannotRename(f"MOVE {shown(url)}: {answer.status}")
            _succeeded(answer, to, "MOVE")

    def remove(self, url: str, handle: Handle) -> None:
        """DELETE."""
        handle.check()
        with closing(self._web.request("DELETE", url, Direction.OUT)) as answer:
            if answer.status not in (404, 410):
                _succeeded(answer, url, "DELETE")

    def beside(self, url: str, suffix: str) -> str:
        """The URL of a name beside."""
        return escaped_beside(url, suffix)

    def _head(self, url: str, headers: Mapping[str, str]) -> Stored | None:
        with closing(self._web.request("HEAD", url, Direction.OUT, headers)) as answer:
            self._servers[_host(url)] = answer.headers.get("Server", "")
            if answer.status in (404, 410):
                return None
            if answer.status in (405, 501):
                return self._propfind(url)
            _succeeded(answer, url, "HEAD")
            length = answer.headers.get("Content-Length", "")
            found = parse_digest(answer.headers.get("Digest", ""))
        return Stored(url=url, size=int(length) if length.isdigit() else None, checksums=found)

    def _propfind(self, url: str) -> Stored | None:
        with closing(self._web.request("PROPFIND", url, Direction.OUT, {"Depth": "0"})) as answer:
            if answer.status in (404, 410):
                return None
            _succeeded(answer, url, "PROPFIND")
            # one number of a small document from who knows whom: no XML parser, no entities that grow
            found = re.search(rb"getcontentlength[^>]*>\s*(\d+)\s*<", answer.read(BLOCK))
        return Stored(url=url, size=int(found[1]) if found else None)

    def _make_parents(self, url: str) -> None:
        """MKCOL from the top; those above may be closed to us, so that only the last answer counts."""
        parts = urlsplit(url)
        folders = parts.path.strip("/").split("/")[:-1]
        status = 0
        for count in range(1, len(folders) + 1):
            place = parts._replace(path="/" + "/".join(folders[:count]) + "/").geturl()
            with closing(self._web.request("MKCOL", place, Direction.OUT)) as answer:
                status = answer.status
        if status and status not in _MADE:
            raise HttpError(status, Direction.OUT, url, "MKCOL of the parents of")


class _Download:
    """How far a download is."""

    def __init__(self, target: BinaryIO, kinds: Sequence[str]) -> None:
        self._target = target
        self._kinds = kinds
        self._tag = ""
        self._size: int | None = None
        self.hasher = Hasher(kinds)
        self.position = 0

    def headers(self) -> dict[str, str]:
        """Of the next request. A range has an end here: XRootD 5.5 answers one without with nothing."""
        headers = {"Accept-Encoding": "identity"}
        if self.position and self._size:
            headers["Range"] = f"bytes={self.position}-{self._size - 1}"
            if self._tag:
                headers["If-Range"] = self._tag
        return headers

    def take(self, response: BaseHTTPResponse, url: str, handle: Handle) -> None:
        """Write what comes, to its end."""
        if not 200 <= response.status < 300:
            raise HttpError(response.status, Direction.IN, url, "GET")
        if response.status != 206 or self.position == 0:
            self._begin(response)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {self.position}-"):
            raise Direction.IN.fault(f"{shown(url)}: another range than was asked for", Trait.NEXT)
        while data := _read(response, url):
            block = memoryview(data)
            self.hasher.update(block)
            self._write(block)
            handle.advance(len(block))

    def _begin(self, response: BaseHTTPResponse) -> None:
        """From the first byte: the first time, or because the file or the server is not what it was."""
        length = response.headers.get("Content-Length", "")
        self._size = int(length) if length.isdigit() else None
        tag = response.headers.get("ETag", "")
        self._tag = "" if tag.startswith("W/") else tag
        self._target.seek(0)
        self._target.truncate()
        self.hasher, self.position = Hasher(self._kinds), 0

    def _write(self, block: memoryview) -> None:
        self.position += len(block)
        while block:
            block = block[self._target.write(block) :]


def parse_digest(header: str) -> dict[str, str]:
    """`adler32=01234567,md5=base64...` (RFC 3230) as hex digits; some storages write md5 in hex digits too."""
    found = {}
    for part in header.split(","):
        kind, _, value = part.strip().partition("=")
        kind, value = kind.lower(), value.strip('"')
        if kind == "md5" and not re.fullmatch("[0-9a-fA-F]{32}", value):
            try:
                value = b64decode(value, validate=True).hex()
            except NotBase64:
                continue
        if kind in Https.checksums and re.fullmatch("[0-9a-fA-F]+", value):
            found[kind] = normal(kind, value)
    return found


def _read(response: BaseHTTPResponse, url: str) -> bytes:
    with network_faults(Direction.IN, "GET", url):
        return response.read(BLOCK, decode_content=False)


def _succeeded(answer: BaseHTTPResponse, url: str, doing: str) -> None:
    if not 200 <= answer.status < 300:
        raise HttpError(answer.status, Direction.OUT, url, doing)


def _host(url: str) -> str:
    return urlsplit(plain(url)).netloc.rpartition("@")[2]
