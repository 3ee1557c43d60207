"""Meter that runs prmon (github.com/HSF/prmon) beside the payload, as Pilot 3 does, for the files that it leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilot.cgroup import Group
from pilot.processes import send, wait_exit
from pilot.watch.meter import Sample, Subject
from pilot.watch.timeline import SUMMARY, TABLE, write_new
from plugins.meters.procfs import Procfs

logger = logging.getLogger(__name__)

#: Seconds between its samples (PILOT3 5.3).
_INTERVAL = 60

#: How often one that crashed is started again (PILOT3 5.3).
_RESTARTS = 5

#: Seconds that it gets to write its summary once it was told to; it looks five times a second.
_PATIENCE = 3.0


class Prmon(Procfs):
    """Samples are those of procfs: the lines of prmon are a minute apart, and a limit may be passed between them.

    It writes in a directory of its own, since it would follow a link that the payload put into the job directory.
    """

    name = "prmon"

    def __init__(self) -> None:
        super().__init__()
        self.writes_timeline = True
        self._folder = Path()
        self._process: subprocess.Popen[Any] | None = None
        self._subject: Subject | None = None
        self._followed = self._crashes = 0

    @classmethod
    def problem(cls, group: Group | None, environ: Mapping[str, str]) -> str:
        """It needs the program."""
        return "" if shutil.which("prmon", path=environ.get("PATH")) else "there is no program prmon in PATH"

    def attach(self, subject: Subject) -> None:
        """Start it."""
        super().attach(subject)
        self._subject = subject
        self._start(subject, subject.pid)

    def _start(self, subject: Subject, pid: int) -> None:
        """The command line of Pilot 3 (PILOT3 5.3)."""
        program = shutil.which("prmon", path=subject.environ.get("PATH")) or "prmon"
        options = ["--filename", TABLE, "--json-summary", SUMMARY, "--interval", str(_INTERVAL)]
        self._followed = pid
        try:
            if self._folder == Path():
                self._folder = Path(tempfile.mkdtemp(prefix=".prmon-", dir=subject.workdir.parent))
            self._process = subject.processes.start(
                [program, "--pid", str(pid), *options],
                cwd=self._folder,
                env=dict(subject.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self._give_up(f"does not start: {error}")

    def _give_up(self, reason: str) -> None:
        logger.warning("prmon %s; the time line is the pilot's own from now on", reason)
        self._process, self.writes_timeline = None, False

    def _revive(self) -> None:
        """Start it again if it crashed, or if what it followed, such as a preprocess, has ended before the payload."""
        subject, process = self._subject, self._process
        if subject is None or process is None or process.poll() is None:
            return
        members = subject.members()
        if not members:
            return
        subject.processes.forget(process)
        if process.returncode or self._followed in members:
            self._crashes += 1
            logger.warning("prmon ended with %d", process.returncode)
        if self._crashes > _RESTARTS:
            self._give_up(f"ended {self._crashes} times")
        else:
            self._start(subject, members[0])

    def sample(self) -> Sample:
        """See that it runs, and look at the processes."""
        self._revive()
        return super().sample()

    async def close(self, patience: float) -> None:
        """Have it write its summary (SIGUSR1), and end it if it does not; its files go to the job directory."""
        process, subject = self._process, self._subject
        if process is not None and subject is not None:
            for signum in (signal.SIGUSR1, signal.SIGKILL):
                if process.returncode is None:
                    send([process.pid], signum)
                    try:
                        await asyncio.wait_for(wait_exit(process), min(_PATIENCE, patience))
                    except TimeoutError:
                        logger.warning("prmon does not end after %s", signum.name)
            subject.processes.forget(process)
            self.writes_timeline = self._deliver(subject.workdir)
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _deliver(self, workdir: Path) -> bool:
        """False if the summary is not whole, as that of a payload that ends before the first line of the table."""
        try:
            write_new(workdir / TABLE, (self._folder / TABLE).read_text())
            summary = (self._folder / SUMMARY).read_text()
            if "Max" not in json.loads(summary):
                return False
            write_new(workdir / SUMMARY, summary)
        except (OSError, ValueError) as error:
            logger.warning("prmon left no summary: %s", error)
            return False
        return True
