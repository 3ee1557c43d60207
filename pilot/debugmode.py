"""Debug mode: a person looks at a running job through the server, by commands in the answers to updates.

`debug` switches it on: updates come more often, each with the end of the newest file. `debug,COMMAND` or `COMMAND` is
carried out once for each new text, and its answer goes with an update at once. `debugoff` ends it. With Pilot 3 that
word never got so far, since `debug` is in it (PILOT3 2.8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pilot.debugcommands import is_command
from pilot.stop import in_thread

logger = logging.getLogger(__name__)

#: What is sent with each update while nobody asked for anything else.
_NEWEST = "tail"


class DebugMode:
    """Debug mode of one job; off at first.

    Args:
        answer: carries out a command and says what came of it, masked and cut; blocks.
        hurry: makes updates come at least as often as every so many seconds; None for as usual.
        beat: has an update sent now.
        interval: of updates in debug mode, s.
    """

    def __init__(
        self,
        answer: Callable[[str], str],
        hurry: Callable[[float | None], None],
        beat: Callable[[], None],
        interval: float,
    ) -> None:
        self._answer = answer
        self._hurry = hurry
        self._beat = beat
        self._interval = interval
        self._on = False
        self._command = ""
        self._said = ""
        self._sending = ""
        self._work: asyncio.Task[None] | None = None

    def told(self, text: str) -> bool:
        """Hear a command of the server. False if it is none of debug mode's."""
        word, _, rest = text.strip().partition(",")
        if word == "debugoff":
            self._switch(on=False)
        elif word == "debug":
            self._switch(on=True)
            if rest.strip() and not self.told(rest):
                logger.warning("debug command that this pilot does not carry out: %r", rest[:200])
        elif is_command(text):
            self._switch(on=True)
            self._start(text.strip())
        else:
            return False
        return True

    async def stdout(self) -> str:
        """What an update shall show: an answer that waits, else the end of the newest file; empty when off."""
        if self._said or self._sending:
            self._sending, self._said = self._said or self._sending, ""
            return self._sending
        return await in_thread(self._answer, _NEWEST) if self._on else ""

    def sent(self) -> None:
        """The last update has arrived."""
        self._sending = ""

    async def close(self) -> None:
        """The job is over: what is not answered yet will not be."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})

    def _switch(self, *, on: bool) -> None:
        if on == self._on:
            return
        logger.info("debug mode is %s", "on" if on else "off")
        self._on = on
        self._command = ""
        self._hurry(self._interval if on else None)

    def _start(self, command: str) -> None:
        if command == self._command:
            return
        self._command = command
        logger.info("debug command: %s", command[:200])
        self._work = asyncio.create_task(self._carry_out(command, self._work))

    async def _carry_out(self, command: str, before: asyncio.Task[None] | None) -> None:
        """One after the other, in the order in which they came."""
        if before is not None and not before.done():
            await asyncio.wait({before})
        self._said = await in_thread(self._answer, command)
        self._beat()
