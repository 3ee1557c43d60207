"""Trust: which certificate authorities vouch for a server, and the client certificate it may ask for.

A certificate is always verified, and so is the host name. There is no switch for it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pilot.server.auth import CredentialError, Stamp, stamp

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

#: Variables that name a file of CAs; all that are set are trusted beside the system's.
BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")

#: Where grid software has its CAs.
GRID_CAS = "/etc/grid-security/certificates"

#: The name OpenSSL looks for in a directory of CAs: hash of the subject, then a number.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
_PEM_SUFFIXES = (".pem", ".crt", ".cer")


class Tls:
    """Makes the context for connections, and makes it anew when the client certificate was renewed.

    Args:
        certificate: file with client certificate, key and chain (a proxy), or None.
        directory: directory of CAs (`--capath`, `X509_CERT_DIR`), or empty. Grid directories are hashed and OpenSSL
            finds a CA there by its hash when it needs it; in a directory that is not (fewer hashed names than *.pem,
            *.crt and *.cer files) each such file is loaded.
        bundles: files of CAs.
    """

    def __init__(self, certificate: Path | None = None, directory: str = "", bundles: Iterable[str] = ()) -> None:
        self._certificate = certificate
        self._directory = directory
        self._bundles = tuple(bundles)
        self._lock = threading.Lock()
        self._made: tuple[Stamp | None, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """The context to use now. Reads files: call it in a thread.

        Raises:
            CredentialError: the client certificate cannot be used.
        """
        try:
            now = stamp(self._certificate) if self._certificate else None
        except OSError as error:
            raise CredentialError(f"client certificate {self._certificate}: {error.strerror or error}") from None
        with self._lock:
            if self._made is None or self._made[0] != now:
                self._made = (now, self._make())
            return self._made[1]

    def _make(self) -> ssl.SSLContext:
        import ssl

        context = ssl.create_default_context()
        # Python 3.13 turns this on; CA certificates of the grid's age break its rules (no authority key identifier)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        for bundle in self._bundles:
            _trust(context, Path(bundle))
        if self._directory:
            _trust_directory(context, Path(self._directory))
        if self._certificate:
            _show(context, self._certificate)
        return context


def find_tls(environ: Mapping[str, str], *, certificate: Path | None = None, capath: str = "") -> Tls:
    """Trust in the system's CAs, a directory of them (`find_directory`) and `BUNDLE_VARIABLES`."""
    bundles = dict.fromkeys(environ[name] for name in BUNDLE_VARIABLES if environ.get(name))
    return Tls(certificate, find_directory(environ, capath), bundles)


def find_directory(environ: Mapping[str, str], capath: str) -> str:
    """The directory of CAs: the first that is there of `capath`, `X509_CERT_DIR`, `GRID_CAS` (PILOT3 2.1) and ALRB's.

    ALRB's is on CVMFS, where the wrapper of ATLAS looks too. If there is none: what was named, else an empty text.
    """
    named = [place for place in (capath, environ.get("X509_CERT_DIR", "")) if place]
    alrb = environ.get("ATLAS_LOCAL_ROOT_BASE", "")
    known = [GRID_CAS, *([f"{alrb}/etc/grid-security-emi/certificates"] if alrb else [])]
    return next(filter(os.path.isdir, [*named, *known]), named[0] if named else "")


def _trust(context: ssl.SSLContext, path: Path) -> None:
    """Add the CAs of a file, or of a directory, as `REQUESTS_CA_BUNDLE` may name either."""
    import ssl

    if path.is_dir():
        _trust_directory(context, path)
        return
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        log.warning("no CA certificates from %s: %s", path, error.strerror or error)


def _trust_directory(context: ssl.SSLContext, directory: Path) -> None:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError as error:
        log.warning("no CA certificates from %s: %s", directory, error.strerror or error)
        return
    context.load_verify_locations(capath=directory)
    plain = [name for name in names if name.endswith(_PEM_SUFFIXES)]
    if sum(1 for name in names if _HASHED.fullmatch(name)) < len(plain):
        for name in plain:
            _trust(context, directory / name)


def _show(context: ssl.SSLContext, certificate: Path) -> None:
    """Present a client certificate. A key with a pass phrase cannot be used: nobody is there to type it."""
    import ssl

    try:
        context.load_cert_chain(certificate, certificate, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CredentialError(f"client certificate {certificate} cannot be used: {reason}") from None
