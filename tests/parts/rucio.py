"""A real Rucio server on loopback: SQLite, one worker, and a broker for its traces.

SQLite takes one writer at a time, so there is one worker. `rucio` is one server for a session: a test makes scopes and
RSEs of its own (`make_scope`, `make_rse`). Traces are read from the file where the server writes them; without the
broker each of them would take 0.8 s.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import urllib3

from tests.parts import environment, free_port, listens, stop, wait_until

PACKAGES = ("rucio==41.5.1", "gunicorn==27.0.1", "coilmq==1.1.0")

ROOT = ("root", "root-user", "root-password")
PILOT, PASSWORD = "pilot", "pilot-password"
STRANGER = "stranger"

_CONFIG = """
[common]
logdir = {base}
loglevel = WARNING
[client]
rucio_host = {url}
auth_host = {url}
auth_type = userpass
[database]
default = sqlite:///{base}/rucio.db
[bootstrap]
userpass_identity = {root[1]}
userpass_pwd = {root[2]}
[policy]
permission = generic
schema = generic
[alembic]
cfg = {base}/alembic.ini
[api]
endpoints_add = traces
[trace]
tracedir = {base}/traces
brokers = 127.0.0.1
port = {broker_port}
topic = /topic/rucio.tracer
username = tracer
password = tracer
"""

_ALEMBIC = """
[alembic]
script_location = {repository}
sqlalchemy.url = sqlite:///{base}/rucio.db
[loggers]
keys = root
[handlers]
keys = none
[formatters]
keys =
[logger_root]
handlers = none
[handler_none]
class = NullHandler
args = ()
"""

_SCHEMA = """
from rucio.db.sqla.util import build_database, create_base_vo, create_root_account
build_database(), create_base_vo(), create_root_account()
"""


class RucioRefusedError(Exception):
    """The server's answer was no: its status and what it said."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status


