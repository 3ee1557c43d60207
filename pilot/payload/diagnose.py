"""Why a payload failed: from its exit status and what it left behind to a code of the table and one line of text."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pilot import matchers
from pilot.errors import DIAG_LIMIT, Code, Fault, PilotError
from pilot.job import Job
from pilot.left import open_left
from pilot.logarchive import is_core
from pilot.matchers import COMMON, Found, Matcher, row
from pilot.payload.ownreport import JobReport, job_report
from pilot.payload.process import Ended, signal_name, tail

logger = logging.getLogger(__name__)

ERROR_REPORT = "payload_error_report.json"

#: Problem matchers that a payload brings (`pilot.matchers`).
MATCHERS = "problem_matchers.json"

#: Bytes at the end of an output that are looked at.
_TAIL = 65536

#: Lines of stderr that the pilot's log gets of a payload that failed, as many as Rubin's starter looks for.
_LAST = 10

#: Bytes read of a file that a payload writes for us: one that is longer is none.
_REPORT_LIMIT = 1_000_000

#: Exit statuses with a meaning of their own (`errorcodes.json`, payload_special_exit_codes). Not 2 and 3, which Pilot 3
#: took for its check of remote files in front of the payload: ours is done before.
_SPECIAL_EXITS = {146: Code.NOUSERTARBALL, 251: Code.UNKNOWNTRFFAILURE}

#: Ends of the loop over hyper-parameter points: no more points, or the limit is reached. Not failures.
HPO_ENDS = (160, 161, 162)

#: Bytes of free disk with which hardly anything can be written.
_NO_ROOM = 64 << 10

#: Names of core files of the kernel's usual pattern, and bytes by which they are told from others.
_CORE, _CORE_HEAD = re.compile(r"core(\.[0-9]+)?"), 18

#: Signals that a payload hardly sends itself: whoever runs the node did.
_OF_THE_NODE = (signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU)

#: Lines of a payload's output that are likely to name the cause, the strongest first.
_TELLING = [
    re.compile(pattern)
    for pattern in (
        r"\b(CRITICAL|FATAL)\b",
        r"\b([A-Z]\w*)?(Error|ERROR|Exception)\b|Traceback|\berror:|command not found|No such file|ermission denied",
        r"\bWARNING\b",
    )
]

_TRACEBACK = "Traceback (most recent call last)"

#: Signals that end no process: a status of 128 and one of these means something else.
_NOT_DEADLY = {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG,
    signal.SIGWINCH,
}  # fmt: skip

#: What a terminal would not show: colours and other escape sequences, then control characters and half surrogates.
#: Databases refuse some of them, and no encoder takes the last.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the report says of a payload.

    Attributes:
        error: the pilot's own verdict, None for a good payload.
        exe_code, exe_diag: what the payload said of itself.
        fault: whose it is, where that is not what the error commonly means.
        metrics: what it counted, for jobMetrics.
    """

    error: PilotError | None = None
    exe_code: int = 0
    exe_diag: str = ""
    fault: Fault | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)


def diagnose(
    job: Job,
    ended: Ended,
    workdir: Path,
    *,
    mask: Callable[[str], str] = str,
    known: Sequence[Matcher] = (),
    trusts_report: bool = False,
) -> Diagnosis:
    """Explain how a payload ended that the pilot did not stop itself.

    Args:
        job: the job.
        ended: how its payload ended.
        workdir: the job directory.
        mask: hides secrets in what the payload wrote, before it is cut to size.
        known: problem matchers of experiment, site and queue, before those for everybody.
        trusts_report: a job report that tells of an error fails a payload which exits with 0, and its counts are kept.
    """
    report = job_report(workdir) if trusts_report else JobReport()
    code, text = _own_report(workdir, mask)
    if code:
        what = f"the payload reported error {code}"
        error = PilotError(Code.PAYLOADEXECUTIONFAILURE, f"{what}: {text}" if text else what)
        return Diagnosis(error=error, exe_code=code, exe_diag=text, metrics=report.metrics)
    good = ended.exit_code == 0 or (job.is_hpo and ended.exit_code in HPO_ENDS)
    if good and not report.exit_code:
        if left := _core(workdir):
            logger.warning("the payload ended well, but left %s", left)
        return Diagnosis(metrics=report.metrics)
    return _explained(workdir, ended, good, report, _outputs(workdir, report, mask), [*_brought(workdir), *known])


