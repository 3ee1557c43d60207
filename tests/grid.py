"""A grid for tests: the embedded server, a storage, queues, jobs, and real pilots as processes over them.

    with Grid(tmp_path) as grid:
        (job_id,) = grid.submit(grid.job("cat in.txt > out.txt", inputs={"in.txt": b"x"}, outputs=["out.txt"]))
        assert grid.pilot().wait() == 0
        assert grid.server.wait([job_id])[job_id] == "finished"

Several tests may share one grid when each has a queue of its own, since a job goes only to pilots of its queue.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from pilot.devserver.client import DevServer
from pilot.queuedata import hash_path

ROOT = Path(__file__).resolve().parents[1]
SCOPE = "test.scope"
ENDPOINT = "TEST_DISK"
_ACTIVITIES = ("read_lan", "write_lan", "pl", "pr", "pw")

#: Waits of a pilot that a test cannot afford; the same file for all.
SETTINGS = "[Pilot]\ngetjob_retry_wait = 0.2\nno_job_wait_min = 0.1\nno_job_wait_max = 0.2\n"

#: What a pilot of a test has in its environment: little, and nothing of the tester's own.
ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


#: Ids of jobs, so that no process of another test run on this machine has one of ours in its environment.
IDS = itertools.count(1_000_000_000 + os.getpid() * 1000)


def until(what: Callable[[], Any], timeout: float = 20.0, why: str | Callable[[], str] = "") -> Any:
    """Wait until `what()` is true and return it; an error when it never is, for which `why` is asked then."""
    end = time.monotonic() + timeout
    while not (value := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:g} s: {why() if callable(why) else why or what}")
        time.sleep(0.01)
    return value


class Pilot:
    """A pilot in a process of its own, its output in files."""

    def __init__(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], **options: Any) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.cwd = cwd
        self.out, self.err = cwd / "pilot.out", cwd / "pilot.err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options
            )
        self.pid = self.process.pid

    @property
    def text(self) -> str:
        """Its stdout and stderr so far."""
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code; negative for a signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the pilot still runs after {timeout} s:\n{self.text[-5000:]}") from None

    def says(self, text: str, timeout: float = 20.0) -> None:
        """Wait until it has said something."""

        def said() -> bool:
            if text not in self.text and self.process.poll() is not None and text not in self.text:
                raise AssertionError(f"the pilot ended with {self.process.returncode} without {text!r}:\n{self.text}")
            return text in self.text

        until(said, timeout, text)

    def signal(self, signum: int = signal.SIGTERM) -> float:
        """Send it a signal; when that was, on the monotonic clock."""
        self.process.send_signal(signum)
        return time.monotonic()

    def close(self) -> None:
        """End it, with force."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Grid:
    """A server, a storage, and what pilots need to know of them. Use as a context manager.

    Args:
        top: directory for everything.
        options: for `DevServer`.
    """

    def __init__(self, top: Path, **options: Any) -> None:
        self.top = top
        self.storage, self.files, self.work = top / "storage", top / "files", top / "work"
        for directory in (self.storage, self.files, self.work):
            directory.mkdir(parents=True)
        self.settings = top / "pilot.cfg"
        self.settings.write_text(SETTINGS)
        self._options = {"files": self.files, "adder_delay": 0} | options
        self.server = DevServer(**self._options)
        self.port = urlsplit(self.server.url).port
        self._pilots: list[Pilot] = []
        self._numbers = itertools.count()  # pilots may be started by several threads
        self.queue("Q")
        protocol = {"endpoint": "file://localhost", "path": str(self.storage), "flavour": "POSIX", "id": 1}
        record = {"name": ENDPOINT, "type": "DATADISK", "state": "ACTIVE", "is_deterministic": True}
        record["arprotocols"] = {activity: [protocol] for activity in _ACTIVITIES}
        (self.files / "storages.json").write_text(json.dumps({ENDPOINT: record}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pilot in self._pilots:
            pilot.close()
        self.server.close()

    def restart(self) -> None:
        """Another server process at the same port; give the first one a `state` file to remember its jobs."""
        self.server.close()
        self.server = DevServer(**{**self._options, "port": self.port})

    # --- what is there

    def queue(self, name: str, **fields: Any) -> str:
        """Make a queue, or make it anew; returns its name."""
        record = {
            "nickname": name, "panda_resource": name, "state": "ACTIVE", "status": "online", "type": "unified",
            "catchall": "mv_final_destination", "container_type": "", "copytools": {"mv": {"setup": ""}},
            "acopytools": {activity: ["mv"] for activity in _ACTIVITIES},
            "astorages": {activity: [ENDPOINT] for activity in _ACTIVITIES},
            "corecount": 1, "maxwdir": 2000, "maxrss": 2000, "maxinputsize": 1000, "timefloor": 60, "maxtime": 0,
            "params": {"pilot_free_space_limit": 0, "pilot_free_space_limit_running": 0},
        } | fields  # fmt: skip
        (self.files / f"{name}.json").write_text(json.dumps({name: record}))
        return name

    def gated_queue(self, name: str, *, is_open: bool = False, **options: Any) -> Path:
        """A queue whose files are moved by the tool `gate` (`tests/gate`) with options; the directory of its gate."""
        gate = self.top / f"gate-{name}"
        gate.mkdir()
        if is_open:
            (gate / "open").touch()
        tools = {"gate": {"directory": str(gate), **options}}
        self.queue(name, copytools=tools, acopytools={activity: ["gate"] for activity in _ACTIVITIES})
        return gate

    def store(self, lfn: str, content: bytes | int) -> tuple[Path, int, str]:
        """Put an input into the storage, its content or the size of a sparse file; path, size and adler32."""
        path = self.stored(lfn)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content) if isinstance(content, bytes) else file.truncate(content)
        value = 1
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                value = zlib.adler32(block, value)
        return path, path.stat().st_size, f"{value:08x}"

    def stored(self, lfn: str) -> Path:
        """Where a file lies in the storage."""
        return self.storage / hash_path(SCOPE, lfn)

    # --- jobs

    def job(
        self,
        command: str = "true",
        *,
        inputs: Mapping[str, bytes | int] | None = None,
        outputs: Sequence[str] = (),
        log: str | None = "",
        queue: str = "Q",
        **fields: Any,
    ) -> dict[str, Any]:
        """A job definition: a bash command, its inputs with their content, its outputs and its log (None for none)."""
        stored = {lfn: self.store(lfn, content) for lfn, content in (inputs or {}).items()}
        log = f"{uuid.uuid4()}.log.tgz" if log == "" else log
        lfns = [*outputs, *([log] if log else [])]
        return {
            "PandaID": next(IDS),
            "computingSite": queue,
            "jobName": "test",
            "transformation": "bash",
            "jobPars": f"-c {_quoted(command)}",
            "inFiles": ",".join(stored),
            "fsize": ",".join(str(size) for _, size, _ in stored.values()),
            "checksum": ",".join(f"ad:{checksum}" for *_, checksum in stored.values()),
            "GUID": ",".join(str(uuid.uuid4()) for _ in stored),
            "scopeIn": ",".join([SCOPE] * len(stored)),
            "ddmEndPointIn": ",".join([ENDPOINT] * len(stored)),
            "outFiles": ",".join(lfns),
            "ddmEndPointOut": ",".join([ENDPOINT] * len(lfns)),
            "scopeOut": ",".join([SCOPE] * len(outputs)),
            "scopeLog": SCOPE,
            "logFile": log or "",
            **fields,
        }

    def submit(self, *jobs: Mapping[str, Any]) -> list[int]:
        """Offer jobs; their ids."""
        return self.server.submit(list(jobs))

    def job_of(self, job_id: int) -> Job:
        """What the server knows of a job."""
        return Job(self.server.job(job_id))

    # --- pilots

    def options(self, *more: str, queue: str = "Q") -> list[str]:
        """Pilot 3's command line for this grid."""
        scheme = urlsplit(self.server.url).scheme
        return [
            *("-q", queue, "-s", "SITE", "-r", "RESOURCE", "-j", "managed", "-i", "PR", "-a", str(self.work)),
            *("--pilot-user", "generic", "--url", f"{scheme}://127.0.0.1", "-p", str(self.port)),
            *("--queuedata-url", f"{self.server.url}/cache/{queue}.json"),
            *("--storagedata-url", f"{self.server.url}/cache/storages.json"),
            *("-l", "3600", "-t", "-b", "-v", "1", "--config", str(self.settings)),
            *more,
        ]

    def pilot(
        self,
        *more: str,
        queue: str = "Q",
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "pilot.cli.main", "run"),
        cwd: Path | None = None,
        **options: Any,
    ) -> Pilot:
        """Start `pilot run` on this grid, in a directory of its own by default; what stands in `more` wins."""
        pilot = Pilot(
            [*command, *self.options(*more, queue=queue)],
            cwd=cwd or self.top / f"launch-{next(self._numbers)}",
            env={**ENVIRON, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'gate'}", **(env or {})},
            **options,
        )
        self._pilots.append(pilot)
        return pilot

    def main_dirs(self) -> list[Path]:
        """Main directories of pilots that are there."""
        return sorted(self.work.iterdir())


