"""HTTP as storages speak it: redirects to data servers, credentials that go only where they should, uploads.

A door redirects to a data server with a URL that says all that server wants to know. So a token is shown to the host
that the file's URL names and to no other, and nothing goes over plain http except to loopback, or where a setting says
so.
"""

from __future__ import annotations

import http.client
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from pilot.download import DownloadError, check_url, find_proxy, open_pool, proxy_headers
from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.left import regular
from pilot.server.auth import CredentialError, TokenFile
from pilot.server.tls import Tls, find_tls
from pilot.staging.checksum import Hasher
from pilot.staging.copytool import Handle, ToolContext
from pilot.staging.faults import Direction
from pilot.staging.result import shown

if TYPE_CHECKING:
    import ssl

    from urllib3 import BaseHTTPResponse, PoolManager

#: Bytes read or sent at once.
BLOCK = 1 << 20

#: Seconds to connect, and without a byte while one is due. A storage may sum up a file before it answers.
CONNECT_TIMEOUT, READ_TIMEOUT = 20.0, 120.0

#: Seconds to wait for `100 Continue` before the body is sent all the same (RFC 9110, 10.1.1).
_CONTINUE = 2.0

_REDIRECTS = 5
_REDIRECT = (301, 302, 303, 307, 308)

#: Variables that name the file with a bearer token (WLCG Bearer Token Discovery), and a proxy certificate.
TOKEN_VARIABLE, PROXY_VARIABLE = "BEARER_TOKEN_FILE", "X509_USER_PROXY"


class Answer(NamedTuple):
    """The beginning of an answer."""

    status: int
    headers: Mapping[str, str]


class HttpError(TransferError):
    """A status that is no success."""

    def __init__(self, status: int, direction: Direction, url: str, doing: str) -> None:
        self.status = status
        code, trait = _meaning(status, direction)
        reason = http.client.responses.get(status, "")
        super().__init__(code, f"{doing} {shown(url)}: {status} {reason}".rstrip(), trait)


class Web:
    """Speaks to storages. Any thread may.

    Args:
        context: of the tool: `token_file` and `proxy` of its options stand before the variables. Proxies of the network
            are those of its environment (`https_proxy`...).
    """

    def __init__(self, context: ToolContext) -> None:
        environ, options = context.environ, context.options
        token = str(options.get("token_file") or environ.get(TOKEN_VARIABLE) or "")
        proxy = str(options.get("proxy") or environ.get(PROXY_VARIABLE) or "")
        self._token = TokenFile(token, [context.launch_dir]) if token else None
        self._tls: Tls = find_tls(environ, certificate=Path(proxy) if proxy and not token else None)
        self._allow_http = bool(context.settings.get("allow_http", False))
        self._lock = threading.Lock()
        self._environ = environ
        self._trust: ssl.SSLContext | None = None
        self._pools: dict[SplitResult | None, PoolManager] = {}

    def request(
        self, method: str, url: str, direction: Direction, headers: Mapping[str, str] | None = None
    ) -> BaseHTTPResponse:
        """Send a request without a body, follow redirects. The body of the answer is not read yet: close it."""
        import urllib3

        place = plain(url)
        for _ in range(_REDIRECTS + 1):
            with network_faults(direction, method, place):
                response: BaseHTTPResponse = self._pool(place).request(
                    method,
                    place,
                    headers={**self._headers(place, plain(url)), **(headers or {})},
                    redirect=False,
                    preload_content=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
                )
            target = response.headers.get("Location", "")
            if response.status not in _REDIRECT or not target:
                return response
            response.close()
            place = urljoin(place, target)
        raise direction.fault(f"more than {_REDIRECTS} redirects from {shown(url)}", Trait.NEXT)

    def put(self, url: str, path: Path, size: int, hasher: Hasher, handle: Handle) -> None:
        """Send a file. A door that redirects does so before it is sent, since it is asked first (`Expect`)."""
        place = plain(url)
        for _ in range(_REDIRECTS + 1):
            headers = {**self._headers(place, plain(url)), "Content-Length": str(size)}
            if size:  # XRootD 5.5 never answers when there is nothing to expect
                headers["Expect"] = "100-continue"
            with open(path, "rb", buffering=0, opener=regular) as source, network_faults(Direction.OUT, "PUT", place):
                answer = self._put_once(place, headers, _blocks(source.read, size, hasher, handle))
            target = answer.headers.get("Location", "")
            if answer.status in _REDIRECT and target:
                place = urljoin(place, target)
                continue
            if not 200 <= answer.status < 300:
                raise HttpError(answer.status, Direction.OUT, place, "PUT")
            return
        raise Direction.OUT.fault(f"more than {_REDIRECTS} redirects from {shown(url)}", Trait.NEXT)

    def _put_once(self, place: str, headers: Mapping[str, str], blocks: Iterator[memoryview]) -> Answer:
        connection, target, more = self._connection(place)
        try:
            connection.putrequest("PUT", target)
            for name, value in {**more, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            if "Expect" in headers and (early := _early_answer(connection)):
                return early
            for block in blocks:
                connection.send(block)
            response = connection.getresponse()
            response.read(BLOCK)
            return Answer(response.status, dict(response.headers))
        finally:
            connection.close()

    def _connection(self, place: str) -> tuple[http.client.HTTPConnection, str, Mapping[str, str]]:
        """A connection for one request, what to ask it for, and headers for the proxy if there is one."""
        self._check(place)
        parts, proxy = urlsplit(place), proxy_of(place, self._environ)
        near = proxy or parts
        host, port = near.hostname or "", near.port or (80 if proxy else None)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        asking = proxy_headers(proxy) if proxy else {}
        if parts.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=READ_TIMEOUT), place if proxy else target, asking
        secure = http.client.HTTPSConnection(host, port, timeout=READ_TIMEOUT, context=self._context())
        if proxy:
            secure.set_tunnel(parts.hostname or "", parts.port or 443, asking)
        return secure, target, {}

    def _pool(self, place: str) -> PoolManager:
        self._check(place)
        context, proxy = self._context(), proxy_of(place, self._environ)
        with self._lock:
            if self._trust is not context:
                self._trust, self._pools = context, {}
            if proxy not in self._pools:
                self._pools[proxy] = open_pool(proxy, context, 16)
            return self._pools[proxy]

    def _check(self, place: str) -> None:
        try:
            check_url(place, self._allow_http)
        except PilotError as error:
            raise TransferError(Code.SERVICENOTAVAILABLE, f"{shown(place)}: {error.detail}", Trait.NEXT) from error

    def _context(self) -> ssl.SSLContext:
        try:
            return self._tls.context()
        except CredentialError as error:
            raise TransferError(Code.NOPROXY, error.detail, Trait.NEXT) from error

    def _headers(self, place: str, first: str) -> dict[str, str]:
        """The token, for the host of the first URL only."""
        if self._token is None or _origin(place) != _origin(first):
            return {}
        try:
            return {"Authorization": f"Bearer {self._token.token().reveal()}"}
        except CredentialError as error:
            raise TransferError(Code.NOPROXY, error.detail, Trait.NEXT) from error


