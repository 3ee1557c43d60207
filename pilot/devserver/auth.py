"""Who may ask: a token with its Origin, a client certificate, or everybody where neither is configured."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pilot.devserver.messages import Identity
from pilot.masking import Secret

_NAME = "Loopback Pilot"  # the token's name in the recorded exchanges


@dataclass(frozen=True, slots=True)
class Guard:
    """The server's door.

    Attributes:
        token: the one bearer token that is good; None if none is asked for.
        origin: the `Origin` that goes with it, `<vo>` or `<vo>.<role>`. With the bare VO, the user has no role.
        certificates: whether client certificates are checked (TLS does, against `--client-ca`); each has the role.
    """

    token: Secret | None = None
    origin: str = ""
    certificates: bool = False

    def identify(self, headers: Mapping[str, str], certificate: Mapping[str, Any] | None = None) -> Identity:
        """Who sent these headers over a connection with this certificate (as `getpeercert` gives it)."""
        if self.token is None and not self.certificates:
            return Identity(_NAME, production=True)
        scheme, _, given = (headers.get("Authorization") or "").partition(" ")
        if self.token is not None and scheme:
            return self._by_token(self.token, given.strip(), headers.get("Origin") or "")
        if certificate:
            return Identity(_common_name(certificate), production=True)
        return Identity()

    def _by_token(self, token: Secret, given: str, origin: str) -> Identity:
        if not origin:
            return Identity(problem="Token decode failure. Origin is missing")
        vo, _, role = self.origin.partition(".")
        given_vo, _, given_role = origin.replace(":", ".").partition(".")
        if not hmac.compare_digest(given.encode(), token.reveal().encode()):
            return Identity(problem="Invalid token. Signature verification failed")
        if given_vo != vo:
            return Identity(problem=f"Unknown vo : {given_vo}")
        if given_role not in ("", role):
            return Identity(problem=f"Not a member of the {vo}/{given_role} group")
        return Identity(_NAME, production=given_role == role)


def _common_name(certificate: Mapping[str, Any]) -> str:
    """The person's name: the first CN that is no number, since a proxy's own CN is one."""
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    names = [value for key, value in pairs if key == "commonName" and not value.isdigit() and value != "proxy"]
    return names[0] if names else "unknown"
