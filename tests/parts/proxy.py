"""A TCP proxy on loopback before a real server: it lets bytes through slowly, or no more at all."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self

#: Bytes passed at once.
_PIECE = 64 << 10


class Throttle:
    """Stands before a server. Use as a context manager.

    Args:
        port: of the server.
        free: bytes of a connection, each way, that pass at full speed.
        speed: bytes per second of a connection after that, each way; 0 for none at all.
        connections: how many of the first connections are treated so; the others pass.
    """

    def __init__(self, port: int, free: int, speed: float = 0, connections: int = 1 << 30) -> None:
        self._target = port
        self._free = free
        self._speed = speed
        self._slow = connections
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the server has died
                near.close()
                continue
            slow = self.accepted <= self._slow
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target, slow), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(_PIECE):
                if slow and passed >= self._free and not self._wait(len(data)):
                    break
                target.sendall(data)
                passed += len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _wait(self, count: int) -> bool:
        """False when it is over."""
        if not self._speed:
            self._over.wait()
            return False
        time.sleep(count / self._speed)
        return not self._over.is_set()
