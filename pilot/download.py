"""HTTP: where it may go and by which proxy, and fetching a document (queue and storage JSON, transformations).

TLS is verified, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

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

_NO_PROXIES: Mapping[str, str] = MappingProxyType({})


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
    environ: Mapping[str, str] = _NO_PROXIES,
) -> bytes:
    """The body of `url`, redirects followed. Blocks: call it in a thread.

    Args:
        url: `https`, or `http` to loopback.
        context: which certificates to trust and to show; the system's CAs and none by default.
        allow_http: let plain http leave the node.
        timeout: seconds for all of it.
        limit: bytes, after decompression.
        environ: with proxies, as for `find_proxy`.

    Raises:
        DownloadError: with the reason; the URL is only in it after a redirect, and then without its query.
    """
    deadline = Deadline(timeout)
    place = url
    for _ in range(_REDIRECTS + 1):
        try:
            check_url(place, allow_http)
            body, target = _get(place, context, deadline, limit, environ)
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
    parts = _split(url, "not a URL")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise DownloadError("not an http(s) URL", retry=False)
    if parts.scheme == "http" and not (allow_http or is_loopback(parts.hostname)):
        raise DownloadError("plain http is refused, use https or --allow-http", retry=False)


def _split(url: str, otherwise: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its text may show a password
        raise DownloadError(otherwise, retry=False) from None
    return parts


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


def find_proxy(url: str, environ: Mapping[str, str]) -> SplitResult | None:
    """The proxy for a URL, None for a direct connection.

    Args:
        url: `http` or `https`.
        environ: with `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy`, in capitals, too. Nothing goes to
            loopback through a proxy.

    Raises:
        DownloadError: the proxy cannot be used.
    """
    variables = {name.lower(): value for name, value in sorted(environ.items()) if name.lower().endswith("_proxy")}
    server = urlsplit(url)
    text, host = variables.get(f"{server.scheme}_proxy") or variables.get("all_proxy"), server.hostname or ""
    if not text or is_loopback(host) or _is_exempt(host, server.port, variables.get("no_proxy", "")):
        return None
    proxy = _split(text if "://" in text else f"http://{text}", "the proxy of the environment is not a URL")
    if proxy.scheme != "http" or not proxy.hostname:
        raise DownloadError(f"proxy {proxy.scheme}://{proxy.hostname}: only http:// proxies can be used", retry=False)
    return proxy


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """What tells a proxy who asks."""
    if proxy.username is None:
        return {}
    from urllib3.util import make_headers

    return dict(make_headers(proxy_basic_auth=f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"))


def open_pool(proxy: SplitResult | None, context: ssl.SSLContext | None, size: int = 1) -> PoolManager:
    """Connections, at most `size` kept for a host, by way of a proxy if there is one."""
    import urllib3

    if proxy is None:
        return urllib3.PoolManager(maxsize=size, ssl_context=context)
    place = proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl()
    return urllib3.ProxyManager(place, maxsize=size, ssl_context=context, proxy_headers=proxy_headers(proxy))


def _is_exempt(host: str, port: int | None, no_proxy: str) -> bool:
    """True if `no_proxy` names the host, a domain it is in, its network, or `*`."""
    for entry in (entry.strip().lower() for entry in no_proxy.split(",")):
        name = entry.lstrip("*").lstrip(".")
        if entry == "*" or (name and (host == name or f"{host}:{port}" == name or host.endswith(f".{name}"))):
            return True
        if "/" in entry and _is_inside(host, entry):
            return True
    return False


def _is_inside(host: str, network: str) -> bool:
    from ipaddress import ip_address, ip_network

    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _get(
    url: str, context: ssl.SSLContext | None, deadline: Deadline, limit: int, environ: Mapping[str, str]
) -> tuple[bytes, str]:
    """The body of a good answer and the target of a redirect; one of the two is empty."""
    import ssl

    import urllib3

    if urlsplit(url).scheme == "https":
        context = context or ssl.create_default_context()
    with open_pool(find_proxy(url, environ), context) as pool:
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
