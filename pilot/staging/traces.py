"""Traces: one report a file a try to Rucio's `/traces/`, which feeds its accounting of who read and wrote what where.

Fields and states are Pilot 3's (PILOT3 4.5). Traces are sent in the background: a server of traces that is dead or
hangs costs a job nothing but those traces. Nothing is sent unless a URL is set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pilot.errors import Code, PilotError
from pilot.job import File, Job
from pilot.staging.cache import NAME as CACHE
from pilot.staging.faults import Direction
from pilot.staging.result import FailedFile, Progress, StagedFile, StagingObserver, Trial, shown
from pilot.version import __version__

if TYPE_CHECKING:
    from pilot.server.transport import Transport

logger = logging.getLogger(__name__)

#: Traces that wait at most; with 300 bytes to 1 kB each that is 1 MB at most.
WAITING = 1000

#: How often a trace is tried, and seconds of pause before the second try; doubled before the third.
TRIES, PAUSE = 3, 1.0

#: Seconds that the server may take to connect and to answer. A good one answers in 20 ms.
TIMEOUT = 10.0

#: Traces lost in a row after which the next ones are tried once: who waits for a dead server loses all of them.
PATIENCE = 2

#: What curl calls an answer that is an error.
_HTTP_ERROR = 22

#: Characters of an error in a trace.
_REASON = 500

#: What a code is called in a trace (PILOT3 4.5, and the last column of its map of transfer errors).
_STATES: Mapping[Code, str] = MappingProxyType(
    {
        Code.GETADMISMATCH: "AD_MISMATCH",
        Code.PUTADMISMATCH: "AD_MISMATCH",
        Code.GETMD5MISMATCH: "MD5_MISMATCH",
        Code.PUTMD5MISMATCH: "MD5_MISMATCH",
        Code.STAGEINTIMEOUT: "CP_TIMEOUT",
        Code.STAGEOUTTIMEOUT: "CP_TIMEOUT",
        Code.GETGLOBUSSYSERR: "GLOBUS_FAIL",
        Code.PUTGLOBUSSYSERR: "GLOBUS_FAIL",
        Code.FILEEXISTS: "FILE_EXISTS",
        Code.MISSINGINPUTFILE: "MISSING_INPUT",
        Code.MISSINGOUTPUTFILE: "MISSINGOUTPUTFILE",
        Code.NOSUCHFILE: "NO_FILE",
        Code.NOREPLICAS: "NO_REPLICA",
        Code.REPLICANOTFOUND: "NO_REPLICA",
        Code.UNKNOWNCOPYTOOL: "BAD_COPYTOOL",
        Code.CHKSUMNOTSUP: "CHKSUM_NOTSUP",
        Code.UNKNOWNCHECKSUMTYPE: "UNKNOWN_CHECKSUM_TYPE",
        Code.CHECKSUMCALCFAILURE: "CHECKSUMCALCULATIONFAILURE",
        Code.NOPROXY: "CONTEXT_FAIL",
        Code.STAGEINAUTHENTICATIONFAILURE: "CONTEXT_FAIL",
        Code.STAGEOUTAUTHENTICATIONFAILURE: "CONTEXT_FAIL",
        Code.NOLOCALSPACE: "NO_SPACE",
        Code.NOREMOTESPACE: "NO_SPACE",
        Code.SERVICENOTAVAILABLE: "SERVICE_ERROR",
        Code.RUCIOSERVICEUNAVAILABLE: "SERVICE_ERROR",
        Code.UNREACHABLENETWORK: "NETWORK_UNREACHABLE",
        Code.XRDCPERROR: "XRDCP_ERROR",
        Code.MISSINGCREDENTIALS: "S3_ERROR",
        Code.REMOTEFILECOULDNOTBEOPENED: "FAILED_REMOTE_OPEN",
        Code.REMOTEFILEOPENTIMEDOUT: "FAILED_REMOTE_OPEN",
        Code.STAGEINFAILED: "COPY_ERROR",
        Code.STAGEOUTFAILED: "COPY_ERROR",
    }
)


#: What all other codes are called.
_OTHER = {Direction.IN: "STAGEIN_ATTEMPT_FAILED", Direction.OUT: "STAGEOUT_ATTEMPT_FAILED"}


def client_state(error: PilotError | None, direction: Direction, *, direct: bool = False) -> str:
    """The `clientState` of a try: what became of it.

    Args:
        error: why it failed; None if it did not.
        direction: of the file.
        direct: nothing was copied.
    """
    if error is None:
        return "FOUND_ROOT" if direct else "DONE"
    return _STATES.get(error.code, _OTHER[direction])


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What is the same in all traces of a pilot.

    Attributes:
        queue: PanDA resource (`pq`).
        site: `RUCIO_LOCAL_SITE_ID`; empty: the first endpoint of the files counts.
        host: name of the node.
        version: `<pilot>+<rucio client>`, as far as there is one.
        user_dn: send the user's name as it is, not only its MD5.
    """

    queue: str = ""
    site: str = ""
    host: str = ""
    version: str = __version__
    user_dn: bool = False