class Scenarios:
    """Scenarios of a test module that mostly wait: they run side by side, and each is a test of its own.

    scenario = Scenarios()

    @scenario
    def a_pilot_ends(top: Path) -> None: ...

    running = scenario.fixture()
    test_scenario = scenario.test()

    Args:
        workers: how many run at a time.
        given: a fixture whose value each scenario gets in the place of a directory.
    """

    def __init__(self, workers: int = 5, given: str = "") -> None:
        self._workers = workers
        self._given = given
        self._functions: dict[str, Callable[[Any], None]] = {}

    def __call__(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """Add a scenario: it gets a directory of its own, or what is given."""
        self._functions[function.__name__] = function
        return function

    def for_each(self, **cases: tuple[Any, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Add a scenario for each case: its name, and what it gets after its directory."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            for name, values in cases.items():
                self._functions[f"{function.__name__}-{name}"] = partial(_with, function, values)
            return function

        return add

    def fixture(self) -> Any:
        """The fixture that runs those that were selected."""

        @pytest.fixture(scope="module")
        def running(
            request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
        ) -> Iterator[dict[str, Future[None]]]:
            items = [item for item in request.session.items if item.path == request.path]
            names = [item.callspec.params["scenario"] for item in items if "running" in item.fixturenames]  # type: ignore[attr-defined]

            def given() -> Any:
                return request.getfixturevalue(self._given) if self._given else tmp_path_factory.mktemp("scenario")

            with ThreadPoolExecutor(self._workers) as pool:
                yield {name: pool.submit(self._functions[name], given()) for name in names}

        return running

    def test(self) -> Any:
        """The test, once for each."""

        @pytest.mark.parametrize("scenario", list(self._functions))
        def test_scenario(running: dict[str, Future[None]], scenario: str) -> None:
            running[scenario].result()

        return test_scenario


def _with(function: Callable[..., None], values: tuple[Any, ...], first: Any) -> None:
    function(first, *values)


class Job:
    """What the server knows of a job."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = known
        self.id: int = known["id"]
        self.state: str = known["state"]
        self.fields: Mapping[str, Any] = known["fields"]
        self.files: Mapping[str, Any] = known["files"]
        self.code = int(self.fields.get("pilot_error_code") or 0)
        self.diag = str(self.fields.get("pilot_error_diag") or "")

    @property
    def states(self) -> list[str]:
        """The states that updates told, in order."""
        return [update["state"] for update in self.known["updates"]]

    @property
    def finals(self) -> list[str]:
        """The final ones among them."""
        return [state for state in self.states if state in ("finished", "failed")]

    def reported_once(self) -> bool:
        """True if exactly one final report was made, and nothing after it."""
        return len(self.finals) == 1 and self.states[-1] == self.finals[0]

    def path(self, lfn: str) -> Path:
        """Where an output or the log is, as it was reported."""
        return Path(urlsplit(self.files[lfn]["surl"]).path)

    @property
    def log_path(self) -> Path:
        """Where the log is."""
        return self.path(self.known["definition"]["logFile"])

    def log(self) -> dict[str, bytes]:
        """The files of its log, by their names inside the folder."""
        with tarfile.open(self.log_path) as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
            return {member.name.partition("/")[2]: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def processes_with(text: str) -> list[int]:
    """Living processes that have a text in their environment, such as `PandaID=17`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                state = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if text.encode() in environ and state != b"Z":
                found.append(int(entry))
    return found


def children_of(pid: int) -> list[int]:
    """Its children, zombies too."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_all(pids: Iterable[int]) -> None:
    """End processes that a test has left on purpose."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"
