"""Receivers of logs on loopback that refuse what the real ones refuse: Loki, and Logstash over http and tcp."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pilot.logship.record import Origin, Record, RecordMaker
from pilot.logship.shipper import LogShip
from pilot.logship.sink import LogSink
from pilot.masking import Masker
from pilot.stop import Deadline


class Receiver:
    """A server in a thread. `lines` is what it took; `plan` holds what to do instead, one a request.

    A plan is a status to answer, a status with a `Retry-After`, `reset`, or seconds to hang.
    """

    def __init__(self, port: int = 0, *, login: str = "", tls: Any = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.plan: list[int | tuple[int, str] | float | str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                step = receiver.plan.pop(0) if receiver.plan else None
                if step == "reset":
                    self.connection.close()
                    self.close_connection = True
                    return
                if isinstance(step, float):
                    time.sleep(step)
                    step = None
                if login and self.headers.get("Authorization") != login:
                    step = 401
                if not step:
                    step = receiver.take(self.path, dict(self.headers), body)
                self.answer(*step if isinstance(step, tuple) else (step,))

            def answer(self, status: Any, after: str = "") -> None:
                self.send_response(status)
                if after:
                    self.send_header("Retry-After", after)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Keep what is right; the status to answer."""
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class LokiServer(Receiver):
    """As Loki: 204; 400 for a missing label, an unknown form, or timestamps that are no nanoseconds as text."""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        if path != "/loki/api/v1/push" or headers.get("Content-Type") != "application/json":
            return 404 if path != "/loki/api/v1/push" else 400
        try:
            for stream in json.loads(body)["streams"]:
                labels = stream["stream"]
                if not labels or len(labels) > 15 or not all(isinstance(value, str) for value in labels.values()):
                    return 400
                for when, line in stream["values"]:
                    if not (isinstance(when, str) and when.isdigit() and len(when) >= 19 and isinstance(line, str)):
                        return 400
                    self.lines.append({"labels": labels, **json.loads(line)})
        except (KeyError, ValueError, TypeError):
            return 400
        return 204


class LogstashServer(Receiver):
    """As the http input with the json codec: 200 `ok`; an array is as many events."""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        try:
            events = json.loads(body)
        except ValueError:
            return 400
        self.lines += events if isinstance(events, list) else [events]
        return 200


class LineServer:
    """A tcp input with the json_lines codec; `drop` closes the connections that are open."""

    def __init__(self, port: int = 0, tls: Any = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self._open: list[Any] = []
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                server._open.append(self.connection)
                try:
                    for line in self.rfile:
                        server.lines.append(json.loads(line))
                except (OSError, ValueError):
                    pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def drop(self) -> None:
        import socket

        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._open.clear()

    def close(self) -> None:
        self.drop()
        self._server.shutdown()
        self._server.server_close()


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait for something to be true; False if it did not come."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ship_lines(top: Path, sink: LogSink, count: int, between: Callable[[int], object] = lambda number: None) -> Any:
    """Ship `count` numbered lines of a file that grows, with `between` called at every 50th; what was lost."""

    async def main() -> Any:
        log = LogShip(Origin(job_id="42", host="wn1"), top, Masker(), [sink], top / "spool")
        path = top / "payload.stdout"
        log.follow(path)
        log.start()
        for number in range(count):
            with open(path, "a") as file:
                file.write(f"{number}\n")
            if number % 50 == 0:
                between(number)
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        await log.finish(Deadline(10))
        return log.losses()

    return asyncio.run(main())


def make_record(origin: Mapping[str, str], *, source: str, number: int, sequence: int, phase: str, text: str) -> Record:
    """The record of one line."""
    return RecordMaker(origin, source, phase).make(number, sequence, text)
