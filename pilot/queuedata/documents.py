"""Finding records in whole documents without holding them whole.

CRIC's lists of all queues and of all storages have about 10 MB each; as Python objects they would take more memory
than the rest of the pilot. One member is decoded at a time, and only what is wanted is kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

logger = logging.getLogger(__name__)

#: Keys of a queue's record that hold its name, and keys that only a queue's record has.
_IDENTITY = ("nickname", "panda_resource", "siteid", "name")
_QUEUE_KEYS = frozenset({*_IDENTITY, "copytools", "acopytools", "astorages", "state", "status"})

_decode = json.JSONDecoder().raw_decode


class UnusableError(ValueError):
    """A document was read but does not hold what is wanted: no use in reading it again."""


def members(text: str) -> Iterator[tuple[str, Any, int]]:
    """Name, value and place of the value, for each member of the JSON object that `text` is.

    Raises:
        ValueError: the text is not one JSON object.
    """
    mark, at = _mark(text, 0, "{")
    if text[at : at + 1] == "}":
        mark, at = _mark(text, at, "}")
    while mark != "}":
        name, at = _decode(text, at)
        if not isinstance(name, str):
            raise ValueError(f"expected a name before character {at}")
        _, start = _mark(text, at, ":")
        value, at = _decode(text, start)
        yield name, value, start
        mark, at = _mark(text, at, ",}")
    if at != len(text):
        raise ValueError(f"more text after the object, at character {at}")


def _mark(text: str, at: int, allowed: str) -> tuple[str, int]:
    """The mark at `at`, blanks before it passed over, and the place of what follows it."""
    at = _past_blanks(text, at)
    if at >= len(text) or text[at] not in allowed:
        raise ValueError(f"expected {' or '.join(allowed)} at character {at}")
    return text[at], _past_blanks(text, at + 1)


def _past_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def queue_record(text: str, queue: str, own: bool = False) -> Mapping[str, Any]:
    """The record of `queue` in a document: `{queue: record}`, a list of many queues, or the record alone.

    Args:
        text: the document.
        queue: the queue's name; empty for the only queue of the document.
        own: the document is a cache, so a record that stands alone must say that it is of this queue.

    Raises:
        UnusableError: the document does not hold the queue.
        ValueError: the document is no JSON object.
    """
    names, records = [], {}
    for name, value, _ in members(text):
        names.append(name)
        if isinstance(value, dict) and value and name == (queue or name):
            records[name] = value
    if queue in records:
        return records[queue]
    if not _QUEUE_KEYS.isdisjoint(names):
        return _checked(json.loads(text), queue, own)
    if not queue and len(names) == len(records) == 1:
        return records[names[0]]
    raise UnusableError(_refusal(names, f"holds no record of queue {queue}" if queue else "holds not one queue"))


def _checked(record: Mapping[str, Any], queue: str, own: bool) -> Mapping[str, Any]:
    """A record that stands alone, if it can be that of `queue`."""
    found = [str(record[key]) for key in _IDENTITY if record.get(key)]
    if own and queue and queue not in found:
        raise UnusableError(f"is of queue {' or '.join(found) or 'unknown'}")
    if found and queue and queue not in found:
        logger.warning("the record given for queue %s calls itself %s", queue, found[0])
    return record


def _refusal(names: list[str], problem: str) -> str:
    """Servers answer `{"error": ...}` with status 200."""
    return "is an error message" if "error" in names else problem


class StorageRecords(Mapping[str, Mapping[str, Any]]):
    """The records of a document of storages, decoded one by one when they are asked for.

    Args:
        text: `{endpoint: record}`, or a record alone.

    Raises:
        UnusableError: the document holds no storage.
        ValueError: the document is no JSON object.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._places: dict[str, int] = {}
        names = []
        for name, value, place in members(text):
            names.append(name)
            if isinstance(value, dict):
                self._places[name] = place
        if "arprotocols" in names:  # a record alone
            name = json.loads(text).get("name")
            self._places = {name: _past_blanks(text, 0)} if isinstance(name, str) else {}
        if not self._places:
            raise UnusableError(_refusal(names, "holds no storage"))

    def __getitem__(self, endpoint: str) -> Mapping[str, Any]:
        record: Mapping[str, Any] = _decode(self.text, self._places[endpoint])[0]
        return record

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
