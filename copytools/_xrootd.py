"""XRootD: its URLs, what its errors mean, and the two ways to speak to it have in common.

A URL is `root://host[:port]//path[?opaque]`. Nothing in it is escaped: `%41` is a name of three characters, and a name
with a question mark cannot be said at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from copytools._remote import with_suffix
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import normal
from pilot.staging.copytool import Handle, Transfer
from pilot.staging.faults import Direction
from pilot.staging.result import shown

#: Settings of the client, for programs with XRD_ before them. A refused connection is tried five times with
#: 120 s between two tries if nobody says otherwise, and a broken one is not tried again for 1800 s.
CLIENT_SETTINGS: Mapping[str, int] = MappingProxyType(
    {"ConnectionRetry": 1, "ConnectionWindow": 10, "RequestTimeout": 60, "StreamTimeout": 60, "StreamErrorWindow": 0}
)

#: Seconds for what may take the server long, and where it says so meanwhile: opening a file that is on tape, summing up
#: a big one. The engine ends a transfer earlier if it must. A time-out has 16 bits in the client.
LONG = 43200

#: Seconds for a block of a file: those that were asked for share the way, and 24 MiB of four files need 84 s at 300
#: kB/s. A server that says nothing at all is given up sooner (`StreamTimeout`), a trickling file by its pace.
DATA = 300

_NOT_FOUND = 3011

#: Numbers in `[3011]` of an answer (XProtocol.hh, XErrorCode) that the same again, a little later, does not change.
_FINAL = {3000, 3001, 3002, 3006, 3010, 3013, 3015, 3016, 3018, 3025, 3028, 3029, 3031, 3032}
_NO_SPACE = {3009, 3021}
_EXISTS = 3018
_AUTH_FAILED = 3030


class Xrootd(Protocol):
    """A way to speak to XRootD servers. All methods raise `TransferError`."""

    def download(self, url: str, path: Path, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """As `RemoteTool.download`."""

    def upload(self, url: str, transfer: Transfer, handle: Handle) -> Mapping[str, str]:
        """As `RemoteTool.upload`. The server removes the file if it is not closed well (POSC)."""

    def size(self, url: str, handle: Handle) -> int | None:
        """Bytes of a file; None if it is not there. A directory is an error."""

    def probe(self, url: str, handle: Handle) -> int | None:
        """As `size`, of a file that was opened and of which a byte was read."""

    def checksum(self, url: str, kind: str, handle: Handle) -> dict[str, str]:
        """What the server says of the checksum, maybe of another type; empty if it has none."""

    def rename(self, url: str, to: str, handle: Handle) -> None:
        """Rename a file on its server."""

    def remove(self, url: str, handle: Handle) -> None:
        """Delete a file; not an error if it is not there."""


class XrootdError(TransferError):
    """An error of XRootD; `number` is the server's, 0 if it was not the server who said it."""

    def __init__(self, text: str, direction: Direction, url: str) -> None:
        found = re.search(r"\[(3\d{3})\]", text)
        self.number = int(found[1]) if found else 0
        code, trait = _meaning(self.number, text, direction)
        super().__init__(code, f"{shown(url)}: {_told(text)}", trait)

    @property
    def missing(self) -> bool:
        """There is no such file."""
        return self.number == _NOT_FOUND


def split(url: str) -> tuple[str, str, str]:
    """Server (`root://host:port`), path and opaque rest (with its `?`) of a URL."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    path, mark, opaque = path.partition("?")
    return f"{scheme}://{host}", "/" + path.lstrip("/"), mark + opaque


def beside(url: str, suffix: str) -> str:
    """The URL with a suffix to its name."""
    server, path, opaque = split(url)
    folder, _, name = path.rpartition("/")
    return f"{server}/{folder}/{with_suffix(name, suffix)}{opaque}"


def parse_checksum(answer: str) -> dict[str, str]:
    """`adler32 01234567` as an answer to a query; a type and no value, or nothing at all, is no checksum."""
    kind, _, value = answer.strip("\0\n ").partition(" ")
    return {kind.lower(): normal(kind.lower(), value)} if re.fullmatch("[0-9a-fA-F]+", value) else {}


def is_directory(url: str) -> TransferError:
    """What is no file: a server has a size for it, too, and `rm` would remove it if it is empty."""
    return Direction.OUT.fault(f"{shown(url)} is a directory", Trait.NEXT)


def _meaning(number: int, text: str, direction: Direction) -> tuple[Code, Trait]:
    if number == _NOT_FOUND:
        return (direction.missing if direction is Direction.IN else Code.NOSUCHFILE), Trait.NEXT
    if number in _NO_SPACE:
        return Code.NOREMOTESPACE, Trait.NEXT
    if number == _EXISTS:
        return Code.FILEEXISTS, Trait.NEXT
    if number == _AUTH_FAILED or re.search(r"auth(entication)? failed|login failed|no protocols left", text, re.I):
        return direction.refused, Trait.NEXT
    if number:
        return Code.XRDCPERROR, Trait.NEXT if number in _FINAL else Trait.RETRY
    return _without_number(text, direction)


def _without_number(text: str, direction: Direction) -> tuple[Code, Trait]:
    """Said by the client: connections, time-outs, its own disk."""
    if re.search(r"expired|timed? ?out", text, re.I):
        return direction.timed_out, Trait.RETRY
    if re.search("No space left on device|quota exceeded", text, re.I):
        return direction.no_space, Trait.FATAL if direction is Direction.IN else Trait.NEXT
    if "Network is unreachable" in text:
        return Code.UNREACHABLENETWORK, Trait.NEXT
    if re.search("invalid address|unknown host|TLS error", text, re.I):
        return direction.failed, Trait.NEXT
    return direction.failed, Trait.RETRY


def _told(text: str) -> str:
    """The line that says it, without the words that every error begins with."""
    lines = [line for line in text.splitlines() if "[ERROR]" in line or "[FATAL]" in line] or text.split("\n")
    return lines[-1].replace("Run: ", "").replace("[ERROR] Server responded with an error: ", "").strip()[:300]
