"""Stops and deadlines: how work is asked to end, and how long it may take to do so.

A stop is a budget, not a flag. Whoever requests it says why (a `PilotError`) and how many seconds are left in all;
those who wind down take their share of that `Deadline`. No sleep in the pilot stands without a stop beside it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pilot.errors import PilotError

T = TypeVar("T")

#: Seconds from a stop to the end when nobody says otherwise: batch systems give 30 s before SIGKILL.
GRACE = 25.0


class Deadline:
    """The moment by which something must be over, on the monotonic clock.

    Args:
        seconds: from now; infinite by default.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.at = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """True once the moment has passed."""
        return self.remaining <= 0

    def less(self, seconds: float) -> Deadline:
        """A deadline `seconds` before this one: what is left when that much is kept back for a later step."""
        return Deadline(max(0.0, self.remaining - seconds))


class Stop:
    """A request to end, made once; later requests can only shorten the time left.

    A job's stop is the child of its slot's: stopping the slot stops the job, not the other way round.
    """

    def __init__(self, parent: Stop | None = None) -> None:
        self.reason: PilotError | None = None
        self.deadline = Deadline()
        self._event = asyncio.Event()
        self._shortened = asyncio.Event()
        self._children: list[Stop] = []
        if parent is not None:
            parent._children.append(self)
            if parent.reason is not None:
                self.request(parent.reason, parent.deadline.remaining)

    @property
    def requested(self) -> bool:
        """True once the work should end. May be read from any thread."""
        return self.reason is not None

    def request(self, reason: PilotError, grace: float = GRACE) -> None:
        """Ask for the end, for `reason`, in `grace` seconds. The first reason is the one that is kept."""
        if self.reason is None:
            self.reason = reason
        if grace < self.deadline.remaining:
            self.deadline = Deadline(grace)
            self._shortened.set()
            self._shortened = asyncio.Event()
        self._event.set()
        for child in self._children:
            child.request(reason, grace)

    def detach(self, child: Stop) -> None:
        """Forget a child whose work is over."""
        self._children.remove(child)

    def check(self) -> None:
        """Raise the reason if a stop was requested."""
        if self.reason is not None:
            raise self.reason

    async def wait(self, seconds: float = math.inf) -> bool:
        """Wait for the stop, at most `seconds`. True if it came."""
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        return self.requested

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; when the stop comes first, cancel `work`, let it clean up, and raise the reason.

        Work that ends well all the same, such as a file that has just arrived, is not lost: its result is returned.
        An error that comes of the cancelling is not the cause of anything: the reason of the stop is raised.
        """
        if self.requested:
            work.close()
            self.check()
        task = asyncio.ensure_future(work)
        task.add_done_callback(_look_at)
        watcher = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
            stopped = not task.done()
            await _end(task)
        finally:
            watcher.cancel()
            await _end(task)
        if stopped and (task.cancelled() or task.exception()):
            self.check()
        return task.result()

    async def paced(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work()`, which is begun anew whenever the time that is left gets shorter.

        For work that winds down in a share of that time: a second signal must not find it waiting by the first one's.
        """
        while True:
            task = asyncio.ensure_future(work())
            task.add_done_callback(_look_at)
            hurry = asyncio.ensure_future(self._shortened.wait())
            try:
                await asyncio.wait({task, hurry}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hurry.cancel()
                await _end(task)
            if not task.cancelled():
                return task.result()


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a task that still runs and let it clean up."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _look_at(task: asyncio.Future[Any]) -> None:
    """Nobody need wait for an error any more; asyncio complains of one that was never looked at."""
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def time_box(
    stop: Stop, late: PilotError, share: Callable[[], float], longest: float = math.inf
) -> AsyncIterator[Stop]:
    """A stop of its own for work that goes on after that of the job: it comes when the time for that work is over.

    Args:
        stop: the job's.
        late: the reason of the other one.
        share: how many of the seconds after the stop are for this work.
        longest: seconds for it as long as nothing hurries.
    """
    box = Stop()

    async def close() -> None:
        if await stop.wait(longest):
            await stop.paced(lambda: asyncio.sleep(min(share(), longest)))
        box.request(late, grace=1.0)

    closing = asyncio.create_task(close())
    try:
        yield box
    finally:
        closing.cancel()


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run blocking `work(*args)` in a thread of its own and await its result.

    A thread for each call instead of a pool: none is left idle while a payload runs, and since they are daemons a call
    that hangs in a library cannot keep the pilot from exiting inside its grace.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work(*args)
        except BaseException as exc:  # handed to the awaiting task, whatever it is
            error = _bearable(exc)
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended: nobody is waiting for the result any more
            pass

    threading.Thread(target=run, name=getattr(work, "__name__", "work"), daemon=True).start()
    return await future


def _bearable(error: BaseException) -> Exception:
    """What a library may raise in its thread, but not in ours.

    `sys.exit` in a copy tool would end the pilot, a StopIteration cannot be put into a future, and a CancelledError
    would look as if somebody had cancelled the task.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    strange = RuntimeError(f"{type(error).__name__} in a thread: {error}")
    strange.__cause__ = error
    return strange
