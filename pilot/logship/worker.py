"""A whole worker's log to sinks, for any wrapper: what Rubin's pilot starter does (PILOT3 9.2).

The log tells by itself which job it is at: the pilot writes `job definition = {...}` when it begins one, and `ready for
new job` when it is done. A message of several lines that reports a failure, such as the last lines of a failed
payload's stderr, becomes one record of severity ERROR.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.logship.record import Origin
from pilot.logship.shipper import LogShip
from pilot.logship.tail import Line
from pilot.masking import Masker

#: A line of a pilot's log, Pilot 3's and ours: `time | LEVEL    | logger | ...`.
_COLUMN = re.compile(r"^[^|]{0,40}\| (DEBUG|INFO|WARNING|ERROR|CRITICAL) *\|")
_DEFINITION = "job definition = {"
_DONE = "ready for new job"
_JOB_ID = re.compile(r"""['"]PandaID['"]: ?['"]?(\d+)""")
_JOB_NAME = re.compile(r"""['"]jobName['"]: ?['"]([^'"]{1,512})['"]""")
_TASK_ID = re.compile(r"""['"]taskID['"]: ?['"]?(\d+)""")
#: What a message of several lines is about when it is one error: a failed payload's last words, a failed job.
_FAILURE = re.compile(r"\bstderr\b|state ?= ?failed|Traceback \(most recent call last\)", re.IGNORECASE)
_FAILED = re.compile(r"state ?= ?failed")
#: Lines and characters of one error record, and seconds that it waits for its next line.
_BLOCK_LINES, _BLOCK_SIZE, _BLOCK_WAIT = 100, 64 << 10, 1.0
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|APIKEY|API_KEY|PROXYCONTENT|CREDENTIAL", re.IGNORECASE)


@dataclass(slots=True)
class _Block:
    """Lines of one error, until it is complete."""

    number: int
    lines: list[str]
    since: float = field(default_factory=time.monotonic)

    @property
    def full(self) -> bool:
        return len(self.lines) >= _BLOCK_LINES or sum(map(len, self.lines)) >= _BLOCK_SIZE


class WorkerShip(LogShip):
    """Ships worker logs: as `LogShip`, with the job of each line found in the log.

    Args:
        origin: what is known beforehand; a job's id that is given there is the job of all lines without another.
    """

    def __init__(self, origin: Origin, *args: Any, **more: Any) -> None:
        super().__init__(origin, *args, **more)
        self._idle: Mapping[str, str] = {**self._origin, "jobName": ""}
        self._origin = dict(self._idle)
        self._blocks: dict[str, _Block] = {}

    def _ship(self, source: str, lines: list[Line], *, last: bool = False) -> int:
        for line in lines:
            self._take(source, line)
        block = self._blocks.get(source)
        if block and (last or time.monotonic() - block.since > _BLOCK_WAIT):
            self._end_block(source)
        return len(lines)

    def _take(self, source: str, line: Line) -> None:
        level = _COLUMN.match(line.text)
        block = self._blocks.get(source)
        if block and not level and not block.full:
            block.lines.append(line.text)
            return
        self._end_block(source)
        if _DEFINITION in line.text:
            self._begin_job(line.text)
        if level and level[1] != "DEBUG" and _FAILURE.search(line.text):
            self._blocks[source] = _Block(line.number, [line.text])
        else:
            self._put_limited(source, line.number, line.text, level[1] if level else "")
        if _DONE in line.text:
            self._end_block(source)
            self._belongs_to(self._idle)

    def _end_block(self, source: str) -> None:
        """A message of one line is an error only if it says so."""
        block = self._blocks.pop(source, None)
        if block:
            error = len(block.lines) > 1 or _FAILED.search(block.lines[0])
            self._put_limited(source, block.number, "\n".join(block.lines), "ERROR" if error else "")

    def _put_limited(self, source: str, number: int, text: str, severity: str) -> None:
        if self._rate and self._allowance < 1:
            self.over_rate += 1
            return
        self._allowance -= 1
        self._put(source, number, text, severity)

    def _begin_job(self, text: str) -> None:
        found = {"PandaJobID": _JOB_ID, "jobName": _JOB_NAME, "TaskID": _TASK_ID}
        matches = {key: pattern.search(text) for key, pattern in found.items()}
        self._belongs_to({**self._idle, **{key: match[1] for key, match in matches.items() if match}})

    def _belongs_to(self, origin: Mapping[str, str]) -> None:
        """The next lines do."""
        self._origin = dict(origin)
        self._makers.clear()


def make_masker(environ: Mapping[str, str]) -> Masker:
    """Hides what the wrapper's environment has by names that say it is secret, beside the shapes of secrets."""
    return Masker(value for name, value in environ.items() if _SECRET_NAME.search(name) and not value.startswith("/"))


def upload(path: Path, url: str, name: str, masker: Masker, tls: Any, timeout: float) -> None:
    """Send a log, masked, to the panda cache: multipart POST to `<url>/putFile`, as PanDA clients do.

    Args:
        path: the log.
        url: where to, without `/putFile`.
        name: of the file there.
        masker: hides secrets in it.
        tls: makes the context for https.
        timeout: seconds for each wait of the connection.

    Raises:
        OSError: it did not arrive; the text says why.
    """
    import tempfile

    import urllib3

    boundary = "pilot-logship-0f3a9c51d7"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_plain(name)}"\r\n'
    with tempfile.TemporaryFile() as body:
        body.write(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        stream = masker.stream()
        with open(path, "rb") as log:
            while data := log.read(1 << 18):
                body.write(stream.feed(data))
        body.write(stream.finish() + f"\r\n--{boundary}--\r\n".encode())
        size = body.tell()
        body.seek(0)
        kind = f"multipart/form-data; boundary={boundary}"
        headers = {"Content-Type": kind, "Content-Length": str(size)}
        with urllib3.PoolManager(1, ssl_context=tls() if url.startswith("https:") else None) as pool:
            try:
                answer = pool.request(
                    "POST",
                    url.rstrip("/") + "/putFile",
                    body=body,
                    headers=headers,
                    timeout=timeout,
                    retries=False,
                    redirect=False,
                )
            except urllib3.exceptions.HTTPError as error:
                raise OSError(f"{type(error).__name__}: {error}") from error
    if answer.status != 200:
        raise OSError(f"HTTP {answer.status} {answer.data[:200].decode('utf-8', 'replace')}")


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)
