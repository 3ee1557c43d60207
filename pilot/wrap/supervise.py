"""A child under supervision: signals are passed on at once, and a pilot that is stuck is ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
#: Seconds that a companion gets after the child: `pilot logship` ends within 20.
COMPANION = 60.0
STDOUT = 1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
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
        self._log: Callable[[], Path | None] = lambda: None
        self._early: list[int] | None = None
        self._stopped = ""
        self._resting = False
        self.was_stuck = False

    def listen(self) -> None:
        """Take over the signals, from now on."""
        for signum in FORWARDED:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
                signal.signal(signum, self._heard)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

    def rest(self) -> None:
        """Take no notice of signals from now on: the end is near, and what it tidies up is to be done in full.

        They are blocked, too: Python gives them back to the kernel before it exits, and the status would be theirs.
        """
        self._resting = True
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)

    def check(self) -> None:
        """Raise again for a signal that came, since who runs a loop or a callback may have kept its error.

        Raises:
            StoppedError: one came while there was no child.
        """
        if self._stopped:
            raise StoppedError(self._stopped)

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
            log: its log, by pid, as it is found at that moment; changes of it show life.
            stuck_after: s without a change after which the child is ended; 0 for never.
            copy: a file that gets a copy of its output.
            beside: starts a companion once the child runs, which is awaited when that has ended.

        Raises:
            StoppedError: a signal came before.
            OSError: it cannot be started.
        """
        self.check()
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        others = _children()
        child = self._start(argv, environ, cwd, piped=copy is not None)
        if log:
            self._log = partial(log, child.pid)
        copying = _copying(child.stdout, copy) if child.stdout and copy else None
        companion = self._accompany(beside, child.pid) if beside else None
        try:
            return self._await(child, stuck_after)
        finally:
            if child.returncode == -signal.SIGKILL:
                _end_orphans(others | ({companion.pid} if companion else set()))
            if copying:
                copying.join(timeout=10.0)
            if companion and _waited(companion, COMPANION) is None:
                companion.kill()
                companion.wait()
            self._child = None

    def _start(
        self, argv: Sequence[str], environ: Mapping[str, str], cwd: Path, *, piped: bool
    ) -> subprocess.Popen[bytes]:
        """Start the child; a signal that comes while it is being made is for it."""
        self._early = []
        try:
            self._child = child = subprocess.Popen(
                argv,
                env=dict(environ),
                cwd=cwd,
                stdout=subprocess.PIPE if piped else None,
                stderr=subprocess.STDOUT if piped else None,
                preexec_fn=_die_with_parent,
            )
        finally:
            early, self._early = self._early, None
        for signum in early:
            child.send_signal(signum)
        return child

    def _accompany(self, beside: Callable[[int], subprocess.Popen[bytes]], pid: int) -> subprocess.Popen[bytes] | None:
        try:
            return beside(pid)
        except OSError as error:
            self._say(f"WARNING: the log is not sent: {error}")
            return None

    def _await(self, child: subprocess.Popen[bytes], stuck_after: float) -> int:
        """Only time that we have seen pass counts: a node that slept, or a clock that was put right, is no silence."""
        period = min(LOOK, stuck_after or LOOK)
        silent, mark, seen = 0.0, self._mark(), time.monotonic()
        while (status := _waited(child, period)) is None:
            before, seen = seen, time.monotonic()
            silent += min(seen - before, 2 * period)
            if (now := self._mark()) not in (mark, None):
                silent, mark = 0.0, now
            if stuck_after and silent > stuck_after:
                status = self._end_stuck(child)
                break
        return status if status >= 0 else 128 - status

    def _mark(self) -> tuple[Path, int] | None:
        """What changes with the log; None as long as there is none."""
        path = self._log()
        try:
            return (path, path.stat().st_mtime_ns) if path else None
        except OSError:
            return None

    def _end_stuck(self, child: subprocess.Popen[bytes]) -> int:
        self.was_stuck = True
        for signum, patience in zip((signal.SIGINT, signal.SIGTERM), PATIENCE, strict=True):
            self._say(f"the pilot is stuck: no line in {self._log()}; sending {signum.name}")
            child.send_signal(signum)
            child.send_signal(signal.SIGCONT)  # one that was stopped by a signal can still report its job
            if (status := _waited(child, patience)) is not None:
                return status
        self._say("the pilot does not end: sending SIGKILL")
        child.kill()
        return child.wait()

    def _heard(self, signum: int, frame: FrameType | None) -> None:
        if self._early is not None:
            self._early.append(signum)
        elif self._child is not None:
            self._pass_on(self._child, signum)
        elif signum != signal.SIGCONT and not (self._stopped or self._resting):
            self._stopped = signal.Signals(signum).name
            raise StoppedError(self._stopped)

    def _pass_on(self, child: subprocess.Popen[bytes], signum: int) -> None:
        if signum == signal.SIGCONT and (path := self._log()):  # it was suspended, and is not stuck
            with contextlib.suppress(OSError):
                os.utime(path)
        child.send_signal(signum)


def _waited(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit status, None if it still runs after so long. `Popen.wait` with a time-out looks 20 times a second."""
    try:
        fd = os.pidfd_open(child.pid)
    except (OSError, AttributeError):  # kernels before 5.3
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        return child.returncode
    try:
        select.select([fd], [], [], seconds)
    finally:
        os.close(fd)
    return child.poll()


def _copying(output: IO[bytes], copy: Path) -> threading.Thread:
    """Pass output on as it comes, and keep a copy; a full disk must not leave a pilot with a pipe that nobody reads."""

    def run() -> None:
        with contextlib.ExitStack() as files:
            outlets = [STDOUT]
            with contextlib.suppress(OSError):
                outlets.append(files.enter_context(open(copy, "ab", buffering=0)).fileno())
            while data := os.read(output.fileno(), 65536):
                for outlet in outlets:
                    put(data, outlet)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def put(data: bytes, outlet: int = STDOUT) -> None:
    """Write it all, or as much as there is room for: past Python's buffers, which would fail once more at exit."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(outlet, data) :]


def _children() -> set[int]:
    """What a script started beside us that became us by `exec`; nothing where the kernel does not tell."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:
        return set()


def _end_orphans(others: set[int]) -> None:
    """A pilot that was killed ends no payload. What it leaves comes to us, its subreaper; stopped, it makes no more."""
    from pilot.processes import children, descendants, send

    seen: list[int] = []
    while new := [pid for pid in descendants([one for one in children() if one not in others]) if pid not in seen]:
        send(new, signal.SIGSTOP)
        seen += new
    send(seen[::-1], signal.SIGKILL)


def _die_with_parent() -> None:
    """A wrapper that is killed must not leave a pilot that nobody watches: the kernel sends it SIGTERM."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
