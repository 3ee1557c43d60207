"""Presigned URLs: the right to get or put one object, given by somebody who has credentials. No boto3 is needed.

Only the method that was signed works, so nothing can be asked about the object beforehand, and a bad copy cannot be
taken back: the storage checks the bytes instead, by the conditions and the md5 that go with the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, cast

from copytools._objects import CONNECT, SILENCE, Told, md5_in, refuse_other
from copytools._parts import Body, Lanes, Part, Reader, opened_output, receive, sum_part
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import Hasher, computable
from pilot.staging.copytool import Handle, Stored, Transfer
from pilot.staging.faults import Direction, of_os_error
from pilot.staging.result import shown

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

#: Longest error text that is read, bytes.
_ERROR_LIMIT = 4096


class PresignedSource:
    """An object to be read by its presigned URL; the first range tells what it is.

    Args:
        pool: of connections.
        url: as it was given.
        first: bytes of the first range.
    """

    def __init__(self, pool: PoolManager, url: str, first: int) -> None:
        self._pool, self._url = pool, url
        response = _request(
            pool, "GET", url, Direction.IN, headers={"Range": f"bytes=0-{first - 1}"}, allowed=(200, 206, 416)
        )
        headers = response.headers
        whole = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
        size = int(whole[1]) if whole else int(headers.get("Content-Length", 0)) if response.status == 200 else 0
        etag = headers.get("ETag", "")
        self.told = Told(size, etag, _checksums(headers))
        self._open: BaseHTTPResponse | None = response

    def bring(self, fd: int, part: Part, advance: Callable[[int], None]) -> None:
        """Write the bytes of a part to their place in a file."""
        receive(fd, part, self._ask, advance, _passes)

    def _ask(self, part: Part) -> Reader:
        """The bytes of a part, of the same object as the first."""
        stream, self._open = self._open, None
        if stream is None:
            headers = {"Range": f"bytes={part.start}-{part.end - 1}", "If-Match": self.told.etag}
            stream = _request(self._pool, "GET", self._url, Direction.IN, headers=headers, allowed=(206,))
        return stream

    def close(self) -> None:
        """Free the connection of a stream that nobody read."""
        if self._open is not None:
            self._open.close()


def put(pool: PoolManager, transfer: Transfer, handle: Handle) -> Stored:
    """Store a file: in one request, as that is what was signed."""
    with presigned_faults(Direction.OUT, transfer.url), opened_output(transfer.path) as (fd, size):
        part = Part(1, 0, size)
        known = [kind for kind in transfer.checksums if computable(kind)] or [transfer.checksum_type]
        sums = Hasher(dict.fromkeys([*known, "md5"]))
        sum_part(fd, part, [sums], handle.check)
        digests = sums.digests()
        refuse_other(transfer, digests)
        with Lanes(1, handle) as lanes:
            body = Body(fd, part, lanes.advance)
            response = lanes.result(lanes.start(lambda: _send(pool, transfer.url, body, digests["md5"])))
        stored = md5_in(response.headers.get("ETag", ""), encrypted=_is_encrypted(response.headers))
        if stored and stored != digests["md5"]:
            raise TransferError(Direction.OUT.mismatch("md5"), f"md5 {digests['md5']} was sent, {stored} is there")
    return Stored(url=transfer.url, size=size, checksums=digests)


def stat(pool: PoolManager, url: str) -> Stored | None:
    """Size and checksums of an object; None if it is not there."""
    with presigned_faults(Direction.IN, url):
        try:
            source = PresignedSource(pool, url, 1)
        except TransferError as error:
            if error.code is Code.MISSINGINPUTFILE:
                return None
            raise
        source.close()
        return Stored(url=url, size=source.told.size, checksums=source.told.checksums)


def _send(pool: PoolManager, url: str, body: Body, md5: str) -> BaseHTTPResponse:
    """Send a file to where nothing is, or to where the very same is: a try before may have gone unheard."""
    length = {"Content-Length": str(len(body))}
    response = _request(
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
        response = _request(pool, "PUT", url, Direction.OUT, headers={**length, "If-Match": f'"{md5}"'}, body=body)
    return response


@contextmanager
def presigned_faults(direction: Direction, url: str) -> Iterator[None]:
    """What urllib3 and the operating system raise, as errors of the table; the signature is not shown."""
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

    where = shown(url)
    try:
        yield
    except TransferError as error:
        raise TransferError(error.code, f"{where}: {error.detail}", error.trait) from error
    except OSError as error:
        raise of_os_error(error, direction, where) from error
    except NewConnectionError as error:
        raise TransferError(Code.SERVICENOTAVAILABLE, f"{where}: {_reason(error)}") from None
    except (ConnectTimeoutError, ReadTimeoutError) as error:
        raise TransferError(direction.timed_out, f"{where}: {_reason(error)}") from None
    except HTTPError as error:
        trait = Trait.NEXT if "certificate" in str(error).lower() else Trait.RETRY
        raise direction.fault(f"{where}: {_reason(error)}", trait) from None


def _passes(error: Exception) -> bool:
    """Whether it is a connection that broke while bytes came."""
    from urllib3.exceptions import HTTPError

    return isinstance(error, HTTPError)


def _reason(error: Exception) -> str:
    """What an error of urllib3 says, without the URL that some of them quote."""
    return re.sub(r"\?\S+", "?...", str(error))


def _request(
    pool: PoolManager,
    method: str,
    url: str,
    direction: Direction,
    *,
    headers: Mapping[str, str],
    body: Body | None = None,
    allowed: tuple[int, ...] = (200, 201, 204),
) -> BaseHTTPResponse:
    """One request with its answer's status; an answer that is none is raised."""
    from urllib3 import Timeout

    response = pool.request(
        method,
        url,
        headers=headers,
        body=cast("IO[bytes] | None", body),  # it has what is read of one
        retries=False,
        redirect=False,
        preload_content=method == "PUT",
        decode_content=False,
        timeout=Timeout(connect=CONNECT, read=SILENCE),
    )
    if response.status in allowed:
        return response
    try:
        raise _refused(direction, response)
    finally:
        response.close()


def _refused(direction: Direction, response: BaseHTTPResponse) -> TransferError:
    from copytools._s3faults import refusal

    text = (response.data if response.closed else response.read(_ERROR_LIMIT)).decode(errors="replace")
    code = re.search(r"<Code>(\w+)</Code>", text)
    message = re.search(r"<Message>([^<]{1,200})", text)
    said = ": ".join(part[1] for part in (code, message) if part) or response.reason or ""
    return refusal(direction, response.status, code[1] if code else "", f"HTTP {response.status} {said}")


def new_pool() -> PoolManager:
    """Connections, verified; by way of the proxy of the environment if there is one."""
    import ssl
    from urllib.request import getproxies

    import urllib3

    context = ssl.create_default_context()
    proxy = getproxies().get("https")
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=16, ssl_context=context)
    return urllib3.PoolManager(maxsize=16, ssl_context=context)


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    md5 = md5_in(headers.get("ETag", ""), encrypted=_is_encrypted(headers))
    adler32 = headers.get("x-amz-meta-adler32", "")
    return {kind: value for kind, value in (("md5", md5), ("adler32", adler32)) if value}


def _is_encrypted(headers: Mapping[str, str]) -> bool:
    names = ("x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-customer-algorithm")
    return any(name in headers for name in names)
