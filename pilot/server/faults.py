"""How a call can fail, told apart by what to do next. All are `ServerError`: callers outside this room need no more."""

from __future__ import annotations

from pilot.errors import ServerError

#: What the server's numbers mean (panda-server 1.0.4, `jobdispatcher/Protocol.py`).
STATUS_TEXTS = {
    10: "the server ran into its own timeout",
    20: "no jobs",
    30: "the server's database refused it, or the job belongs to another batch id",
    50: "the server finds the job state or its token invalid",
    60: "the credential lacks the production or pilot role",
    70: "the credential is not permitted to do this",
    80: "a key is missing on the server",
    90: "the server could not get a proxy",
}

#: Numbers that may be gone the next time.
_PASSING = (10, 30)


class UnavailableError(ServerError):
    """No usable answer this time: refused, reset, timeout, 5xx, garbage, database trouble. Another try may do."""


class RefusedError(ServerError):
    """The server understood and said no. The same again will be refused again."""


class AuthRefusedError(RefusedError):
    """The credential was not accepted; a renewed one may be, so a few more tries are worth while."""


class NotServedError(ServerError):
    """This server does not have the method: it speaks the other API."""


class KeyRefusedError(RefusedError):
    """The server does not take one of the arguments.

    Args:
        key: which.
        detail: the server's words.
        lasting: True if it is the server's version that does not know the key, False if only this value failed.
    """

    def __init__(self, key: str, detail: str, *, lasting: bool = True) -> None:
        super().__init__(detail)
        self.key = key
        self.lasting = lasting


def of_status(number: int, words: str = "") -> ServerError:
    """The error for a `StatusCode` that is not 0, with the server's own words if it had any."""
    meaning = STATUS_TEXTS.get(number, "unknown status")
    text = f"StatusCode {number}: {meaning}" + (f" ({words})" if words else "")
    return UnavailableError(text) if number in _PASSING else RefusedError(text)
