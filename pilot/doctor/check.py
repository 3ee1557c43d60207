"""What a check is, what it finds, and what it may ask for."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

from pilot.assembly import find_experiment, make_fetch, make_sources
from pilot.errors import Code, PilotError
from pilot.queuedata import QueuedataLoader, QueueInfo
from pilot.server.auth import Auth, find_auth
from pilot.server.tls import Tls, find_tls
from pilot.server.transport import Transport, base_url
from pilot.server.wire import Answer, Request
from pilot.settings import Settings
from pilot.stop import Stop

T = TypeVar("T")

#: Seconds that queue and storages may take to be read, and one request to the server: checks that need them have the
#: rest of the 10 s of `examine.PATIENCE` for themselves.
FETCH_PATIENCE = 5.0

#: Where a cache is asked for and none shall be: nothing can be made below what is no directory.
_NO_DIRECTORY = Path(os.devnull) / "none"


class Level(StrEnum):
    """How bad it is: with a failure jobs would fail here, a warning is for a person to look at."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it, both in a few words for a person."""

    level: Level
    found: str
    advice: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, found)


def warning(found: str, advice: str) -> Finding:
    """It may do."""
    return Finding(Level.WARNING, found, advice)


def failure(found: str, advice: str) -> Finding:
    """Jobs would fail."""
    return Finding(Level.FAILURE, found, advice)


class Once(Generic[T]):
    """A value, or the error instead of it, that several checks share: made by who asks first, the others wait."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._value: list[T] = []
        self._error: PilotError | None = None

    def __call__(self) -> T:
        """The value.

        Raises:
            PilotError: it cannot be had.
        """
        with self._lock:
            if self._error is None and not self._value:
                try:
                    self._value.append(self._make())
                except PilotError as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return self._value[0]


@dataclass(frozen=True, slots=True)
class Reached:
    """The server's first answer, and when: seconds since 1970 by our clock, halfway through the request."""

    answer: Answer
    time: float


@dataclass(frozen=True, kw_only=True)
class Patient:
    """The node as a pilot with these settings would see it.

    Attributes:
        settings: those of `pilot run`.
        environ: the pilot's environment.
        launch_dir: where the pilot is started.
        needs_cvmfs: CVMFS must be there whatever the queue says.
    """

    settings: Settings
    environ: Mapping[str, str]
    launch_dir: Path = field(default_factory=Path.cwd)
    needs_cvmfs: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "queue", Once(self._read_queue))
        object.__setattr__(self, "reached", Once(self._reach_server))

    #: The queue and its storages; raises PilotError if they cannot be read.
    queue: Once[QueueInfo] = field(init=False)

    #: The server's first answer; raises ServerError if there is none.
    reached: Once[Reached] = field(init=False)

    @property
    def has_queue(self) -> bool:
        """Whether a queue was named."""
        return bool(self.settings.queue or self.settings.queuedata_url)

    @property
    def has_server(self) -> bool:
        """Whether a pilot with these settings would speak to a server."""
        settings = self.settings
        named = settings.url or "pandaserver" in settings.origins or settings.queue
        return bool(named) and settings.update_server

    @property
    def workdir(self) -> Path:
        """Where the pilot makes its directory: the nearest one that is there, since it makes the others."""
        path = (self.launch_dir / self.settings.workdir).absolute()
        return next(place for place in (path, *path.parents) if place.exists())

    def known_queue(self) -> QueueInfo | None:
        """The queue for checks that can do without; that it cannot be read is said by the check of the queue."""
        try:
            return self.queue() if self.has_queue else None
        except PilotError:
            return None

    def auth(self) -> Auth:
        """The credentials, not read yet.

        Raises:
            CredentialError: the origin may not stand in a header.
        """
        return find_auth(self.environ, cacert=self.settings.cacert, directories=[self.launch_dir, self.workdir])

    def tls(self, certificate: Path | None = None) -> Tls:
        """Whom to trust."""
        return find_tls(self.environ, certificate=certificate, capath=self.settings.capath)

    def ask(self, request: Request) -> Answer:
        """The server's answer to a request, with the credentials where they can be read.

        Raises:
            ServerError: there was none.
        """
        auth = self.auth()
        url = base_url(self.settings.server, None)
        transport = Transport(
            url,
            self.tls(auth.certificate),
            self.environ,
            allow_http=self.settings.allow_http,
            connect_timeout=FETCH_PATIENCE,
        )
        headers = {**request.headers, **auth.headers()}
        return transport.send(Request(request.method, request.path, request.body, headers), FETCH_PATIENCE)

    def _reach_server(self) -> Reached:
        from pilot.server import v1

        before = time.time()
        answer = self.ask(v1.resource_types().request())
        return Reached(answer, (before + time.time()) / 2)

    def _read_queue(self) -> QueueInfo:
        """As `pilot run` reads it, but without its cache and its patience."""
        experiment = find_experiment(self.settings.pilot_user)
        sources = make_sources(self.settings.with_experiment(experiment.settings, experiment.name), experiment)
        fetch = make_fetch(self.tls(), self.settings.allow_http, self.environ)

        async def load() -> QueueInfo:
            loader = QueuedataLoader(self.settings.queue, _NO_DIRECTORY, fetch, sources, pause=0.1)
            return await asyncio.wait_for(loader.load(Stop()), FETCH_PATIENCE)

        try:
            return asyncio.run(load())
        except TimeoutError:
            raise PilotError(Code.QUEUEDATA, f"no answer within {FETCH_PATIENCE:.0f} s") from None


def in_threads(calls: Sequence[Callable[[], T]], seconds: float) -> list[T | None]:
    """Results of blocking calls, side by side; None for each that took longer. Those are left to themselves.

    Threads are daemons, so that one that hangs in the kernel or a resolver cannot keep the process from its end.
    """
    results: list[T | None] = [None] * len(calls)

    def run(number: int, call: Callable[[], T]) -> None:
        results[number] = call()

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(results)
