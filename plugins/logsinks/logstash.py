"""Log sink `logstash`: JSON over HTTP (input `http`, codec `json`) or JSON lines over TCP (input `tcp`, `json_lines`).

`logstash;https://host:8443` posts batches as JSON arrays, with the login that came in the job's pilotSecrets
(`logstash_login`, `logstash_password`). `logstash;tcp://host:5000` writes lines; `tls://` and `tcps://` do so over
verified TLS. Each event has `@timestamp` and `@version`, as Logstash's own JSON event format.

A TCP input has no answer. So a batch is done with when the other kernel has all of it, and when a connection ends, what
was written in its last seconds is written again: who had it may not have come to keep it. `seq` tells doubles.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pilot.download import is_loopback
from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext, SinkError
from plugins.logsinks._post import Poster, login_of
from plugins.logsinks._receipt import await_receipt

_TCP, _TLS = ("tcp",), ("tls", "tcps", "ssl")
#: What is written again when a connection has ended: of the last seconds before that is found, at most so many bytes.
_RECENT, _RECENT_BYTES = 5.0, 1 << 20
#: Milliseconds after which the kernel gives a connection up that takes nothing any more; its own limit is 15 minutes.
_DEAD = 60_000


class Logstash(LogSink):
    """Sends events to Logstash over HTTP or TCP."""

    name = "logstash"

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context)
        scheme = urlsplit(context.url).scheme
        self._line: _Lines | None = None
        self._poster: Poster | None = None
        if scheme in (*_TCP, *_TLS):
            self._line = _Lines(context, secure=scheme in _TLS)
        else:
            self._poster = Poster(context.url, context, login_of(context, "logstash_login", "logstash_password"))

    def send(self, batch: Sequence[Record]) -> None:
        """Send a batch as one array, or as lines."""
        events = map(self._event, batch)
        if self._poster:
            self._poster.post(f"[{','.join(events)}]".encode("ascii"), {"Content-Type": "application/json"})
        elif self._line:
            self._line.write("".join(f"{event}\n" for event in events).encode("ascii"))

    def close(self) -> None:
        """Close the connection."""
        for connection in (self._poster, self._line):
            if connection:
                connection.close()

    def _event(self, record: Record) -> str:
        when = datetime.fromtimestamp(record.when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return record.to_json({"@timestamp": when, "@version": "1", "type": self.context.log_name})


class _Lines:
    """A TCP connection that takes lines; made anew when it has ended.

    One that is only slow is kept: the rest of a batch is written to it at the next try, so that nothing doubles.
    """

    def __init__(self, context: SinkContext, *, secure: bool) -> None:
        parts = urlsplit(context.url)
        if not parts.hostname or not parts.port:
            raise SinkError(f"{context.url!r}: expected tcp://HOST:PORT", retry=False)
        if not (secure or context.allow_http or is_loopback(parts.hostname)):
            raise SinkError(f"{parts.hostname}: plain tcp would show the log; use tls:// or --allow-http", retry=False)
        self._address = parts.hostname, parts.port
        self._context = context
        self._secure = secure
        self._socket: socket.socket | None = None
        self._rest: memoryview | None = None
        self._recent: deque[tuple[float, bytes]] = deque()
        self._fresh = True

    def write(self, data: bytes) -> None:
        """Write a batch, or go on with it if it was begun before."""
        until = time.monotonic() + self._context.timeout
        try:
            connection = self._begin(data)
            while self._rest:
                connection.settimeout(max(0.001, until - time.monotonic()))
                self._rest = self._rest[connection.send(self._rest) :]
            await_receipt(connection, until)
        except OSError as error:
            if not isinstance(error, TimeoutError) or error.errno:
                self._end()
            raise SinkError(f"{self._address[0]}:{self._address[1]}: {error}") from error
        now, self._rest = time.monotonic(), None
        if self._fresh:  # what went before this batch was written now, too
            self._recent = deque((now, each) for _, each in self._recent)
            self._fresh = False
        self._recent.append((now, data))
        self._forget()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _begin(self, data: bytes) -> socket.socket:
        if self._socket is not None and _hung_up(self._socket):
            self._end()
        if self._socket is None:
            self._socket = self._connect()
            self._rest = memoryview(b"".join([*(each for _, each in self._recent), data]))
        elif self._rest is None:
            self._rest = memoryview(data)
        return self._socket

    def _end(self) -> None:
        if not self._fresh:
            self._forget()
            self._fresh = True
        self.close()

    def _forget(self) -> None:
        """Let go what the other side has had for long enough, and what is too much."""
        old = time.monotonic() - _RECENT
        while self._recent and (self._recent[0][0] < old or sum(len(each) for _, each in self._recent) > _RECENT_BYTES):
            self._recent.popleft()

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(self._address, self._context.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD)
        if not self._secure:
            return plain
        import ssl

        context = self._context.tls() if self._context.tls else ssl.create_default_context()
        secure: socket.socket = context.wrap_socket(plain, server_hostname=self._address[0])
        return secure


def _hung_up(connection: socket.socket) -> bool:
    """True if the other side has closed: what is written then is lost. What it says, as TLS does, is passed over."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as error:  # TLS says in its own way that nothing is there
        return "want" not in type(error).__name__.lower()
    return True
