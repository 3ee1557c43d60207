"""One request in, one answer out: the doors, the faults and the record around the two APIs. Knows no socket."""

from __future__ import annotations

import mimetypes
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pilot.devserver import admin
from pilot.devserver.auth import Guard
from pilot.devserver.faults import Fault, Faults
from pilot.devserver.legacy import Legacy
from pilot.devserver.messages import Answer, BodyError, Request
from pilot.devserver.record import Recorder
from pilot.devserver.spec import CrashError
from pilot.devserver.state import State
from pilot.devserver.v1 import V1

_FILES = "/cache/"
_GARBAGE = b"<html><body>It works!"


class _Api(Protocol):
    """What the two generations have in common."""

    def method(self, path: str) -> str: ...

    def parse(self, request: Request) -> dict[str, Any]: ...

    def run(self, request: Request, given: dict[str, Any]) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is started with.

    Attributes:
        host, port: where it listens; port 0 is any free one.
        api: `v1`, `legacy` or `both`.
        state: SQLite file; None is memory. record: file for the exchanges. files: directory under `/cache/`.
        adder_delay: seconds from a final report to the job's last state.
        guard: who may ask. cert, key, client_ca: PEM files; TLS is on with cert and key.
        verbose: whether each exchange is a line on stderr.
    """

    host: str = "127.0.0.1"
    port: int = 0
    api: str = "both"
    state: Path | None = None
    record: Path | None = None
    files: Path | None = None
    adder_delay: float = 0.2
    guard: Guard = field(default_factory=Guard)
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    verbose: bool = False


class App:
    """The server without its sockets.

    Args:
        settings: how it behaves.
        url: what `{devserver}` in a job definition becomes.
        sleep: how a delay waits.
    """

    def __init__(self, settings: Settings, url: str, sleep: Callable[[float], object]) -> None:
        self.settings = settings
        self.state = State(settings.state, settings.adder_delay, url=url)
        self.faults = Faults()
        token = settings.guard.token
        self.recorder = Recorder(settings.record, [token] if token else [])
        self.admin = admin.Admin(self.state, self.faults, self.recorder, self.counters)
        if settings.state and settings.record:
            self.recorder.learn(job["definition"] for job in self.state.jobs())
        self._sleep = sleep
        self._closing = False
        self._apis: list[_Api] = []
        if settings.api in ("v1", "both"):
            self._apis.append(V1(self.state))
        if settings.api in ("legacy", "both"):
            self._apis.append(Legacy(self.state))
        self._count_lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._hits: Counter[str] = Counter()

    def close(self) -> None:
        """Write out everything. A call that is still running is not answered right any more, and that is no news."""
        self._closing = True
        self.recorder.close()
        self.state.close()

    def counters(self) -> dict[str, Any]:
        """Calls by their v1 name, answers by HTTP status, faults by kind; calls of the devserver API do not count."""
        with self._count_lock:
            statuses = {str(status): count for status, count in self._statuses.items()}
            return {"calls": dict(self._calls), "statuses": statuses, "faults": dict(self._hits)}

    def answer(self, request: Request) -> Answer | None:
        """The answer to a request; None means that the connection must be reset."""
        if request.path.startswith(admin.PREFIX):
            return self._guarded(lambda: self.admin.answer(request))
        fault, answer = self._exchange(request)
        with self._count_lock:
            self._statuses[answer.status if answer else 0] += 1
            if fault:
                self._hits[fault.kind] += 1
        self.recorder.write(request, answer, fault.kind if fault else "")
        return answer

    def _exchange(self, request: Request) -> tuple[Fault | None, Answer | None]:
        if request.path.startswith(_FILES):
            return self._with_fault("cache", {}, lambda: self._file(request))
        api = next((api for api in self._apis if api.method(request.path)), None)
        if api is None:
            return None, Answer.forbidden(f"method {_method_name(request.path)} is forbidden")
        if request.identity.problem:
            return None, Answer.forbidden(f"Token authentication failed. {request.identity.problem}")
        try:
            given = api.parse(request)
        except (BodyError, CrashError) as error:
            return None, Answer.text(500, str(error))
        return self._with_fault(api.method(request.path), given, lambda: api.run(request, given))

    def _with_fault(
        self, method: str, given: dict[str, Any], call: Callable[[], Answer]
    ) -> tuple[Fault | None, Answer | None]:
        with self._count_lock:
            self._calls[method] += 1
        fault = self.faults.take(method, given)
        if fault is None:
            return None, self._guarded(call)
        if fault.kind == "delay" and not fault.after:
            self._sleep(fault.value)
        answer = self._guarded(call) if fault.after or fault.kind == "delay" else None
        if fault.kind == "delay":
            if fault.after:
                self._sleep(fault.value)
            return fault, answer
        return fault, _faulty(fault)

    def _guarded(self, call: Callable[[], Answer]) -> Answer:
        """The last door: the real server answers 500 with the error's text to whatever goes wrong inside."""
        try:
            return call()
        except CrashError as error:
            return Answer.text(500, str(error))
        except Exception as error:
            if not self._closing:
                traceback.print_exc(file=sys.stderr)
            return Answer.text(500, str(error))

    def _file(self, request: Request) -> Answer:
        root = self.settings.files
        if request.method not in ("GET", "HEAD"):
            return Answer.text(405, "only GET and HEAD")
        if root is None:
            return Answer.text(404, "not found")
        root = root.resolve()
        try:
            path = (root / request.path.removeprefix(_FILES)).resolve()
            inside = path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError):  # a name that is too long, or has a NUL
            inside = False
        if not inside:
            return Answer.text(404, "not found")
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return Answer(200, content_type=kind, file=path)


def _method_name(path: str) -> str:
    """The name in the real server's refusal: only paths of a known depth have one."""
    parts = urlsplit(path).path.split("/")
    legacy = path.startswith("/server/panda/") and len(parts) == 4
    v1 = path.startswith("/api/") and len(parts) == 5
    return parts[-1] if legacy or v1 else ""


def _faulty(fault: Fault) -> Answer | None:
    if fault.kind == "reset":
        return None
    if fault.kind == "garbage":
        return Answer(200, _GARBAGE, "text/html")
    return Answer.text(int(fault.value), "injected fault")
