"""A payload as a process tree: started in a session of its own, waited for, stopped, and gone to the last child.

What belongs to a payload: its first process, all below it, and whoever came back to the pilot as an orphan. Signals go
to these and to nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from pilot.errors import Code, PilotError
from pilot.left import open_left
from pilot.payload.container import Container
from pilot.processes import TICK, Processes, Spent, began, descendants, is_zombie, send, wait_exit
from pilot.stop import Deadline

logger = logging.getLogger(__name__)

#: Bytes of one argument of a program, its NUL included: MAX_ARG_STRLEN of Linux, 32 pages of 4 KiB.
_LONGEST_ARGUMENT = 131_072

#: What follows a process' name in that of a file in the job directory for a command that is longer, such as one that
#: names some thousand inputs.
LONG_COMMAND = "_command.sh"

#: Seconds between looks at a tree that was told to go.
_LOOK = 0.05

#: Seconds that what runs a container may live on after the payload was killed.
_TIDY = 2.0

#: Looks at a tree of which nothing seems to live. One that cannot be reaped, such as one that is traced, ends them.
_PASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a payload ended.

    Attributes:
        exit_code: its exit status, None if a signal ended it.
        signum: the signal that ended it, None if it exited.
        stopped: True if the pilot sent a signal before it ended.
        seconds: wall time.
        cpu_time: CPU seconds of the tree, as far as the kernel told.
        spent: what the kernel told in all.
    """

    exit_code: int | None
    signum: int | None
    stopped: bool
    seconds: float
    cpu_time: float
    spent: Spent = field(default_factory=Spent)

    @property
    def status(self) -> int:
        """The exit status as a shell shows it: 128 + signal for a process that was killed."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signum or 0)


class PayloadProcess:
    """A running payload."""

    def __init__(
        self,
        process: subprocess.Popen[Any],
        processes: Processes,
        name: str = "payload",
        container: Container | None = None,
    ) -> None:
        self.pid = process.pid
        self.name = name
        self.container = container
        self._process = process
        self._processes = processes
        self._started = time.monotonic()
        self._adopted_before = processes.adopted_usage
        self._stopped = False
        self._ended: Ended | None = None

    @classmethod
    def start(
        cls,
        text: str,
        *,
        workdir: Path,
        environment: Mapping[str, str],
        processes: Processes,
        prefix: Sequence[str] = (),
        name: str = "payload",
        again: bool = False,
        container: Container | None = None,
    ) -> PayloadProcess:
        """Start `bash -c text` in `workdir`, its output in files there; see `output_paths`.

        Args:
            text: the payload's own shell text.
            workdir: the job directory.
            environment: all variables it gets.
            processes: starts it and knows its orphans.
            prefix: what runs the shell, such as a command that joins a control group; empty for nothing.
            name: of its output files.
            again: it ran before in this job, and its output goes behind that of then.
            container: whose `argv` runs the text, in place of the shell.

        Raises:
            PilotError: PAYLOADEXECUTIONEXCEPTION if it cannot be started.
        """
        stdout, stderr = output_paths(workdir, name)
        try:
            with _open_output(stdout, again) as out, _open_output(stderr, again) as err:
                shell = (
                    ["/bin/bash", *_shell_arguments(text, workdir / f"{name}{LONG_COMMAND}", again)]
                    if not container
                    else []
                )
                process = processes.start(
                    [*prefix, *(container.argv if container else shell)],
                    cwd=workdir,
                    env=dict(environment),
                    stdin=container.stdin() if container else subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
        except (OSError, ValueError) as error:
            raise PilotError(Code.PAYLOADEXECUTIONEXCEPTION, f"the {name} could not be started: {error}") from error
        logger.info("%s started: pid %d in %s", name, process.pid, workdir)
        return cls(process, processes, name, container)

    async def wait(self) -> Ended:
        """Wait for the first process to end. CPU time counts what its other processes used until now."""
        if self._ended is None:
            spent = await wait_exit(self._process)
            if self._ended is None:  # two may have waited
                self._processes.forget(self._process)
                self._processes.reap()
                self._ended = self._result(spent or Spent())
                logger.info("%s ended with status %d after %.1f s", self.name, self._ended.status, self._ended.seconds)
        spent = self._ended.spent + self._processes.adopted_usage.since(self._adopted_before)
        return replace(self._ended, cpu_time=spent.cpu, spent=spent)

    def members(self) -> list[int]:
        """Pids of all living processes of the payload, parents first.

        A process that dies while we look hands its children over to us behind our back. So when all that were found
        are dead we look again: nothing is left only when there is no child of ours to start from.
        """
        for _ in range(_PASSES):
            roots = self._roots()
            alive = [pid for pid in descendants(roots) if not is_zombie(pid)]
            if alive or not roots:
                return alive
        return roots  # they had all died each time we looked, so others live in their place

    def _roots(self) -> list[int]:
        """The first process unless it has ended, then those that came to us: looked for last, it may end meanwhile."""
        # A pid that was waited for may be somebody else's by now.
        first = [self.pid] if self._process.returncode is None and not is_zombie(self.pid) else []
        self._processes.reap()
        return [*first, *self._processes.adopted()]

    def receivers(self) -> list[int]:
        """Members that get signals which are meant for the payload."""
        members = self.members()
        return [*self._receivers(members, members), *self.inside()]

    def inside(self) -> list[int]:
        """Processes of the payload that are none of ours, since a daemon has started them."""
        return self.container.inside() if self.container else []

    def _receivers(self, pids: Sequence[int], members: Sequence[int]) -> list[int]:
        """Without what only runs the container, which must outlive the payload to see its end."""
        spared = self.container.spared(self.pid, members) if self.container else set()
        return [pid for pid in pids if pid not in spared]

    async def stop(self, deadline: Deadline, grace: float | None = None) -> None:
        """End the payload and everything of it: TERM (and CONT), then KILL.

        Args:
            deadline: by when nothing may be left.
            grace: seconds between TERM and KILL; two thirds of the time there is by default.
        """
        self._stopped = self._ended is None
        patience = Deadline(min(deadline.remaining * 2 / 3 if grace is None else grace, deadline.remaining))
        if not await self._go(signal.SIGTERM, patience):
            logger.warning("%s still runs after SIGTERM: %s; now SIGKILL", self.name, self.members())
            await self._go(signal.SIGKILL, Deadline(max(1.0, deadline.remaining)))

    async def _go(self, signum: signal.Signals, patience: Deadline) -> bool:
        """Signal all members, until none is left. False if some are when patience ends.

        Those that begin after SIGTERM are of a payload that saves what it has, and are left to it.
        """
        told: set[int] = set()
        since = time.clock_gettime(time.CLOCK_BOOTTIME) - TICK
        tidy = Deadline(min(_TIDY, patience.remaining / 2))  # for what runs a container, to take away what it made
        while members := self.members():
            again = signum == signal.SIGKILL
            new = [pid for pid in members if again or not told or (pid not in told and began(pid) < since)]
            if self.container and not told:
                with suppress(TimeoutError):  # what runs it may be stuck, and is not waited for
                    async with asyncio.timeout(patience.remaining):
                        await self.container.signal(signum)
            # Before the text runs there is none inside to be told, and the image may still be on its way.
            every = (signum == signal.SIGKILL and tidy.expired) or (self.container and not self.container.started)
            send(new if every else self._receivers(new, members), signum)
            send(new, signal.SIGCONT)
            told.update(new)
            if patience.expired:
                return False
            await asyncio.sleep(min(_LOOK, patience.remaining))
        return True

    def _result(self, spent: Spent) -> Ended:
        code = self._process.returncode
        return Ended(
            exit_code=code if code >= 0 else None,
            signum=-code if code < 0 else None,
            stopped=self._stopped,
            seconds=time.monotonic() - self._started,
            cpu_time=spent.cpu,
            spent=spent,
        )


def _shell_arguments(text: str, path: Path, again: bool) -> list[str]:
    """How bash gets its text: as an argument, or in a file if it is too long for that."""
    data = os.fsencode(text)
    if len(data) < _LONGEST_ARGUMENT:
        return ["-c", text]
    if again:
        path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.write(data + b"\n")
    return [f"./{path.name}"]


def output_paths(workdir: Path, name: str) -> tuple[Path, Path]:
    """Where stdout and stderr of a process go: `payload.stdout`, `NAME_stdout.txt` for others (PILOT3 1.5)."""
    if name == "payload":
        return workdir / "payload.stdout", workdir / "payload.stderr"
    return workdir / f"{name}_stdout.txt", workdir / f"{name}_stderr.txt"


def _open_output(path: Path, again: bool) -> BinaryIO:
    """A file to write to, empty at first. An input may have its name, so that it is not written through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags | (os.O_APPEND if again else os.O_TRUNC), 0o644)
    os.set_blocking(fd, True)
    return os.fdopen(fd, "ab" if again else "wb")


def signal_name(signum: int) -> str:
    """`SIGKILL` for 9; the number for one without a name, such as a real-time signal."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def tail(path: Path, size: int = 2048) -> str:
    """The last `size` bytes of a regular file as text; empty if there is none."""
    try:
        with open_left(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""
