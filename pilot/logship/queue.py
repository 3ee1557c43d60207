"""Records that wait for their sink: in memory, then on disk, both bounded; at last the oldest go, and are counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from pilot.logship.record import Record

#: Bytes of records in memory before they go to disk, and of one file on disk.
_MEMORY = 1 << 20


class RecordQueue:
    """First in, first out.

    New records are collected in memory. While older ones wait in front of them and they have grown to 1 MiB, they move
    to a file of the spool; these files come back one at a time.

    Args:
        spool: directory for files, made when it is needed.
        spool_limit: bytes that may be in it.

    Attributes:
        lost: records that had to go.
    """

    def __init__(self, spool: Path, spool_limit: int) -> None:
        self.lost = 0
        self._spool = spool
        self._files_limit = max(1, spool_limit // _MEMORY)
        self._front: deque[Record] = deque()
        self._back: deque[Record] = deque()
        self._back_bytes = 0
        self._files: deque[tuple[Path, int]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return len(self._front) + len(self._back) + sum(count for _, count in self._files)

    def extend(self, records: Iterable[Record]) -> None:
        """Add records."""
        for record in records:
            self._back.append(record)
            self._back_bytes += len(record)
            if self._back_bytes >= _MEMORY:
                self._make_room()

    def peek(self, records: int, size: int) -> list[Record]:
        """The oldest records, at most so many and of so many bytes, but at least one if there is any."""
        self._refill()
        batch: list[Record] = []
        for record in islice(self._front, records):
            size -= len(record)
            if batch and size < 0:
                break
            batch.append(record)
        return batch

    def drop(self, count: int) -> None:
        """The oldest `count` records are done with."""
        for _ in range(count):
            self._front.popleft()

    def clear(self) -> int:
        """Forget all and remove the spool; how many there were."""
        count = len(self)
        for path, _ in self._files:
            path.unlink(missing_ok=True)
        self._front.clear()
        self._back.clear()
        self._files.clear()
        return count

    def _make_room(self) -> None:
        if not self._front and not self._files:
            self._refill()
            return
        while len(self._files) >= self._files_limit:
            path, count = self._files.popleft()
            path.unlink(missing_ok=True)
            self.lost += count
        self._write()

    def _write(self) -> None:
        """Move what is in memory to a file; if the disk does not take it, it is lost."""
        path = self._spool / f"{self._count:06d}.jsonl"
        self._count += 1
        try:
            self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text("".join(f"{record.to_json()}\n" for record in self._back))
        except OSError:
            self.lost += len(self._back)
            path.unlink(missing_ok=True)
        else:
            self._files.append((path, len(self._back)))
        self._back.clear()
        self._back_bytes = 0

    def _refill(self) -> None:
        """Let the next records come to the front, from disk first: they are older."""
        while not self._front and self._files:
            path, count = self._files.popleft()
            try:
                lines = path.read_text().splitlines()
            except OSError:
                self.lost += count
                continue
            path.unlink(missing_ok=True)
            self._front.extend(map(Record.from_json, lines))
        if not self._front:
            self._front, self._back = self._back, self._front
            self._back_bytes = 0
