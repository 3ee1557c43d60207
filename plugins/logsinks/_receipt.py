"""What TCP itself can tell of delivery, where a protocol has no answer: that the other kernel has every byte."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import time

#: Milliseconds between looks, doubled after each: over loopback the receipt is mostly there at once.
_FIRST_LOOK, _LAST_LOOK = 1, 32
_ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def await_receipt(connection: socket.socket, until: float) -> None:
    """Wait until the other side's kernel has acknowledged all that was written; of TLS, too.

    Args:
        connection: it stays as it is.
        until: when to give up, in seconds of `time.monotonic`.

    Raises:
        TimeoutError: it has not by then, without an `errno`.
        OSError: the other side has closed or reset the connection.
    """
    ends = select.poll()
    ends.register(connection, _ENDED)
    look = 0
    while True:
        if ends.poll(look):
            number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise OSError(number, os.strerror(number)) if number else ConnectionAbortedError("closed by the other side")
        if not _in_flight(connection):
            return
        if time.monotonic() >= until:
            raise TimeoutError("the other side does not read")
        look = min(look * 2 or _FIRST_LOOK, _LAST_LOOK)


def _in_flight(connection: socket.socket) -> int:
    """Bytes that were written and are not acknowledged: SIOCOUTQ of tcp(7), which Linux calls TIOCOUTQ as well."""
    found: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
    return found
