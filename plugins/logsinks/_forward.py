"""A sender of the client fluent-logger that asks for acknowledgements (Forward Protocol v1, option `chunk`)."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import msgpack
from fluent.sender import EventTime, FluentSender

from pilot.logship.record import Record
from plugins.logsinks._receipt import await_receipt

logger = logging.getLogger(__name__)

_FORMAT = {"default": str, "unicode_errors": "backslashreplace"}


class OtherProtocolError(ConnectionError):
    """What answers does not speak the forward protocol, or wants a shared key first."""


class ForwardSender(FluentSender):  # type: ignore[misc]
    """Sends batches as packed messages, each acknowledged before the next.

    Args:
        tag: the name of the log.
        ask: for acknowledgements. From a server that never gave one, they are asked for still, but not waited for after
            the first time-out, until one comes.
        more: of the client.
    """

    def __init__(self, tag: str, *, ask: bool, **more: Any) -> None:
        super().__init__(tag, forward_packet_error=False, **more)
        self._ask = self._waits = ask
        self._answered = False
        self._chunk = ""
        self._packer = msgpack.Packer(**_FORMAT)
        self._unpacker = msgpack.Unpacker()

    def forward(self, batch: Sequence[Record]) -> None:
        """Send a batch.

        Raises:
            OSError: it was not acknowledged, or not taken.
        """
        self._chunk = base64.b64encode(os.urandom(16)).decode()
        entries = b"".join(self._packer.pack((EventTime(record.when), record.fields)) for record in batch)
        # (tag, entries, option) is the protocol's PackedForward message.
        if not self.emit_with_time(None, entries, {"chunk": self._chunk} if self._ask else {}):
            self.pendings = None  # the client would send it again by itself, after we did
            raise self.last_error

    def _send_data(self, data: bytes) -> None:
        """The client's way to write, which passes over what the server says."""
        until = time.monotonic() + self.timeout
        if self.socket and self._hung_up():
            self._close()
        if not self.socket:
            self._reconnect()
            self._unpacker = msgpack.Unpacker()
        self.socket.settimeout(max(0.001, until - time.monotonic()))
        self.socket.sendall(data)
        if not self._waits:
            await_receipt(self.socket, until)
        elif not self._acknowledged(until):
            if not self._answered:
                logger.warning("%s:%d gave no acknowledgement: from now on none is waited for", self.host, self.port)
                self._waits = False
            raise TimeoutError("no acknowledgement")

    def _hung_up(self) -> bool:
        try:
            self._acknowledged(0)
        except OtherProtocolError:
            raise
        except OSError:
            return True
        return False

    def _acknowledged(self, until: float) -> bool:
        """Whether the acknowledgement of the last batch comes by then (`time.monotonic`)."""
        data = b""
        while True:
            for answer in self._unpacker:
                if not isinstance(answer, dict):
                    raise OtherProtocolError(f"this is no port of the forward protocol: it says {data[:60]!r}")
                if "ack" in answer:
                    self._answered = self._waits = True
                    if answer["ack"] == self._chunk:
                        return True
            self.socket.settimeout(max(0.0, until - time.monotonic()))
            try:
                data = self.socket.recv(4096)
            except (BlockingIOError, TimeoutError):
                return False
            if not data:
                raise ConnectionAbortedError("closed by the other side")
            self._unpacker.feed(data)