def _explained(
    workdir: Path,
    ended: Ended,
    good: bool,
    report: JobReport,
    outputs: Mapping[str, Sequence[str]],
    known: Sequence[Matcher],
) -> Diagnosis:
    """The verdict on a payload that failed; its last words are in the pilot's log, where who reads that one looks."""
    if last := outputs["stderr"][-_LAST:]:
        logger.error("payload stderr, last lines:\n%s", "\n".join(_INVISIBLE.sub("", line) for line in last))
    found = matchers.find([*known, *COMMON], outputs) or _full_disk(workdir)
    said = outputs["report"][0] if report.message else _telling_line(outputs)
    cause = _readable(found.text if found else said)
    how = f"the job report has exit code {report.exit_code}" if good else _how(ended)
    code = Code.UNKNOWNPAYLOADFAILURE if good else _code(ended)
    if found and found.matcher.code is not Code.PAYLOADEXECUTIONFAILURE:
        code = found.matcher.code
    if left := _core(workdir):
        how += f", left {left}"
        code = Code.COREDUMP if code is Code.PAYLOADEXECUTIONFAILURE else code
    fault = found.matcher.fault if found else Fault.SITE if ended.signum in _OF_THE_NODE else None
    return Diagnosis(
        error=PilotError(code, f"{how}: {cause}" if cause else how),
        exe_code=report.exit_code or ended.status,
        exe_diag=cause,
        fault=fault,
        metrics=report.metrics,
    )


def _full_disk(workdir: Path) -> Found | None:
    """A payload that filled the disk may not even have been able to say so."""
    try:
        disk = os.statvfs(workdir)
    except OSError:
        return None
    if disk.f_blocks == 0 or disk.f_bavail * disk.f_frsize > _NO_ROOM:
        return None
    text = f"the disk is full: {disk.f_bavail * disk.f_frsize >> 10} kB are free"
    return Found(row("", Code.NOLOCALSPACE), text)


def _core(workdir: Path) -> str:
    """Name and size of a core file; empty if there is none, or only what has its name."""
    for path in sorted(path for path in workdir.glob("core*") if _CORE.fullmatch(path.name)):
        with suppress(OSError), open_left(path) as file:
            if is_core(file.read(_CORE_HEAD)):
                return f"{path.name} of {os.fstat(file.fileno()).st_size} bytes"
    return ""


def _outputs(workdir: Path, report: JobReport, mask: Callable[[str], str]) -> dict[str, list[str]]:
    """Lines that are not empty: the ends of both outputs, and what the job report says, its own message first."""
    texts = {name: mask(tail(workdir / f"payload.{name}", _TAIL)) for name in ("stderr", "stdout")}
    texts["report"] = mask("\n".join(filter(None, (" ".join(report.message.split()), *report.problems))))
    lines = {name: _ESCAPES.sub("", text).splitlines() for name, text in texts.items()}
    return {name: [line for line in found if line.strip()] for name, found in lines.items()}


def _brought(workdir: Path) -> Sequence[Matcher]:
    """Matchers that the job brought or wrote."""
    try:
        with open_left(workdir / MATCHERS) as file:
            return matchers.parse_text(file.read(_REPORT_LIMIT).decode(), of_job=True)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        logger.warning("%s of the job is not used: %s", MATCHERS, error)
        return ()


def _own_report(workdir: Path, mask: Callable[[str], str]) -> tuple[int, str]:
    """`error_code` and `error_diag` of `payload_error_report.json`, (0, '') without one."""
    try:
        with open_left(workdir / ERROR_REPORT) as file:
            report = json.loads(file.read(_REPORT_LIMIT))
        code, text = int(report.get("error_code") or 0), _readable(mask(str(report.get("error_diag") or "")))
        code.to_bytes(4, signed=True)  # OverflowError for more than the server's column holds
        return code, text
    except FileNotFoundError:
        return 0, ""
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        logger.warning("%s cannot be read: %s", ERROR_REPORT, error)
        return 0, ""


def _code(ended: Ended) -> Code:
    if signal.SIGSEGV in (ended.signum, (ended.exit_code or 0) - 128):
        return Code.PAYLOADSIGSEGV
    return _SPECIAL_EXITS.get(ended.exit_code or 0, Code.PAYLOADEXECUTIONFAILURE)


def _how(ended: Ended) -> str:
    if ended.signum:
        return f"killed by {signal_name(ended.signum)}, which the pilot did not send"
    status = ended.exit_code or 0
    deadly = 128 < status < 160 and status - 128 not in _NOT_DEADLY
    hint = f" (a child was killed by {signal_name(status - 128)})" if deadly else ""
    return f"exit status {status}{hint}"


def _telling_line(outputs: Mapping[str, Sequence[str]]) -> str:
    """The line of stderr or stdout that most likely names the cause; else the last line there is."""
    texts = [list(outputs["stderr"]), list(outputs["stdout"])]
    for pattern in _TELLING:
        for lines in texts:
            for number, line in enumerate(lines):
                if pattern.search(line):
                    return _raised(lines[number:]) if _TRACEBACK in line else line
    return next((lines[-1] for lines in texts if lines), "")


def _raised(lines: list[str]) -> str:
    """The error that a Python traceback ends with, the last one of a chain: it follows the indented frames."""
    last = max(number for number, line in enumerate(lines) if _TRACEBACK in line)
    return next((line for line in lines[last + 1 :] if not line.startswith(" ")), lines[0])


def _readable(text: str) -> str:
    """One line of text that can be stored and sent, at most `DIAG_LIMIT` characters."""
    return " ".join(_INVISIBLE.sub("", _ESCAPES.sub("", text)).split())[:DIAG_LIMIT]