class network_faults:  # noqa: N801 - used as a function
    """Errors of the network as errors of the table. None of them shows a URL's query."""

    def __init__(self, direction: Direction, doing: str, url: str) -> None:
        self._direction = direction
        self._what = f"{doing} {shown(url)}"

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raise what the error means."""
        import ssl

        import urllib3

        if isinstance(error, (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)):
            cause = getattr(error, "reason", None) or error
            if isinstance(error, (urllib3.exceptions.SSLError, ssl.SSLCertVerificationError)):
                raise self._direction.fault(f"{self._what}: {cause}", Trait.NEXT) from error
            late = isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError))
            if late and not isinstance(error, urllib3.exceptions.NewConnectionError):  # a refusal is a time-out to it
                raise TransferError(self._direction.timed_out, f"{self._what}: no answer") from error
            raise self._direction.fault(f"{self._what}: {type(error).__name__}: {_words(cause)}") from error


def proxy_of(url: str, environ: Mapping[str, str]) -> SplitResult | None:
    """As `find_proxy`, with an error of the transfer."""
    try:
        return find_proxy(url, environ)
    except DownloadError as error:
        raise TransferError(Code.SERVICENOTAVAILABLE, error.detail, Trait.NEXT) from error


def plain(url: str) -> str:
    """`davs://` and `dav://` are https and http."""
    scheme, mark, rest = url.partition("://")
    return {"davs": "https", "dav": "http"}.get(scheme.lower(), scheme.lower()) + mark + rest


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _blocks(read: Callable[[int], bytes | None], size: int, hasher: Hasher, handle: Handle) -> Iterator[memoryview]:
    """Exactly `size` bytes of a file, summed up: one that grows meanwhile is found by its checksum."""
    left = size
    while left > 0 and (data := read(min(BLOCK, left))):
        block = memoryview(data)
        hasher.update(block)
        yield block
        left -= len(block)
        handle.advance(len(block))
    if left:
        raise Direction.OUT.fault("the file became shorter while it was sent", Trait.FATAL)


def _early_answer(connection: http.client.HTTPConnection) -> Answer | None:
    """What the server says to `Expect: 100-continue`; None if it says to go on, or nothing.

    The standard library does not wait for it. The answer is read without a buffer: what follows `100 Continue` is for
    the library again.
    """
    if not select.select([connection.sock], [], [], _CONTINUE)[0]:
        return None
    with connection.sock.makefile("rb", buffering=0) as stream:
        line = _line(stream.read)
        words = line.split(None, 2)
        if len(words) < 2 or not line.startswith(b"HTTP/") or not words[1].isdigit():
            raise http.client.BadStatusLine(repr(line[:80]))
        headers = {}
        while header := _line(stream.read).strip():
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.strip().title()] = value.strip()
    status = int(words[1])
    return None if status == 100 else Answer(status, headers)


def _line(read: Callable[[int], bytes | None]) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < 65536 and (byte := read(1)):
        line += byte
    return line


def _words(cause: object) -> str:
    """What an error of urllib3 says, without the address of its connection object."""
    return str(cause).rpartition(">: ")[2] or str(cause)


def _meaning(status: int, direction: Direction) -> tuple[Code, Trait]:
    if status in (404, 410):
        return (direction.missing if direction is Direction.IN else Code.NOSUCHFILE), Trait.NEXT
    known = {
        401: (direction.refused, Trait.NEXT),
        408: (direction.timed_out, Trait.RETRY),
        412: (Code.FILEEXISTS, Trait.NEXT),
        413: (Code.NOREMOTESPACE, Trait.NEXT),
        429: (direction.failed, Trait.RETRY),
        503: (Code.SERVICENOTAVAILABLE, Trait.RETRY),
        507: (Code.NOREMOTESPACE, Trait.NEXT),
    }
    return known.get(status, (direction.failed, Trait.RETRY if status >= 500 else Trait.NEXT))
