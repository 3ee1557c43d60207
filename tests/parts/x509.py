"""Grid certificates made by openssl: a CA, a host, a user, and proxies of that user (RFC 3820)."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.parts import program

_PROXY = """
[proxy]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
proxyCertInfo = critical,language:id-ppl-inheritAll
"""
_HOST = """
[host]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost,IP:127.0.0.1
extendedKeyUsage = serverAuth,clientAuth
"""
_USER = """
[user]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
"""
_CA = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign,digitalSignature
subjectKeyIdentifier = hash
"""


@dataclass(frozen=True)
class Grid509:
    """Certificates below a directory: `ca` (as of IGTF, by hash), `host.pem`, `host.key`, `user.pem`, `proxy`."""

    top: Path

    @property
    def ca(self) -> Path:
        return self.top / "ca"

    @property
    def ca_file(self) -> Path:
        return self.top / "ca.pem"

    @property
    def proxy(self) -> Path:
        return self.top / "proxy"

    @property
    def dn(self) -> str:
        """The user's, as in a grid-mapfile."""
        return f"/DC=test/CN={self.top.name} user"


def make(top: Path) -> Grid509:
    """Make all of them; takes half a second."""
    top.mkdir()
    made = Grid509(top)
    (top / "openssl.cnf").write_text(_CA + _HOST + _USER + _PROXY)
    _openssl(
        top, "req", "-x509", *_new("ca.key"), "-days", "2", "-subj", f"/DC=test/CN={top.name} CA", "-out", "ca.pem",
        "-extensions", "ca", "-config", "openssl.cnf",
    )  # fmt: skip
    made.ca.mkdir()
    digest = _openssl(top, "x509", "-in", "ca.pem", "-noout", "-hash").strip()
    shutil.copy(top / "ca.pem", made.ca / f"{digest}.0")
    (made.ca / f"{digest}.signing_policy").write_text(
        f"access_id_CA X509 '/DC=test/CN={top.name} CA'\n"
        "pos_rights globus CA:sign\n"
        "cond_subjects globus '\"/DC=test/*\"'\n"
    )
    _signed(top, "host", "/DC=test/CN=localhost", "ca", "host")
    _signed(top, "user", f"/DC=test/CN={top.name} user", "ca", "user")
    proxy(made, "proxy")
    return made


def proxy(made: Grid509, name: str, *, days: int = 1, number: int = 4711) -> Path:
    """A proxy of the user, below the same directory; one of -1 days is over."""
    top = made.top
    _signed(top, name, f"/DC=test/CN={top.name} user/CN={number}", "user", "proxy", days=days)
    parts = [(top / part).read_text() for part in (f"{name}.pem", f"{name}.key", "user.pem")]
    path = top / name
    path.write_text("".join(parts))
    path.chmod(0o600)
    return path


def _signed(top: Path, name: str, subject: str, by: str, extensions: str, days: int = 2) -> None:
    config = ["-config", "openssl.cnf"]
    _openssl(top, "req", *_new(f"{name}.key"), "-subj", subject, "-out", f"{name}.csr", *config)
    _openssl(
        top, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial",
        "-days", str(days), "-out", f"{name}.pem", "-extfile", "openssl.cnf", "-extensions", extensions,
    )  # fmt: skip


def _new(key: str) -> list[str]:
    return ["-newkey", "rsa:2048", "-nodes", "-keyout", key]


def _openssl(top: Path, *arguments: str) -> str:
    argv = [program("openssl"), *arguments]
    done = subprocess.run(argv, cwd=top, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
