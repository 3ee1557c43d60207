"""The table of checks, and how they are run: side by side, each in a thread, and none for longer than a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pilot.doctor import credentials, disk, network, node
from pilot.doctor.check import Finding, Level, Patient, failure, in_threads
from pilot.masking import Masker

Check = Callable[[Patient], Finding | None]

#: Seconds that all checks together may take.
PATIENCE = 10.0

#: Name to check, in the order of the lines.
CHECKS: Mapping[str, Check] = {
    "python": node.python,
    "locale": node.locale,
    "node": node.cores_and_memory,
    "cgroup": node.control_group,
    "namespaces": node.user_namespaces,
    "containers": node.containers,
    "gpus": node.gpus,
    "workdir": disk.work_directory,
    "space": disk.space,
    "credential": credentials.credential,
    "CAs": credentials.authorities,
    "server": network.server,
    "clock": network.clock,
    "queue": network.queue,
    "copytools": network.copy_tools,
    "storages": network.storages,
    "cvmfs": node.cvmfs,
}


@dataclass(frozen=True, slots=True)
class Line:
    """What is shown of a check: its name, its finding in masked text of one line, and seconds."""

    name: str
    level: Level
    found: str
    advice: str
    seconds: float

    def __str__(self) -> str:
        """As a person reads it."""
        return f"{self.level:<8} {self.name:<11} {self.found}{f' -> {self.advice}' if self.advice else ''}"


def examine(patient: Patient, checks: Mapping[str, Check] = CHECKS, patience: float = PATIENCE) -> list[Line]:
    """The lines of all checks that had something to look at.

    Args:
        patient: what to look at.
        checks: which ones.
        patience: seconds for all together; a check that is not done by then is a failure.
    """
    # Here and not in the first thread that needs it: see `pilot.server.transport.Transport`.
    import urllib3  # noqa: F401

    masker = Masker()
    found = in_threads([partial(_timed, check, patient) for check in checks.values()], patience)
    late = (
        failure(f"no result within {patience:.0f} s", "something hangs: file system, resolver or network"),
        patience,
    )
    rows = [(name, *(row or late)) for name, row in zip(checks, found, strict=True)]
    return [_line(name, finding, seconds, masker) for name, finding, seconds in rows if finding is not None]


def worst(lines: list[Line]) -> Level:
    """The level of the node."""
    levels = {line.level for line in lines}
    return next((level for level in (Level.FAILURE, Level.WARNING) if level in levels), Level.OK)


def _timed(check: Check, patient: Patient) -> tuple[Finding | None, float]:
    started = time.monotonic()
    try:
        finding = check(patient)
    except Exception as error:  # the door: one check that breaks must not hide what the others found
        finding = failure(f"the check broke: {type(error).__name__}: {error}", "please report this")
    return finding, time.monotonic() - started


def _line(name: str, finding: Finding, seconds: float, masker: Masker) -> Line:
    found, advice = (" ".join(masker.mask(text).split()) for text in (finding.found, finding.advice))
    return Line(name, finding.level, found, advice, round(seconds, 3))
