"""When credentials end, read from themselves: no program of the grid is needed."""

from __future__ import annotations

import base64
import json
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

_END = "-----END CERTIFICATE-----"
#: The last second that a date can show.
_YEAR_9999 = 253402300799.0


def token_end(token: str) -> float | None:
    """`exp` of a JSON web token (RFC 7519), seconds since 1970; None if it is none or has none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        end = float(claims["exp"])
    except (ValueError, TypeError, KeyError):
        return None
    return min(max(end, 0.0), _YEAR_9999) if end == end else None  # NaN is a number of JSON for Python


def certificate_end(path: Path) -> float | None:
    """When the first of the certificates of a file's chain ends, seconds since 1970; None if that cannot be read."""
    return chain_end(path.read_text(errors="replace"))


def secret_end(path: Path) -> float | None:
    """When the certificates or the token in a file end, seconds since 1970; None if they do not tell."""
    text = path.read_text(errors="replace")
    return chain_end(text) if "-----BEGIN" in text else token_end(text.strip())


def chain_end(text: str) -> float | None:
    """When the first of the certificates of a PEM text ends, seconds since 1970; None if that cannot be read."""
    starts = [part.rpartition("-----BEGIN")[2] for part in text.split(_END)[:-1]]
    try:
        return min(_not_after(ssl.PEM_cert_to_DER_cert(f"-----BEGIN{start}{_END}")) for start in starts)
    except (ValueError, IndexError):
        return None


class _Field(NamedTuple):
    tag: int
    content: bytes


def _not_after(der: bytes) -> float:
    """`notAfter` of a certificate (RFC 5280, 4.1): validity follows version (if any), number, algorithm and issuer."""
    certificate = _fields(der)[0].content
    body = _fields(_fields(certificate)[0].content)
    has_version = body[0].tag == 0xA0
    _, end = _fields(body[3 + has_version].content)
    form = "%y%m%d%H%M%SZ" if end.tag == 0x17 else "%Y%m%d%H%M%SZ"  # UTCTime, GeneralizedTime
    return datetime.strptime(end.content.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _fields(der: bytes) -> list[_Field]:
    """The fields of DER (X.690, 8.1) at one level: tag, length (long form if the top bit is set), content."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        found.append(_Field(tag, der[at : at + length]))
        at += length
    return found
