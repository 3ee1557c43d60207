"""The client of a PanDA server: which API it speaks, retries, and the order of a job's updates."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pilot.errors import ServerError
from pilot.masking import Secret
from pilot.server import legacy, v1
from pilot.server.auth import Auth, CredentialError, find_auth
from pilot.server.faults import AuthRefusedError, KeyRefusedError, NotServedError, UnavailableError
from pilot.server.order import Halted, Halts, Line
from pilot.server.report import JobRequest, RawJob, Reply, Report
from pilot.server.tls import find_tls
from pilot.server.transport import CONNECT_TIMEOUT, PORT, Flight, Transport, base_url
from pilot.server.wire import Call, Codec
from pilot.stop import Deadline, Stop, in_thread

T = TypeVar("T")

#: Jobs whose updates are kept in order; a pilot has one or a few at a time.
_REMEMBERED = 64

log = logging.getLogger(__name__)

#: Seconds one request may take (Pilot 3's `http_maxtime`).
HTTP_TIMEOUT = 120.0

#: Tries with a credential that is not accepted: a renewed one may appear within some seconds. A final report is worth
#: more: whoever renews credentials does it every hour or so, and the work of a whole job would be lost.
_AUTH_TRIES = 3

#: Seconds and tries for what may get lost: worker status and node maps.
_SHORT, _SHORT_TRIES = 20.0, 2

#: With a deadline, no try takes more than half of what is left, so that a hanging server gets a second chance, but this
#: many seconds are always worth waiting.
_FAIR_TRY = 10.0

_CODECS: tuple[Codec, ...] = (v1, legacy)


class PandaServer:
    """A PanDA server. One for the whole process; all methods belong to one event loop.

    Args:
        transport: how to reach it.
        auth: what to show to it.
        api: `v1`, `legacy`, or `auto`: v1 first, and the other when a method is not there. What worked last comes first
            in the next call, so that a server may be upgraded under a running job.
        timeout: longest time for one request, s.
        first_pause: mean of the first wait between tries is a bit less, each further is twice as long; s.
        longest_pause: until this, s.
        settle: how long an update under way may still take when a newer one waits or a stop came, s.
    """

    def __init__(
        self,
        transport: Transport,
        auth: Auth,
        *,
        api: str = "auto",
        timeout: float = HTTP_TIMEOUT,
        first_pause: float = 1.0,
        longest_pause: float = 60.0,
        settle: float = 2.0,
    ) -> None:
        self._transport = transport
        self._auth = auth
        self._codecs: list[Codec] = [codec for codec in _CODECS if api in ("auto", codec.name)]
        if not self._codecs:
            raise ValueError(f"no such API: {api!r}")
        self._timeout = timeout
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._settle = settle
        self._lines: dict[tuple[int, int], Line] = {}
        self._unknown: dict[str, set[str]] = {}
        self._served = False

    @classmethod
    def at(
        cls,
        url: str,
        port: int | None = PORT,
        *,
        environ: Mapping[str, str],
        api: str = "auto",
        cacert: str = "",
        capath: str = "",
        allow_http: bool = False,
        directories: Sequence[Path] = (),
        timeout: float = HTTP_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        tell: Callable[[Secret], None] = lambda token: None,
    ) -> PandaServer:
        """The server at an address, with the credentials and the trust that options and environment name.

        Args:
            url: as in `--url`: scheme and port may be missing.
            port: where the URL has none.
            environ: variables for credentials, CAs and proxies.
            api: as in the constructor.
            cacert: client certificate (Pilot 3's name).
            capath: directory of CAs.
            allow_http: let plain http leave the node.
            directories: where a relative token file may be: the launch and the work directory.
            timeout: longest time for one request, s.
            connect_timeout: of this for the connection, s.
            tell: is given each token that is read, to be masked.

        Raises:
            ServerError: the address or a credential cannot be used.
        """
        auth = find_auth(environ, cacert=cacert, directories=directories, tell=tell)
        tls = find_tls(environ, certificate=auth.certificate, capath=capath)
        transport = Transport(base_url(url, port), tls, environ, allow_http=allow_http, connect_timeout=connect_timeout)
        log.info("server %s, %s", transport.url, auth.kind)
        return cls(transport, auth, api=api, timeout=timeout)

    @property
    def auth(self) -> Auth:
        """What is shown to it."""
        return self._auth

    async def acquire(self, request: JobRequest) -> list[RawJob]:
        """Ask once for jobs: none is an empty list.

        Raises:
            ServerError: the server could not be reached or refused.
        """
        return await self._get(lambda codec: codec.acquire(request))

    async def update(self, report: Report, deadline: Deadline, stop: Stop | None = None) -> Reply:
        """Deliver `report`, with as many tries as it takes until the deadline.

        The updates of a job go out one after the other. A newer one takes the place of one that is still being tried,
        and once a final one was begun no other follows: what is left out this way gets an empty `Reply`.

        Args:
            report: what to say. A repeated final report is taken; the reply's command is then `alreadydone`.
            deadline: when to give up.
            stop: when to give up earlier.

        Raises:
            ServerError: it was not delivered: time was up, or the server refused it with the words in the error.
        """
        line = self._line(report)
        replaced = line.enter(final=report.state.final)
        what = f"update of job {report.job_id} ({report.state.value})"
        halts = Halts(replaced, stop)
        try:
            async with line.turn(replaced, deadline):
                renewals = math.inf if report.state.final else _AUTH_TRIES
                return await self._persist(lambda codec: codec.update(report), what, deadline, halts, renewals=renewals)
        except Halted as halted:
            if not replaced.is_set():
                raise UnavailableError(f"{what}: stopped while trying ({halted})") from None
        finally:
            halts.close()
        log.info("%s is not sent: a newer report is on its way", what)
        return Reply()

    def _line(self, report: Report) -> Line:
        """The line of a job; those of long ago are forgotten."""
        line = self._lines.setdefault((report.job_id, report.attempt), Line())
        if len(self._lines) > _REMEMBERED:
            del self._lines[next(iter(self._lines))]
        return line

    async def worker_status(self, status: str, worker_id: str, harvester_id: str, node: str, queue: str) -> None:
        """Say that this worker `started` or `finished`; a failure is a warning."""
        told = (status, worker_id, harvester_id, node, queue)
        await self._try(lambda codec: codec.worker_status(*told), f"worker status {status}")

    async def update_worker_node(self, mapping: Mapping[str, Any]) -> None:
        """Send the node map (PILOT3.md 7.8); a failure is a warning."""
        await self._try(lambda codec: codec.worker_node(mapping), "worker node map")

    async def update_worker_gpu(self, mapping: Mapping[str, Any]) -> None:
        """Send the GPU map (PILOT3.md 7.8); a failure is a warning."""
        await self._try(lambda codec: codec.worker_gpu(mapping), "worker node GPU map")

    async def resource_types(self) -> list[dict[str, Any]]:
        """The resource types: `resource_name`, `mincore`, `maxcore`, `minrampercore`, `maxrampercore` (MB).

        Raises:
            ServerError: the server could not be reached or refused.
        """
        return await self._get(lambda codec: codec.resource_types())

    async def get_job_status(self, job_ids: Iterable[int]) -> dict[int, tuple[str, int]]:
        """State and attempt number of jobs; the state of an unknown one is `not found`. Raises `ServerError`."""
        wanted = list(job_ids)
        return await self._get(lambda codec: codec.job_status(wanted))

    async def get_proxy(self, role: str = "", dn: str = "") -> Secret:
        """An X.509 proxy as PEM text. Raises `ServerError`."""
        return await self._get(lambda codec: codec.proxy(role, dn))

    async def get_access_token(self, client_name: str, token_key: str = "") -> Secret:
        """A fresh access token. Raises `ServerError`."""
        return await self._get(lambda codec: codec.access_token(client_name, token_key))

    async def get_key_pair(self, public_name: str, private_name: str) -> tuple[str, Secret]:
        """A public and a private key. Raises `ServerError`."""
        return await self._get(lambda codec: codec.key_pair(public_name, private_name))

    async def get_user_secrets(self, keys: Iterable[str] = ()) -> dict[str, Secret]:
        """Secrets stored for the credential's owner, all when no key is named. Raises `ServerError`."""
        wanted = list(keys)
        return await self._get(lambda codec: codec.user_secrets(wanted))

    async def _try(self, make: Callable[[Codec], Call[None]], what: str) -> None:
        try:
            await self._persist(make, what, Deadline(_SHORT), Halts(), tries=_SHORT_TRIES)
        except NotServedError as error:
            log.debug("%s is not sent: %s", what, error.detail)
        except ServerError as error:
            log.warning("%s is not sent: %s", what, error.detail)

    async def _persist(
        self,
        make: Callable[[Codec], Call[T]],
        what: str,
        deadline: Deadline,
        halts: Halts,
        *,
        tries: float = math.inf,
        renewals: float = _AUTH_TRIES,
    ) -> T:
        """Ask again and again until there is an answer, a refusal, or an end to patience."""
        done = 0
        while True:
            done += 1
            try:
                return await self._ask(make, deadline, halts)
            except (AuthRefusedError, CredentialError) as error:
                cause: ServerError = error
                tries = min(tries, renewals)
            except NotServedError as error:
                if not self._served or tries < math.inf:
                    raise
                cause = error  # it spoke to us before: a gateway says 404 while the server behind it is exchanged
            except UnavailableError as error:
                cause = error
            pause = self._pause(done, deadline.remaining)
            if halts.fired:
                raise Halted(cause.detail)
            if done >= tries or pause >= deadline.remaining:
                raise cause
            log.warning("%s: %s; again in %.1f s", what, cause.detail, pause)
            if await halts.wait(pause):
                raise Halted(cause.detail)

    def _pause(self, done: int, remaining: float) -> float:
        """Seconds until the next try: 1, 2, 4... with jitter; near the deadline half of the time left."""
        wait = min(self._longest_pause, self._first_pause * 2.0 ** min(done - 1, 16)) * random.uniform(0.5, 1)
        return min(wait, max(self._first_pause / 2, remaining / 2))

    async def _get(self, make: Callable[[Codec], Call[T]]) -> T:
        """One try."""
        return await self._ask(make, Deadline(), Halts())

    async def _ask(self, make: Callable[[Codec], Call[T]], deadline: Deadline, halts: Halts) -> T:
        """One answer, from the API that worked last or else the other one."""
        missing: NotServedError | None = None
        for codec in tuple(self._codecs):
            try:
                value = await self._heal(codec, make(codec), deadline, halts)
            except NotServedError as error:
                missing = missing or error
                continue
            self._served = True
            if codec is not self._codecs[0]:
                log.info("the server speaks the %s API", codec.name)
                self._codecs.sort(key=lambda other: other is not codec)
            return value
        raise missing or NotServedError("no API")

    async def _heal(self, codec: Codec, call: Call[T], deadline: Deadline, halts: Halts) -> T:
        """The answer to `call`, if need be without the arguments that this server's version does not take."""
        unknown = self._unknown.setdefault(f"{codec.name} {call.method}", set())
        for key in unknown & call.fields.keys():
            call = call.without(key)
        while True:
            try:
                return await self._once(call, deadline, halts)
            except KeyRefusedError as error:
                if error.key not in call.fields or error.key in call.required:
                    raise
                log.warning("%s goes without %s: %s", call.method, error.key, error.detail)
                call = call.without(error.key)
                if error.lasting:
                    unknown.add(error.key)

    async def _once(self, call: Call[T], deadline: Deadline, halts: Halts) -> T:
        """One request in a thread, called off when its time is up or it is not wanted any more."""
        left = deadline.remaining
        seconds = min(self._timeout, left, max(_FAIR_TRY, left / 2))
        if seconds <= 0:
            raise UnavailableError(f"{call.method}: no time left")
        flight = Flight()
        work: asyncio.Future[T] = asyncio.ensure_future(in_thread(self._exchange, call, seconds, flight))
        try:
            await halts.wait_with(work, seconds)
            if not work.done() and halts.fired:
                await asyncio.wait({work}, timeout=min(self._settle, seconds))
            if not work.done():
                raise UnavailableError(f"{self._transport.url}: no answer to {call.method} in time")
            return work.result()
        finally:
            if not work.done():
                flight.call_off()
                work.cancel()
            elif not work.cancelled():
                work.exception()  # looked at, also when nobody wants it any more

    def _exchange(self, call: Call[T], seconds: float, flight: Flight) -> T:
        request = call.request()
        request = replace(request, headers={**request.headers, **self._auth.headers()})
        return call.read(self._transport.send(request, seconds, flight))
