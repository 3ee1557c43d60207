"""The pilots that are measured, and one run of one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from tests.benchmarks.field import Field
from tests.parts import stop

ROOT = Path(__file__).resolve().parents[2]

#: From SIGTERM to SIGKILL for a pilot that did not end by itself, s: it needs 25 s to end its payload and report.
_GRACE = 30.0

#: Between two looks at a pilot's memory, s. A look takes 30 us, and the peak that is read never goes down.
_LOOK = 0.02


class BrokenRunError(Exception):
    """A run that did not do what is measured."""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """How a pilot is started.

    Attributes:
        name: how it is called.
        api: the generation of the server's API that it is given.
        command: argv before Pilot 3's options.
        nested: True if `command` is a program that has the pilot as its only child.
        options: more options that it needs in a field.
        environment: more environment that it needs in a field.
        patience: longest time to wait for the end of a run, s, besides the payload's.
    """

    name: str
    api: str
    command: list[str]
    nested: bool = False
    options: Callable[[Field], list[str]] = lambda _: []
    environment: Callable[[Field], Mapping[str, str]] = field(default=lambda _: {})
    patience: float = 60.0

    def start(self, place: Field) -> Run:
        """Start it."""
        return Run(self, place)


def ours() -> Pilot:
    """This pilot, started as wrappers do."""
    return Pilot(name="this pilot", api="both", command=[sys.executable, str(ROOT / "pilot.py")])


class Run:
    """A pilot from its start to its exit. As a context manager it leaves nothing behind.

    Attributes:
        pid: its process.
        peak: most memory it ever had until now (VmHWM), MiB.
        seconds: from start to exit.
    """

    def __init__(self, pilot: Pilot, place: Field) -> None:
        self._pilot, self._place = pilot, place
        self.peak = self.seconds = 0.0
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **place.environment, **pilot.environment(place)}
        self._started = time.perf_counter()
        with open(place.top / "pilot.out", "wb") as out:
            self._process = subprocess.Popen(
                [*pilot.command, *place.options, *pilot.options(place)],
                cwd=place.launch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.pid = _only_child(self._process.pid) if pilot.nested else self._process.pid
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look)
        self._looking.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process, _GRACE)  # Pilot 3 and all it started end with their namespace, whoever ends unshare
        self._over.set()
        self._looking.join()

    def finish(self, payload: float = 0.0) -> None:
        """Wait for its exit.

        Args:
            payload: how long its payloads take, s.

        Raises:
            BrokenRunError: it does not end.
        """
        try:
            self._process.wait(self._pilot.patience + payload)
        except subprocess.TimeoutExpired:
            raise BrokenRunError(f"{self._pilot.name} does not end; see {self._place.top}/pilot.out") from None
        self.seconds = time.perf_counter() - self._started

    @property
    def exit_code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.returncode

    def signal(self, number: int) -> float:
        """Send a signal to the pilot, and to no other process; returns when, s since 1970."""
        os.kill(self.pid, number)
        return time.time()

    def cpu_seconds(self) -> float:
        """CPU time of the process with all its threads, without its children, s.

        That is the process's CPU clock (clock_getcpuclockid(3)): `/proc/PID/stat` has it in ticks of 10 ms only.
        """
        return time.clock_gettime((~self.pid << 3) | 2)

    def threads(self) -> int:
        """How many threads it has now."""
        return int(_status(self.pid)["Threads"])

    def _look(self) -> None:
        while not self._over.is_set():
            try:
                self.peak = max(self.peak, int(_status(self.pid)["VmHWM"].split()[0]) / 1024)
            except (OSError, KeyError):  # it has ended; a zombie has no memory
                return
            self._over.wait(_LOOK)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _only_child(pid: int, timeout: float = 10.0) -> int:
    """The child of a process, once it is there."""
    deadline = time.monotonic() + timeout
    while not (children := psutil.Process(pid).children()):
        if time.monotonic() > deadline:
            raise BrokenRunError(f"process {pid} has started nothing")
        time.sleep(0.001)
    return int(children[0].pid)
