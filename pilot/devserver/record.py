"""A record of every exchange, one JSON object a line, in the shape of tests/contract/wire. No secret gets into it."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pilot.devserver.messages import JSON, Answer, Request
from pilot.masking import Masker, Secret

_MASK = "***"
_SECRET_KEYS = ("pilotSecrets", "secrets")
_MASKED_HEADERS = ("authorization", "cookie")


class Recorder:
    """Writes exchanges to a file, which is begun anew.

    Args:
        path: the file; None records nothing.
        secrets: texts to hide, besides those of jobs (`learn`) and the Authorization header.
    """

    def __init__(self, path: Path | None, secrets: Iterable[Secret] = ()) -> None:
        self._lock = threading.Lock()
        self._file = path.open("wb") if path else None
        self._masker = Masker(secrets)

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def learn(self, definitions: Iterable[Mapping[str, Any]]) -> None:
        """Hide the secrets that job definitions carry, whole and each value of them."""
        if self._file:
            for definition in definitions:
                self._masker.add([definition.get(key) for key in _SECRET_KEYS])

    def write(self, request: Request, answer: Answer | None, fault: str = "") -> None:
        """Record one exchange; `answer` is None if the client got none."""
        if self._file is None:
            return
        entry: dict[str, Any] = {
            "time": time.time(),
            "method": request.method,
            "path": request.target,
            "request_headers": {key: _shown_header(key, value) for key, value in request.headers.items()},
            "request_body": _shown_body(request),
            **({"fault": fault} if fault else {}),
            **_shown_answer(answer),
        }
        # Known secrets only: the masker's general shapes take braces along, and a line must stay JSON.
        stream = self._masker.stream(patterns=False)
        line = stream.feed(json.dumps(entry).encode() + b"\n") + stream.finish()
        with self._lock:
            if self._file:
                self._file.write(line)
                self._file.flush()


def _shown_header(key: str, value: str) -> str:
    if key.lower() not in _MASKED_HEADERS:
        return value
    scheme, _, rest = value.partition(" ")
    return f"{scheme} {_MASK}" if rest else _MASK


def _shown_body(request: Request) -> Any:
    if request.body.startswith(b"\x1f\x8b") and request.header("Content-Type").startswith(JSON):
        try:
            return {"gzip_json": json.loads(gzip.decompress(request.body))}
        except (OSError, EOFError, ValueError):
            pass  # what is no gzip or no JSON is shown as it came
    return request.body.decode("utf-8", "replace")


def _shown_answer(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {"status": None, "content_type": None, "response_body": None}
    body = f"<{answer.file}>" if answer.file else answer.body.decode("utf-8", "replace")
    status = f"{answer.status} {HTTPStatus(answer.status).phrase}"
    return {"status": status, "content_type": answer.content_type, "response_body": body}
