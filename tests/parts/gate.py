"""A gate before any server: it refuses, hangs, and resets in the middle of what is sent. Bytes pass as they are."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

_BLOCK = 16384
#: SO_LINGER on, for no time: the connection is reset, not closed.
_RESET = struct.pack("ii", 1, 0)


class Gate:
    """Listens on a port of its own and passes all on to `to`, a port of loopback.

    `hang` holds back every byte; `cut` resets the next connection after so many bytes for the server; `refuse` is as a
    server that has ended: its connections are closed, new ones refused. `open` ends each of them.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flows = threading.Event()
        self._flows.set()
        self._cut = 0
        self.port = 0
        self._listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._flows.set()

    def hang(self) -> None:
        self._flows.clear()

    def cut(self, after: int) -> None:
        self._cut = after

    def refuse(self) -> None:
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for pair in self._pairs:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def close(self) -> None:
        self.refuse()
        self._flows.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._to))
            self._pairs.append((here, there))
            threading.Thread(target=self._pump, args=(here, there, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(there, here, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, inward: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_BLOCK):
                self._flows.wait()
                if inward and self._cut:
                    data, self._cut = data[: self._cut], max(0, self._cut - len(data))
                    target.sendall(data)
                    if not self._cut:
                        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        break
                else:
                    target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                if not inward or each is target:
                    each.shutdown(socket.SHUT_RDWR)
            each.close()
