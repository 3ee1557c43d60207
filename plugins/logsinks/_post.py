"""HTTP POST for log sinks: one connection kept, TLS verified, answers sorted into `taken`, `later` and `never`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pilot.download import is_loopback
from pilot.logship.sink import SinkContext, SinkError

#: Answers after which the same batch may be taken: time-out, too early, too many requests, and faults of the server.
_LATER = (408, 425, 429)
#: Not allowed now, but a renewed credential may be: the job's lines wait for it.
_CREDENTIAL = (401, 403)
_SHOWN = 200


class Poster:
    """Sends bodies to one URL.

    Args:
        url: where to.
        context: trust, time-out, and whether plain http may leave the node.
        login: user and password for basic authentication.

    Raises:
        SinkError: the URL cannot be used.
    """

    def __init__(self, url: str, context: SinkContext, login: tuple[str, str] | None = None) -> None:
        check_url(url, context)
        self._url = url
        self._context = context
        self._login = login
        self._pool: Any = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The body of a good answer.

        Raises:
            SinkError: with `retry` as the answer suggests.
        """
        import urllib3

        try:
            answer = self._open().request(
                "POST",
                self._url,
                body=body,
                headers={**headers, **self._authorization()},
                timeout=self._context.timeout,
                retries=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise SinkError(f"{type(error).__name__}: {error}") from error
        if 200 <= answer.status < 300:
            return bytes(answer.data)
        said = answer.data[:_SHOWN].decode("utf-8", "replace").strip()
        retry = answer.status >= 500 or answer.status in (*_LATER, *_CREDENTIAL)
        raise SinkError(f"HTTP {answer.status} {said}", retry=retry, after=_seconds(answer.headers.get("Retry-After")))

    def close(self) -> None:
        """Close the connection."""
        if self._pool is not None:
            self._pool.clear()

    def _open(self) -> Any:
        if self._pool is None:
            import urllib3

            secure = self._url.startswith("https:") and self._context.tls
            self._pool = urllib3.PoolManager(1, ssl_context=self._context.tls() if secure else None)  # type: ignore[misc]
        return self._pool

    def _authorization(self) -> Mapping[str, str]:
        if self._login is None:
            return {}
        from urllib3.util import make_headers

        return make_headers(basic_auth=":".join(self._login))


def _seconds(text: str | None) -> float:
    """`Retry-After` in seconds; a date, its other form, is left to our own pauses."""
    return float(text) if text and text.isdecimal() else 0.0


def check_url(url: str, context: SinkContext) -> None:
    """Whether a log may go there.

    Raises:
        SinkError: the URL cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SinkError(f"{url!r}: expected http(s)://HOST:PORT", retry=False)
    if parts.scheme == "http" and not (context.allow_http or is_loopback(parts.hostname)):
        raise SinkError(f"{parts.hostname}: plain http would show the log; use https or --allow-http", retry=False)


def login_of(context: SinkContext, user: str, password: str) -> tuple[str, str] | None:
    """User and password from the job's pilotSecrets, if both are there."""
    if user not in context.secrets or password not in context.secrets:
        return None
    return context.secrets[user].reveal(), context.secrets[password].reveal()
