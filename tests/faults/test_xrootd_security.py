"""XRootD behind GSI and TLS, and its HTTPS: who has what it takes gets files, who has not gets the right code.

Both ways of `xrdcp`, the bindings and the programs, and `https`. Each case is a process of its own, as XRootD's client
reads credentials from the environment of its process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.errors import Code
from tests.parts import x509
from tests.parts.x509 import Grid509
from tests.parts.xrootd import XrootdServer, server

ROOT = Path(__file__).parents[2]
DATA = b"0123456789" * 100_000

#: What runs in each process: gets and puts by a tool, one after the other; a line of JSON for each.
_DRIVER = """
import json, sys
from pathlib import Path
from os import environ
from pilot.errors import PilotError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.errors import Code, TransferError
from pilot.processes import Processes
from pilot.staging.handle import TransferHandle
from pilot.staging.toolbox import find_tool
from pilot.stop import Stop
from pilot.testing.copytool import checksums

tool, options, acts = json.loads(sys.argv[1])
given = dict(environ) | ({"X509_USER_PROXY": environ["COPY"]} if "COPY" in environ else {})
found = find_tool(tool)(ToolContext(options=options, environ=given))
for act, url, name in acts:
    path = Path(name)
    kind = Kind.INPUT if act == "get" else Kind.OUTPUT
    facts = {"size": path.stat().st_size, "checksums": checksums(path.read_bytes())} if act == "put" else {}
    transfer = Transfer(file=File(lfn=path.name, kind=kind), url=url, path=path, **facts)
    late = TransferError(Code.COMMANDTIMEDOUT, "late")
    handle = TransferHandle(Stop(), Processes(), 50.0, late, given)
    try:
        stored = getattr(found, act)(transfer, handle)
        print(json.dumps({"size": stored.size}))
    except PilotError as error:
        print(json.dumps({"code": int(error.code), "trait": error.trait.name, "diag": error.diag}))
