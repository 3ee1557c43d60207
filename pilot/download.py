"""Fetching a document over HTTP: queue and storage JSON, transformations. TLS is verified, always."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from pilot.errors import Code, PilotError
from pilot.stop import Deadline
from pilot.version import __version__

if TYPE_CHECKING:
    import ssl

    from urllib3 import BaseHTTPResponse, PoolManager

#: Largest document accepted, bytes: ATLAS' list of storages, the largest in use, has about 10 MB.
LIMIT = 64 << 20

#: Seconds a fetch may take as a whole (Pilot 3's download time-out for queue JSON).
TIMEOUT = 20.0

_REDIRECTS = 5
_BLOCK = 64 << 10


class DownloadError(PilotError):
    """A document could not be fetched; `retry` says whether the same again, a little later, can help."""

    def __init__(self, detail: str, *, retry: bool) -> None:
        super().__init__(Code.COMMUNICATIONFAILURE, detail)
        self.retry = retry


def fetch_url(
    url: str,
    *,
    context: ssl.SSLContext | None = None,
    allow_http: bool = False,
    timeout: float = TIMEOUT,
    limit: int = LIMIT,
) -> bytes:
    """The body of `url`, redirects followed. Blocks: call it in a thread.

    Args:
        url: `https`, or `http` to loopback.
        context: which certificates to trust and to show; the system's CAs and none by default.
        allow_http: let plain http leave the node.
        timeout: seconds for all of it.
        limit: bytes, after decompression.

    Raises:
        DownloadError: with the reason; the URL is only in it after a redirect, and then without its query.
    """
    deadline = Deadline(timeout)
    place = url
    for _ in range(_REDIRECTS + 1):
        try:
            check_url(place, allow_http)
            body, target = _get(place, context, deadline, limit)
        except DownloadError as error:
            if place == url:
                raise
            raise DownloadError(f"redirected to {shown(place)}: {error.detail}", retry=error.retry) from error
        if not target:
            return body
        place = urljoin(place, target)
    raise DownloadError(f"more than {_REDIRECTS} redirects", retry=False)


def check_url(url: str, allow_http: bool = False) -> None:
    """Raise `DownloadError` for a URL that is not `https`, nor `http` to where plain http is allowed."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may show a password
        raise DownloadError("not a URL", retry=False) from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise DownloadError("not an http(s) URL", retry=False)
    if parts.scheme == "http" and not (allow_http or is_loopback(parts.hostname)):
        raise DownloadError("plain http is refused, use https or --allow-http", retry=False)


def is_loopback(host: str) -> bool:
    """True if `host`, a name or an address, can only be this node."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def shown(url: str) -> str:
    """`url` as it may stand in a log: without user, password, query and fragment, which may hold secrets."""
    head = url.partition("?")[0].partition("#")[0]
    scheme, mark, rest = head.partition("://")
    if not mark:
        return head
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _get(url: str, context: ssl.SSLContext | None, deadline: Deadline, limit: int) -> tuple[bytes, str]:
    """The body of a good answer and the target of a redirect; one of the two is empty."""
    import urllib3

    with _pool(url, context) as pool:
        try:
            response = _request(pool, url, deadline)
            try:
                target = response.get_redirect_location()
                _check_status(response.status, bool(target))
                return (b"", target) if target else (_body(response, deadline, limit), "")
            finally:
                response.close()
        except urllib3.exceptions.LocationValueError:  # its text shows the URL
            raise DownloadError("host or port are not well formed", retry=False) from None
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(str(error), retry=not _is_distrust(error)) from error


def _pool(url: str, context: ssl.SSLContext | None) -> PoolManager:
    import urllib3

    if urlsplit(url).scheme != "https":
        return urllib3.PoolManager(num_pools=1)
    import ssl

    return urllib3.PoolManager(num_pools=1, ssl_context=context or ssl.create_default_context())


def _request(pool: PoolManager, url: str, deadline: Deadline) -> BaseHTTPResponse:
    import urllib3

    headers = {"User-Agent": f"pilot/{__version__}", "Accept-Encoding": "gzip"}
    return pool.request(
        "GET",
        url,
        headers=headers,
        redirect=False,
        retries=False,
        preload_content=False,
        timeout=urllib3.Timeout(total=max(deadline.remaining, 0.001)),
    )


def _check_status(status: int, redirect: bool) -> None:
    if status != 200 and not redirect:
        raise DownloadError(f"HTTP status {status}", retry=status >= 500 or status in (408, 429))


def _body(response: BaseHTTPResponse, deadline: Deadline, limit: int) -> bytes:
    body = bytearray()
    while block := response.read1(_BLOCK, decode_content=True):
        body += block
        if len(body) > limit:
            raise DownloadError(f"larger than {limit} bytes", retry=False)
        if deadline.expired:  # a server may drip: each read is in time, all of them are not
            raise DownloadError(f"not complete in time, {len(body)} bytes so far", retry=True)
    return bytes(body)


def _is_distrust(error: Exception) -> bool:
    """True if a certificate was not accepted: no later try will change that."""
    import ssl

    return bool(error.args) and isinstance(error.args[0], ssl.SSLCertVerificationError)
