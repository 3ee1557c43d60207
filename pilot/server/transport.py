"""HTTP to one server, one connection a request.

A pilot talks to its server a few times an hour, so a kept connection would be stale when it is needed. A new one
reaches a healthy address of the host name, shows the credential as it is now, and can be called off alone.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pilot.download import DownloadError, find_proxy, is_loopback, proxy_headers
from pilot.errors import ServerError
from pilot.server.faults import UnavailableError
from pilot.server.tls import Tls
from pilot.server.wire import Answer, Request
from pilot.version import __version__

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection
    from urllib3.response import BaseHTTPResponse

log = logging.getLogger(__name__)

#: Port of a PanDA server where none is given (`-p`).
PORT = 25443

#: Seconds to reach one address of the server.
CONNECT_TIMEOUT = 20.0

#: Largest answer taken, bytes. A hundred jobs are some MB.
BODY_LIMIT = 64 << 20

#: How urllib3 begins its texts: with the connection as an object, or as a call that would make it.
_OBJECT = re.compile(r"^(<.*>|HTTPS?Connection\([^)]*\)): ")

#: What users put behind the host out of habit; the codecs add the path themselves.
_KNOWN_PATHS = ("/server/panda", "/api/v1")


def base_url(url: str, port: int | None = PORT) -> str:
    """The server's address: `https://` where the scheme is missing, `port` where the port is.

    Raises:
        ServerError: it cannot be an address.
    """
    text = url.strip() if "://" in url else f"https://{url.strip()}"
    try:
        parts = urlsplit(text)
        own_port = parts.port
    except ValueError as error:
        raise ServerError(f"server address {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ServerError(f"server address {url!r}: not of the form https://host[:port]")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    for known in _KNOWN_PATHS:
        path = path.removesuffix(known)
    number = own_port or port
    return f"{parts.scheme}://{host}{f':{number}' if number else ''}{path}"


class CalledOff(Exception):  # noqa: N818 - nothing went wrong
    """The request was called off before it was sent."""


class Flight:
    """One request under way in a thread, which another thread may call off.

    What was called off before it was sent will never be sent: an update that hangs must not arrive after a later one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._off = False

    def connected(self, sock: socket.socket) -> None:
        """The connection stands, the request goes next.

        Raises:
            CalledOff: it must not.
        """
        with self._lock:
            if self._off:
                raise CalledOff
            self._socket = sock

    def over(self) -> None:
        """The socket is about to be closed."""
        with self._lock:
            self._socket = None

    def call_off(self) -> None:
        """End the request: nothing more is sent, and the thread that waits for the answer wakes up."""
        with self._lock:
            self._off = True
            if self._socket is not None:
                try:
                    # not SSLSocket.shutdown: it drops TLS first, and what another thread sends then goes in clear
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:  # the server was faster
                    pass


class Transport:
    """Sends requests to one server.

    Args:
        url: the server's address, as from `base_url`.
        tls: whom to trust; by default the system's CAs.
        environ: for `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy` (also in capitals). Nothing goes to
            loopback through a proxy.
        allow_http: let plain http leave the node.
        connect_timeout: seconds to reach one address.

    Raises:
        ServerError: plain http to another node is not allowed, or the proxy cannot be used.
    """

    def __init__(
        self,
        url: str,
        tls: Tls | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        allow_http: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        # Here and not in the first thread that needs it: when one thread imports `urllib3` and another one
        # `urllib3.connection`, each holds the lock that the other wants, and one gets half a module.
        import urllib3  # noqa: F401

        self.url = url
        self._parts = urlsplit(url)
        self._host = self._parts.hostname or ""
        self._port = self._parts.port or (443 if self._parts.scheme == "https" else 80)
        if self._parts.scheme != "https" and not (allow_http or is_loopback(self._host)):
            raise ServerError(f"{url}: plain http would show jobs and tokens to the network; use https or --allow-http")
        self._tls = tls or Tls()
        try:
            self._proxy = find_proxy(url, environ or {})
        except DownloadError as error:
            raise ServerError(error.detail) from error
        self._connect_timeout = connect_timeout

    def send(self, request: Request, seconds: float, flight: Flight | None = None) -> Answer:
        """Send `request` and read the answer. Blocks: call it in a thread.

        Args:
            request: what to send.
            seconds: longest silence of the server; the caller bounds the whole with `flight`.
            flight: to call the request off.

        Raises:
            UnavailableError: there was no whole answer.
            CredentialError: the client certificate cannot be used.
            CalledOff: `flight` was called off before the request was sent.
        """
        from http.client import HTTPException

        from urllib3.exceptions import HTTPError

        flight = flight or Flight()
        started = time.monotonic()
        connection = self._connection(seconds)
        try:
            answer = self._exchange(connection, request, seconds, flight)
        except (OSError, HTTPException, HTTPError) as error:
            raise UnavailableError(f"{self.url}: {_reason(error)}") from error
        finally:
            flight.over()
            connection.close()
        took = time.monotonic() - started
        path = request.path.partition("?")[0]
        log.debug("%s %s: %d, %.3f s, %s", request.method, path, answer.status, took, answer.size)
        return answer

    def _connection(self, seconds: float) -> HTTPConnection:
        from urllib3.connection import HTTPConnection, HTTPSConnection

        timeout = min(seconds, self._connect_timeout)
        host, port = self._host, self._port
        if self._proxy is not None:
            host, port = self._proxy.hostname or "", self._proxy.port or 80
        if self._parts.scheme != "https":
            return HTTPConnection(host, port, timeout=timeout)
        secure = HTTPSConnection(
            host, port, timeout=timeout, ssl_context=self._tls.context(), cert_reqs="CERT_REQUIRED"
        )
        if self._proxy is not None:
            secure.set_tunnel(self._host, self._port, proxy_headers(self._proxy))
        return secure

    def _exchange(self, connection: HTTPConnection, request: Request, seconds: float, flight: Flight) -> Answer:
        connection.connect()
        flight.connected(connection.sock)
        connection.sock.settimeout(seconds)
        headers = {"User-Agent": _user_agent(), "Connection": "close", **request.headers}
        target = f"{self._parts.path}{request.path}"
        if self._proxy is not None and self._parts.scheme != "https":
            target = f"{self._parts.scheme}://{self._parts.netloc}{target}"
            headers |= proxy_headers(self._proxy)
        connection.request(request.method, target, request.body or None, headers, preload_content=False)
        response = connection.getresponse()
        try:
            return self._read(response)
        finally:
            response.close()

    def _read(self, response: BaseHTTPResponse) -> Answer:
        body = response.read(BODY_LIMIT + 1, decode_content=True)
        if len(body) > BODY_LIMIT:
            raise UnavailableError(f"{self.url}: the answer is larger than {BODY_LIMIT >> 20} MB")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        headers = response.headers
        return Answer(response.status, kind, body, headers.get("Location", ""), headers.get("Date", ""))


def _user_agent() -> str:
    system = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pilot/{__version__} (Python {python}; {system.sysname} {system.machine})"


def _reason(error: Exception) -> str:
    """What went wrong, for a person: without the names of objects in memory that libraries put into their texts."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (see --capath, X509_CERT_DIR, SSL_CERT_FILE)"
    if isinstance(error, TimeoutError):
        return "timeout"
    text = " ".join(str(error).split())
    return _OBJECT.sub("", text)[:300] or type(error).__name__
