"""Credentials over the life of a pilot: looked at before a job is taken, renewed while jobs run, kept from payloads.

A token is renewed by the server (`get_access_token`) for whoever has its key; an X.509 proxy too (`getProxy`), for an
experiment that names a role (PILOT3 7.7). Both are written anew in their place, for our eyes only; what is mounted has
no such place, so the pilot works with a copy of its own from the start, and follows the mounted file. Somebody else may
renew them just as well: files are read again when they change. Payloads' proxies are renewed in their place, too.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from pilot.errors import Code, PilotError, ServerError
from pilot.experiment import Experiment
from pilot.job import Job
from pilot.masking import Secret
from pilot.mirror import Mirror
from pilot.queuedata import Queue
from pilot.server.auth import TOKEN_VARIABLES, Auth, CredentialError, find_auth, read_secret, write_private
from pilot.server.expiry import certificate_end, chain_end, token_end
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

#: Seconds between two looks (`proxy_verification_time`), and between two renewals of a token (`Token.download_check`).
LOOK, RENEWAL = 600.0, 3600.0
#: A credential with less life than this is renewed, s; a running job is ended when one has ended and cannot be.
SHORT = 3600.0
#: The name that the server knows pilots by when it hands out tokens (PILOT3 2.1).
CLIENT = "pilot_server"
#: Names the file with a user's proxy on a unified queue, for its payload and for tools that take out what it leaves.
UNIFIED_DISPATCH = "X509_UNIFIED_DISPATCH"


class Issuer(Protocol):
    """Who renews: a PanDA server."""

    async def get_proxy(self, role: str = "", dn: str = "") -> Secret:
        """An X.509 proxy as PEM text. Raises `ServerError`."""

    async def get_access_token(self, client_name: str, token_key: str = "") -> Secret:
        """A fresh access token. Raises `ServerError`."""


class Keeper:
    """Keeps the credentials of a pilot good.

    Args:
        issuer: renews them.
        auth: what the pilot shows to the server.
        experiment: names roles.
        scratch: the pilot's own directory, for payloads' proxies.
        verify: False to trust that somebody else looks after them (`-t`).
        enough: s that a proxy must last for a job to be taken.
        token_key: file with the key for renewals of the token; None for no renewal.
        payload_proxy: whose proxy payloads get: `none`, `pilot`, or `server`.
        verify_payload_proxy: a payload's proxy that has ended fails its job.
        tell: is given each secret, such as a masker's `add`.
    """

    def __init__(
        self,
        issuer: Issuer,
        auth: Auth,
        experiment: Experiment,
        *,
        scratch: Path,
        verify: bool = True,
        enough: float = SHORT,
        token_key: Path | None = None,
        payload_proxy: str = "none",
        verify_payload_proxy: bool = True,
        tell: Callable[[Secret], None] = lambda secret: None,
    ) -> None:
        self._issuer = issuer
        self._auth = auth
        self._experiment = experiment
        self._scratch = scratch
        self._verify = verify
        self._enough = enough
        self._token_key = token_key
        self._payload_proxy = payload_proxy
        self._verify_payload_proxy = verify_payload_proxy
        self._tell = tell
        self._renewed = -RENEWAL
        self._unreadable = ""
        self._payloads: dict[int, Job] = {}

    async def check(self) -> None:
        """See that a job may be taken; try a renewal first if not.

        Raises:
            PilotError: CERTIFICATEHASEXPIRED, NOPROXY or PROXYTOOSHORT.
        """
        if not self._verify:
            return
        enough = self._enough if self._auth.certificate else 0.0
        left = await in_thread(self._left)
        if left is not None and left <= enough:
            await self._renew()
            left = await in_thread(self._left)
        if left is not None and left <= enough:
            raise self._problem(left)

    async def keep(self, stop: Stop) -> None:
        """Renew until the stop, and request it when a credential has ended for good."""
        while True:
            if self._token_key and time.monotonic() - self._renewed >= RENEWAL:
                await self._renew()
            if await stop.wait(LOOK):
                return
            left = await in_thread(self._left)
            if left is not None and left < SHORT:
                await self._renew()
                left = await in_thread(self._left)
            if self._verify and left is not None and left <= 0:
                stop.request(PilotError(Code.VOMSPROXYABOUTTOEXPIRE, self._problem(left).detail))
            for job in list(self._payloads.values()):
                await self._renew_payload(job)

    async def for_payload(self, job: Job, queue: Queue) -> dict[str, str]:
        """The variables with the payload's own proxy; nothing if it gets none.

        Raises:
            PilotError: NOPROXY: the one that it should have has ended.
        """
        text = await self._payload_text(job)
        if text is None:
            return {}
        end = chain_end(text)
        if self._verify_payload_proxy and end is not None and end <= time.time():
            raise PilotError(Code.NOPROXY, f"the payload's proxy ended {_date(end)}")
        path = self._payload_file(job)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        await in_thread(write_private, path, text)
        self._payloads[job.job_id] = job
        return {"X509_USER_PROXY": str(path), **self.for_stage_out(job, queue)}

    def for_stage_out(self, job: Job, queue: Queue) -> dict[str, str]:
        """Variables with the user's proxy for the tools that take outputs and log out; nothing to use the pilot's own.

        On a unified queue the pilot has the proxy of production; what a user's job leaves is written as the user, and
        Pilot 3's name for the file is that of the variable (PILOT3 4.1, 7.7).
        """
        if not (self._payloads.get(job.job_id) and self._is_users(job) and queue.type == "unified"):
            return {}
        path = str(self._payload_file(job))
        return {"X509_USER_PROXY": path, UNIFIED_DISPATCH: path}

    def forget(self, job: Job) -> None:
        """Remove the payload's proxy: without a work directory it would lie where batch systems fetch files from."""
        if self._payloads.pop(job.job_id, None):
            shutil.rmtree(self._payload_file(job).parent, ignore_errors=True)

    async def _renew_payload(self, job: Job) -> None:
        """Put a longer proxy in the place of one that ends soon: a payload that opens it again has it."""
        path = self._payload_file(job)
        try:
            end = await in_thread(certificate_end, path)
            if end is None or end - time.time() >= SHORT:
                return
            text = await self._payload_text(job)
            if text is None or (chain_end(text) or 0) <= end or job.job_id not in self._payloads:
                return
            await in_thread(write_private, path, text)
        except OSError as error:
            logger.warning("the payload's proxy is not renewed: %s", error)
        else:
            logger.info("job %d: the payload's proxy is renewed", job.job_id)

    def _is_users(self, job: Job) -> bool:
        """Whether the payload's proxy comes from the server, for a user."""
        return self._payload_proxy == "server" and job.is_analysis

    def _payload_file(self, job: Job) -> Path:
        return payload_directory(self._scratch, job) / "proxy"

    async def _payload_text(self, job: Job) -> str | None:
        own = self._auth.certificate
        if self._is_users(job):
            try:
                proxy = await self._issuer.get_proxy(self._experiment.proxy_role(job))
            except ServerError as error:
                logger.warning("the payload gets no proxy from the server: %s", error.detail)
                return None
            self._tell(proxy)
            return proxy.reveal()
        if self._payload_proxy == "none" or own is None:
            return None
        try:
            return await in_thread(partial(own.read_text, errors="surrogateescape"))  # before the PEM may be any text
        except OSError as error:
            logger.warning("the payload gets no proxy: %s: %s", own, error.strerror)
            return None

    def _left(self) -> float | None:
        """Seconds of life of what we show to the server, None if it does not tell; 0 if it cannot be read."""
        self._unreadable = ""
        try:
            end = self._end()
        except (CredentialError, OSError) as error:
            self._unreadable = str(getattr(error, "detail", error))
            logger.warning("%s", self._unreadable)
            return 0.0
        return None if end is None else end - time.time()

    def _end(self) -> float | None:
        if self._auth.token:
            return token_end(self._auth.token.token().reveal())
        return certificate_end(self._auth.certificate) if self._auth.certificate else None

    def _problem(self, left: float) -> PilotError:
        advice = "renew it; `pilot doctor` shows its life"
        if left > 0:
            needed = f"{left / 3600:.1f} h left, {self._enough / 3600:.1f} h are needed"
            return PilotError(Code.PROXYTOOSHORT, f"{self._auth.kind}: {needed}; {advice}")
        code = Code.NOPROXY if self._auth.token else Code.CERTIFICATEHASEXPIRED
        if self._unreadable:
            return PilotError(code, f"{self._unreadable}; `pilot doctor` shows what is found")
        return PilotError(code, f"{self._auth.kind}: it ended {_date(time.time() + left)}; {advice}")

    async def _renew(self) -> None:
        """Ask for a new one where we can; that it failed is a warning: the old one may last."""
        self._renewed = time.monotonic()
        role = self._experiment.proxy_role(None)
        try:
            if self._auth.token and self._token_key:
                key = await in_thread(read_secret, self._token_key)
                fresh = await self._issuer.get_access_token(CLIENT, key.reveal())
                self._tell(fresh)
                place = await in_thread(self._auth.token.renew, fresh)
            elif self._auth.certificate and role:
                fresh = await self._issuer.get_proxy(role)
                self._tell(fresh)
                place = self._auth.certificate
                await in_thread(write_private, place, fresh.reveal())
            else:
                return
        except (ServerError, OSError) as error:
            logger.warning("the credential is not renewed: %s", getattr(error, "detail", error))
        else:
            logger.info("the credential is renewed: %s", place)


