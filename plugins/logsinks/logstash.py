"""Log sink `logstash`: JSON over HTTP (input `http`, codec `json`) or JSON lines over TCP (input `tcp`, `json_lines`).

`logstash;https://host:8443` posts batches as JSON arrays, with the login that came in the job's pilotSecrets
(`logstash_login`, `logstash_password`). `logstash;tcp://host:5000` writes lines; `tls://` and `tcps://` do so over
verified TLS. Each event has `@timestamp` and `@version`, as Logstash's own JSON event format.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pilot.download import is_loopback
from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext, SinkError
from plugins.logsinks._post import Poster, login_of

_TCP, _TLS = ("tcp",), ("tls", "tcps", "ssl")


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
    """A TCP connection that takes lines; made anew after a fault.

    TCP acknowledges what the other kernel has, not what Logstash has read: lines in flight when it dies are lost. Where
    that matters, use HTTP.
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

    def write(self, data: bytes) -> None:
        try:
            if self._socket is not None and _hung_up(self._socket, self._context.timeout):
                self.close()
            if self._socket is None:
                self._socket = self._connect()
            self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise SinkError(f"{self._address[0]}:{self._address[1]}: {error}") from error

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(self._address, self._context.timeout)
        if not self._secure:
            return plain
        import ssl

        context = self._context.tls() if self._context.tls else ssl.create_default_context()
        secure: socket.socket = context.wrap_socket(plain, server_hostname=self._address[0])
        return secure


def _hung_up(connection: socket.socket, timeout: float) -> bool:
    """True if the other side has closed: what is written then is lost without an error."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as error:  # TLS says in its own way that nothing is there
        return "want" not in type(error).__name__.lower()
    finally:
        connection.settimeout(timeout)
