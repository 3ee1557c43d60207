"""Jobs going by on a terminal: one live line for the running job, one line that stays for each that ended.

Where the output is no terminal (a file, a batch log) there is a plain line for each phase instead.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import suppress
from typing import TextIO

from pilot.job import Job, Kind
from pilot.outcome import FileOutcome, Outcome, Progress
from pilot.staging.progress import ProgressLine, size

__all__ = ["Terminal", "size", "title"]

_WORDS = {
    "stagein": "bringing inputs",
    "setup": "setting up",
    "payload": "running",
    "stageout": "taking outputs out",
    "log": "packing the log",
    "report": "reporting",
}
_ERASE = "\r\x1b[K"
_GREEN, _RED, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


class Terminal(Progress):
    """Shows progress on `stream`; with `quiet` only failures. `outcomes` are those of the jobs that have ended."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.outcomes: list[Outcome] = []
        self._stream = stream
        self._quiet = quiet
        self._live = stream.isatty() and not quiet
        self._colour = stream.isatty() and "NO_COLOR" not in os.environ
        self._job: Job | None = None
        self._doing = ""
        self._since = 0.0
        self._moved = 0
        self._line: ProgressLine | None = None

    async def tick(self) -> None:
        """Keep the live line alive; run as a task, cancelled at the end. Nothing to do without a terminal."""
        while self._live:
            self._draw()
            await asyncio.sleep(0.2)

    def job(self, job: Job) -> None:
        """Remember it."""
        self._job, self._moved = job, 0
        self._enter("starting")

    def phase(self, job: Job, phase: str) -> None:
        """Show it on the live line, or as a line of its own."""
        self._enter(_WORDS.get(phase, phase))

    def moving(self, job: Job, line: ProgressLine | None) -> None:
        """Show it on the live line."""
        self._line = line

    def moved(self, job: Job, done: FileOutcome) -> None:
        """Say so where there is no live line."""
        self._moved += done.size
        if not self._live and not self._quiet:
            file, arrow = done.file, "<-" if done.file.kind is Kind.INPUT else "->"
            self.line(f"job {job.job_id}: {file.kind.value} {file.lfn} {arrow} {done.url} ({size(done.size)})")

    def ended(self, outcome: Outcome) -> None:
        """The line that stays."""
        self.outcomes.append(outcome)
        self._job = None
        if outcome.error is None and self._quiet:
            return
        spent = f"{outcome.timings.get('total', 0.0):.2f} s"
        if outcome.error is None:
            self.line(f"{self._paint(_GREEN, '✓')} {title(outcome.job)} finished in {spent}")
        else:
            self.line(f"{self._paint(_RED, '✗')} {title(outcome.job)} failed after {spent}: {outcome.error}")
            if not self._quiet:
                code = int(outcome.error.code)
                self.line(f"  fault  {outcome.blame}; `pilot explain {code}` says what it means and what to do")

    def waiting(self, what: str, seconds: float) -> None:
        """Show what the slot waits for."""
        self._job = None
        self._enter(f"{what}, waiting up to {seconds:.0f} s")

    def _enter(self, doing: str) -> None:
        self._doing, self._since = doing, time.monotonic()
        if self._live:
            self._draw()
        elif not self._quiet:
            self.line(f"job {self._job.job_id}: {doing}" if self._job else doing)

    def _draw(self) -> None:
        if not self._doing:
            return
        name = title(self._job) + " " if self._job else ""
        text = f"▸ {name}{self._doing} {time.monotonic() - self._since:.1f} s"
        if self._line:
            text += f", {self._line.text().partition(': ')[2]}"
        elif self._moved:
            text += f", {size(self._moved)} moved"
        self._write(_ERASE + self._paint(_DIM, text[: shutil.get_terminal_size().columns - 1]))

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write((_ERASE if self._live else "") + text + "\n")
        if self._live:
            self._doing = ""

    def _write(self, text: str) -> None:
        """A reader that has gone, as in `pilot local job.yaml 2>&1 | head`, is no reason for a job to fail."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._live, self._quiet = False, True
            _send_nowhere(self._stream)

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text


def _send_nowhere(stream: TextIO) -> None:
    """Let what a stream still holds go to /dev/null: Python tries to write it at its end, and would exit with 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def title(job: Job) -> str:
    """How a person knows a job: its number, and its name if it has one."""
    return f"job {job.job_id} {job.name}".rstrip()
