"""What a payload that hangs was doing: its process tree, and stacks where a debugger is there."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pilot.processes import children

logger = logging.getLogger(__name__)

#: Seconds for one debugger, and processes to look at: Pilot 3 gave gdb 10 s (PILOT3 5.4).
_TIMEOUT = 10.0
_PROCESSES = 4

#: Characters of one stack that are kept.
_LIMIT = 6000


def log_stacks(pids: Sequence[int], path: str | None = None) -> None:
    """Put the process tree into the log, and the stacks of its youngest processes. Takes up to 40 s; raises nothing.

    Args:
        pids: parents first, as `PayloadProcess.members` gives them.
        path: where to look for py-spy and gdb, `PATH` by default.
    """
    logger.warning("processes of the payload:\n%s", process_tree(pids))
    for pid, tool, text in stacks(pids, path):
        logger.warning("stack of pid %d (%s):\n%s", pid, tool, text)


def stacks(pids: Sequence[int], path: str | None = None) -> Iterator[tuple[int, str, str]]:
    """The youngest of some processes, each with the debugger that could look at it and what that has to say."""
    for pid in reversed(pids[-_PROCESSES:]):
        for command in _debuggers(pid, path):
            text = _output(command)
            if text:
                yield pid, command[0].rpartition("/")[2], text[-_LIMIT:]
                break


def process_tree(pids: Sequence[int]) -> str:
    """One line a process, children under their parents: pid, state, where it waits in the kernel, command."""
    wanted = dict.fromkeys(pids)
    lines: list[str] = []
    while wanted:
        _branch(next(iter(wanted)), 0, wanted, lines)
    return "\n".join(lines) or "none"


def _branch(pid: int, depth: int, wanted: dict[int, None], lines: list[str]) -> None:
    del wanted[pid]
    state = _read(pid, "stat").rpartition(")")[2].split()[:1] or ["gone"]
    command = _read(pid, "cmdline").replace("\0", " ").strip() or _read(pid, "comm").strip()
    lines.append(f"{'  ' * depth}{pid} {state[0]} {_read(pid, 'wchan') or '-'} {command[:200]}")
    for child in children(pid):
        if child in wanted:
            _branch(child, depth + 1, wanted, lines)


def _debuggers(pid: int, path: str | None) -> list[list[str]]:
    """py-spy first, which knows Python's own stacks and does not stop the process for long."""
    commands = [
        ["py-spy", "dump", "--pid", str(pid)],
        ["gdb", "-nx", "-iex", "set auto-load off", "-batch", "-p", str(pid), "-ex", "thread apply all bt 30"],
    ]
    found = ((shutil.which(command[0], path=path), command) for command in commands)
    return [[program, *command[1:]] for program, command in found if program]


def _output(command: list[str]) -> str:
    """What a debugger prints; it stays in our session, so it is never taken for a payload's."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("no stack from %s: %s", command[0], error)
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""
