"""Why a payload failed: from its exit status and what it left behind to a code of the table and one line of text."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilot.errors import DIAG_LIMIT, Code, PilotError
from pilot.job import Job
from pilot.payload.process import Ended, open_left, signal_name, tail

logger = logging.getLogger(__name__)

ERROR_REPORT = "payload_error_report.json"

#: Bytes read of it: one that is longer is no report.
_REPORT_LIMIT = 1_000_000

#: Exit statuses with a meaning of their own (`errorcodes.json`, payload_special_exit_codes).
_SPECIAL_EXITS = {146: Code.NOUSERTARBALL, 251: Code.UNKNOWNTRFFAILURE}

#: Only the check of remote files that runs in front of a payload with direct access ends with these.
_REMOTE_OPEN_EXITS = {2: Code.LSETUPTIMEDOUT, 3: Code.REMOTEFILEOPENTIMEDOUT}

#: Ends of the loop over hyper-parameter points: no more points, or the limit is reached. Not failures.
_HPO_ENDS = (160, 161, 162)

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
    """

    error: PilotError | None = None
    exe_code: int = 0
    exe_diag: str = ""


def diagnose(
    job: Job, ended: Ended, workdir: Path, *, remote_io: bool = False, mask: Callable[[str], str] = str
) -> Diagnosis:
    """Explain how a payload ended that the pilot did not stop itself.

    Args:
        job: the job.
        ended: how its payload ended.
        workdir: the job directory.
        remote_io: the payload had the check of remote files in front of it.
        mask: hides secrets in what the payload wrote, before it is cut to size.
    """
    code, text = _own_report(workdir, mask)
    if code:
        what = f"the payload reported error {code}"
        error = PilotError(Code.PAYLOADEXECUTIONFAILURE, f"{what}: {text}" if text else what)
        return Diagnosis(error=error, exe_code=code, exe_diag=text)
    if ended.exit_code == 0 or (job.is_hpo and ended.exit_code in _HPO_ENDS):
        return Diagnosis()
    cause = _telling_line(workdir, mask)
    how = f"{_how(ended)}: {cause}" if cause else _how(ended)
    return Diagnosis(error=PilotError(_code(ended, remote_io), how), exe_code=ended.status, exe_diag=cause)


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


def _code(ended: Ended, remote_io: bool) -> Code:
    if signal.SIGSEGV in (ended.signum, (ended.exit_code or 0) - 128):
        return Code.PAYLOADSIGSEGV
    if remote_io and ended.exit_code in _REMOTE_OPEN_EXITS:
        return _REMOTE_OPEN_EXITS[ended.exit_code]
    return _SPECIAL_EXITS.get(ended.exit_code or 0, Code.PAYLOADEXECUTIONFAILURE)


def _how(ended: Ended) -> str:
    if ended.signum:
        return f"killed by {signal_name(ended.signum)}, which the pilot did not send"
    status = ended.exit_code or 0
    deadly = 128 < status < 160 and status - 128 not in _NOT_DEADLY
    hint = f" (a child was killed by {signal_name(status - 128)})" if deadly else ""
    return f"exit status {status}{hint}"


def _telling_line(workdir: Path, mask: Callable[[str], str]) -> str:
    """The line of stderr or stdout that most likely names the cause; else the last line there is."""
    outputs = [_ESCAPES.sub("", mask(tail(workdir / name, 65536))) for name in ("payload.stderr", "payload.stdout")]
    texts = [[line for line in output.splitlines() if line.strip()] for output in outputs]
    for pattern in _TELLING:
        for lines in texts:
            for number, line in enumerate(lines):
                if pattern.search(line):
                    return _readable(_raised(lines[number:]) if _TRACEBACK in line else line)
    return next((_readable(lines[-1]) for lines in texts if lines), "")


def _raised(lines: list[str]) -> str:
    """The error that a Python traceback ends with, the last one of a chain: it follows the indented frames."""
    last = max(number for number, line in enumerate(lines) if _TRACEBACK in line)
    return next((line for line in lines[last + 1 :] if not line.startswith(" ")), lines[0])


def _readable(text: str) -> str:
    """One line of text that can be stored and sent, at most `DIAG_LIMIT` characters."""
    return " ".join(_INVISIBLE.sub("", _ESCAPES.sub("", text)).split())[:DIAG_LIMIT]
