"""One sink and the records on their way to it: batches, retries, losses."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path

from pilot.logship.queue import RecordQueue
from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkError
from pilot.stop import Deadline, in_thread

logger = logging.getLogger(__name__)

#: Seconds that records wait for company before they are sent, unless a batch is full.
LINGER = 0.3
#: Seconds before the second try with a batch, doubled before each further one, and the longest; half to all of it.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
#: Longest time that a sink may ask to be left alone, s.
_LONGEST_WISH = 120.0
#: Bytes that a sink's spool may have on disk.
SPOOL_LIMIT = 64 << 20


class Feed:
    """Delivers records to one sink, in order, and never holds up anybody.

    Args:
        sink: where they go.
        spool: directory for those that wait too long for memory.
        spool_limit: bytes of it.

    Attributes:
        sent: records that the sink took. lost: those it will never have.
    """

    def __init__(self, sink: LogSink, spool: Path, spool_limit: int = SPOOL_LIMIT) -> None:
        self.sink = sink
        self.sent = 0
        self.refused = 0
        self._queue = RecordQueue(spool, spool_limit)
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._hurry = asyncio.Event()
        self._deadline = self._last = Deadline()
        self._patience = math.inf
        self._in_trouble = False
        self._wish = 0.0
        self._waiting = 0
        self._call: asyncio.Future[None] | None = None

    @property
    def lost(self) -> int:
        """Records that were dropped: the spool was full, or the sink will never take them."""
        return self._queue.lost + self.refused

    def put(self, records: Sequence[Record]) -> None:
        """Take records."""
        self._queue.extend(records)
        self._waiting += sum(map(len, records))
        self._wake.set()
        if self._waiting >= self.sink.max_bytes // 4:  # a look at a busy file brings so much: sent before the next
            self._full.set()

    async def run(self) -> None:
        """Deliver until `finish` was called and all is sent or its deadline has passed; what is left then is lost."""
        try:
            await self._deliver()
            await self._close()
        finally:
            self.refused += self._queue.clear()

    async def _deliver(self) -> None:
        pause = _FIRST_PAUSE
        while not (self._hurry.is_set() and (not len(self._queue) or self._deadline.expired)):
            if not len(self._queue):
                await self._something_to_do()
                continue
            batch = self._queue.peek(self.sink.max_records, self.sink.max_bytes)
            if await self._send(batch):
                self._queue.drop(len(batch))
                self._renew()
                pause = _FIRST_PAUSE
            else:
                await self._pause(max(pause * random.uniform(0.5, 1.0), self._wish))
                pause = min(pause * 2, _LONGEST_PAUSE)

    def finish(self, deadline: Deadline, patience: float) -> None:
        """No more records come; what is there must be sent by the deadline, or is lost.

        A sink that takes nothing for `patience` seconds has no more; one that was well so far may take its usual time.
        """
        self._last, self._patience = deadline, patience
        self._renew()
        self._hurry.set()
        self._full.set()
        self._wake.set()

    def _renew(self) -> None:
        patience = self._patience if self._in_trouble else max(self._patience, self.sink.context.timeout)
        self._deadline = Deadline(min(patience, self._last.remaining))

    async def _something_to_do(self) -> None:
        """Wait for records, and for company of the first, or until there is a good batch."""
        self._wake.clear()
        await self._wake.wait()
        try:
            await asyncio.wait_for(self._full.wait(), LINGER)
        except TimeoutError:
            pass
        self._full.clear()
        self._waiting = 0

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; a stop leaves time for one more soon."""
        if self._hurry.is_set():
            await asyncio.sleep(min(seconds, 0.5, self._deadline.remaining))
            return
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            pass

    async def _send(self, batch: list[Record]) -> bool:
        """Hand a batch to the sink. True if it is done with: taken, or refused for good.

        A call that has not come back is waited for at the next try: sinks have one at a time.
        """
        self._wish = 0.0
        limit = min(self.sink.context.timeout + 1, max(0.1, self._deadline.remaining))
        if self._call is None:
            self._call = asyncio.ensure_future(in_thread(self.sink.send, batch))
            self._call.add_done_callback(lambda call: call.cancelled() or call.exception())  # perhaps nobody asks
        if not (await asyncio.wait({self._call}, timeout=limit))[0]:
            self._complain(f"no answer in {limit:.0f} s")
            return False
        call, self._call = self._call, None
        try:
            call.result()
        except SinkError as error:
            if not error.retry:
                self._refuse(batch, error)
                return True
            self._wish = min(error.after, _LONGEST_WISH)
            self._complain(str(error))
        except Exception as error:  # the door of the client libraries: whatever they raise, the job goes on
            self._complain(f"{type(error).__name__}: {error}")
        else:
            self._rejoice()
            self.sent += len(batch)
            return True
        return False

    def _refuse(self, batch: list[Record], error: SinkError) -> None:
        count = len(batch) if error.refused is None else error.refused
        self.refused += count
        self.sent += len(batch) - count
        logger.warning("log sink %s refuses %d lines for good: %s", self.sink.name, count, error)

    def _complain(self, problem: str) -> None:
        """Once when trouble begins, not at every try."""
        if not self._in_trouble:
            logger.warning("log sink %s: %s; %d lines wait", self.sink.name, problem, len(self._queue))
            self._deadline = Deadline(min(self._patience, self._deadline.remaining))
        self._in_trouble = True

    def _rejoice(self) -> None:
        if self._in_trouble:
            logger.info(
                "log sink %s takes lines again; %d wait, %d were lost", self.sink.name, len(self._queue), self.lost
            )
        self._in_trouble = False

    async def _close(self) -> None:
        try:
            await asyncio.wait_for(in_thread(self.sink.close), max(0.1, min(2.0, self._deadline.remaining)))
        except Exception as error:  # as above
            logger.debug("closing log sink %s: %s", self.sink.name, error)
