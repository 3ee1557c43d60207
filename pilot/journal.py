"""What must survive the pilot: the state of one job, as lines of JSON in its directory.

    {"time": 1795341871.207, "step": "started", "pid": 4711}

A line is one write to the end of the file, so a killed pilot leaves at most one torn line, and that is skipped. A phase
is written before it begins and a fact once it is true; who finds the directory learns from `state` what is left to do.

| step | facts | meaning |
|---|---|---|
| acquired | job_id, attempt | the job is ours |
| stagein, setup, payload, stageout, log | | the phase begins |
| moved | kind, lfn, guid, size, adler32, md5, url, endpoint | an input has arrived, an output or the log is stored |
| removed | kind, lfn | an output that was stored had to be removed from there |
| registered, unregistered | lfns | the catalogue knows these outputs, or does not yet |
| started | pid | the payload runs |
| ended | exit_code, signum | it does not any more |
| failed | code, diag | something went wrong; the first is the job's error |
| unstored | kind, lfn, tried | an output or the log could not be stored: what was tried, one text a try |
| kept | where | undelivered outputs move to that directory |
| report | state, code | the final report is about to be sent |
| reported, unreported | | the server has it, or could not be reached |
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.left import open_left

logger = logging.getLogger(__name__)

#: Phases in their order; the name of each is also the step that begins it.
PHASES = ("stagein", "setup", "payload", "stageout", "log", "report")

#: Bytes of a journal that are read: a line is some hundred, and a job has as many as files.
_LIMIT = 64 << 20


class Journal:
    """Appends lines to a job's journal. May be used by several threads.

    Args:
        path: the file; made for its owner alone (0600) if it is not there, continued if it is.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def record(self, step: str, *, sync: bool = False, **facts: Any) -> None:
        """Write that `step` begins or is true.

        A disk that takes no line is told to the log and stops nothing: a job that is not noted can still be reported.

        Args:
            step: see the table above; others are kept and mean nothing to `state`.
            sync: return when the line is on the disk, so that it survives the node too. Costs milliseconds.
            facts: JSON values. A `Secret` is none.

        Raises:
            TypeError: a fact is no JSON value, or is called `time`.
        """
        line = _line(step, facts)
        try:
            self._append(b"\n" + line if self._torn else line)
            if sync:
                os.fdatasync(self._fd)
        except OSError as error:
            logger.error("step %s is not in the journal %s: %s", step, self._path, error.strerror)

    def _append(self, data: bytes) -> None:
        self._torn = True
        written = os.write(self._fd, data)
        if written < len(data):  # the disk filled up; the next line must not begin in the middle of this one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def close(self) -> None:
        """No more lines."""
        os.close(self._fd)


def _line(step: str, facts: Mapping[str, Any]) -> bytes:
    if "time" in facts:
        raise TypeError("journal fact 'time': a line has its own")
    fields = {"time": round(time.time(), 3), "step": step, **facts}
    return (
        "{" + ",".join(f"{json.dumps(name)}:{_json(name, value)}" for name, value in fields.items()) + "}\n"
    ).encode()


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"journal fact {name!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: seconds since 1970, the step, its facts."""

    time: float
    step: str
    facts: Mapping[str, Any]


def read(path: Path) -> list[Entry]:
    """The lines of a journal, in order; torn and foreign ones are left out, a missing file has none.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        with open_left(path) as file:  # a payload may have put something else in its place
            lines = file.read(_LIMIT).split(b"\n")
            return [entry for line in lines if (entry := _entry(line)) is not None]
    except FileNotFoundError:
        return []


def _entry(line: bytes) -> Entry | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    when, step = fields.pop("time", None), fields.pop("step", None)
    return Entry(when, step, fields) if isinstance(when, int | float) and isinstance(step, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A file that arrived or was stored. `kind` is `input`, `output` or `log`; checksums as in `job.File`."""

    kind: str
    lfn: str
    guid: str = ""
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    endpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How far a job came.

    Attributes:
        job_id: PandaID, None if the job was never acquired. attempt: as in the job.
        phase: the last one that began, empty if none did.
        pid: of the payload once it was started. ended: True once it is known to be over.
        exit_code, signum: how it ended.
        moved: files that arrived or were stored, each once.
        error: code and text of the first failure.
        final_state: the server's word for the job, once the final report was made.
        reported: the server has the final report.
    """

    job_id: int | None = None
    attempt: int = 0
    phase: str = ""
    pid: int | None = None
    ended: bool = False
    exit_code: int | None = None
    signum: int | None = None
    moved: tuple[Moved, ...] = ()
    error: tuple[int, str] | None = None
    final_state: str = ""
    reported: bool = False

    @property
    def log_stored(self) -> bool:
        """True if the log needs no other upload."""
        return any(file.kind == "log" for file in self.moved)

    @property
    def left(self) -> tuple[str, ...]:
        """The phases still to do, in order; each may be repeated. Of a job that failed, its log and its report."""
        if self.job_id is None or self.reported:
            return ()
        first = PHASES.index(self.phase) if self.phase else 0
        if self.error is not None:
            first = max(first, PHASES.index("log"))
        done = {"payload": self.ended, "log": self.log_stored}
        return tuple(phase for phase in PHASES[first:] if not done.get(phase))


def state(path: Path) -> JobState:
    """How far the job of this journal came.

    Raises:
        OSError: the file is there and cannot be read.
    """
    known: dict[str, Any] = {}
    moved: dict[tuple[str, str], Moved] = {}
    for entry in read(path):
        if entry.step in PHASES:
            known["phase"] = entry.step
        if entry.step == "moved":
            file = _moved(entry.facts)
            moved[file.kind, file.lfn] = file
        elif entry.step == "removed":
            moved.pop((_text(entry.facts, "kind"), _text(entry.facts, "lfn")), None)
        else:
            known |= _learned(entry.step, entry.facts, known)
    return JobState(moved=tuple(moved.values()), **known)


def _learned(step: str, facts: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says of the job, under the names of `JobState`."""
    match step:
        case "acquired":
            return {"job_id": _integer(facts, "job_id"), "attempt": _integer(facts, "attempt") or 0}
        case "started":
            return {"pid": _integer(facts, "pid")}
        case "ended":
            return {name: _integer(facts, name) for name in ("exit_code", "signum")} | {"ended": True}
        case "failed" if "error" not in known:
            return {"error": (_integer(facts, "code") or 0, _text(facts, "diag"))}
        case "report":
            return {"final_state": _text(facts, "state")}
        case "reported":
            return {"reported": True}
    return {}


def _moved(facts: Mapping[str, Any]) -> Moved:
    return Moved(
        kind=_text(facts, "kind"),
        lfn=_text(facts, "lfn"),
        guid=_text(facts, "guid"),
        size=_integer(facts, "size"),
        checksums={name: _text(facts, name) for name in ("adler32", "md5") if facts.get(name)},
        url=_text(facts, "url"),
        endpoint=_text(facts, "endpoint"),
    )


def _integer(facts: Mapping[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if isinstance(value, int) else None


def _text(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    return value if isinstance(value, str) else ""
