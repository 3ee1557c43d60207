"""Presigned URLs: the right to one request, given by somebody who has credentials. No boto3 is needed to use it.

Of a URL that came with a job only the method that was signed works, so nothing can be asked about the object before,
and a bad copy cannot be taken back: the storage checks the bytes instead, by the conditions and the md5 that go with
the request.
"""

from __future__ import annotations

import binascii
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, cast

from copytools._objects import CONNECT, SILENCE, Told, md5_in, refuse_other
from copytools._parts import Body, Lanes, Part, Reader, opened_output, receive, sum_part
from copytools._s3faults import faults, refusal
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import Hasher, computable
from pilot.staging.copytool import Handle, Stored, Transfer
from pilot.staging.faults import Direction

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

#: Longest error text that is read, bytes.
_ERROR_LIMIT = 4096

_NONE: Mapping[str, str] = MappingProxyType({})

#: What may be gone when it is asked again, and the seconds before that: less than a stop leaves a transfer.
_BUSY = (429, 500, 502, 503, 504)
_PAUSES = (0.3, 0.9, 0.0)


class PresignedSource:
    """An object to be read by its presigned URL; the first range tells what it is.

    Args:
        pool: of connections.
        sign: gives the URL, for each request anew: keys that end soon are renewed while a large object moves.
        first: bytes of the first range.
        headers: that were signed with it.
    """

    def __init__(
        self, pool: PoolManager, sign: Callable[[], str], first: int, headers: Mapping[str, str] = _NONE
    ) -> None:
        self._pool, self._sign, self._headers = pool, sign, headers
        self._open: BaseHTTPResponse | None = self._get(f"bytes=0-{first - 1}", allowed=(200, 206, 416))
        try:
            self.told = told(self._open, Direction.IN)
        except TransferError:
            self._open.close()
            raise

    def bring(self, fd: int, part: Part, advance: Callable[[int], None]) -> None:
        """Write the bytes of a part to their place in a file."""
        receive(fd, part, self._ask, advance, _passes if self.told.ranges else _ends)

    def _ask(self, part: Part) -> Reader:
        """The bytes of a part, of the same object as the first."""
        stream, self._open = self._open, None
        if stream is None:
            wanted = {"If-Match": self.told.etag} if self.told.etag else {}
            stream = self._get(f"bytes={part.start}-{part.end - 1}", wanted, allowed=(200, 206))
            if _start_of(stream) != part.start:
                stream.close()
                raise Direction.IN.fault("the storage did not give the range that it was asked for", Trait.NEXT)
        return stream

    def _get(self, bytes_: str, more: Mapping[str, str] = _NONE, *, allowed: tuple[int, ...]) -> BaseHTTPResponse:
        headers = {**self._headers, "Range": bytes_, **more}
        return request(self._pool, "GET", self._sign(), Direction.IN, headers=headers, allowed=allowed)

    def close(self) -> None:
        """Free the connection of a stream that nobody read."""
        if self._open is not None:
            self._open.close()


def head(pool: PoolManager, url: str, headers: Mapping[str, str] = _NONE) -> Told | None:
    """What the storage says of an object; None if it is not there."""
    response = request(pool, "HEAD", url, Direction.OUT, headers=headers, allowed=(200, 404))
    return told(response, Direction.OUT) if response.status == 200 else None


def put(pool: PoolManager, transfer: Transfer, handle: Handle) -> Stored:
    """Store a file: in one request, as that is what was signed."""
    with faults(Direction.OUT, transfer.url), opened_output(transfer.path) as (fd, size):
        part = Part(1, 0, size)
        known = [kind for kind in transfer.checksums if computable(kind)] or [transfer.checksum_type]
        sums = Hasher(dict.fromkeys([*known, "md5"]))
        sum_part(fd, part, [sums], handle.check)
        digests = sums.digests()
        refuse_other(transfer, digests)
        with Lanes(1, handle) as lanes:
            body = Body(fd, part, lanes.advance)
            response = lanes.result(lanes.start(lambda: _send(pool, transfer.url, body, digests["md5"])))
        stored = md5_of(response.headers)
        if stored and stored != digests["md5"]:
            raise TransferError(Direction.OUT.mismatch("md5"), f"md5 {digests['md5']} was sent, {stored} is there")
    return Stored(url=transfer.url, size=size, checksums=digests)


def stat(pool: PoolManager, url: str) -> Stored | None:
    """Size and checksums of an object; None if it is not there."""
    with faults(Direction.IN, url):
        try:
            source = PresignedSource(pool, lambda: url, 1)
        except TransferError as error:
            if error.code is Code.MISSINGINPUTFILE:
                return None
            raise
        source.close()
        return Stored(url=url, size=source.told.size, checksums=source.told.checksums)


