"""The engine's end of a running transfer: what ends it, what it has moved, and the programs it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

from pilot.errors import PilotError
from pilot.stop import Deadline, Stop

#: Bytes of a program's output that are kept, from its end: checksums and errors are said last.
KEEP_OUTPUT = 1 << 20


class Launcher(Protocol):
    """Starts programs in sessions of their own and knows them for ours: `pilot.processes.Processes`."""

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program; options as for `subprocess.Popen`."""

    def forget(self, process: subprocess.Popen[Any]) -> None:
        """It has ended and was waited for."""


class TransferHandle:
    """A `pilot.staging.copytool.Handle`: used by the tool in its thread, ended by the engine from the event loop.

    Args:
        stop: ends the transfer when it is requested.
        launcher: to start programs.
        timeout: seconds until the transfer must be over.
        late: what to raise then, or when it is ended before because it is too slow.
        environment: of programs.
    """

    def __init__(
        self, stop: Stop, launcher: Launcher, timeout: float, late: PilotError, environment: Mapping[str, str]
    ) -> None:
        self.deadline = Deadline(timeout)
        self.late = late
        self._stop = stop
        self._launcher = launcher
        self._environment = environment
        self._moved = 0
        self._watched: Path | None = None
        self._ending = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[Any] | None = None

    @property
    def moved(self) -> int:
        """Bytes so far; for a program that writes a file, the size of that."""
        watched = self._watched
        try:
            return max(self._moved, watched.stat().st_size) if watched else self._moved
        except OSError:
            return self._moved

    def check(self) -> None:
        """Raise if the transfer must end now."""
        if self._ending or self._stop.requested or self.deadline.expired:
            raise self.reason

    def advance(self, count: int) -> None:
        """`count` more bytes have passed."""
        self._moved += count
        self.check()

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        watch: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; see `pilot.staging.copytool.Handle`."""
        self._watched = watch
        with TemporaryFile() as output, TemporaryFile() as errors:  # not pipes: a child left behind would hold them
            process = self._start(argv, {**self._environment, **(env or {})}, stdin, output, errors)
            try:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            finally:
                status = self._reap(process)
            self.check()
            return subprocess.CompletedProcess(list(argv), status, _tail(output), _tail(errors))

    @property
    def reason(self) -> PilotError:
        """Why the transfer must end, once it must."""
        return self._stop.reason or self.late

    def terminate(self) -> None:
        """From now on `check` raises; a running program is asked to end."""
        self._ending = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """The running program had its chance."""
        self._signal(signal.SIGKILL)

    def _start(
        self, argv: Sequence[str], env: Mapping[str, str], stdin: int, output: IO[bytes], errors: IO[bytes]
    ) -> subprocess.Popen[Any]:
        with self._lock:  # nothing starts after `terminate`
            self.check()
            self._process = self._launcher.start(
                argv, stdin=stdin, stdout=output, stderr=errors, env=env, close_fds=True
            )
            return self._process

    def _reap(self, process: subprocess.Popen[Any]) -> int:
        """Collect a program that has ended. As long as it is not waited for, its group's number is surely ours."""
        with self._lock:
            _signal_group(process.pid, signal.SIGKILL)
            status = process.wait()
            self._process = None
        self._launcher.forget(process)
        return status

    def _signal(self, signum: signal.Signals) -> None:
        with self._lock:
            if self._process is not None:
                _signal_group(self._process.pid, signum)


def _signal_group(leader: int, signum: signal.Signals) -> None:
    try:
        os.killpg(leader, signum)
    except ProcessLookupError:
        pass


def _tail(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - KEEP_OUTPUT))
    return output.read().decode(errors="replace")
