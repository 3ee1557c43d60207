"""The order of a job's updates, and what ends the patience with one of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from pilot.server.faults import UnavailableError
from pilot.stop import Deadline, Stop


class Halted(Exception):  # noqa: N818 - not an error: patience was ended by someone else
    """A newer update or a stop ended the tries; the text is the last cause."""


class Halts:
    """What may end the patience with one update: a newer one, or a stop."""

    def __init__(self, replaced: asyncio.Event | None = None, stop: Stop | None = None) -> None:
        waits: list[Coroutine[Any, Any, bool]] = []
        if replaced is not None:
            waits.append(replaced.wait())
        if stop is not None:
            waits.append(stop.wait())
        self._tasks = {asyncio.ensure_future(wait) for wait in waits}

    @property
    def fired(self) -> bool:
        """True if patience is over."""
        return any(task.done() for task in self._tasks)

    async def wait_with(self, work: asyncio.Future[Any], seconds: float) -> None:
        """Wait until `work` is done or patience is over, at most `seconds`."""
        await asyncio.wait({work, *self._tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def wait(self, seconds: float) -> bool:
        """Wait for the end of patience, at most `seconds`. True if it came."""
        if not self._tasks:
            await asyncio.sleep(seconds)
            return False
        await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return self.fired

    def close(self) -> None:
        """No more interest."""
        for task in self._tasks:
            task.cancel()


class Line:
    """The updates of one job: one at a time, in order, none after a final one was begun."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._ended = False
        self._replaceable: set[asyncio.Event] = set()

    def enter(self, *, final: bool) -> asyncio.Event:
        """Join the line. The event is set when the update is not wanted any more."""
        mine = asyncio.Event()
        if not final and self._ended:
            mine.set()
            return mine
        for event in self._replaceable:
            event.set()
        self._replaceable = set() if final else {mine}
        self._ended = self._ended or final
        return mine

    @asynccontextmanager
    async def turn(self, mine: asyncio.Event, deadline: Deadline) -> AsyncIterator[None]:
        """Come next, when the one before is done.

        Raises:
            Halted: `mine` is not wanted any more.
            UnavailableError: the one before was not done by the deadline.
        """
        if mine.is_set():
            raise Halted("too late")
        left = deadline.remaining
        try:
            async with asyncio.timeout(None if math.isinf(left) else left):
                await self._lock.acquire()
        except TimeoutError:
            raise UnavailableError("an earlier report of the job is still on its way") from None
        try:
            if mine.is_set():
                raise Halted("replaced")
            yield
        finally:
            self._replaceable.discard(mine)
            self._lock.release()
