"""Checks of what we show to servers, and of whom we trust. No secret is put into a text."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pilot.credentials import find_key
from pilot.doctor.check import Finding, Level, Patient, failure, ok, warning
from pilot.server.auth import CredentialError, TokenFile
from pilot.server.expiry import certificate_end, token_end
from pilot.server.tls import find_directory

#: Seconds of life below which a credential may end before the first job does.
_SHORT = 3600.0


def credential(patient: Patient) -> Finding | None:
    """The token, else the client certificate: readable, ours alone, and not at its end."""
    try:
        auth = patient.auth()
        if auth.token:
            return _token(auth.token, patient)
        if auth.certificate:
            return _certificate(auth.certificate, patient)
    except CredentialError as error:
        return failure(error.detail, "correct the file, or the variable that names it")
    if not patient.has_server:
        return None
    return warning("none", "name a token file with PANDA_AUTH_TOKEN, or a proxy with X509_USER_PROXY")


def authorities(patient: Patient) -> Finding:
    """The directory of CAs if there is one, else the system's."""
    named = find_directory(patient.environ, patient.settings.capath)
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


def renews_token(patient: Patient) -> bool:
    """Whether a pilot has the key to let its token be renewed, which it does before it asks for a job."""
    named = patient.environ.get("PANDA_AUTH_TOKEN_KEY", "") if patient.settings.token_renewal else ""
    directory = Path(patient.environ.get("PANDA_AUTH_DIR") or ".")
    return find_key(named, [directory, patient.launch_dir, patient.workdir]) is not None


def _token(file: TokenFile, patient: Patient) -> Finding:
    path = file.find()
    found = _judged(f"token {path}", path, token_end(file.token().reveal()), "renew it")
    if found.level is Level.FAILURE and renews_token(patient):
        return warning(found.found, "the pilot has its key, and will let it be renewed")
    return _unlooked(found, patient)


def _certificate(path: Path, patient: Patient) -> Finding:
    patient.tls(path).context()  # that it fits its key
    return _unlooked(_judged(f"certificate {path}", path, certificate_end(path), "renew the proxy"), patient)


def _unlooked(found: Finding, patient: Patient) -> Finding:
    """With `-t` the pilot does not look at the end of its credential, so that cannot keep it from jobs."""
    excused = found.level is Level.FAILURE and not patient.settings.verify_proxy
    return replace(found, level=Level.WARNING) if excused else found


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