@dataclass
class RucioServer:
    """A running server with accounts `pilot`, which may do everything, and `stranger`, which may do little."""

    base: Path
    port: int = field(default_factory=free_port)
    broker_port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    configs: Iterator[int] = field(default_factory=count)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def traces_url(self) -> str:
        """Where traces are sent."""
        return f"{self.url}/traces/"

    # --- for pilots

    def client_config(self, password: str = PASSWORD, account: str = PILOT, **client: str) -> Path:
        """A new `rucio.cfg` of a client, for `RUCIO_CONFIG`; `client` changes or adds lines of that section."""
        lines = {"rucio_host": self.url, "auth_host": self.url, "auth_type": "userpass", "account": account,
                 "username": account, "password": password, "request_retries": "0", **client}  # fmt: skip
        path = self.base / f"client-{next(self.configs)}.cfg"
        policy = "[policy]\npermission = generic\nschema = generic\n"
        path.write_text("".join(["[client]\n", *(f"{key} = {value}\n" for key, value in lines.items()), policy]))
        return path

    # --- what there is

    def make_scope(self, name: str, account: str = PILOT) -> str:
        """Make a scope; returns its name."""
        self.call("POST", f"/scopes/{account}/{name}")
        return name

    def make_rse(
        self, name: str, url: str, prefix: str = "//rucio/", site: str = "", kind: str = "DISK", **attributes: Any
    ) -> str:
        """Make a deterministic RSE on a server (`XrootdServer.url`) that everybody may fill; returns its name.

        Args:
            name: capitals, digits, `_` and `-`.
            url: scheme, host and port.
            prefix: of all paths there; rucio-clients look for it in URLs, so it must not be a part of their beginning.
            site: that it belongs to: clients there are on its LAN.
            kind: DISK or TAPE.
            attributes: further ones.
        """
        parts = urlsplit(url)
        self.call("POST", f"/rses/{name}", {"deterministic": True, "rse_type": kind})
        implementation = {"root": "xrootd.Default", "file": "posix.Default"}.get(parts.scheme, "gfal.Default")
        rights = {"read": 1, "write": 1, "delete": 1}
        protocol = {
            "hostname": parts.hostname or "localhost", "port": parts.port or 0, "prefix": prefix,
            "impl": f"rucio.rse.protocols.{implementation}",
            "domains": {"lan": rights, "wan": rights | {"third_party_copy_read": 1, "third_party_copy_write": 1}},
        }  # fmt: skip
        self.call("POST", f"/rses/{name}/protocols/{parts.scheme}", protocol)
        for key, value in {"site": site, **attributes}.items():
            if value != "":
                self.call("POST", f"/rses/{name}/attr/{key}", {"value": value})
        for account in (PILOT, STRANGER):
            self.call("POST", f"/accountlimits/local/{account}/{name}", {"bytes": 1 << 50})
        return name

    def pfn(self, rse: str, scope: str, name: str, scheme: str = "root") -> str:
        """Where the RSE has a file."""
        query = f"lfn={quote(f'{scope}:{name}')}&scheme={scheme}&domain=wan&operation=write"
        found = self.call("GET", f"/rses/{rse}/lfns2pfns?{query}")
        return str(found[f"{scope}:{name}"])

    def add_replica(self, rse: str, scope: str, name: str, *, size: int, adler32: str, **more: Any) -> None:
        """Declare a replica, wherever its bytes are; `more` is `md5`, `pfn`, `meta`."""
        file = {"scope": scope, "name": name, "bytes": size, "adler32": adler32, **more}
        self.call("POST", "/replicas", {"rse": rse, "files": [file], "ignore_availability": True})

    def make_dataset(self, scope: str, name: str, *files: str) -> None:
        """Make a dataset with files of the same scope that are known."""
        self.call("POST", f"/dids/{scope}/{quote(name)}", {"type": "DATASET"})
        if files:
            dids = [{"scope": scope, "name": file} for file in files]
            self.call("POST", f"/dids/{scope}/{quote(name)}/dids", {"dids": dids})

    # --- what became of it

    def did(self, scope: str, name: str) -> dict[str, Any] | None:
        """What the catalogue knows of a file or dataset; None if nothing."""
        try:
            found: dict[str, Any] = self.call("GET", f"/dids/{scope}/{quote(name)}")
        except RucioRefusedError as error:
            if error.status == 404:
                return None
            raise
        return found

    def meta(self, scope: str, name: str) -> dict[str, Any]:
        """Metadata: bytes, adler32, md5, guid, events, ..."""
        found: dict[str, Any] = self.call("GET", f"/dids/{scope}/{quote(name)}/meta")
        return found

    def files(self, scope: str, dataset: str) -> list[str]:
        """Names in a dataset."""
        found = self.call("GET", f"/dids/{scope}/{quote(dataset)}/files", stream=True)
        return sorted(entry["name"] for entry in found)

    def replicas(self, scope: str, name: str) -> dict[str, list[str]]:
        """PFNs of a file by RSE."""
        asked = {"dids": [{"scope": scope, "name": name}], "all_states": True}
        found = self.call("POST", "/replicas/list", asked, stream=True)
        return {rse: pfns for entry in found for rse, pfns in entry["rses"].items()}

    def traces(self) -> list[dict[str, Any]]:
        """All traces that arrived, the first first."""
        return [json.loads(line) for line in self._trace_lines() if line.startswith("{")]

    def trace_problems(self) -> list[str]:
        """What the server found wrong with traces: it takes those too."""
        return [line for line in self._trace_lines() if line.startswith("Problem")]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
        account: tuple[str, str, str] = ROOT,
    ) -> Any:
        """One request of the REST API as an account (with user and password); the JSON of the answer, if any.

        Args:
            method, path, body, headers: of the request.
            stream: the answer is one JSON a line: give a list.
            account: who asks.

        Raises:
            RucioRefusedError: the status is not 2xx.
        """
        if account[0] not in self.tokens:
            self.tokens[account[0]] = self._token(account)
        wanted = "application/x-json-stream" if stream else "application/json"
        given = {"X-Rucio-Auth-Token": self.tokens[account[0]], "Accept": wanted, **(headers or {})}
        answer = urllib3.request(
            method, self.url + path, body=json.dumps(body) if body is not None else None, headers=given, timeout=20
        )
        text = answer.data.decode()
        if answer.status // 100 != 2:
            raise RucioRefusedError(answer.status, text)
        if stream:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text) if text.startswith(("{", "[")) else text

    # --- its life

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It accepts connections and answers nobody."""
        os.killpg(self.processes[-1].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.processes[-1].pid, signal.SIGCONT)

    def start(self) -> None:
        """Make the database and start; wait until it answers."""
        binaries = environment("rucio", *PACKAGES)
        (self.base / "traces").mkdir()
        config = self.base / "server.cfg"
        config.write_text(_CONFIG.format(base=self.base, url=self.url, root=ROOT, broker_port=self.broker_port))
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.base), "RUCIO_CONFIG": str(config)}
        (repository,) = binaries.parent.glob("lib/python3*/site-packages/rucio/db/sqla/migrate_repo")
        (self.base / "alembic.ini").write_text(_ALEMBIC.format(base=self.base, repository=repository))
        schema = [str(binaries / "python"), "-c", _SCHEMA]
        done = subprocess.run(schema, cwd=self.base, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        self._run(environ, str(binaries / "coilmq"), "-b", "127.0.0.1", "-p", str(self.broker_port))
        self._run(
            environ,
            *(str(binaries / "gunicorn"), "-b", f"127.0.0.1:{self.port}", "-w", "1", "-t", "0"),
            *("--graceful-timeout", "1", "--no-control-socket", "rucio.web.rest.flaskapi.v1.main:application"),
        )
        wait_until(self._answers, f"the Rucio server answers, see {self.base}/server.log", 60)
        self._make_accounts()

    def end(self) -> None:
        """End it and its broker."""
        for process in reversed(self.processes):
            stop(process)
        self.processes.clear()

    def _run(self, environ: Mapping[str, str], *argv: str) -> None:
        with open(self.base / "server.log", "ab") as log:
            process = subprocess.Popen(
                argv, cwd=self.base, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)

    def _answers(self) -> bool:
        if any(process.poll() is not None for process in self.processes):
            pytest.fail(f"the Rucio server ended: {(self.base / 'server.log').read_text()[-2000:]}")
        return listens(self.port) and listens(self.broker_port) and "version" in self.call("GET", "/ping")

    def _make_accounts(self) -> None:
        for name in (PILOT, STRANGER):
            self.call("POST", f"/accounts/{name}", {"type": "SERVICE", "email": f"{name}@example.org"})
            identity = {"Username": name, "Password": PASSWORD, "Email": f"{name}@example.org"}
            headers = {f"X-Rucio-{key}": value for key, value in identity.items()}
            self.call("PUT", f"/identities/{name}/userpass", headers=headers)
        self.call("POST", f"/accounts/{PILOT}/attr/admin", {"key": "admin", "value": "true"})

    def _token(self, account: tuple[str, str, str]) -> str:
        names = ("X-Rucio-Account", "X-Rucio-Username", "X-Rucio-Password")
        answer = urllib3.request(
            "GET", f"{self.url}/auth/userpass", headers=dict(zip(names, account, strict=True)), timeout=20
        )
        if answer.status != 200:
            raise RucioRefusedError(answer.status, answer.data.decode())
        return answer.headers["X-Rucio-Auth-Token"]

    def _trace_lines(self) -> list[str]:
        path = self.base / "traces" / "trace"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def server(base: Path) -> Iterator[RucioServer]:
    """A server of one's own, in an empty directory."""
    one = RucioServer(base)
    try:
        one.start()
        yield one
    finally:
        one.end()


@pytest.fixture(scope="session")
def rucio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RucioServer]:
    """One server for all tests that leave it running."""
    base = tmp_path_factory.mktemp("rucio")
    with server(base) as one:
        yield one
    shutil.rmtree(base, ignore_errors=True)
