"""What both API generations share: requests and answers as values, calls, and the care taken with texts and secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from pilot.errors import DIAG_LIMIT
from pilot.masking import Secret
from pilot.server.faults import AuthRefusedError, KeyRefusedError, NotServedError, RefusedError, UnavailableError
from pilot.server.report import FileReport, JobRequest, RawJob, Reply, Report, Timings, Usage

T = TypeVar("T")

#: Longest texts the server stores (`api/v1/pilot_api.py`, `jobdispatcher/JobDispatcher.py` of panda-server), bytes.
LIMITS = {
    "node": 128,
    "error_diag": DIAG_LIMIT,
    "metrics": 500,
    "pilot_id": 200,
    "batch_id": 80,
    "cpu_level": 20,
    "pilot_log": 4000,
}

#: CPU seconds above this are a broken measurement (Pilot 3 drops them too: PILOT3.md 2.6).
CPU_LIMIT = 10**9

_FORBIDDEN = re.compile(r"ERROR : (?:method )?(\w+) is forbidden")
_BAD_TOKEN = re.compile(r"authentication failed|is banned", re.IGNORECASE)
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `path` starts with a slash and may carry a query."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, read to its end. `location` and `date` are the headers of those names."""

    status: int
    content_type: str
    body: bytes
    location: str = ""
    date: str = ""

    @property
    def text(self) -> str:
        """The body as text; bytes that are none become question marks."""
        return self.body.decode("utf-8", "replace")

    @property
    def size(self) -> str:
        """What may be said of a body that could hold secrets."""
        return f"{len(self.body)} bytes of {self.content_type or 'no type'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One call of one API generation: what to send and how to read the answer.

    Attributes:
        method: the server's name of it, for log lines and to recognise `method ... is forbidden`.
        fields: the arguments. required: those a server never refuses.
        encode: from the arguments to the request. decode: from an answer to the value, or an error.
    """

    method: str
    fields: Mapping[str, Any]
    required: frozenset[str]
    encode: Callable[[Mapping[str, Any]], Request]
    decode: Callable[[Answer], T]

    def without(self, key: str) -> Call[T]:
        """The same call without one argument."""
        return replace(self, fields={name: value for name, value in self.fields.items() if name != key})

    def request(self) -> Request:
        """What to send."""
        return self.encode(self.fields)

    def read(self, answer: Answer) -> T:
        """The value of `answer`.

        Raises:
            ServerError: one of `pilot.server.faults`.
        """
        if answer.status != 200:
            _raise_http(answer, self.method)
        return self.decode(answer)


class Codec(Protocol):
    """An API generation: the modules `v1` and `legacy`. Each function makes a call; the client sends it."""

    name: str

    def acquire(self, request: JobRequest) -> Call[list[RawJob]]:
        """Ask for jobs; none is an empty list."""

    def update(self, report: Report) -> Call[Reply]:
        """Report on a job."""

    def worker_status(self, status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> Call[None]:
        """Tell of a worker: `started` or `finished`."""

    def worker_node(self, mapping: Mapping[str, Any]) -> Call[None]:
        """Tell of this node's CPU, memory (MB) and disk (GB)."""

    def worker_gpu(self, mapping: Mapping[str, Any]) -> Call[None]:
        """Tell of this node's GPUs of one model; `vram` in MB."""

    def resource_types(self) -> Call[list[dict[str, Any]]]:
        """The resource types."""

    def job_status(self, job_ids: Iterable[int]) -> Call[dict[int, tuple[str, int]]]:
        """State and attempt of jobs."""

    def proxy(self, role: str, dn: str) -> Call[Secret]:
        """A user's X.509 proxy as PEM text."""

    def access_token(self, client_name: str, token_key: str) -> Call[Secret]:
        """A fresh access token."""

    def key_pair(self, public_name: str, private_name: str) -> Call[tuple[str, Secret]]:
        """A public and a private key by their names."""

    def user_secrets(self, keys: Iterable[str]) -> Call[dict[str, Secret]]:
        """The secrets of the credential's owner; all of them when no key is named."""


def _raise_http(answer: Answer, method: str) -> NoReturn:
    words = f"HTTP {answer.status}: {_excerpt(answer.text)}"
    found = _FORBIDDEN.search(answer.text)
    if answer.status == 404 or (answer.status == 403 and found and found[1] == method):
        raise NotServedError(f"{method} is not served: {words}")
    if answer.status == 401 or (answer.status == 403 and _BAD_TOKEN.search(answer.text)):
        raise AuthRefusedError(words)
    if 300 <= answer.status < 400:
        raise RefusedError(f"HTTP {answer.status}: redirects are not followed, this one leads to {answer.location!r}")
    unexpected = _UNEXPECTED.search(answer.text)
    if answer.status == 500 and unexpected:  # how a 0.x server says it: the text of Python's TypeError
        raise KeyRefusedError(unexpected[1], words)
    if answer.status >= 500 or answer.status in (408, 425, 429):
        raise UnavailableError(words)
    raise RefusedError(words)


