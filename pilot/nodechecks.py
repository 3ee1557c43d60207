"""Looks at the node before a job is taken: is its software there, and is it idle enough?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.stop import in_thread

#: Seconds for CVMFS to answer: a repository that is mounted at its first use takes some, a broken one hangs for ever.
_PATIENCE = 60.0

#: Name of the file in a repository that says when it was last changed: it must open.
_LAST_UPDATE = "lastUpdate"

#: Bytes of it that are read.
_ENOUGH = 64


async def check_cvmfs(base: str, paths: Sequence[str], patience: float = _PATIENCE) -> None:
    """Raise CVMFSISNOTALIVE (1377) unless all of `paths` below `base` are there and can be read (PILOT3 7.8)."""
    looks = [asyncio.ensure_future(in_thread(_problem, Path(base, path))) for path in paths]
    if not looks:
        return
    done, pending = await asyncio.wait(looks, timeout=patience)
    for look in pending:
        look.cancel()
    problems = [look.result() for look in looks if look in done and look.result()]
    if pending:
        problems.append(f"{len(pending)} of {len(looks)} paths below {base} did not answer within {patience:.0f} s")
    if problems:
        raise PilotError(Code.CVMFSISNOTALIVE, "; ".join(problems))


def _problem(path: Path) -> str:
    try:
        if path.name == _LAST_UPDATE:
            with path.open("rb") as file:
                return "" if file.read(_ENOUGH).strip() else f"{path} is empty"
        path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def busy(factor: float) -> str:
    """Why the node is too busy for another job, in words; empty if it is not.

    Args:
        factor: load per core of the node above which it is.
    """
    load, cores = os.getloadavg()[0], os.sysconf("SC_NPROCESSORS_ONLN")  # cpu_count() may be the slot's
    return f"load {load:.1f} on {cores} cores, the limit is {factor:g} for each" if load > factor * cores else ""


def space_limit(environ: Mapping[str, str]) -> int | None:
    """MB that a pod may write in all, as its manifest says in `storageLimitMiB` (PILOT3 1.2); None if nobody says."""
    text = environ.get("storageLimitMiB", "").strip()
    return int(text) if text.isascii() and text.isdecimal() and int(text) else None