class Tracer(StagingObserver):
    """Makes the traces of one job.

    Args:
        job: whose files move.
        facts: of the pilot.
        send: takes a trace and returns at once.
        mask: removes secrets from texts.
    """

    def __init__(
        self,
        job: Job,
        facts: TraceFacts,
        send: Callable[[Mapping[str, Any]], None],
        mask: Callable[[str], str] = str,
    ) -> None:
        self._job = job
        self._facts = facts
        self._send = send
        self._mask = mask
        self._uuid = _uuid(job)
        self._started: dict[Direction, float] = {}
        self._causes: set[int] = set()
        files = (*job.inputs, *job.outputs, *([job.log] if job.log else []))
        self._site = next((file.endpoint for file in files if file.endpoint), "")

    def started(self, progress: Progress) -> None:
        """A call begins: that is `timeStart` of its traces."""
        self._started[progress.direction] = time.time()

    def tried(self, trial: Trial) -> None:
        """One report for one try."""
        end = trial.began + trial.seconds
        verifying = trial.staged.verifying if trial.staged else 0.0
        if trial.error:
            self._causes.add(id(trial.error))
        direct = bool(trial.staged and trial.staged.file.turl)
        self._give(
            self._common(trial.direction, trial.file)
            | {
                "clientState": client_state(trial.error, trial.direction, direct=direct),
                "stateReason": self._reason(trial.error, "direct_access" if direct else "OK"),
                "protocol": trial.url.partition("://")[0] if "://" in trial.url else "file",
                "url": self._mask(shown(trial.url)),
                "remoteSite": trial.endpoint or trial.file.endpoint,
                "filesize": trial.staged.size if trial.staged else trial.file.size,
                "relativeStart": trial.began,
                "transferStart": trial.began,
                "validateStart": end - verifying,
                "timeEnd": end,
            }
        )

    def arrived(self, staged: StagedFile) -> None:
        """An input from the node's cache was tried nowhere, but used: Rucio's clients call it so, and count it."""
        if staged.tool != CACHE:
            return
        end = time.time()
        self._give(
            self._common(Direction.IN, staged.file)
            | {
                "clientState": "ALREADY_DONE",
                "stateReason": "input cache",
                "protocol": "file",
                "filesize": staged.size,
                "relativeStart": end - staged.seconds,
                "transferStart": end - staged.seconds,
                "timeEnd": end,
            }
        )

    def failed(self, failure: FailedFile) -> None:
        """A file that nobody tried to move, since nobody could: no replica, no tool, no output.

        What was given up because of another file has that one's error, and no trace.
        """
        known = id(failure.error) in self._causes
        self._causes.add(id(failure.error))
        if failure.attempts or known or failure.direction is None:
            return
        now = time.time()
        self._give(
            self._common(failure.direction, failure.file)
            | {
                "clientState": client_state(failure.error, failure.direction),
                "stateReason": self._reason(failure.error, ""),
                "timeEnd": now,
            }
        )

    def _give(self, trace: Mapping[str, Any]) -> None:
        """A place that nobody has named is none of Rucio's: such as a file that the batch system has brought."""
        if trace["localSite"] and trace["remoteSite"]:
            self._send(trace)

    def _common(self, direction: Direction, file: File) -> dict[str, Any]:
        """All fields, in Pilot 3's order; those that a try knows better are set by it."""
        job, facts = self._job, self._facts
        event = "get_sm" if direction is Direction.IN else "put_sm"
        user = hashlib.md5(job.user.encode(), usedforsecurity=False).hexdigest()
        start = self._started.get(direction, time.time())
        return {
            "eventType": f"{event}_a" if job.is_analysis else event,
            "eventVersion": facts.version,
            "protocol": None,
            "clientState": "INIT_REPORT",
            "localSite": facts.site or file.endpoint or self._site,
            "remoteSite": file.endpoint,
            "timeStart": start,
            "catStart": start,
            "relativeStart": None,
            "transferStart": None,
            "validateStart": None,
            "timeEnd": None,
            "dataset": file.dataset,
            "version": None,
            "duid": None,
            "filename": file.lfn,
            "guid": file.guid.replace("-", ""),
            "filesize": file.size,
            "usr": user,
            "appid": job.job_id,
            "hostname": facts.host,
            "ip": "",
            "suspicious": "0",
            "usrdn": job.user if facts.user_dn else user,
            "url": None,
            "stateReason": None,
            "uuid": self._uuid,
            "taskid": job.task_id or "",
            "pq": facts.queue,
            "scope": file.scope,
        }

    def _reason(self, error: PilotError | None, good: str) -> str:
        return self._mask(error.diag).replace("\\", "")[:_REASON] if error else good


