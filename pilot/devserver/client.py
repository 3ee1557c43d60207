"""Start a devserver and talk to its own API: for tests, benchmarks and the demo. Needs the standard library only."""

from __future__ import annotations

import json
import select
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self, cast

from pilot.devserver.app import Settings
from pilot.devserver.faults import Fault
from pilot.devserver.server import Server

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT = 15.0  # s; it takes 0.2 s, but a loaded machine may be slow
_STOP_TIMEOUT = 5.0  # s from SIGTERM to SIGKILL
_CALL_TIMEOUT = 30.0  # s
_POLL = 0.02  # s between looks at the jobs' states
_ENDED = ("finished", "failed", "cancelled", "closed")


class DevServerError(Exception):
    """The server did not start, or refused a call."""


class Client:
    """The devserver API of a running server.

    Args:
        url: its address. ca: PEM with the CA of its certificate, for https.
    """

    def __init__(self, url: str, ca: Path | None = None) -> None:
        self.url = url
        # No proxy of the environment stands between us and loopback.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if ca:
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)))
        self._opener = urllib.request.build_opener(*handlers)

    def submit(self, jobs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[int]:
        """Offer one or more job definitions; returns their PandaIDs.

        A definition has the server's keys (`jobPars`, `inFiles`, ...); what is missing gets the server's defaults.
        `computingSite` restricts it to a queue; a true `_raw` sends it exactly as it is.
        """
        return cast(list[int], self._call("POST", "jobs", jobs)["ids"])

    def jobs(self) -> list[dict[str, Any]]:
        """`job` of all jobs, by id."""
        return cast(list[dict[str, Any]], self._call("GET", "jobs"))

    def job(self, job_id: int) -> dict[str, Any]:
        """Everything known of a job.

        Keys: `id`, `state`, `archived` (true once the adder is done), `queue`, `label`, `attempt`, `command`, `debug`,
        `created`, `modified` (seconds since 1970), `definition` (as sent to the pilot), `fields` (the last value
        of each that updates told, under v1 names), `files` (the final report's `{lfn: {...}}`), `ddm_error_code`,
        `ddm_error_diag` (the adder's complaint) and `updates`: in order, each with `time`, `api` (`v1` or `legacy`),
        `state`, `fields` (v1 names, numbers as numbers), `arguments` (as sent) and `answer` (`StatusCode`, `command`).
        """
        return cast(dict[str, Any], self._call("GET", f"jobs/{job_id}"))

    def states(self) -> dict[int, str]:
        """All jobs' states by id: activated, sent, starting, running, transferring, holding, finished, failed, ..."""
        return {int(job_id): state for job_id, state in self._call("GET", "states").items()}

    def wait(
        self, ids: Iterable[int] | None = None, timeout: float = 30.0, stop: threading.Event | None = None
    ) -> dict[int, str]:
        """Wait until jobs (all by default) have come to their end; returns all states.

        Args:
            ids: the jobs.
            timeout: seconds.
            stop: ends the wait early; then some may not have come to their end.

        Raises:
            TimeoutError: some have not.
        """
        wanted = None if ids is None else set(ids)
        deadline = time.monotonic() + timeout
        stop = stop or threading.Event()
        while True:
            states = self.states()
            waiting = [i for i, state in states.items() if state not in _ENDED and (wanted is None or i in wanted)]
            if not waiting or stop.wait(_POLL):
                return states
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:g} s: { {i: states[i] for i in waiting} }")

    def command(self, job_id: int, text: str) -> None:
        """Answer every update of a job with `text` until another replaces it.

        `debug` and `debugoff` switch debug mode, which stays beside another command; empty takes the command away.

        Raises:
            DevServerError: there is no such active job, or it is being killed.
        """
        self._call("POST", f"jobs/{job_id}/command", {"command": text})

    def kill(self, job_id: int, code: int | None = None) -> None:
        """Kill a job as the real server does: a running one hears `tobekilled`, code 9 ends any job at once."""
        self._call("POST", f"jobs/{job_id}/kill", {"code": code})

    def fault(self, fault: str | Fault) -> None:
        """Add a fault: `METHOD[@STATE]:KIND[=VALUE][:TIMES][:after]`, such as `update_job:reset:2`, or a `Fault`."""
        value = fault if isinstance(fault, str) else {name: getattr(fault, name) for name in Fault.__slots__}
        self._call("POST", "faults", value)

    def clear_faults(self) -> None:
        """Take away the faults that are still to come."""
        self._call("DELETE", "faults")

    def counters(self) -> dict[str, dict[str, int]]:
        """`calls` by v1 name, `statuses` of answers (0 is a reset), `faults` by kind."""
        return cast(dict[str, dict[str, int]], self._call("GET", "counters"))

    def notices(self, kind: str = "") -> list[dict[str, Any]]:
        """What was told beside jobs: `time`, `kind` (such as `update_worker_status`), `arguments`."""
        return cast(list[dict[str, Any]], self._call("GET", f"notices/{kind}".rstrip("/")))

    def settle(self) -> int:
        """Run the adder now for all final reports; returns how many jobs came to their end."""
        return cast(int, self._call("POST", "adder")["settled"])

    def _call(self, method: str, path: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(f"{self.url}/devserver/{path}", data=data, method=method)  # noqa: S310  (ours)
        request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=_CALL_TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise DevServerError(f"{method} {path}: {error.read().decode('utf-8', 'replace')}") from None


class LocalDevServer(Client):
    """A devserver in a thread of this process: the quickest for unit tests. Use as a context manager, or `close` it."""

    def __init__(self, settings: Settings | None = None, ca: Path | None = None) -> None:
        self.server = Server(settings or Settings()).start()
        super().__init__(self.server.url, ca)

    def close(self) -> None:
        """Stop it."""
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DevServer(Client):
    """A devserver in a process of its own. Use as a context manager, or `close` it.

    Args:
        jobs: file or directory of definitions to offer from the start.
        api: `v1`, `legacy` or `both`.
        files: directory to serve under `/cache/`. state: SQLite file. record: JSONL file for the exchanges.
        token, origin: credentials to ask for. cert, key, client_ca: PEM files for TLS and client certificates.
        ca: PEM to check the server's certificate with; by default the certificate itself.
        grants: `proxy`, `token` or `keys` to a file with what is handed out.
        faults: as for `fault`. adder_delay: seconds from a final report to the last state.
        host, port: where it listens; port 0 is any.

    Attributes:
        url: where it answers. pid: its process. returncode: its exit code after `close`, 0 if it ended well.

    Raises:
        DevServerError: it did not start; the text has its own words.
    """

    def __init__(
        self,
        *,
        jobs: Path | None = None,
        api: str = "both",
        files: Path | None = None,
        state: Path | None = None,
        record: Path | None = None,
        token: str | None = None,
        origin: str | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        client_ca: Path | None = None,
        ca: Path | None = None,
        faults: Sequence[str] = (),
        grants: Mapping[str, Path] = MappingProxyType({}),
        adder_delay: float = 0.2,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.returncode: int | None = None
        self._own = Path(tempfile.mkdtemp(prefix="devserver-"))
        paths = {"jobs": jobs, "files": files, "state": state, "record": record}
        paths |= {"cert": cert, "key": key, "client-ca": client_ca, "token": self._token_file(token)}
        arguments = [f"--{name}={path.resolve()}" for name, path in paths.items() if path is not None]
        arguments += [f"--fault={fault}" for fault in faults]
        arguments += [f"--grant={what}={path.resolve()}" for what, path in grants.items()]
        arguments += [f"--origin={origin}"] if origin else []
        arguments += [f"--api={api}", f"--adder-delay={adder_delay}", f"--host={host}", f"--port={port}"]
        self._errors = (self._own / "stderr").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pilot.devserver", *arguments],
            cwd=_ROOT,  # so that `-m` finds this pilot, installed or not
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the pilot beside it, which has to report yet
        )
        self.pid = self._process.pid
        try:
            super().__init__(self._wait_for_url(), ca or cert)
        except BaseException:
            self.close()
            raise

    def _token_file(self, token: str | None) -> Path | None:
        """The token in a file that only we can read: command lines can be read by everybody on the machine."""
        if token is None:
            return None
        path = self._own / "token"
        path.touch(mode=0o600)
        path.write_text(token, encoding="utf-8")
        return path

    def _wait_for_url(self) -> str:
        out = cast(IO[bytes], self._process.stdout)
        ready, _, _ = select.select([out], [], [], _START_TIMEOUT)
        line = out.readline().decode().strip() if ready else ""
        if not line:
            self._errors.seek(0)
            raise DevServerError(f"the devserver did not start: {self._errors.read().strip() or 'no answer'}")
        return line

    def close(self) -> None:
        """End the process, with force if it does not end by itself within 5 s. May be called twice."""
        if self.returncode is not None:
            return
        self._process.terminate()
        try:
            self.returncode = self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.returncode = self._process.wait()
        cast(IO[bytes], self._process.stdout).close()
        self._errors.close()
        shutil.rmtree(self._own, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
