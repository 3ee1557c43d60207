"""A second door to a Rucio server: TLS that takes grid certificates and proxies, and an issuer whose tokens it takes.

The server's own code reads the certificate's subject from `SSL_CLIENT_S_DN`, which a web server sets; here gunicorn
does. nginx with OpenSSL 3 cannot be told to accept proxies (RFC 3820), Python's `ssl` can.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from tests.parts import environment, free_port, listens, stop, wait_until, x509
from tests.parts.rucio import PACKAGES, PILOT, RucioServer

_APPLICATION = """
from rucio.web.rest.flaskapi.v1.main import application as rucio
NAMES = {"domainComponent": "DC", "commonName": "CN"}
def application(environ, start_response):
    subject = (environ["gunicorn.socket"].getpeercert() or {}).get("subject", ())
    environ["SSL_CLIENT_S_DN"] = "".join(f"/{NAMES[name]}={value}" for part in subject for name, value in part)
    return rucio(environ, start_response)
"""

_GUNICORN = """
import ssl
def ssl_context(config, default):
    context = default()
    context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
    return context
"""


class Issuer:
    """Makes tokens, and serves what others need to verify them."""

    def __init__(self, keys: x509.Grid509) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys.top / "host.pem", keys.top / "host.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @cached_property
    def key(self) -> rsa.RSAPrivateKey:
        """What tokens are signed with."""
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, seconds: float = 600, key: rsa.RSAPrivateKey | None = None, **claims: Any) -> str:
        """A token of the pilot for Rucio."""
        told = {"sub": "pilot", "iss": self.url, "aud": "rucio", "scope": "openid profile", "iat": int(time.time())}
        told |= {"exp": int(time.time() + seconds), **claims}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, told))
        signature = (key or self.key).sign(text.encode(), padding.PKCS1v15(), SHA256())
        return f"{text}.{_encoded(signature)}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _documents(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        n, e = (_encoded(number.to_bytes(256, "big").lstrip(b"\0")) for number in (numbers.n, numbers.e))
        places = {f"{name}_endpoint": f"{self.url}/{name}" for name in ("authorization", "token", "introspection")}
        about = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", "response_types_supported": ["code"],
                 "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"]}  # fmt: skip
        return {
            "/.well-known/openid-configuration": {**about, **places},
            "/keys": {"keys": [{"kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256", "n": n, "e": e}]},
        }

    def _handler(issuer) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = issuer._documents().get(self.path)
                body = json.dumps(found).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler


@dataclass
class Door:
    """The server by TLS. The pilot's account belongs to `keys`' user and to the issuer's tokens."""

    url: str
    keys: x509.Grid509
    issuer: Issuer

    def environ(self, **credential: str | Path) -> dict[str, str]:
        """What a pilot has that is told nothing but where the server is."""
        given = {"PATH": os.environ["PATH"], "X509_CERT_DIR": self.keys.ca, "RUCIO_ACCOUNT": PILOT, **credential}
        return {name: str(value) for name, value in given.items()}


@contextmanager
def door(rucio: RucioServer, top: Path) -> Iterator[Door]:
    """Open it; takes two seconds."""
    keys = x509.make(top / "keys")
    issuer = Issuer(keys)
    for kind, identity in (("X509", keys.dn), ("OIDC", f"SUB=pilot, ISS={issuer.url}")):
        new = {"identity": identity, "authtype": kind, "email": "pilot@example.org", "default": True}
        rucio.call("POST", f"/accounts/{PILOT}/identities", new)
    port = free_port()
    with _running(rucio, top, keys, issuer, port):
        yield Door(f"https://localhost:{port}", keys, issuer)
    issuer.close()


@contextmanager
def _running(rucio: RucioServer, top: Path, keys: x509.Grid509, issuer: Issuer, port: int) -> Iterator[None]:
    client = {"issuer": issuer.url, "client_id": "rucio", "client_secret": "secret", "redirect_uris": [issuer.url]}
    (top / "idp.json").write_text(json.dumps({"local": {**client, "SCIM": client}}))
    oidc = f"[oidc]\nidpsecrets = {top}/idp.json\nadmin_issuer = local\n"
    (top / "server.cfg").write_text((rucio.base / "server.cfg").read_text() + oidc)
    (top / "tls_rucio.py").write_text(_APPLICATION)
    (top / "hooks.py").write_text(_GUNICORN)
    argv = [
        *(environment("rucio", *PACKAGES) / "gunicorn", "-c", top / "hooks.py", "-b", f"127.0.0.1:{port}"),
        *("-w", "1", "-t", "0", "--graceful-timeout", "1", "--no-control-socket", "--ca-certs", keys.ca_file),
        *("--certfile", keys.top / "host.pem", "--keyfile", keys.top / "host.key", "--cert-reqs", "1"),
        "tls_rucio:application",
    ]
    environ: Mapping[str, str | Path] = {
        "PATH": os.environ["PATH"], "HOME": top, "RUCIO_CONFIG": top / "server.cfg", "PYTHONPATH": top,
        "REQUESTS_CA_BUNDLE": keys.ca_file,
    }  # fmt: skip
    with open(top / "server.log", "wb") as log:
        process = subprocess.Popen(argv, cwd=top, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port), f"Rucio listens by TLS, see {top}/server.log")
        yield
    finally:
        stop(process)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
