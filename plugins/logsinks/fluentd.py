"""Log sink `fluentd`: the forward protocol, through the client fluent-logger (`fluentd;tcp://host:24224`).

The tag is the name of the log. The client sends over plain TCP, to loopback unless `--allow-http` is given: let a local
fluent-bit carry the log over TLS. A batch is done with when the server has acknowledged it, as Fluentd and fluent-bit
(from 1.5) do; one that was not in time is sent again. `;ack=no` asks for none: then, and where a server never gives
one, lines in flight when it dies are lost, and are not counted (gaps in `seq` tell).
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

    def send(self, batch: Sequence[Record]) -> None:
        """Send a batch, and wait until the server has it."""
        self._sender = self._sender or self._connect()
        try:
            self._sender.forward(batch)
        except OSError as error:
            raise SinkError(f"{self._host}:{self._port}: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        if self._sender is not None:
            self._sender.close()

    def _connect(self) -> Any:
        from plugins.logsinks._forward import ForwardSender

        ask = self.context.options.get("ack") != "no"
        timeout = self.context.timeout
        return ForwardSender(self.context.log_name, ask=ask, host=self._host, port=self._port, timeout=timeout)