class TraceSender:
    """Sends traces from a thread of its own, one after the other.

    Args:
        transport: to the server of traces, with the path in its URL.
        pause: seconds before a second try.
        waiting: traces that wait at most; further ones are lost.
    """

    def __init__(self, transport: Transport, *, pause: float = PAUSE, waiting: int = WAITING) -> None:
        self._transport = transport
        self._pause = pause
        self._waiting = waiting
        self._queue: deque[Mapping[str, Any]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = self._closing = False
        self._in_a_row = self._trouble = 0
        self.sent = self.lost = 0

    def send(self, trace: Mapping[str, Any]) -> None:
        """Take a trace; it is lost if too many wait already. Never waits itself."""
        with self._wake:
            if self._closing or len(self._queue) >= self._waiting:
                self.lost += 1
                return
            self._queue.append(trace)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def trouble(self) -> int:
        """Why the last trace was lost since this was asked before, as a code of curl; 0 if none was.

        Pilot 3 sends traces by curl, and tells of that in jobMetrics (`rucioTraceError`, PILOT3 2.7).
        """
        with self._wake:
            code, self._trouble = self._trouble, 0
        return code

    def close(self, seconds: float) -> None:
        """Wait for what is under way, at most so long; nothing is tried again from now on. Blocks."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: not (self._queue or self._busy), seconds)
            self.lost += len(self._queue) + self._busy
            self._queue.clear()
        if self.lost:
            logger.warning("%d traces were sent, %d were lost", self.sent, self.lost)

    def _run(self) -> None:
        address = _own_address(self._transport.url)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                trace, self._busy = self._queue.popleft(), True
            code = self._deliver(json.dumps({**trace, "ip": address}).encode())
            arrived = not code
            with self._wake:
                self._trouble = code or self._trouble
                self.sent += arrived
                self.lost += not arrived
                self._in_a_row = 0 if arrived else self._in_a_row + 1
                self._busy = False
                self._wake.notify_all()

    def _deliver(self, body: bytes) -> int:
        for number in range(TRIES):
            problem, code, again = self._post(body)
            if not problem:
                return 0
            logger.debug("trace, try %d: %s", number + 1, problem)
            if not again or self._in_a_row >= PATIENCE or number + 1 == TRIES:
                break
            with self._wake:
                if self._wake.wait_for(lambda: self._closing, self._pause * 2**number):
                    break
        logger.info("a trace is lost: %s", problem)
        return code

    def _post(self, body: bytes) -> tuple[str, int, bool]:
        """What went wrong with curl's code for it, and whether the same again may help; no text if it was taken."""
        from pilot.server.wire import Request

        try:
            answer = self._transport.send(Request("POST", "", body, {"Content-Type": "application/json"}), TIMEOUT)
        except Exception as error:  # the door: whatever is wrong with traces is no business of the job's
            return f"{type(error).__name__}: {error}", _curl_code(error), True
        return ("" if answer.status < 300 else f"HTTP status {answer.status}"), _HTTP_ERROR, answer.status >= 500


def _curl_code(error: BaseException) -> int:
    """Time-out, TLS, no connection (curl(1), EXIT CODES): as the first of a chain of errors says."""
    import ssl

    while error.__cause__:
        error = error.__cause__
    return 28 if isinstance(error, TimeoutError) else 35 if isinstance(error, ssl.SSLError) else 7


def _own_address(url: str) -> str:
    """The address from which this node reaches a server; nothing is sent to find out."""
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except (OSError, IndexError):
        return ""


def _uuid(job: Job) -> str:
    """The same for all files of a job."""
    if not job.definition_id:
        return uuid.uuid1().hex
    return hashlib.md5(f"ppilot_{job.definition_id}".encode(), usedforsecurity=False).hexdigest()


def trace_version() -> str:
    """`<pilot>+<rucio client>`, as far as there is one."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{__version__}+{version('rucio-clients')}"
    except PackageNotFoundError:
        return __version__
