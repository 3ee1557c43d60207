"""A child under supervision: signals are passed on at once, and a pilot that is stuck is ended."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

#: Signals that are passed on (PILOT3 9.1). SIGSEGV and SIGBUS are not ours to survive: a pilot whose wrapper dies gets
#: SIGTERM from the kernel.
FORWARDED = (
    *(signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTERM, signal.SIGXCPU, signal.SIGHUP, signal.SIGCONT),
)
#: Seconds between two looks at the pilot's log.
LOOK = 60.0
#: Seconds that a stuck pilot gets after SIGINT, and then after SIGTERM, before SIGKILL.
PATIENCE = (180.0, 30.0)
_PR_SET_PDEATHSIG = 1
#: Loaded before a child is made: between fork and exec nothing may be.
_LIBC = ctypes.CDLL(None)


class StoppedError(Exception):
    """A signal came while there was no child to pass it on to."""


class Supervisor:
    """Runs one child after the other; there is one for a process, since signals are the process's.

    Args:
        say: tells people.

    Attributes:
        was_stuck: True once a child was ended for being stuck.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self.was_stuck = False

    def listen(self) -> None:
        """Take over the signals, from now on."""
        for signum in FORWARDED:
            signal.signal(signum, self._heard)

    def run(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        cwd: Path,
        *,
        log: Callable[[int], Path] | None = None,
        stuck_after: float = 0.0,
        copy: Path | None = None,
        beside: Callable[[int], subprocess.Popen[bytes]] | None = None,
    ) -> int:
        """Run a child to its end; its exit status, 128 + signal if one ended it.

        Args:
            argv: the program.
            environ: all its variables.
            cwd: where it runs.
            log: its log, by pid; the time of its last change shows life.
            stuck_after: s without a change after which the child is ended; 0 for never.
            copy: a file that gets a copy of its output.
            beside: starts a companion once the child runs, which is awaited when that has ended.
        """
        output = subprocess.PIPE if copy else None
        child = subprocess.Popen(
            argv,
            env=dict(environ),
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT if copy else None,
            preexec_fn=_die_with_parent,
        )
        self._child, self._log = child, log(child.pid) if log else None
        copying = _copying(child.stdout, copy) if child.stdout and copy else None
        companion = beside(child.pid) if beside else None
        try:
            return self._await(child, stuck_after)
        finally:
            self._child = None
            if copying:
                copying.join(timeout=10.0)
            if companion:
                companion.wait()

    def _await(self, child: subprocess.Popen[bytes], stuck_after: float) -> int:
        started = time.time()
        while (status := _waited(child, min(LOOK, stuck_after or LOOK))) is None:
            if stuck_after and self._silence(started) > stuck_after:
                status = self._end_stuck(child)
                break
        return status if status >= 0 else 128 - status

    def _silence(self, started: float) -> float:
        """Seconds since the log changed; since the start as long as there is none."""
        try:
            return time.time() - (self._log.stat().st_mtime if self._log else started)
        except OSError:
            return time.time() - started

    def _end_stuck(self, child: subprocess.Popen[bytes]) -> int:
        self.was_stuck = True
        for signum, patience in zip((signal.SIGINT, signal.SIGTERM), PATIENCE, strict=True):
            self._say(f"the pilot is stuck: no line in {self._log}; sending {signum.name}")
            child.send_signal(signum)
            if (status := _waited(child, patience)) is not None:
                return status
        self._say("the pilot does not end: sending SIGKILL")
        child.kill()
        return child.wait()

    def _heard(self, signum: int, frame: FrameType | None) -> None:
        child = self._child
        if child is None:
            if signum == signal.SIGCONT:
                return
            raise StoppedError(signal.Signals(signum).name)
        if signum == signal.SIGCONT and self._log and self._log.exists():
            self._log.touch()  # it was suspended, and is not stuck
        child.send_signal(signum)


def _waited(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _copying(output: IO[bytes], copy: Path) -> threading.Thread:
    """Pass output on as it comes, and keep a copy."""

    def run() -> None:
        with open(copy, "ab", buffering=0) as kept:
            for line in output:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                kept.write(line)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _die_with_parent() -> None:
    """A wrapper that is killed must not leave a pilot that nobody watches: the kernel sends it SIGTERM."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