def _send(pool: PoolManager, url: str, body: Body, md5: str) -> BaseHTTPResponse:
    """Send a file to where nothing is, or to where the very same is: a try before may have gone unheard."""
    length = {"Content-Length": str(len(body))}
    response = request(
        pool,
        "PUT",
        url,
        Direction.OUT,
        headers={**length, "If-None-Match": "*"},
        body=body,
        allowed=(200, 201, 204, 412),
    )
    if response.status == 412:
        body.seek(0)
        response = request(pool, "PUT", url, Direction.OUT, headers={**length, "If-Match": f'"{md5}"'}, body=body)
    return response


def _ends(_: Exception) -> bool:
    """Where all bytes come whatever is asked for, the rest of them cannot be had."""
    return False


def _passes(error: Exception) -> bool:
    """Whether it is a connection that broke while bytes came."""
    from urllib3.exceptions import HTTPError

    return isinstance(error, HTTPError)


def request(
    pool: PoolManager,
    method: str,
    url: str,
    direction: Direction,
    *,
    headers: Mapping[str, str],
    body: Body | None = None,
    allowed: tuple[int, ...] = (200, 201, 204),
) -> BaseHTTPResponse:
    """One request with its answer's status; an answer that is none is raised.

    A busy storage is asked again, as boto3 does: of the many requests of a large file one always fails. So a file that
    is put may be there already, from a try whose answer was lost.
    """
    from urllib3 import Timeout
    from urllib3.exceptions import ProtocolError

    for pause in _PAUSES:  # not by urllib3's own means: it would log the URL with its signature
        try:
            response = pool.request(
                method,
                url,
                headers=headers,
                body=cast("IO[bytes] | None", body),  # it has what is read of one
                retries=False,
                redirect=False,
                preload_content=method != "GET",
                decode_content=False,
                timeout=Timeout(connect=CONNECT, read=SILENCE),
            )
        except ProtocolError as error:
            if not pause or isinstance(error.args[-1], InterruptedError):  # by our side: the transfer is over
                raise
        else:
            if not pause or response.status not in _BUSY:
                break
            response.close()
        time.sleep(pause)
        if body is not None:
            body.seek(0)
    if response.status in allowed:
        return response
    try:
        raise _refused(direction, response)
    finally:
        response.close()


def _refused(direction: Direction, response: BaseHTTPResponse) -> TransferError:
    text = (response.data if response.closed else response.read(_ERROR_LIMIT)).decode(errors="replace")
    code = re.search(r"<Code>(\w+)</Code>", text)
    message = re.search(r"<Message>([^<]{1,200})", text)
    said = ": ".join(part[1] for part in (code, message) if part) or response.reason or ""
    return refusal(direction, response.status, code[1] if code else "", f"HTTP {response.status} {said}")


def told(response: BaseHTTPResponse, direction: Direction) -> Told:
    """What an answer to GET or HEAD says of the object."""
    headers = response.headers
    if response.status == 416:  # it has no first byte
        size = "0"
    elif response.status == 206:
        size = headers.get("Content-Range", "").rpartition("/")[2]
    else:
        size = headers.get("Content-Length", "")
    if not size.isdigit() or _start_of(response) != 0:
        raise direction.fault("the storage does not say how large it is", Trait.NEXT)
    kept = {kind: headers.get(f"x-amz-meta-{kind}", "") for kind in ("adler32", "md5")}
    found = {**kept, "md5": md5_of(headers) or kept["md5"], "crc32c": _crc_of(headers)}
    checksums = {kind: value for kind, value in found.items() if value}
    return Told(int(size), headers.get("ETag", ""), checksums, ranges=response.status != 200)


def _start_of(response: BaseHTTPResponse) -> int:
    """The first byte that an answer brings; -1 if it is a part and does not tell."""
    part = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return 0 if response.status != 206 else int(part[1]) if part else -1


def md5_of(headers: Mapping[str, str]) -> str:
    """The md5 of all bytes, in hex digits, if the ETag is one."""
    return md5_in(headers.get("ETag", ""), encrypted=_is_encrypted(headers))


def _crc_of(headers: Mapping[str, str]) -> str:
    """The crc32c of all bytes that an answer tells, in hex digits; empty if it does not, or has a sum of sums."""
    text = headers.get("x-amz-checksum-crc32c", "")
    if "-" not in text and headers.get("x-amz-checksum-type") != "COMPOSITE":
        with suppress(ValueError):
            return binascii.a2b_base64(text).hex()
    return ""


def _is_encrypted(headers: Mapping[str, str]) -> bool:
    names = ("x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-customer-algorithm")
    return any(name in headers for name in names)
