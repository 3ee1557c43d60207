"""Credentials for the server: a bearer token, else an X.509 client certificate, else none.

A variable names the file that holds the token, never the token itself; whoever renews it writes the file anew, so it is
read again when it changes. The server takes a token together with an `Origin` that names the virtual organisation
(`<vo>` or `<vo>.<role>`).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pilot.errors import Code, ServerError
from pilot.masking import Secret

#: Environment variables, the first that is set counts.
TOKEN_VARIABLES = ("PANDA_AUTH_TOKEN", "OIDC_AUTH_TOKEN")
ORIGIN_VARIABLES = ("PANDA_AUTH_ORIGIN", "OIDC_AUTH_ORIGIN")
DIRECTORY_VARIABLES = ("PANDA_AUTH_DIR", "OIDC_AUTH_DIR")

#: Largest token file read, bytes: a header of more than 8 kB is refused by common web servers.
_TOKEN_LIMIT = 65536

#: Characters of a relative name that is shown when there is no such file: a token is longer.
_LONGEST_NAME = 32

#: What a header value may hold; a token has no blanks inside either.
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")

Stamp = tuple[int, int, int]


class CredentialError(ServerError):
    """A credential is named but cannot be used."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, Code.NOPROXY)


def stamp(path: Path) -> Stamp:
    """What changes when a file is written anew: time, size, inode.

    Raises:
        OSError: it is not there.
    """
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


class TokenFile:
    """A file with a bearer token.

    Args:
        name: as the variable gives it: a path, or a name to look for.
        directories: where to look for a relative name after the current directory.
        tell: is given each token that is read, such as a masker's `add`.
    """

    def __init__(
        self, name: str, directories: Sequence[Path] = (), tell: Callable[[Secret], None] = lambda token: None
    ) -> None:
        self.name = name
        self._tell = tell
        self._places = _places(name, directories)
        self._lock = threading.Lock()
        self._read: tuple[Path, Stamp, Secret] | None = None

    def token(self) -> Secret:
        """The token as it is now.

        Raises:
            CredentialError: the file is missing, unreadable or empty, or holds what no header may. It does not show it.
        """
        path = self.find()
        try:
            now = stamp(path)
            with self._lock:
                if self._read is None or self._read[:2] != (path, now):
                    self._read = (path, now, read_secret(path))
                    self._tell(self._read[2])
                return self._read[2]
        except OSError as error:
            raise CredentialError(f"token file {path}: {error.strerror or error}") from None

    def renew(self, token: Secret) -> Path:
        """Put a new token in the place of the file.

        Raises:
            CredentialError: there is none. OSError: it cannot be written.
        """
        place = self.find()
        write_private(place, token.reveal().strip() + "\n")
        return place

    def find(self) -> Path:
        """Where it is.

        Raises:
            CredentialError: nowhere.
        """
        for path in self._places:
            if os.path.isfile(path):  # unlike the path's own method it takes what is too long for a name
                return path
        if not os.path.isabs(self.name) and len(self.name) > _LONGEST_NAME:
            raise CredentialError(f"no token file: {TOKEN_VARIABLES[0]} must name one, and may hold the token itself")
        places = ", ".join(str(path) for path in self._places)
        raise CredentialError(f"token file {self.name!r} not found; looked at: {places}")


def _places(name: str, directories: Sequence[Path]) -> list[Path]:
    path = Path(name)
    if path.is_absolute():
        return [path]
    return list(dict.fromkeys([path.absolute(), *(directory / path for directory in directories)]))


def write_private(path: Path, text: str) -> None:
    """Write a file anew, by rename, that only its owner may read.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    import tempfile

    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600; no other thread has the same
    try:
        with open(fd, "w", errors="surrogateescape") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


def read_secret(path: Path) -> Secret:
    """The token or key in a file.

    Raises:
        CredentialError: it is empty, or holds what no header may. It does not show it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = (
            file.read(_TOKEN_LIMIT).decode("utf-8", "replace").strip()
        )  # editors and `echo` end a file with a newline
    if not text:
        raise CredentialError(f"token file {path} is empty")
    good = _HEADER_VALUE.match(text)
    end = good.end() if good else 0
    if end != len(text):
        raise CredentialError(f"token file {path}: character {end + 1} of {len(text)} may not stand in a header")
    return Secret(text)


class Auth:
    """What to show to the server. Use one for the whole process; any thread may.

    Args:
        token: the token file, if there is one.
        origin: value of the `Origin` header that goes with it.
        certificate: file with client certificate, key and chain (a proxy); used only without a token.
    """

    def __init__(self, token: TokenFile | None = None, origin: str = "", certificate: Path | None = None) -> None:
        if origin and not _HEADER_VALUE.fullmatch(origin):
            raise CredentialError(f"origin {origin!r} may not stand in a header")
        self.origin = origin
        self.certificate = certificate if token is None else None
        self.token = token

    def headers(self) -> dict[str, str]:
        """The headers that say who is calling. They hold the token: never log them.

        Raises:
            CredentialError: the token cannot be read.
        """
        if self.token is None:
            return {}
        headers = {"Authorization": f"Bearer {self.token.token().reveal()}"}
        return headers | {"Origin": self.origin} if self.origin else headers

    @property
    def kind(self) -> str:
        """What is used, for a log line."""
        if self.token is not None:
            return f"token file {self.token.name}, origin {self.origin or 'none'}"
        return f"client certificate {self.certificate}" if self.certificate else "no credential"


def find_auth(
    environ: Mapping[str, str],
    *,
    cacert: str = "",
    directories: Sequence[Path] = (),
    tell: Callable[[Secret], None] = lambda token: None,
) -> Auth:
    """The credentials of this pilot.

    Args:
        environ: where the variables are looked up.
        cacert: client certificate from the command line (`--cacert`, which in Pilot 3 means the proxy, not a CA); it
            stands before `X509_USER_PROXY` and the usual place in `/tmp`, not before a token.
        directories: where a relative token file is looked for after the current directory and `PANDA_AUTH_DIR`: the
            launch and the work directory. `HOME` comes last.
        tell: is given each token that is read.

    Raises:
        CredentialError: the origin may not stand in a header.
    """
    name = _first(environ, TOKEN_VARIABLES)
    if name:
        file = TokenFile(name, _token_directories(environ, directories), tell)
        return Auth(file, _first(environ, ORIGIN_VARIABLES))
    return Auth(certificate=_find_certificate(environ, cacert))


def _token_directories(environ: Mapping[str, str], directories: Sequence[Path]) -> list[Path]:
    named, home = _first(environ, DIRECTORY_VARIABLES), environ.get("HOME", "")
    return [*([Path(named)] if named else []), *directories, *([Path(home)] if home else [])]


def _find_certificate(environ: Mapping[str, str], cacert: str) -> Path | None:
    named = cacert or environ.get("X509_USER_PROXY", "")
    if named:
        return Path(named)
    usual = Path(f"/tmp/x509up_u{os.getuid()}")  # noqa: S108 - where grid tools put it; ownership is checked here
    try:
        return usual if usual.stat().st_uid == os.getuid() else None
    except OSError:
        return None


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")
