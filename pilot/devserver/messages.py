"""Requests and answers as values, apart from the sockets they come by."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

JSON = "application/json"
TEXT = "text/plain"
_FORM = "application/x-www-form-urlencoded"


class BodyError(Exception):
    """A body that cannot be read; the text is what the real server says to it."""

    def __init__(self, text: str, json_failed: bool = False) -> None:
        super().__init__(text)
        self.json_failed = json_failed


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks.

    Attributes:
        user: the name the server has for the client; empty without credentials.
        production: whether it has the production role.
        problem: why its token is refused; empty if it is not.
    """

    user: str = ""
    production: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request: `target` is the path with its query, `headers` any mapping that ignores case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    identity: Identity = field(default_factory=Identity)
    loopback: bool = True

    @property
    def path(self) -> str:
        """The decoded path without the query."""
        return unquote(urlsplit(self.target).path)

    def header(self, name: str) -> str:
        """A header's value, empty if it was not sent."""
        return self.headers.get(name) or ""

    def parameters(self) -> dict[str, Any]:
        """The form of a POST, or the query of any other method: one text a key; a list where a query repeats a key."""
        if self.method in ("GET", "HEAD"):
            return _query(urlsplit(self.target).query)
        if self.header("Content-Type").partition(";")[0].strip().lower() != _FORM:
            return {}
        form: dict[str, Any] = {}
        for key, value in parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True):
            form.setdefault(key, value)
        return form

    def json(self, unzip: bool) -> Any:
        """The body as JSON.

        Raises:
            BodyError: it is not gzip though it should be, or not JSON.
        """
        try:
            return json.loads(gzip.decompress(self.body) if unzip else self.body)
        except json.JSONDecodeError as error:
            raise BodyError(str(error), json_failed=True) from error
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise BodyError(str(error)) from error


def _query(text: str) -> dict[str, Any]:
    values: dict[str, list[str]] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        values.setdefault(key, []).append(value)
    return {key: found[0] if len(found) == 1 else found for key, found in values.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. `file` is sent instead of `body` if there is one."""

    status: int
    body: bytes = b""
    content_type: str = TEXT
    file: Path | None = None

    @classmethod
    def text(cls, status: int, text: str) -> Answer:
        """A plain text."""
        return cls(status, text.encode())

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        """A value as JSON, said to be JSON."""
        return cls(status, json.dumps(value).encode(), JSON)

    @classmethod
    def forbidden(cls, text: str) -> Answer:
        """What the real server says before it looks at the arguments: an unknown method, a refused token."""
        return cls.text(403, f"ERROR : {text}")
