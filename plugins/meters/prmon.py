"""Meter that runs prmon (github.com/HSF/prmon) beside the payload, as Pilot 3 does, and reads the table it writes."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pilot.cgroup import Group
from pilot.processes import send, wait_exit
from pilot.watch.meter import Meter, Sample, Subject
from pilot.watch.timeline import SUMMARY, TABLE

logger = logging.getLogger(__name__)

#: Seconds between its samples (PILOT3 5.3).
_INTERVAL = 60

#: How often one that crashed is started again (PILOT3 5.3).
_RESTARTS = 5

#: Seconds that it gets to write its summary once it was told to; it looks once a second.
_PATIENCE = 3.0


class Prmon(Meter):
    """Samples are the last line of the table: up to a minute old, and CPU in whole seconds, as prmon has them."""

    name = "prmon"
    writes_timeline: ClassVar[bool] = True

    def __init__(self) -> None:
        self._table = Path()
        self._process: subprocess.Popen[Any] | None = None
        self._subject: Subject | None = None
        self._crashes = 0

    @classmethod
    def problem(cls, group: Group | None, environ: Mapping[str, str]) -> str:
        """It needs the program."""
        return "" if shutil.which("prmon", path=environ.get("PATH")) else "there is no program prmon in PATH"

    def attach(self, subject: Subject) -> None:
        """Start it."""
        self._subject = subject
        self._table = subject.workdir / TABLE
        self._start(subject, subject.pid)

    def _start(self, subject: Subject, pid: int) -> None:
        """The command line of Pilot 3 (PILOT3 5.3)."""
        program = shutil.which("prmon", path=subject.environ.get("PATH")) or "prmon"
        options = ["--filename", TABLE, "--json-summary", SUMMARY, "--interval", str(_INTERVAL)]
        try:
            self._process = subject.processes.start(
                [program, "--pid", str(pid), *options],
                cwd=subject.workdir,
                env=dict(subject.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            logger.warning("prmon does not start: %s", error)

    def _revive(self) -> None:
        """Start it again if it crashed, or if what it followed, such as a preprocess, has ended before the payload."""
        subject, process = self._subject, self._process
        if subject is None or process is None or process.poll() is None or self._crashes > _RESTARTS:
            return
        members = subject.members()
        if not members:
            return
        if process.returncode:
            self._crashes += 1
            logger.warning("prmon ended with %d", process.returncode)
        subject.processes.forget(process)
        if self._crashes <= _RESTARTS:
            self._start(subject, members[0])

    def sample(self) -> Sample:
        """The last whole line of its table; nothing before there is one."""
        self._revive()
        try:
            lines = self._table.read_text().splitlines()
        except (OSError, ValueError):
            lines = []
        names, values = (lines[0].split(), lines[-1].split()) if len(lines) > 1 else ([], [])
        row = dict(zip(names, values, strict=False)) if len(names) == len(values) else {}
        return _sample({name: int(value) for name, value in row.items() if value.isdecimal()})

    async def close(self) -> None:
        """Have it write its summary (SIGUSR1), and end it if it does not."""
        process, subject = self._process, self._subject
        if process is None or subject is None:
            return
        for signum in (signal.SIGUSR1, signal.SIGKILL):
            if process.returncode is None:
                send([process.pid], signum)
                try:
                    await asyncio.wait_for(wait_exit(process), _PATIENCE)
                except TimeoutError:
                    logger.warning("prmon does not end after %s", signum.name)
        subject.processes.forget(process)


def _sample(row: Mapping[str, int]) -> Sample:
    utime, stime = row.get("utime", 0), row.get("stime", 0)
    return Sample(
        seconds=row.get("wtime", 0),
        processes=row.get("nprocs", 1 if row else 0),
        threads=row.get("nthreads", 0),
        **{name: row.get(name, 0) for name in ("rss", "pss", "vmem", "swap", "rchar", "wchar")},
        rbytes=row.get("read_bytes", 0),
        wbytes=row.get("write_bytes", 0),
        cpu=utime + stime,
        utime=utime,
        stime=stime,
    )