def find_key(name: str, directories: Sequence[Path]) -> Path | None:
    """The file with the key for renewals that `PANDA_AUTH_TOKEN_KEY` names, None if there is none."""
    places = [Path(name), *(directory / name for directory in directories)] if name else []
    return next((path.absolute() for path in places if path.is_file()), None)


def payload_directory(scratch: Path, job: Job) -> Path:
    """The directory of a payload's proxy: a container that saw the file alone would never see its successor."""
    return scratch / f"x509-payload-{job.job_id}"


def with_copies(
    environ: Mapping[str, str], cacert: str, directories: Sequence[Path], experiment: Experiment, mirror: Mirror
) -> tuple[Mapping[str, str], str]:
    """Environment and `--cacert` that name copies of what can be renewed, but not where it is.

    Raises:
        CredentialError: as `find_auth`.
    """
    auth = find_auth(environ, cacert=cacert, directories=directories)
    if auth.token and environ.get("PANDA_AUTH_TOKEN_KEY"):
        name = next(name for name in TOKEN_VARIABLES if environ.get(name))
        with suppress(CredentialError):  # it is missing: who asks the server will say so
            return {**environ, name: mirror.add(str(auth.token.find()))}, cacert
    elif auth.certificate and experiment.proxy_role(None):
        own = str(auth.certificate)
        copy = mirror.add(own)
        everywhere = copy != own and environ.get("X509_USER_PROXY", own) == own  # also for copy tools and Rucio
        return {**environ, "X509_USER_PROXY": copy} if everywhere else environ, copy if cacert else ""
    return environ, cacert


def _date(when: float) -> str:
    return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M:%S} UTC"
