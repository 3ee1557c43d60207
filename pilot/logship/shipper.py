"""The live log of one job: its files are followed, and every line goes to every sink."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from glob import escape, glob
from pathlib import Path
from typing import Protocol

from pilot.logship.choose import is_inside
from pilot.logship.feed import SPOOL_LIMIT, Feed
from pilot.logship.notice import Notice
from pilot.logship.record import Origin, Record, RecordMaker
from pilot.logship.sink import LogSink
from pilot.logship.tail import Line, Mask, Search, Tail
from pilot.stop import Deadline

logger = logging.getLogger(__name__)

#: Seconds between looks at the files while lines come, and the longest while none do and nobody tells of any.
_BUSY, _QUIET = 0.1, 0.5
#: Seconds between looks at quiet files that the kernel watches for us: it does not see what other nodes write.
_WATCHED = 10.0
#: Lines found in a look after which the next one follows at once.
_MANY = 1000
#: Seconds between records that tell of losses.
_TELL = 5.0
#: Seconds that the rate limit looks back.
_BURST = 10.0


class Masks(Protocol):
    """What makes masks for streams: `pilot.masking.Masker`, `pilot.maskfile.MaskFile`."""

    def stream(self) -> Mask:
        """A mask for the bytes of one file."""


class LogShip:
    """Follows files and feeds sinks.

    Args:
        origin: whose log it is.
        top: directory that the names of sources are relative to.
        masker: hides secrets before a line becomes a record.
        sinks: where lines go.
        spool: directory for lines that wait.
        rate: lines per second that are sent on average, 0 for all; what is more is counted as lost.
        spool_limit: bytes on disk for each sink.

    Attributes:
        over_rate: lines that the rate limit kept back.
    """

    def __init__(
        self,
        origin: Origin,
        top: Path,
        masker: Masks,
        sinks: Iterable[LogSink],
        spool: Path,
        *,
        rate: float = 0,
        spool_limit: int = SPOOL_LIMIT,
    ) -> None:
        self._phase = ""
        self.over_rate = 0
        self._origin = origin.fields()
        self._top = top
        self._masker = masker
        self._feeds = [Feed(sink, spool / f"{number}-{sink.name}", spool_limit) for number, sink in enumerate(sinks)]
        self._tails: dict[str, Tail] = {}
        self._searches: list[Search] = []
        self._makers: dict[str, RecordMaker] = {}
        self._sequences: dict[str, int] = {}
        self._made: list[Record] = []
        self._rate = rate
        self._allowance = rate * _BURST
        self._tasks: list[asyncio.Task[None]] = []
        self._told_lost = 0
        self._told_at = 0.0
        self._notice: Notice | None = None

    def follow(self, path: Path, start: int = 0) -> None:
        """Send the lines of a file, from byte `start` of it as it is now; or all, when it is made."""
        inside = path.is_relative_to(self._top)
        name = str(path.relative_to(self._top)) if inside else path.name
        if name not in self._tails:
            self._tails[name] = Tail(path, self._masker.stream(), start, self._top if inside else None)
            if self._notice:
                self._notice.poke()

    def follow_name(self, name: str) -> bool:
        """Follow a file that somebody named, such as `tail NAME` of debug mode: of the job's directory, or one in that.

        Returns:
            False if the name leads out of there.
        """
        inside = is_inside(name)
        if inside:
            below = [] if (self._top / name).exists() else glob(f"*/{escape(name)}", root_dir=self._top)
            self.follow(self._top / (below[0] if below else name))
        return inside

    def follow_matching(self, pattern: Path) -> None:
        """Follow the files that this stands for, `*` in the name, as they come."""
        self._searches.append(Search(pattern))

    def enter(self, phase: str) -> None:
        """The job enters a phase; what was written by now belongs to the one before."""
        self._look()
        self._phase = phase
        self._makers.clear()

    def start(self) -> None:
        """Begin to follow and to send."""
        self._tasks = [asyncio.create_task(feed.run()) for feed in self._feeds]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def finish(self, deadline: Deadline, patience: float = math.inf) -> None:
        """Send all that is left by the deadline, and end. May be called again, when there is less time.

        Args:
            deadline: the latest end.
            patience: seconds without a batch that a sink in trouble takes, after which it is given up.
        """
        *sending, watching = self._tasks
        watching.cancel()
        await asyncio.wait({watching})
        self._read_the_rest()
        for feed in self._feeds:
            feed.finish(deadline, patience)
        if sending:
            await asyncio.wait(sending, timeout=deadline.remaining + 0.2)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        for feed in self._feeds:
            logger.info("log sink %s: %d lines sent, %d lost", feed.sink.name, feed.sent, feed.lost)

    def _read_the_rest(self) -> None:
        self._look()
        for name, tail in self._tails.items():
            while lines := tail.read():
                self._ship(name, lines)
                self._hand_over()
            self._ship(name, tail.finish(), last=True)
        self._tails, self._searches = {}, []  # who enters a further phase would read them anew
        self._hand_over()
        self._told_at = 0.0
        self._tell_losses()

    def losses(self) -> Mapping[str, int]:
        """What did not arrive: `rate` for the rate limit, and sinks by their name."""
        lost = Counter({"rate": self.over_rate})
        for feed in self._feeds:
            lost[feed.sink.name] += feed.lost
        return +lost  # without those that lost nothing

    async def _watch(self) -> None:
        try:
            self._notice = Notice()
        except OSError as error:
            logger.debug("log files are looked at each %.1f s: %s", _QUIET, error)
        try:
            await self._look_for_ever()
        finally:
            self._stop_notice()

    async def _look_for_ever(self) -> None:
        period, looked = _BUSY, time.monotonic()
        while True:
            await (self._wait_for_lines() if self._notice and period == _QUIET else asyncio.sleep(period))
            now = time.monotonic()
            self._allowance = min(self._allowance + self._rate * (now - looked), self._rate * _BURST)
            looked = now
            found = self._look()
            self._tell_losses()
            period = 0 if found >= _MANY else _BUSY if found else min(_QUIET, period * 2 or _BUSY)

    async def _wait_for_lines(self) -> None:
        """Until the kernel says that something happened. If it overlooks lines, it is not asked again."""
        assert self._notice  # noqa: S101 - told to mypy
        self._notice.clear()
        try:
            self._notice.watch([tail.path for tail in self._tails.values()] + [each.pattern for each in self._searches])
        except OSError as error:
            logger.debug("log files are looked at each %.1f s: %s", _QUIET, error)
            self._stop_notice()
            return
        if not self._look() and not await self._notice.wait(_WATCHED) and self._look():
            self._stop_notice()

    def _stop_notice(self) -> None:
        if self._notice:
            self._notice.close()
            self._notice = None

    def _look(self) -> int:
        """Ship what is new; how many lines it was."""
        for search in self._searches:
            for path in search.look():
                self.follow(path)
        found = sum(self._ship(name, tail.read()) for name, tail in self._tails.items())
        self._hand_over()
        return found

    def _ship(self, source: str, lines: list[Line], *, last: bool = False) -> int:
        """Make records of the new lines of a source, the `last` ones perhaps; how many lines it was."""
        for line in lines:
            if self._rate and self._allowance < 1:
                self.over_rate += 1
            else:
                self._allowance -= 1
                self._put(source, line.number, line.text)
        return len(lines)

    def _put(self, source: str, number: int, text: str, severity: str = "") -> None:
        sequence = self._sequences[source] = self._sequences.get(source, 0) + 1
        maker = self._makers.get(source)
        if maker is None:
            maker = self._makers[source] = RecordMaker(self._origin, source, self._phase)
        self._made.append(maker.make(number, sequence, text, severity))

    def _hand_over(self) -> None:
        """Give what was made to the sinks."""
        if self._made:
            for feed in self._feeds:
                feed.put(self._made)
            self._made = []

    def _tell_losses(self) -> None:
        """A reader learns in the stream itself that lines are missing, and who reads the pilot's log, too."""
        lost = sum(feed.lost for feed in self._feeds) + self.over_rate
        if lost > self._told_lost and time.monotonic() - self._told_at >= _TELL:
            text = f"{lost - self._told_lost} lines were lost or kept back before this one, {lost} in all"
            if not self._told_lost:
                logger.warning("live log: %s", text)
            self._put("pilot", 0, f"WARNING {text}")
            self._hand_over()
            self._told_lost, self._told_at = lost, time.monotonic()
