"""Problem matchers: which text in the output of a payload means which error, and whose fault it is. They are data.

The table here holds for every experiment; an experiment, a queue, a site and the job itself may add to it. What comes
from outside is bounded: in number and length, in what it may look at, and in time.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from pilot.errors import Code, Fault

logger = logging.getLogger(__name__)

#: Most matchers of one origin, and characters of a regular expression and of a message.
MOST, LONGEST = 100, 500

#: Characters of a line that are looked at, and seconds that all matchers of outside together may take.
_LINE, _TIME = 2000, 1.0

#: What a job may say of itself: no matcher of a job can blame the storage or the pilot for its end.
_JOB_CODES = frozenset({
    Code.SETUPFAILURE, Code.PAYLOADOUTOFMEMORY, Code.UNKNOWNPAYLOADFAILURE, Code.BADALLOC, Code.NOUSERTARBALL,
    Code.PAYLOADEXECUTIONFAILURE, Code.UNKNOWNTRFFAILURE, Code.PAYLOADSIGSEGV, Code.SETUPFATAL, Code.MISSINGUSERCODE,
})  # fmt: skip


class MatcherError(ValueError):
    """A matcher that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """One row of a table.

    Attributes:
        regex: is looked for in each line.
        code: of the error; 1305 leaves the code as the exit status chose it.
        message: what to report, with `{0}` for the whole match, `{1}`... for its groups, `{line}` for the line.
        streams: `stderr`, `stdout`, or `report` for the messages of the payload's job report, in this order.
        fault: whose, where it is not what `code` commonly means.
        trusted: False for one from outside, whose regular expression may take for ever.
    """

    regex: re.Pattern[str]
    code: Code = Code.PAYLOADEXECUTIONFAILURE
    message: str = "{line}"
    streams: tuple[str, ...] = ("stderr", "stdout")
    fault: Fault | None = None
    trusted: bool = True


class Found(NamedTuple):
    """What was found: the row, and its text."""

    matcher: Matcher
    text: str


def row(
    regex: str,
    code: Code = Code.PAYLOADEXECUTIONFAILURE,
    *streams: str,
    fault: Fault | None = None,
    message: str = "{line}",
) -> Matcher:
    """A row of a table of ours, in both streams if none is named."""
    return Matcher(
        regex=re.compile(regex), code=code, streams=streams or ("stderr", "stdout"), fault=fault, message=message
    )


#: For every experiment: Pilot 3 has these for ATLAS (PILOT3 section 3; `errorcodes.json`, triggers).
COMMON: tuple[Matcher, ...] = (
    row(r"got a SIGSEGV signal", Code.PAYLOADSIGSEGV, "report"),
    row(r"Cannot find a valid frontier connection", Code.FRONTIER, "report"),
    row(r"bad_alloc", Code.BADALLOC, "report"),
    row(r"No space left on device", Code.NOLOCALSPACE, "stderr"),
    row(r"fork: (retry: )?Resource temporarily unavailable", Code.RESOURCEUNAVAILABLE, "stderr"),
    row(r"prepare 5 database is locked|Error SQLiteStatement", Code.NFSSQLITE, "stdout"),
    row(r"^ERROR: unable to fetch source tarball from web", Code.MISSINGUSERCODE, "stdout"),
    # These have no code of their own in the table: what they say is whose fault it is.
    row(r"Transport endpoint is not connected|Stale file handle", fault=Fault.SITE),
    row(r"Input/output error|Read-only file system|Structure needs cleaning", fault=Fault.SITE),
)


def parse(value: Any, *, of_job: bool = False) -> tuple[Matcher, ...]:
    """Matchers from outside.

    Args:
        value: a list of objects with `regex` and, if wanted, `code`, `message`, `stream` (`stderr`, `stdout`, `report`
            or `both`) and `fault` (`user`, `site`, `storage`, `server`, `pilot`).
        of_job: True for those that a job brings: they may only use codes of payloads.

    Raises:
        MatcherError: one that cannot be used.
    """
    if not isinstance(value, list) or len(value) > MOST:
        raise MatcherError(f"expected a list of at most {MOST} matchers")
    return tuple(_parse_one(number, entry, of_job=of_job) for number, entry in enumerate(value))


def parse_text(text: str, *, of_job: bool = False) -> tuple[Matcher, ...]:
    """The same from JSON, or from YAML where it is no JSON and PyYAML is there.

    Raises:
        MatcherError: it is neither, or one that cannot be used.
    """
    try:
        return parse(json.loads(text), of_job=of_job)
    except RecursionError as error:
        raise MatcherError("it is nested too deeply") from error
    except json.JSONDecodeError as problem:
        if of_job:  # a payload's file goes through no larger parser than it has to
            raise MatcherError(f"no JSON: {problem}") from problem
        return parse(_yaml(text), of_job=of_job)