"""

_GSI = """
xrootd.seclib libXrdSec.so
sec.protocol gsi -certdir:{ca} -cert:{cert} -key:{key} -crl:0 -gmapopt:11 -gridmap:{gridmap} -vomsat:0
sec.protbind * only gsi
ofs.authorize 1
acc.authdb {{base}}/authdb
"""
_TLS = """
xrd.tls {cert} {key}
xrd.tlsca certdir {ca}
xrootd.tls all
"""
_HTTPS = """
xrd.tls {cert} {key}
xrd.tlsca certdir {ca}
http.gridmap {gridmap}
ofs.authorize 1
acc.authdb {{base}}/authdb
"""
_AUTHDB = "u tester /granted a\nu nobody / l\n"


@pytest.fixture(scope="module")
def keys() -> Iterator[Grid509]:
    top = Path(tempfile.mkdtemp(prefix="x509-"))
    top.chmod(0o755)
    made = x509.make(top / "good")
    (made.top / "gridmap").write_text(f'"{made.dn}" tester\n')
    if os.geteuid() == 0:
        shutil.chown(made.top / "host.key", "xrootd", "xrootd")
    x509.proxy(made, "late", days=-1)
    x509.make(top / "stranger")
    yield made
    shutil.rmtree(top)


def _server(extra: str, keys: Grid509) -> Any:
    top = keys.top
    names = {"ca": keys.ca, "cert": top / "host.pem", "key": top / "host.key", "gridmap": top / "gridmap"}
    return server(extra.format(**names), authdb=_AUTHDB)


@pytest.fixture(scope="module")
def gsi(keys: Grid509) -> Iterator[XrootdServer]:
    with _server(_GSI, keys) as one:
        one.write("granted/in", DATA)
        one.write("elsewhere/in", DATA)
        yield one


@pytest.fixture(scope="module")
def tls(keys: Grid509) -> Iterator[XrootdServer]:
    with _server(_TLS, keys) as one:
        one.write("granted/in", DATA)
        yield one


@pytest.fixture(scope="module")
def web(keys: Grid509) -> Iterator[XrootdServer]:
    with _server(_HTTPS, keys) as one:
        one.write("granted/in", DATA)
        yield one


def run(tool: str, use: str, act: str, url: str, path: Path, env: Mapping[str, str]) -> dict[str, Any]:
    (found,) = run_all(tool, use, env, (act, url, path))
    return found


def run_all(tool: str, use: str, env: Mapping[str, str], *acts: tuple[str, str, Path]) -> list[dict[str, Any]]:
    """Several in one process: a process costs more than they do."""
    words = json.dumps([tool, {"use": use} if use else {}, acts], default=str)
    plain = {
        "PATH": os.environ["PATH"],
        "HOME": str(acts[0][2].parent),
        "PYTHONPATH": str(ROOT),
        "XRD_LOGLEVEL": "Error",
    }
    argv = [sys.executable, "-c", _DRIVER, words]
    done = subprocess.run(argv, env={**plain, **env}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(acts) :]]


def with_proxy(keys: Grid509, name: str = "proxy") -> dict[str, str]:
    return {"X509_CERT_DIR": str(keys.ca), "X509_USER_PROXY": str(keys.top / name)}


def local(url: str) -> str:
    """By the name that is in the certificate."""
    return url.replace("127.0.0.1", "localhost")


both = pytest.mark.parametrize("use", ["bindings", "programs"])


@both
def test_a_proxy_opens_what_it_is_granted_both_ways(gsi: XrootdServer, keys: Grid509, tmp_path: Path, use: str) -> None:
    env = with_proxy(keys)
    granted, path = f"{local(gsi.url)}//granted", tmp_path / "in"
    acts = ("get", f"{granted}/in", path), ("put", f"{granted}/out-{use}", path)
    assert run_all("xrdcp", use, env, *acts) == [{"size": len(DATA)}] * 2
    assert path.read_bytes() == DATA
    assert (gsi.data / f"granted/out-{use}").read_bytes() == DATA
    assert not list(gsi.data.rglob("*.partial"))


@both
def test_a_copy_of_the_proxy_that_the_pilot_keeps_stands_before_the_environment(
    gsi: XrootdServer, keys: Grid509, tmp_path: Path, use: str
) -> None:
    env = with_proxy(keys, "late") | {"COPY": str(keys.proxy)}
    got = run("xrdcp", use, "get", f"{local(gsi.url)}//granted/in", tmp_path / "in", env)
    assert got == {"size": len(DATA)}


@both
@pytest.mark.parametrize(
    "name", ["", "late", "../stranger/proxy"], ids=["no proxy", "a proxy that is over", "a stranger"]
)
def test_who_has_no_good_proxy_is_told_so_and_another_place_is_tried(
    gsi: XrootdServer, keys: Grid509, tmp_path: Path, use: str, name: str
) -> None:
    env = with_proxy(keys, name) if name else {"X509_CERT_DIR": str(keys.ca), "X509_USER_PROXY": str(tmp_path / "no")}
    granted = f"{local(gsi.url)}//granted"
    (tmp_path / "out").write_bytes(b"x")
    acts = ("get", f"{granted}/in", tmp_path / "in"), ("put", f"{granted}/refused", tmp_path / "out")
    got, put = run_all("xrdcp", use, env, *acts)
    assert (got["code"], got["trait"]) == (Code.STAGEINAUTHENTICATIONFAILURE, "NEXT"), got
    assert not (tmp_path / "in").exists()
    assert (put["code"], put["trait"]) == (Code.STAGEOUTAUTHENTICATIONFAILURE, "NEXT"), put
    assert not (gsi.data / "granted/refused").exists()


@both
def test_a_path_that_is_not_granted_is_an_error_that_no_retry_helps(
    gsi: XrootdServer, keys: Grid509, tmp_path: Path, use: str
) -> None:
    got = run("xrdcp", use, "get", f"{local(gsi.url)}//elsewhere/in", tmp_path / "in", with_proxy(keys))
    assert got["trait"] == "NEXT", got
    assert "denied" in got["diag"].lower() or "3010" in got["diag"], got
    assert not (tmp_path / "in").exists()


@both
@pytest.mark.parametrize("scheme", ["roots", "xroots", "root"])
def test_tls_is_spoken_where_the_server_wants_it(
    tls: XrootdServer, keys: Grid509, tmp_path: Path, use: str, scheme: str
) -> None:
    url = local(tls.url).replace("root", scheme)
    env = {"X509_CERT_DIR": str(keys.ca)}
    path = tmp_path / "in"
    acts = ("get", f"{url}//granted/in", path), ("put", f"{url}//granted/{scheme}-{use}", path)
    assert run_all("xrdcp", use, env, *acts) == [{"size": len(DATA)}] * 2
    assert (tls.data / f"granted/{scheme}-{use}").read_bytes() == DATA


@both
def test_a_server_with_a_certificate_of_nobody_we_trust_gets_and_gives_nothing(
    tls: XrootdServer, keys: Grid509, tmp_path: Path, use: str
) -> None:
    url = local(tls.url).replace("root", "roots")
    env = {"X509_CERT_DIR": str(keys.top.parent / "stranger" / "ca")}
    got = run("xrdcp", use, "get", f"{url}//granted/in", tmp_path / "in", env)
    assert got["trait"] == "NEXT", got
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("scheme", ["https", "davs"])
def test_https_takes_a_proxy_for_what_it_is_granted(
    web: XrootdServer, keys: Grid509, tmp_path: Path, scheme: str
) -> None:
    url = local(web.http_url).replace("http", scheme)
    env = with_proxy(keys)
    path = tmp_path / "in"
    acts = ("get", f"{url}/granted/in", path), ("put", f"{url}/granted/{scheme}", path)
    assert run_all("https", "", env, *acts) == [{"size": len(DATA)}] * 2
    assert (web.data / f"granted/{scheme}").read_bytes() == DATA


def test_https_without_a_proxy_is_refused(web: XrootdServer, keys: Grid509, tmp_path: Path) -> None:
    url = local(web.http_url).replace("http", "https")
    got = run("https", "", "get", f"{url}/granted/in", tmp_path / "in", {"X509_CERT_DIR": str(keys.ca)})
    assert got["trait"] == "NEXT", got
    assert "403" in got["diag"] or "401" in got["diag"], got
    assert not (tmp_path / "in").exists()


def test_https_trusts_nobody_else_s_certificate(web: XrootdServer, keys: Grid509, tmp_path: Path) -> None:
    url = local(web.http_url).replace("http", "https")
    env = {"X509_CERT_DIR": str(keys.top.parent / "stranger" / "ca"), "X509_USER_PROXY": str(keys.proxy)}
    got = run("https", "", "get", f"{url}/granted/in", tmp_path / "in", env)
    assert (got["code"], got["trait"]) == (Code.STAGEINFAILED, "NEXT"), got
    assert "certificate" in got["diag"]
