"""The job report that transforms of ATLAS write (`jobReport.json`): how the payload says it ended, and what it counted.

The fields are those of PILOT3 5.6.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pilot.experiment import JOB_REPORT, JOB_REPORT_LIMIT
from pilot.left import open_left

logger = logging.getLogger(__name__)

#: Messages of one level that are looked at: a report may have 100,000 of them, and the first cause comes first.
_MESSAGES = 50

#: What Athena writes at its end, and bytes that are read of one.
_SUMMARIES, _SUMMARY_LIMIT = ("AthSummary*", "AthenaSummary*"), 1 << 20
_COUNTED = {b"Read": "nEvents", b"Written": "nEventsW"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What a payload reports of itself.

    Attributes:
        exit_code: its own, 0 if it has none.
        message: what it says to that; empty for a good one.
        problems: messages of level FATAL and ERROR, with their details.
        metrics: names of jobMetrics to values (PILOT3 2.7).
    """

    exit_code: int = 0
    message: str = ""
    problems: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)


def job_report(workdir: Path) -> JobReport:
    """The report in a job directory; an empty one if there is none, or none that can be read.

    Events that it does not count are those of Athena's own summary.
    """
    report = _written_report(workdir)
    return report if "nEvents" in report.metrics else replace(report, metrics={**_summary(workdir), **report.metrics})


def _written_report(workdir: Path) -> JobReport:
    try:
        with open_left(workdir / JOB_REPORT) as file:
            found = json.loads(file.read(JOB_REPORT_LIMIT))
    except FileNotFoundError:
        return JobReport()
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s cannot be read: %s", JOB_REPORT, error)
        return JobReport()
    message = str(_at(found, "exitMsg") or "")
    return JobReport(
        exit_code=_whole(_at(found, "exitCode")) or 0,
        message="" if message == "OK" else message,
        problems=tuple(_problems(found)),
        metrics={name: str(value) for name, value in _metrics(found) if value},
    )


def _summary(workdir: Path) -> dict[str, str]:
    """Events read and written by the oldest summary (as Pilot 3, PILOT3 2.7)."""
    try:
        found = [path for pattern in _SUMMARIES for path in workdir.glob(pattern)]
        with open_left(min(found, key=lambda path: path.lstat().st_mtime)) as file:
            text = file.read(_SUMMARY_LIMIT)
    except (OSError, ValueError):  # there is none
        return {}
    counts = re.findall(rb"^Events (Read|Written): *([1-9][0-9]{0,8})\b", text, re.MULTILINE)
    return {_COUNTED[kind]: count.decode() for kind, count in counts}


def _problems(report: Any) -> Iterator[str]:
    details = _at(_first(_at(report, "executor")), "logfileReport", "details")
    for level in ("FATAL", "ERROR"):
        entries = _at(details, level)
        for entry in entries[:_MESSAGES] if isinstance(entries, list) else ():
            yield from (text for text in (_at(entry, "message"), *_more(entry)) if isinstance(text, str))


def _more(entry: Any) -> Iterator[Any]:
    """What the report quotes around a message, such as the last lines of Frontier."""
    more = _at(entry, "moreDetails")
    for group in more.values() if isinstance(more, dict) else ():
        yield from group.values() if isinstance(group, dict) else ()


def _metrics(report: Any) -> Iterator[tuple[str, int | None]]:
    yield "nEvents", _whole(_at(report, "resource", "transform", "processedEvents"))
    yield "dbTime", _whole(_at(report, "resource", "dbTimeTotal"))
    yield "dbData", _whole(_at(report, "resource", "dbDataTotal"))
    executors = _at(report, "resource", "executor")
    simulated = [_whole(_at(one, "resimevents")) for one in executors.values()] if isinstance(executors, dict) else []
    yield "resimevents", sum(filter(None, simulated))


def _at(value: Any, *keys: str) -> Any:
    """A value inside objects, None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _whole(value: Any) -> int | None:
    """A count that a server's column holds."""
    return int(value) if isinstance(value, int | float) and abs(value) < 1 << 31 else None
