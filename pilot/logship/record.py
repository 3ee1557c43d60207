"""What is sent for a line: Pilot 3's keys (PILOT3 6), and what a reader needs to find and to trust it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
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
#: A severity as loggers write it: a word in capitals that stands alone, near the beginning of a line. What stands
#: before it is looked at last, so that the engine can skip to the first letters: five times as fast.
_SEVERITY = re.compile("(" + "|".join(rf"{word}(?<![\w-]{word})" for word in _WORDS) + r")(?![\w-])")
_ERROR_LINE = re.compile(
    r"Traceback \(most recent call last\)|[A-Z]\w*(?:Error|Exception)(?::|$)|[Ee]rror:|Segmentation fault"
)
#: Parts of which one is in each such line.
_ERROR_PARTS = ("rror", "Exception", "Traceback", "Segmentation")
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


#: Made once: `json.dumps` with options makes an encoder at every call, which takes longer than the record.
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class Record:
    """One line on its way. It is JSON from the beginning: that is what spools and most sinks want, and it is small.

    Attributes:
        when: seconds since 1970 when the pilot saw the line.
        severity: one of `SEVERITIES`.
        source: the file it comes from, relative to the job directory.
        sequence: counts the records of a source from 1: where a number is missing, a record is.
    """

    __slots__ = ("_fields", "_json", "_plain", "sequence", "severity", "source", "when")

    def __init__(self, text: str, when: float, severity: str, source: str, sequence: int, *, plain: bool) -> None:
        self._json = text
        self._plain = plain
        self._fields: Mapping[str, Any] | None = None
        self.when = when
        self.severity = severity
        self.source = source
        self.sequence = sequence

    def __len__(self) -> int:
        """Bytes of its JSON."""
        return len(self._json)

    @property
    def fields(self) -> Mapping[str, Any]:
        """All that is sent, JSON values."""
        if self._fields is None:
            self._fields = json.loads(self._json)
        return self._fields

    @property
    def message(self) -> str:
        """The text for a person; for a JSON line without one the whole line."""
        text = self.fields.get("message")
        return text if isinstance(text, str) else json.dumps(dict(self.fields))

    def to_json(self, more: Mapping[str, str] | None = None) -> str:
        """One line of JSON in ASCII; `more` goes before, but for what the line itself has keys for."""
        if not more:
            return self._json
        if self._plain:
            return f"{_encode(more)[:-1]},{self._json[1:]}"
        return _encode({**more, **self.fields})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record of `to_json`."""
        fields = json.loads(text)
        when, severity = float(fields["PilotTimeStamp"]), str(fields["severity"])
        return cls(text, when, severity, str(fields["file"]), int(fields["seq"]), plain=False)


class RecordMaker:
    """Makes the records of one source in one phase: what they have in common is written as JSON once.

    Args:
        origin: whose they are.
        source: the file they come from.
        phase: of the job.
    """

    def __init__(self, origin: Mapping[str, str], source: str, phase: str) -> None:
        self._source = source
        self._common = {**origin, "file": source, "phase": phase}
        self._common_json = _encode(self._common)[1:-1]

    def make(self, number: int, sequence: int, text: str, severity: str = "") -> Record:
        """The record of a line. One that is a JSON object keeps its keys; our own keys win over them.

        The severity is looked for in the text if it is not given.
        """
        when = time.time()
        content = _json_object(text) if text.startswith("{") else None
        severity = severity or severity_of(text, content)
        if content is None:
            line = (
                f'{{"message":{encode_basestring_ascii(text)},{self._common_json},"PilotTimeStamp":{when!r},'
                f'"severity":"{severity}","line":{number},"seq":{sequence}}}'
            )
            return Record(line, when, severity, self._source, sequence, plain=True)
        own = {"PilotTimeStamp": when, "severity": severity, "line": number, "seq": sequence}
        line = _encode({**content, **self._common, **own})
        return Record(line, when, severity, self._source, sequence, plain=False)


def severity_of(text: str, content: Mapping[str, Any] | None = None) -> str:
    """The severity that a line states, or that its words suggest; INFO if they suggest nothing."""
    if content is not None:
        for key in ("severity", "level", "levelname", "log_level"):
            if isinstance(content.get(key), str):
                return _WORDS.get(content[key].upper(), "INFO")
    head = text[:_HEAD]
    found = _SEVERITY.search(head)
    if found:
        return _WORDS[found[1]]
    for part in _ERROR_PARTS:
        if part in head:
            return "ERROR" if _ERROR_LINE.search(head) else "INFO"
    return "INFO"


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
