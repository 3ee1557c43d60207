"""Who may transfer now: so many at once in all, so many with one storage, and storages take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Places for transfers, of all calls of an engine.

    A free place goes to the storage that has the fewest transfers under way, and among equals to the one that has
    waited longest. So a storage that answers slowly fills up only what no other storage wants.

    Args:
        total: transfers at once.
        each: transfers at once with one storage; 0 for no limit of its own.
    """

    def __init__(self, total: int, each: int = 0) -> None:
        self._free = max(1, total)
        self._each = each if each > 0 else self._free
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._due = False

    @asynccontextmanager
    async def place(self, storage: str) -> AsyncIterator[None]:
        """Wait for a place with a storage and have it; all storages that are not named are one."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(storage, deque()).append(turn)
        self._look()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self._leave(storage)
            raise
        try:
            yield
        finally:
            self._leave(storage)

    def _leave(self, storage: str) -> None:
        self._free += 1
        self._running[storage] -= 1
        self._look()

    def _look(self) -> None:
        """Give places away soon, when all who come at the same time are there: else the first of them had all."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        self._due = False
        while self._free and (storage := self._next()) is not None:
            turns = self._waiting.pop(storage)
            turn = turns.popleft()
            if turns:
                self._waiting[storage] = turns  # behind the others now
            if not turn.cancelled():
                self._free -= 1
                self._running[storage] += 1
                turn.set_result(None)

    def _next(self) -> str | None:
        able = [storage for storage in self._waiting if self._running[storage] < self._each]
        return min(able, key=lambda storage: self._running[storage], default=None)
