"""Hooks: programs of a site or a queue that run around the phases of a job, in any language. See docs/hooks.md.

    <hooks>/pre-stagein.d/10-check      executables of a directory, ordered by name
    <hooks>/pre-stagein                 or one executable alone

Each gets the job as JSON on stdin, and may answer with JSON on stdout. One that fails fails the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from pilot.errors import Code, PilotError
from pilot.processes import Processes, descendants, send, wait_exit
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

#: When hooks run, in this order; `end` always if `start` did.
PHASES = (
    *("start", "pre-stagein", "post-stagein", "pre-payload", "post-payload", "pre-stageout", "post-stageout", "end"),
)

#: Phases whose failure is one of preparing a job; of the others it is one of what follows its payload.
_PREPARING = PHASES[: PHASES.index("post-payload")]

#: What a hook fails with that names no code: before the end of the payload, and after it.
DEFAULT_CODES = (Code.SETUPFAILURE, Code.POSTPROCESSFAILURE)

#: Bytes at the end of each output of a hook that are read.
_OUTPUT = 64 << 10

#: Lines of it that go to the pilot's log.
_LINES = 200

#: Seconds between TERM and KILL for a hook whose time is over.
_PATIENCE = 1.0

#: Names of variables that a hook cannot set for the payload: they are who the job is.
_IDENTITY = ("PandaID", "PanDA_TaskID", "PanDA_AttemptNr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The hooks of a slot.

    Attributes:
        directory: where they are, empty for no hooks.
        timeout: seconds that one may take.
        processes: starts them.
        environ: their variables, beside `PILOT_*`.
    """

    directory: str
    timeout: float
    processes: Processes
    environ: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class JobHooks:
    """The hooks of one job, and what they want to be known of it.

    Attributes:
        workdir: the job directory.
        environment: variables for the payload.
        metrics: for jobMetrics.
    """

    hooks: Hooks
    workdir: Path
    environment: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)

    async def run(self, phase: str, job: Mapping[str, Any], stop: Stop) -> None:
        """Run the hooks of a phase, one after the other.

        Args:
            phase: one of `PHASES`.
            job: for their stdin, without secrets.
            stop: ends a hook at once.

        Raises:
            PilotError: a hook failed, or the reason of the stop.
        """
        # In a thread: they may be far away, and a mount that hangs must not hang the pilot.
        for path in await stop.guard(in_thread(find_hooks, self.hooks.directory, phase)):
            try:
                await stop.guard(self._run(path, phase, job, self.hooks.timeout))
            except OSError as error:  # no room for what it is told and says
                raise _failure(phase, path, f"it cannot be run: {error.strerror}") from error

    async def _run(self, path: Path, phase: str, job: Mapping[str, Any], timeout: float) -> None:
        variables = {"PILOT_PHASE": phase, "PILOT_JOB_DIR": str(self.workdir), "PILOT_JOB_ID": str(job["job_id"])}
        with TemporaryFile() as request, TemporaryFile() as output, TemporaryFile() as errors:
            request.write(json.dumps({**job, "phase": phase}).encode())
            request.seek(0)
            process = self.hooks.processes.start(
                [str(path)],
                cwd=self.workdir if self.workdir.is_dir() else None,
                env={**self.hooks.environ, **variables},
                stdin=request,
                stdout=output,
                stderr=errors,
            )
            logger.info("hook %s of %s: pid %d", path.name, phase, process.pid)
            in_time = await self._wait(process, timeout)
            answer, lines = _answer(_tail(output)), _tail(errors).splitlines()
        for line in lines[-_LINES:]:
            logger.info("hook %s: %s", path.name, line)
        if not in_time:
            raise _failure(phase, path, f"it was ended after {timeout:g} s", Code.COMMANDTIMEDOUT)
        self._take(phase, path, process.returncode, answer, lines)

    async def _wait(self, process: subprocess.Popen[bytes], timeout: float) -> bool:
        """Wait for a hook; False if its time was over. Nothing of its session is left, whatever happens."""
        try:
            async with asyncio.timeout(timeout):
                await wait_exit(process)
            return True
        except TimeoutError:
            return False
        finally:
            await self._end(process)

    async def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode is None:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                send(descendants([process.pid]), signum)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE):
                        await wait_exit(process)
                    break
        self.hooks.processes.forget(process)
        left = [pid for pid in self.hooks.processes.adopted() if _session(pid) == process.pid]
        send(descendants(left), signal.SIGKILL)

    def _take(self, phase: str, path: Path, status: int, answer: Mapping[str, Any], lines: Sequence[str]) -> None:
        message = str(answer.get("message") or "")
        code = answer.get("code") or 0
        if status or code:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            said = message or next((line for line in reversed(lines) if line.strip()), "")
            raise _failure(phase, path, f"{how}: {said}" if said else how, code)
        if message:
            logger.info("hook %s: %s", path.name, message)
        self.environment |= {
            name: text for name, text in _texts(answer, "environment") if name.isidentifier() and name not in _IDENTITY
        }
        self.metrics |= {name: text for name, text in _texts(answer, "metrics") if not set(name) & set(" =\t\n")}


def find_hooks(directory: str, phase: str) -> list[Path]:
    """The hooks of a phase, in the order of their names; those that others could have written are refused.

    A pilot with credentials runs them: so file and directory belong to its user or to root, and not everybody may
    write them. A link counts as what it leads to.
    """
    if not directory:
        return []
    top = Path(directory).absolute()
    if phase == PHASES[0] and not top.is_dir():
        logger.warning("there are no hooks: %s is no directory", top)
    folder = top / f"{phase}.d"
    try:
        names = [] if not folder.is_dir() else sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        logger.warning("hooks in %s are left out: %s", folder, error.strerror)
        names = []
    single = [top / phase] if (top / phase).is_file() else []
    usable = [path for path in (*single, *names) if not path.name.startswith(".") and not path.name.endswith("~")]
    return [path for path in usable if _is_safe(path, top)]


def _is_safe(path: Path, top: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        problem = next(filter(None, map(_problem, (top, path.parent, path.resolve().parent, path))), "")
    except (OSError, RuntimeError) as error:
        problem = str(error)
    if not problem and not os.access(path, os.X_OK):
        problem = "it is not executable"
    if problem:
        logger.warning("hook %s is not run: %s", path, problem)
    return not problem


def _problem(path: Path) -> str:
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {found.st_uid}"
    if found.st_mode & stat.S_IWOTH:
        return f"everybody may write {path}"
    return ""


def _failure(phase: str, path: Path, text: str, code: Any = 0) -> PilotError:
    """A hook may choose the code among those of the table."""
    default = DEFAULT_CODES[phase not in _PREPARING]
    chosen = next((known for known in Code if known == code), default)
    return PilotError(chosen, f"hook {path.name} of {phase}: {text}")


def _answer(output: str) -> Mapping[str, Any]:
    """The JSON object on stdout, whole or in its last line; what else is there goes to the log."""
    lines = output.strip().splitlines()
    found = _object(output)
    if found is None:
        found = _object(lines[-1]) if lines else None
        for line in (lines if found is None else lines[:-1])[-_LINES:]:
            logger.info("hook: %s", line)
    return found or {}


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _session(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return 0


def _texts(answer: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    table = answer.get(name)
    pairs = table.items() if isinstance(table, dict) else ()
    texts = [(key, str(value)) for key, value in pairs if isinstance(value, str | int | float)]
    return [(key, text) for key, text in texts if "\0" not in key + text]


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _OUTPUT))
    return file.read().decode(errors="replace")
