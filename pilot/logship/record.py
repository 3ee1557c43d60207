"""What is sent for a line: Pilot 3's keys (PILOT3 6), and what a reader needs to find and to trust it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Severities of a record, the words of Google Cloud Logging, which others understand too.
SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_WORDS = {
    "FATAL": "CRITICAL",
    "CRITICAL": "CRITICAL",
    "EMERGENCY": "CRITICAL",
    "ERROR": "ERROR",
    "SEVERE": "ERROR",
    "WARNING": "WARNING",
    "WARN": "WARNING",
    "INFO": "INFO",
    "DEBUG": "DEBUG",
    "VERBOSE": "DEBUG",
}
#: A severity as loggers write it: a word in capitals that stands alone, near the beginning of a line.
_SEVERITY = re.compile(rf"(?<![\w-])({'|'.join(_WORDS)})(?![\w-])")
_ERROR_LINE = re.compile(
    r"Traceback \(most recent call last\)|[A-Z]\w*(?:Error|Exception)(?::|$)|[Ee]rror:|Segmentation fault"
)
#: Characters of a line in which a severity is looked for.
_HEAD = 160
#: Levels that a JSON line may have: OpenSearch maps 20 by default, Google's messages end at about 30.
_DEPTH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who a job's records come from: the same in all of them. Empty values are sent as empty texts, as Pilot 3 does."""

    task_id: str = ""
    job_id: str = ""
    worker_id: str = ""
    harvester_id: str = ""
    request_id: str = ""
    host: str = ""
    queue: str = ""

    def fields(self) -> dict[str, str]:
        """Under the names of Pilot 3, with host and queue."""
        return {
            "TaskID": self.task_id,
            "PandaJobID": self.job_id,
            "Harvester_WorkerID": self.worker_id,
            "Harvester_ID": self.harvester_id,
            "RequestID": self.request_id,
            "host": self.host,
            "queue": self.queue,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line on its way.

    Attributes:
        when: seconds since 1970 when the pilot saw the line.
        severity: one of `SEVERITIES`.
        source: the file it comes from, relative to the job directory.
        sequence: counts the records of a source from 1: where a number is missing, a record is.
        fields: all that is sent, JSON values.
    """

    when: float
    severity: str
    source: str
    sequence: int
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """The text for a person; for a JSON line without one the whole line."""
        text = self.fields.get("message")
        return text if isinstance(text, str) else json.dumps(dict(self.fields), default=str)

    def to_json(self) -> str:
        """One line of JSON, for spools and for sinks that take such lines."""
        return json.dumps(dict(self.fields), separators=(",", ":"), default=str)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record of `to_json`."""
        fields = json.loads(text)
        return cls(
            when=float(fields["PilotTimeStamp"]),
            severity=str(fields["severity"]),
            source=str(fields["file"]),
            sequence=int(fields["seq"]),
            fields=fields,
        )


def make_record(
    origin: Mapping[str, str],
    *,
    source: str,
    number: int,
    sequence: int,
    phase: str,
    text: str,
    severity: str = "",
) -> Record:
    """The record of a line. One that is a JSON object keeps its keys; our own keys win over them.

    The severity is looked for in the text if it is not given.
    """
    when = time.time()
    content = _json_object(text) if text.startswith("{") else None
    severity = severity or severity_of(text, content)
    fields: dict[str, Any] = {**(content if content is not None else {"message": text})}
    fields |= origin
    fields |= {
        "PilotTimeStamp": when,
        "severity": severity,
        "file": source,
        "line": number,
        "seq": sequence,
        "phase": phase,
    }
    return Record(when=when, severity=severity, source=source, sequence=sequence, fields=fields)


def severity_of(text: str, content: Mapping[str, Any] | None = None) -> str:
    """The severity that a line states, or that its words suggest; INFO if they suggest nothing."""
    if content is not None:
        for key in ("severity", "level", "levelname", "log_level"):
            if isinstance(content.get(key), str):
                return _WORDS.get(content[key].upper(), "INFO")
    found = _SEVERITY.search(text, 0, _HEAD)
    if found:
        return _WORDS[found[1]]
    return "ERROR" if _ERROR_LINE.search(text, 0, _HEAD) else "INFO"


def _json_object(text: str) -> dict[str, Any] | None:
    """The object that a line is, or None if it is none, or one that some sink would refuse with its whole batch."""
    try:
        content = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_of_64_bits)
        if "\\ud" in text.lower():  # half of a surrogate pair: no UTF-8 has it
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and _is_flat(content) else None


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _of_64_bits(text: str) -> int:
    return int(text) if len(text) < 19 else int(_refuse(text))


def _is_flat(value: Any, levels: int = _DEPTH) -> bool:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_flat(part, levels - 1) for part in parts)
    return True
