"""Heartbeats: the server hears of the job when its state changes and at least every `interval` seconds.

One task sends them all, one after the other, so they arrive in order and never hold up the job. Beats are frequent
while the job is young or the server is in trouble, and re-phased by a jitter so that a farm of pilots does not beat in
step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable

from pilot.errors import Code, PilotError
from pilot.server.report import Reply, State
from pilot.stop import Deadline, Stop

logger = logging.getLogger(__name__)

#: Seconds to the first beat after a change of state; doubled with each beat up to the interval.
_YOUNG = 60.0


class Heartbeat:
    """Sends the updates of one job, but not its final one.

    Args:
        send: makes and sends an update with a state; raises `PilotError` if the server did not take it.
        heard: is given each answer.
        stop: the job's; requested here when the server was silent for too long.
        interval: longest time between beats, s.
        lost: time without a successful beat after which the job is given up, s (PILOT3 5.4: 10800).
    """

    def __init__(
        self,
        send: Callable[[State, Deadline], Awaitable[Reply]],
        heard: Callable[[Reply], None],
        stop: Stop,
        *,
        interval: float,
        lost: float = math.inf,
    ) -> None:
        self._send = send
        self._heard = heard
        self._stop = stop
        self._interval = self._usual = interval
        self._lost = lost
        self._pending: list[State] = []
        self._state = State.STARTING
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._period = min(_YOUNG, interval)
        self._success = time.monotonic()

    def announce(self, state: State) -> None:
        """Tell the server of a new state as soon as possible."""
        self._pending.append(state)
        self._period = min(_YOUNG, self._interval)
        self._idle.clear()
        self._wake.set()

    def again(self) -> None:
        """Tell the server as soon as possible what is new, in the same state."""
        self.announce(self._pending[-1] if self._pending else self._state)

    def hurry(self, interval: float | None) -> None:
        """Beat at least every `interval` seconds from now on; None: as usual."""
        self._interval = min(interval or self._usual, self._usual)
        self._period = min(self._period, self._interval)
        self._wake.set()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            while self._pending:
                self._state = self._pending.pop(0)
                await self._beat()
            self._idle.set()
            if await _comes(self._wake, self._period * random.uniform(0.9, 1.0)):
                self._wake.clear()
            else:
                self._period = min(self._period * 2, self._interval)
                await self._beat()

    async def settle(self, patience: float) -> None:
        """Wait until what was announced is sent, at most `patience` seconds."""
        if not await _comes(self._idle, patience):
            logger.info("an update is still on its way to the server after %.1f s", patience)

    async def _beat(self) -> None:
        try:
            reply = await self._send(self._state, Deadline(min(max(30.0, self._interval), self._lost)))
            self._success = time.monotonic()
            self._heard(reply)
        except PilotError as error:
            self._failed(error.detail)
        except Exception as error:  # the door: a bug in one update must not end all that follow
            logger.exception("an update could not be made")
            self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, why: str) -> None:
        self._period = min(_YOUNG, self._interval)
        silent = time.monotonic() - self._success
        logger.warning("no heartbeat for %.0f s: %s", silent, why)
        if silent > self._lost:
            text = f"the server took no update for {silent:.0f} s (lost heartbeat)"
            self._stop.request(PilotError(Code.EXCEEDEDMAXWAITTIME, text))


async def _comes(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event. Not by `wait_for`, which swallows a cancellation that comes with it in Python 3.11."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