def _excerpt(text: str) -> str:
    """The first words of an error page, in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:300]


def garbage(answer: Answer, why: str) -> UnavailableError:
    """The error for an answer that cannot be read. Its body is not shown: half a job may be half a secret."""
    return UnavailableError(f"unusable answer ({why}, {answer.size})")


def load_json(answer: Answer) -> Any:
    """The JSON value of an answer's body.

    Raises:
        UnavailableError: it is none.
    """
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise garbage(answer, "not JSON") from None


def status_code(data: Mapping[str, Any], answer: Answer) -> int:
    """The `StatusCode` of an answer, which some servers send as text.

    Raises:
        UnavailableError: there is none.
    """
    try:
        return int(data["StatusCode"])
    except (KeyError, TypeError, ValueError):
        raise garbage(answer, "no StatusCode") from None


def clean(text: str, limit: int | None = None) -> str:
    """`text` as a database takes it: no NUL, no lone surrogates, at most `limit` bytes of UTF-8.

    Bytes, since a column of 500 may count either; a report that is refused for its text would be refused forever.
    """
    raw = text.replace("\0", "").encode("utf-8", "replace")
    return (raw if limit is None else raw[:limit]).decode("utf-8", "ignore")


def clean_words(text: str, limit: int) -> str:
    """`text` of at most `limit` bytes, cut between words: half a `key=value` would be a wrong one."""
    cut = clean(text, limit)
    return cut if cut == clean(text) else cut.rpartition(" ")[0]


def compact(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something: None and empty texts are not sent."""
    return {key: value for key, value in fields.items() if value is not None and value != ""}


def utc_text(when: float | None) -> str | None:
    """Seconds since 1970 as v1 wants them: UTC, `2026-11-22 01:00:00`."""
    return None if when is None else datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S")


def timing_text(timings: Timings | None) -> str:
    """`getjob|stagein|payload|stageout|initial_setup|setup` in whole seconds."""
    if timings is None:
        return ""
    seconds = (
        timings.getjob,
        timings.stagein,
        timings.payload,
        timings.stageout,
        timings.initial_setup,
        timings.setup,
    )
    return "|".join(str(round(value)) for value in seconds)


def files_text(files: tuple[FileReport, ...]) -> str:
    """Stored files as the server's adder reads them; it knows adler32 and, by the name `md5sum`, md5."""
    report: dict[str, dict[str, Any]] = {}
    for file in files:
        entry: dict[str, Any] = {"guid": file.guid, "fsize": file.size}
        if "adler32" in file.checksums:
            entry["adler32"] = file.checksums["adler32"]
        elif "md5" in file.checksums:
            entry["md5sum"] = file.checksums["md5"]
        report[file.lfn] = entry | {"surl": file.surl, "endpoint": file.endpoint}
    return json.dumps(report) if report else ""


def measured(usage: Usage) -> dict[str, int | None]:
    """Memory (kB) and I/O (bytes, bytes/s) as whole numbers, by the names of `Usage`, which are v1's."""
    memory = [f"{kind}_{what}" for kind in ("max", "avg") for what in ("rss", "vmem", "swap", "pss")]
    traffic = [f"{kind}_{what}" for kind in ("tot", "rate") for what in ("rchar", "wchar", "rbytes", "wbytes")]
    values = {name: getattr(usage, name) for name in (*memory, *traffic)}
    return {name: None if value is None else int(value) for name, value in values.items()}


def cpu_seconds(value: int | None) -> int | None:
    """CPU time that makes sense, else None."""
    return int(value) if value is not None and 0 < value <= CPU_LIMIT else None


def command_of(value: Any) -> str:
    """The server's command; its several ways to say nothing are an empty text."""
    text = str(value).strip() if value is not None else ""
    return "" if text in ("NULL", "None") else text


def secrets_of(value: Any) -> dict[str, Secret]:
    """Secrets as the server sends them: an object, its JSON text, or nothing."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if not isinstance(value, Mapping):
        return {}
    return {str(key): Secret(item if isinstance(item, str) else json.dumps(item)) for key, item in value.items()}


def jobs_of(data: Mapping[str, Any], answer: Answer) -> list[Mapping[str, Any]]:
    """The jobs of an answer with StatusCode 0: a list, its JSON text, or one flat job.

    Raises:
        UnavailableError: there are none where there should be.
    """
    jobs = data.get("jobs")
    if isinstance(jobs, str):
        try:
            jobs = json.loads(jobs)
        except (ValueError, RecursionError):
            raise garbage(answer, "jobs are not JSON") from None
    if jobs is None and "PandaID" in data:
        jobs = [data]
    if not isinstance(jobs, list) or not all(isinstance(job, Mapping) for job in jobs):
        raise garbage(answer, "no list of jobs")
    return jobs


def text_field(data: Any, key: str, answer: Answer) -> str:
    """A text that an answer must have.

    Raises:
        UnavailableError: it has not.
    """
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, str) or not value:
        raise garbage(answer, f"no {key}")
    return value


def as_int(text: str) -> int | None:
    """The number in `text`, None if it is none: a worker id may be a word."""
    try:
        return int(text)
    except ValueError:
        return None
