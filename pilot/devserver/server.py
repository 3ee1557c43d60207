"""The HTTP side: sockets, TLS, keep-alive, resets."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

from pilot.devserver.app import App, Settings
from pilot.devserver.messages import Answer, Request

_LOOPBACK = ("127.", "::1", "::ffff:127.")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST and throws away what is queued
_IDLE = 300.0  # s: a kept-alive connection that says nothing is closed


class Server(ThreadingHTTPServer):
    """A running devserver; listens from its construction on. `close` must be called.

    Args:
        settings: how it behaves.

    Raises:
        OSError: the address is taken, or a certificate cannot be read.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: Settings) -> None:
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        super().__init__((settings.host, settings.port), Handler)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._verbose = settings.verbose
        self.certificates = settings.client_ca is not None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"{'https' if settings.cert else 'http'}://{host}:{self.server_port}"
        try:
            if settings.cert:
                self._wrap(settings)
            self.app = App(settings, self.url, self._stopped.wait)
        except BaseException:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Bind without asking the name service for our own name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def _wrap(self, settings: Settings) -> None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(settings.cert), str(settings.key) if settings.key else None)
        if settings.client_ca:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
            context.verify_flags |= ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS  # a pilot comes with an RFC 3820 proxy
        # The handshake happens at the first read, in the connection's own thread: a slow client stops nobody.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def start(self) -> Self:
        """Serve in a thread of this process."""
        self._thread = threading.Thread(target=partial(self.serve_forever, 0.02), name="devserver", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving, end delays, write out everything. Open connections get no more answers."""
        self._stopped.set()
        if self._thread:
            self.shutdown()
            self._thread.join()
        self.server_close()
        self.app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or failed the TLS handshake, is no news; anything else is."""
        if not isinstance(sys.exception(), OSError) and not self._stopped.is_set():
            super().handle_error(request, client_address)

    def say(self, text: str) -> None:
        """A line for the person who watches, if one does."""
        if self._verbose:
            print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One connection, any number of requests."""

    protocol_version = "HTTP/1.1"
    server_version = "pilot-devserver"
    disable_nagle_algorithm = True  # head and body are one write anyhow, but a late ACK must not cost 40 ms
    timeout = _IDLE
    server: Server

    def handle_any(self) -> None:
        """Read a request, have it answered, send the answer."""
        body = self._body()
        if body is None:
            return
        answer = self.server.app.answer(self._request(body))
        self.server.say(f"{self.command} {self.path} {answer.status if answer else 'reset'}")
        if answer is None:
            self._reset()
        else:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def _request(self, body: bytes) -> Request:
        certificate = cast(Any, self.connection).getpeercert() if self.server.certificates else None
        headers = cast(Mapping[str, str], self.headers)  # a Message behaves as one
        return Request(
            method=self.command,
            target=self.path,
            headers=headers,
            body=body,
            identity=self.server.app.settings.guard.identify(headers, certificate),
            loopback=str(self.client_address[0]).startswith(_LOOPBACK),
        )

    def _body(self) -> bytes | None:
        """The request's body, or None if it cannot be had; then the answer has been sent."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit():
            self.close_connection = True
            self._send(Answer.text(411, "a Content-Length is required"))
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        return body

    def _send(self, answer: Answer) -> None:
        length = answer.file.stat().st_size if answer.file else len(answer.body)
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Date: {self.date_time_string()}",
            f"Server: {self.server_version}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {length}",
            *(["Connection: close"] if self.close_connection else []),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        if self.command == "HEAD":
            self.wfile.write(head)
        elif answer.file is None:
            self.wfile.write(head + answer.body)
        else:
            self.wfile.write(head)
            with answer.file.open("rb") as source:
                shutil.copyfileobj(source, self.wfile, 1 << 20)

    def _reset(self) -> None:
        """Close with RST, as a dying server or a firewall does, instead of a polite FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `Server.say` does."""
