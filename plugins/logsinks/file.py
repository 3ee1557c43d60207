"""Log sink `file`: records as lines of JSON in a file, or on stdout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext, SinkError

STDOUT = 1


class FileSink(LogSink):
    """Appends records to a file as lines of JSON; `stdout` alone writes to stdout."""

    name = "file"
    max_records = 5000

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context)
        self._fd: int | None = None
        self._written = 0

    def send(self, batch: Sequence[Record]) -> None:
        """Write all lines with as few calls as the kernel allows."""
        data = "".join(f"{record.to_json()}\n" for record in batch).encode("ascii")
        try:
            fd = self._open()
            while self._written < len(data):  # of one that is sent again, what the disk had no room for
                self._written += os.write(fd, memoryview(data)[self._written :])
        except OSError as error:
            raise SinkError(f"{self.context.url}: {error.strerror}") from error
        self._written = 0

    def close(self) -> None:
        """Close the file; stdout stays open."""
        if self._fd not in (None, STDOUT):
            os.close(self._fd)
        self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            url = self.context.url
            path = unquote(urlsplit(url).path) if url.startswith("file:") else url
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = STDOUT if url in ("", "stdout") else os.open(path, flags, 0o644)
        return self._fd