def load_matchers(place: str) -> tuple[Matcher, ...]:
    """Those of the setting: a file, or the JSON itself. What cannot be used is no reason for a job to fail.

    Args:
        place: the setting; empty for none.
    """
    if not place:
        return ()
    try:
        return parse_text(place if place.lstrip().startswith("[") else Path(place).read_text())
    except (OSError, ValueError) as error:
        logger.warning("no problem matchers from %.80s: %s", place, error)
        return ()


def find(matchers: Iterable[Matcher], streams: Mapping[str, Sequence[str]]) -> Found | None:
    """The first row of the table that fits, at the first line that it fits.

    Args:
        matchers: in order; trusted ones are looked at in any time they need.
        streams: name to its lines.
    """
    for trusted, rows in _parts(matchers):
        found = None
        with time_limit(None if trusted else _TIME) as in_time:
            found = _find(rows, streams) if in_time else None
        if found:
            return found
    return None


def _parts(matchers: Iterable[Matcher]) -> Iterator[tuple[bool, list[Matcher]]]:
    """Outside ones first: who adds a matcher knows more of the payload than our table."""
    every = list(matchers)
    for trusted in (False, True):
        rows = [matcher for matcher in every if matcher.trusted is trusted]
        if rows:
            yield trusted, rows


def _find(matchers: Sequence[Matcher], streams: Mapping[str, Sequence[str]]) -> Found | None:
    for matcher in matchers:
        for name in matcher.streams:
            for line in streams.get(name, ()):
                if match := matcher.regex.search(line[:_LINE]):
                    return Found(matcher, _text(matcher.message, match, line))
    return None


def _text(message: str, match: re.Match[str], line: str) -> str:
    values = {str(number): value or "" for number, value in enumerate((match[0], *match.groups()))}
    return re.sub(r"\{(line|\d)\}", lambda place: {**values, "line": line}.get(place[1], ""), message)


class _OutOfTime(BaseException):
    """Not an `Exception`: nothing between the alarm and us may take it for its own."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[bool]:
    """End what takes too long, by SIGALRM: Python's regular expressions look for signals while they run.

    Yields:
        False where that cannot be done, in a thread that is not the main one.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield seconds is None
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield True
    except _OutOfTime:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _parse_one(number: int, entry: Any, *, of_job: bool) -> Matcher:
    where = f"matcher {number + 1}"
    if not isinstance(entry, dict) or not isinstance(entry.get("regex"), str):
        raise MatcherError(f"{where}: expected an object with a 'regex'")
    unknown = set(entry) - {"regex", "code", "message", "stream", "fault"}
    if unknown:
        raise MatcherError(f"{where}: no such key: {', '.join(sorted(map(str, unknown)))}")
    message = str(entry.get("message") or "{line}")
    if max(len(entry["regex"]), len(message)) > LONGEST:
        raise MatcherError(f"{where}: regex and message may have {LONGEST} characters")
    try:
        regex = re.compile(entry["regex"])
    except (re.error, RecursionError, OverflowError) as error:
        raise MatcherError(f"{where}: regex: {error}") from error
    return Matcher(
        regex=regex,
        code=_code(entry.get("code"), where, of_job=of_job),
        message=message,
        streams=_streams(entry.get("stream"), where),
        fault=_fault(entry.get("fault"), where),
        trusted=False,
    )


def _code(value: Any, where: str, *, of_job: bool) -> Code:
    code = next((code for code in Code if code == (value or Code.PAYLOADEXECUTIONFAILURE)), None)
    if code is None:
        raise MatcherError(f"{where}: code {value!r} is not in the table")
    if of_job and code not in _JOB_CODES:
        raise MatcherError(f"{where}: code {int(code)} is not for a job to say")
    return code


def _streams(value: Any, where: str) -> tuple[str, ...]:
    if value in (None, "both"):
        return ("stderr", "stdout")
    if value not in ("stderr", "stdout", "report"):
        raise MatcherError(f"{where}: stream {value!r} is none of stderr, stdout, report, both")
    return (value,)


def _fault(value: Any, where: str) -> Fault | None:
    try:
        return None if value is None else Fault(value)
    except ValueError as error:
        raise MatcherError(f"{where}: fault {value!r} is none of {', '.join(one.value for one in Fault)}") from error


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MatcherError("no JSON, and PyYAML is not there to read it") from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise MatcherError(f"neither JSON nor YAML: {' '.join(str(error).split())}") from error
