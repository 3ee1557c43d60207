"""Checks of what we show to servers, and of whom we trust. No secret is put into a text."""

from __future__ import annotations

import base64
import json
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pilot.doctor.check import Finding, Patient, failure, ok, warning
from pilot.server.auth import CredentialError, TokenFile

#: Seconds of life below which a credential may end before the first job does.
_SHORT = 3600.0

_END = "-----END CERTIFICATE-----"


def credential(patient: Patient) -> Finding | None:
    """The token, else the client certificate: readable, ours alone, and not at its end."""
    try:
        auth = patient.auth()
        if auth.token:
            return _token(auth.token)
        if auth.certificate:
            return _certificate(auth.certificate, patient)
    except CredentialError as error:
        return failure(error.detail, "correct the file, or the variable that names it")
    if not patient.has_server:
        return None
    return warning("none", "name a token file with PANDA_AUTH_TOKEN, or a proxy with X509_USER_PROXY")


def authorities(patient: Patient) -> Finding:
    """The directory of CAs if one is named, else the system's."""
    named = patient.settings.capath
    if not named:
        paths = ssl.get_default_verify_paths()
        places = [place for place in (paths.cafile, paths.capath) if place]
        if places:
            return ok(f"the system's: {', '.join(places)}")
        return warning("the system has none", "install ca-certificates, or name a directory with --capath")
    try:
        names = [path.name for path in Path(named).iterdir()]
    except OSError as error:
        return failure(f"{named}: {error.strerror}", "correct --capath or X509_CERT_DIR, or install the CAs there")
    count = sum(name.endswith((".0", ".pem", ".crt", ".cer")) for name in names)
    if not count:
        return failure(f"{named} has no CA", "install the CAs there, or correct --capath or X509_CERT_DIR")
    return ok(f"{named}: {count} files")


def _token(file: TokenFile) -> Finding:
    path = file.find()
    return _judged(f"token {path}", path, token_end(file.token().reveal()), "renew it")


def _certificate(path: Path, patient: Patient) -> Finding:
    patient.tls(path).context()  # that it fits its key
    return _judged(f"certificate {path}", path, certificate_end(path), "renew the proxy")


def _judged(what: str, path: Path, end: float | None, advice: str) -> Finding:
    left = None if end is None else end - time.time()
    if left is not None and end is not None and left <= 0:
        return failure(f"{what} ended {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M:%S} UTC", advice)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return warning(f"{what} can be used by others (mode {mode:o})", f"chmod 600 {path}")
    if left is None:
        return ok(f"{what}, its end cannot be read")
    found = f"{what}, {left / 3600:.1f} h left"
    return warning(found, advice) if left < _SHORT else ok(found)


def token_end(token: str) -> float | None:
    """`exp` of a JSON web token (RFC 7519), seconds since 1970; None if it is none or has none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (ValueError, TypeError, KeyError):
        return None


def certificate_end(path: Path) -> float | None:
    """When the first of the certificates of a file's chain ends, seconds since 1970; None if that cannot be read."""
    text = path.read_text(errors="replace")
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
