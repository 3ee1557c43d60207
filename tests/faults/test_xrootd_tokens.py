"""XRootD that wants a token (WLCG profile): over roots:// by both ways of `xrdcp`, over https by `https`.

The issuer is nobody on the network: its key is in the server's cache of keys, as if it had been asked.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from pilot.errors import Code
from tests.faults.test_xrootd_security import DATA, both, local, run, run_all
from tests.parts import debian, x509
from tests.parts.x509 import Grid509
from tests.parts.xrootd import XrootdServer, server

ISSUER = "https://issuer.invalid"
_PLUGINS = "/usr/lib/x86_64-linux-gnu/libXrdAccSciTokens-5.so"

_CONFIG = """
xrd.tls {cert} {key}
xrd.tlsca certdir {ca}
xrootd.tls capable all
xrootd.seclib libXrdSec.so
sec.protocol ztn
sec.protbind * only ztn
ofs.authorize 1
ofs.authlib libXrdAccSciTokens.so config={top}/scitokens.cfg
http.header2cgi Authorization authz
"""


@dataclass
class Issuer:
    """Makes tokens."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def token(self, scope: str, seconds: int = 600) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "pilot", "aud": "https://wlcg.cern.ch/jwt/v1/any", "wlcg.ver": "1.0", "scope": scope,
            "iat": now - 1000, "nbf": now - 1000, "exp": now + seconds, "jti": str(now),
        }  # fmt: skip
        parts = [_text(json.dumps(part).encode()) for part in ({"alg": "ES256", "typ": "JWT", "kid": "k"}, claims)]
        signed = ".".join(parts)
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_text(r.to_bytes(32) + s.to_bytes(32))}"

    def remember(self, cache: Path) -> None:
        """Put the public key into the cache of a server."""
        numbers = self.key.public_key().public_numbers()
        public = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k"}
        public |= {"x": _text(numbers.x.to_bytes(32)), "y": _text(numbers.y.to_bytes(32))}
        later = int(time.time()) + 86400
        keys = json.dumps({"expires": later, "next_update": later, "jwks": {"keys": [public]}})
        (cache / "scitokens").mkdir(parents=True)
        with sqlite3.connect(cache / "scitokens" / "scitokens_cpp.sqllite") as database:
            database.execute("CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)")
            database.execute("INSERT INTO keycache VALUES (?, ?)", (ISSUER, keys))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def keys() -> Iterator[Grid509]:
    top = Path(tempfile.mkdtemp(prefix="x509-"))
    top.chmod(0o755)
    yield x509.make(top / "good")
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def store(keys: Grid509, issuer: Issuer) -> Iterator[XrootdServer]:
    debian("xrootd-scitokens-plugins", provides=[_PLUGINS])
    top = keys.top
    (top / "scitokens.cfg").write_text(
        f"[Issuer test]\nissuer = {ISSUER}\nbase_path = /granted\ndefault_user = xrootd\n"
    )
    issuer.remember(top / "cache")
    if os.geteuid() == 0:
        for path in (top / "host.key", top / "cache", *(top / "cache").rglob("*")):
            shutil.chown(path, "xrootd", "xrootd")
    names = {"ca": keys.ca, "cert": top / "host.pem", "key": top / "host.key", "top": top}
    with server(_CONFIG.format(**names), environ={"XDG_CACHE_HOME": str(top / "cache")}) as one:
        one.write("granted/in", DATA)
        one.write("elsewhere/in", DATA)
        yield one


def secure(server: XrootdServer) -> str:
    return local(server.url).replace("root:", "roots:")


@both
@pytest.mark.parametrize("how", ["BEARER_TOKEN", "BEARER_TOKEN_FILE"])
def test_a_token_opens_what_its_scope_says_both_ways(
    store: XrootdServer, keys: Grid509, issuer: Issuer, tmp_path: Path, use: str, how: str
) -> None:
    token = issuer.token("storage.read:/ storage.modify:/ storage.create:/")
    env = {"X509_CERT_DIR": str(keys.ca), how: token}
    if how == "BEARER_TOKEN_FILE":
        (tmp_path / "token").write_text(token)
        (tmp_path / "token").chmod(0o600)  # XRootD passes over one that others may read
        env[how] = str(tmp_path / "token")
    url = secure(store)
    path = tmp_path / "in"
    acts = ("get", f"{url}//granted/in", path), ("put", f"{url}//granted/{how}-{use}", path)
    got, put = run_all("xrdcp", use, env, *acts)
    assert got == {"size": len(DATA)}
    assert put == {"size": len(DATA)}
    assert (store.data / f"granted/{how}-{use}").read_bytes() == DATA


@both
def test_without_a_token_or_with_one_that_is_over_nothing_opens(
    store: XrootdServer, keys: Grid509, issuer: Issuer, tmp_path: Path, use: str
) -> None:
    for more in ({}, {"BEARER_TOKEN": issuer.token("storage.read:/", -10)}):
        env = {"X509_CERT_DIR": str(keys.ca), **more}
        got = run("xrdcp", use, "get", f"{secure(store)}//granted/in", tmp_path / "in", env)
        assert got["trait"] == "NEXT", got
        assert not (tmp_path / "in").exists()
    assert got["code"] in (Code.STAGEINAUTHENTICATIONFAILURE, Code.XRDCPERROR), got


@both
def test_a_token_for_reading_does_not_write_nor_is_it_shown(
    store: XrootdServer, keys: Grid509, issuer: Issuer, tmp_path: Path, use: str
) -> None:
    token = issuer.token("storage.read:/")
    (tmp_path / "out").write_bytes(b"x")
    env = {"X509_CERT_DIR": str(keys.ca), "BEARER_TOKEN": token}
    put = run("xrdcp", use, "put", f"{secure(store)}//granted/refused-{use}", tmp_path / "out", env)
    assert put["trait"] == "NEXT", put
    assert token not in json.dumps(put)
    assert not (store.data / f"granted/refused-{use}").exists()


def test_https_takes_the_same_token(store: XrootdServer, keys: Grid509, issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(issuer.token("storage.read:/ storage.modify:/ storage.create:/") + "\n")
    env: dict[str, Any] = {"X509_CERT_DIR": str(keys.ca), "BEARER_TOKEN_FILE": str(tmp_path / "token")}
    url = local(store.http_url).replace("http", "davs")
    path = tmp_path / "in"
    acts = ("get", f"{url}/granted/in", path), ("put", f"{url}/granted/web", path)
    assert run_all("https", "", env, *acts) == [{"size": len(DATA)}] * 2
    assert (store.data / "granted/web").read_bytes() == DATA
