"""Reading objects of a store, whole or in ranges side by side; what `s3` and presigned URLs have in common."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from copytools._parts import Lanes, Part, new_input, split, sum_part
from pilot.errors import Code, Trait, TransferError
from pilot.job import File
from pilot.staging.checksum import Hasher, computable, differing
from pilot.staging.copytool import Handle, Stored, Transfer
from pilot.staging.faults import Direction

MIB = 1 << 20

#: Bytes of a part, and of the largest file that goes in one request. Larger parts are no faster; half of it costs 5 %.
PART = 16 * MIB

#: Parts of one file that move at once; the engine moves several files at once.
LANES = 3

#: Seconds for a connection, and of silence on one.
CONNECT, SILENCE = 10, 60


@dataclass(frozen=True, slots=True)
class Told:
    """What a storage says of an object; `ranges` is False if its answer is about all bytes, whatever was asked for."""

    size: int
    etag: str
    checksums: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True


class Source(Protocol):
    """An object to be read."""

    @property
    def told(self) -> Told:
        """What the storage says of it."""

    def bring(self, fd: int, part: Part, advance: Callable[[int], None]) -> None:
        """Write the bytes of a part to their place in a file."""

    def close(self) -> None:
        """No more is wanted."""


def md5_in(etag: str, *, encrypted: bool = False) -> str:
    """The md5 that an ETag is; empty for an object of several parts or encrypted with a key of its own."""
    digits = etag.strip('"').lower()
    return digits if not encrypted and re.fullmatch("[0-9a-f]{32}", digits) else ""


def fetch(transfer: Transfer, source: Source, handle: Handle) -> Stored:
    """Bring the bytes of a source to the file, and sum them up in order as parts arrive."""
    try:
        known = source.told
        if transfer.size not in (None, known.size):
            raise Direction.IN.fault(f"it has {known.size} bytes, not {transfer.size}", Trait.NEXT)
        with new_input(transfer.path) as fd:
            hasher = Hasher(_types(transfer, known))
            with Lanes(LANES, handle) as lanes:
                _receive_all(fd, split(known.size, PART if known.ranges else known.size or 1), source, lanes, hasher)
            _verify(hasher.digests(), transfer, known)
    finally:
        source.close()
    return Stored(url=transfer.url, size=known.size, checksums=hasher.digests())


def _receive_all(fd: int, parts: list[Part], source: Source, lanes: Lanes, hasher: Hasher) -> None:
    moving: deque[tuple[Part, Future[None]]] = deque()

    def settle() -> None:
        part, future = moving.popleft()
        lanes.result(future)
        sum_part(fd, part, [hasher], lanes.check)

    for part in parts:
        moving.append((part, lanes.start(partial(source.bring, fd, part, lanes.advance))))
        while moving[0][1].done():
            settle()
            if not moving:
                break
    while moving:
        settle()


def _types(transfer: Transfer, known: Told) -> list[str]:
    """What to sum up: what the catalogue knows, else what the storage knows, else what is asked for."""
    expected = [kind for kind in transfer.checksums if computable(kind)]
    compared = [kind for kind in ("crc32c", "adler32", "md5") if kind in known.checksums and computable(kind)]
    return expected or list(dict.fromkeys([*compared[:1], transfer.checksum_type]))


def _verify(found: Mapping[str, str], transfer: Transfer, known: Told) -> None:
    if kind := differing(transfer.checksums, found):
        detail = f"it has {kind} {found[kind]}, not {transfer.checksums[kind]}"
        raise TransferError(Direction.IN.mismatch(kind), detail, Trait.NEXT)
    if not transfer.checksums and (kind := differing(known.checksums, found)):
        detail = f"{kind} {found[kind]} arrived, the storage says {known.checksums[kind]}"
        raise TransferError(Direction.IN.mismatch(kind), detail)


def refuse_other(transfer: Transfer, found: Mapping[str, str]) -> None:
    """Raise if an output does not have the checksums that it should have."""
    if kind := differing(transfer.checksums, found):
        detail = f"{transfer.path} has {kind} {found[kind]}, not {transfer.checksums[kind]}"
        raise TransferError(Direction.OUT.mismatch(kind), detail, Trait.NEXT)


def same(
    transfer: Transfer, there: Told, fd: int, size: int, handle: Handle, read: Callable[[str], Mapping[str, str]]
) -> Stored:
    """What is at the destination already, if it has the content of the file; FILEEXISTS (1221) if not.

    Args:
        transfer: of the file.
        there: what the storage says of the object.
        fd: of the file.
        size: of the file, bytes.
        handle: of the transfer.
        read: sums up the object with a type of checksum, for a storage that tells nothing.
    """
    if there.size == size:
        found = {kind: value for kind, value in there.checksums.items() if computable(kind)}
        found = found or dict(read(transfer.checksum_type))
        hasher = Hasher(found)
        sum_part(fd, Part(1, 0, size), [hasher], handle.check)
        own = hasher.digests()
        refuse_other(transfer, own)
        if not differing(own, found):
            return Stored(url=transfer.url, size=size, checksums=own)
    raise TransferError(Code.FILEEXISTS, "it is there with other content", Trait.NEXT)


def dataset_path(file: File, queue: str, job_id: int) -> str:
    """Where Pilot 3 keeps files of an object store: `queue/dataset/lfn`, with the PandaID where it says so."""
    dataset = file.dataset.replace("#{pandaid}", str(job_id))
    return "/".join(part for part in (queue, dataset.strip("/"), file.lfn) if part)
