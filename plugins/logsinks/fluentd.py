"""Log sink `fluentd`: the forward protocol, through the client fluent-logger (`fluentd;tcp://host:24224`).

The tag is the name of the log. The client sends over plain TCP, to loopback unless `--allow-http` is given: let a local
fluent-bit carry the log over TLS. It asks for no acknowledgement: what it wrote is in the kernel's hands, not yet
Fluentd's. Lines in flight when the receiver dies are lost, and are not counted (gaps in `seq` tell). Where that
matters, choose another sink.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pilot.download import is_loopback
from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext, SinkError

PORT = 24224


class Fluentd(LogSink):
    """Sends records to Fluentd or fluent-bit."""

    name = "fluentd"
    needs: ClassVar[Mapping[str, str]] = {"fluent": "pip install 'pilot-toolkit[fluentd]'"}

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context)
        parts = urlsplit(context.url)
        if parts.scheme not in ("tcp", "http", "fluent") or not parts.hostname:
            raise SinkError(f"{context.url!r}: expected tcp://HOST:PORT", retry=False)
        if not (context.allow_http or is_loopback(parts.hostname)):
            raise SinkError(f"{parts.hostname}: it would show the log in plain text, without --allow-http", retry=False)
        self._host, self._port = parts.hostname, parts.port or PORT
        self._sender: Any = None
        self._written = 0

    def send(self, batch: Sequence[Record]) -> None:
        """Write a batch; of one that is sent again, what was not written before."""
        sender = self._sender = self._sender or self._connect()
        for record in batch[self._written :]:
            if not sender.emit_with_time(None, record.when, dict(record.fields)):
                sender.pendings = None  # the client would send it again by itself, after we did
                raise SinkError(f"{self._host}:{self._port}: {sender.last_error}")
            self._written += 1
        self._written = 0

    def close(self) -> None:
        """Close the connection."""
        if self._sender is not None:
            self._sender.close()

    def _connect(self) -> Any:
        from fluent.sender import FluentSender

        return FluentSender(
            self.context.log_name,
            host=self._host,
            port=self._port,
            timeout=self.context.timeout,
            nanosecond_precision=True,
            forward_packet_error=False,
            msgpack_kwargs={"default": str, "unicode_errors": "backslashreplace"},
        )
