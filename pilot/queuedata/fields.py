"""Typed values out of a JSON record of CRIC, with errors that name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pilot.errors import Code, PilotError
from pilot.job import NOTHING

T = TypeVar("T")

#: Texts that stand for "not set" in a number or table.
_UNSET = frozenset({"", "null", "none"})
_TRUE = frozenset({"true", "yes", "1"})
FALSE = frozenset({"false", "no", "0"})


class Fields:
    """Reads typed values out of a record; an error names the field and shows what it holds."""

    def __init__(self, record: Mapping[str, Any], what: str = "queuedata", whose: str = "") -> None:
        self.record = record
        self.what = what
        self.whose = f" of {whose}" if whose else ""

    def wrong(self, name: str, expected: str, value: object) -> PilotError:
        """The error for a field that holds something else than it should."""
        problem = f"{self.what} field {name!r}{self.whose}: expected {expected}, got {value!r:.80}"
        return PilotError(Code.QUEUEDATANOTOK, problem)

    def text(self, *names: str, default: str = "") -> str:
        """The first of `names` that is set."""
        for name in names:
            value = self.record.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise self.wrong(name, "a text", value)
            return str(value).strip()
        return default

    def real(self, name: str, default: float = 0) -> float:
        """A number, also when it is written as a text."""
        value = self.record.get(name)
        if value is None or (isinstance(value, str) and value.strip().lower() in _UNSET):
            return default
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(name, "a number", value)
        return number

    def number(self, name: str, default: int = 0) -> int:
        """A number without its fraction."""
        return int(self.real(name, default))

    def flag(self, name: str, default: bool) -> bool:
        """A yes or no, also when it is written as a text or a number."""
        value = self.record.get(name)
        if value is None:
            return default
        text = str(value).strip().lower() if isinstance(value, str | int) else "?"
        if text in _TRUE or text in FALSE | _UNSET:
            return text in _TRUE
        raise self.wrong(name, "true or false", value)

    def table(self, name: str) -> Mapping[str, Any]:
        """A JSON object, also when it is written as the text of one."""
        value = self.record.get(name)
        if isinstance(value, str):
            value = _parsed_text(value)
        if value is None or value == []:  # some writers leave an empty list for an empty table
            return NOTHING
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a table", value)
        return value

    def names(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """A table of lists of names."""
        return {key: self.list_of_names(name, value) for key, value in self.table(name).items()}

    def list_of_names(self, name: str, value: object) -> tuple[str, ...]:
        """`value` as names; a single name is a list of one, not of its letters."""
        values = [value] if isinstance(value, str) else value or []
        if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
            raise self.wrong(name, "lists of names", value)
        return tuple(each for each in values if each)


def _parsed_text(text: str) -> object:
    """The value of a JSON or Python text; the text itself if it is neither, for the error to show."""
    if text.strip().lower() in _UNSET:
        return None
    from ast import literal_eval

    for read in (json.loads, literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def ordered(activities: str | Sequence[str]) -> tuple[str, ...]:
    """Activities in the order to try; a single name is one activity, not its letters."""
    return (activities,) if isinstance(activities, str) else tuple(activities)


def first_of(table: Mapping[str, T], keys: Sequence[str]) -> T | None:
    """The first value that is there and not empty."""
    return next((table[key] for key in keys if table.get(key)), None)
