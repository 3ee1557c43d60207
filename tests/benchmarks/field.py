"""What a pilot needs to run on one machine: a server, a queue, a storage and jobs; and what the server saw of it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from pilot.devserver.client import DevServer
from pilot.queuedata import hash_path
from pilot.staging.checksum import file_checksums

QUEUE, ENDPOINT, SCOPE = "BENCH_QUEUE", "BENCH_DISK", "bench.jobs"
TOKEN, ORIGIN = "a-token-for-loopback", "bench.production"
ACTIVITIES = ("read_lan", "write_lan", "pl", "pr", "pw")
FINAL = ("finished", "failed")

#: The job's only input is its transformation: Pilot 3.7 fetches those from a list of hosts of its own, but it takes one
#: that is in the job directory already.
SCRIPT = "payload.sh"
_SCRIPT_TEXT = """\
#!/bin/sh
# payload.sh OUTPUT [sleep|ignore] [SECONDS]
echo "an output" > "$1"
echo "a line on stdout"
case "$2" in
    sleep) exec sleep "$3" ;;
    ignore) trap '' TERM; exec sleep "$3" ;;  # what is ignored stays so after exec
esac
"""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request of the pilot and its answer. `time` is when the server had the answer, s since 1970."""

    time: float
    method: str
    request: dict[str, Any]
    response: dict[str, Any]


class Field:
    """A server in a process of its own, with a queue and a storage below a directory.

    Args:
        top: a directory, which must not be there.
        api: which generation the server speaks.
        timefloor: minutes within which a pilot may take further jobs; 0 is one job only.
    """

    def __init__(self, top: Path, *, api: str = "both", timefloor: int = 0, **options: Any) -> None:
        self.top = top
        self.storage, self.work, self.launch = top / "storage", top / "work", top / "launch"
        for path in (self.storage, self.work, self.launch, top / "files"):
            path.mkdir(parents=True)
        (top / "token").write_text(TOKEN)
        self._write_records(timefloor)
        self.script = self.stored(SCRIPT)
        self.script.parent.mkdir(parents=True)
        self.script.write_text(_SCRIPT_TEXT)
        self.script.chmod(0o755)
        self.server = DevServer(
            api=api,
            files=top / "files",
            record=top / "record.jsonl",
            token=TOKEN,
            origin=ORIGIN,
            adder_delay=0,
            **options,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def stored(self, lfn: str) -> Path:
        """Where a file lies in the storage: Rucio's deterministic layout."""
        return self.storage / hash_path(SCOPE, lfn)

    @property
    def environment(self) -> dict[str, str]:
        """What a batch system and a wrapper set."""
        return {
            "HOME": str(self.top),
            "PANDA_AUTH_TOKEN": str(self.top / "token"),
            "PANDA_AUTH_ORIGIN": ORIGIN,
            "HARVESTER_ID": "bench",
            "HARVESTER_WORKER_ID": "11",
        }

    @property
    def options(self) -> list[str]:
        """The command line, Pilot 3's."""
        host, port = self.server.url.rsplit(":", 1)
        return [
            *("-q", QUEUE, "-r", QUEUE, "-s", QUEUE, "-j", "managed", "-i", "PR", "-a", str(self.work)),
            *("--pilot-user", "generic", "--url", host, "-p", port, "-l", "3600", "-t", "-v", "1", "-x", "1"),
            *("--queuedata-url", f"{self.server.url}/cache/queuedata.json"),
            *("--storagedata-url", f"{self.server.url}/cache/storagedata.json"),
        ]

    def submit(self, count: int = 1, mode: str = "", seconds: float = 0) -> list[int]:
        """Offer jobs with one input, one output and a log.

        Args:
            count: how many.
            mode: `sleep`, or `ignore` to sleep and ignore SIGTERM; nothing for an empty payload.
            seconds: how long a payload sleeps.
        """
        arguments = f" {mode} {seconds:g}" if mode else ""
        return self.server.submit([self._definition(arguments) for _ in range(count)])

    def output_of(self, job_id: int) -> Path:
        """Where the output of a job must be."""
        return self.stored(self.server.job(job_id)["definition"]["outFiles"].split(",")[0])

    def log_of(self, job_id: int) -> Path:
        """Where the log of a job must be."""
        return self.stored(self.server.job(job_id)["definition"]["logFile"])

    def wait_running(self, job_id: int, timeout: float = 60.0) -> None:
        """Wait until a job is reported running.

        Raises:
            TimeoutError: it is not.
        """
        deadline = time.monotonic() + timeout
        while self.server.states()[job_id] != "running":
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {self.server.states()[job_id]} after {timeout:g} s")
            time.sleep(0.02)

    def acquired(self) -> dict[int, float]:
        """When each job was given out, s since 1970."""
        found = {}
        for exchange in self.exchanges("acquire_jobs", "getJob"):
            data = exchange.response.get("data", exchange.response) or {}
            for job in data.get("jobs", [data]):
                if "PandaID" in job:
                    found[int(job["PandaID"])] = exchange.time
        return found

    def reported(self) -> dict[int, float]:
        """When the first final report of each job was accepted, s since 1970."""
        found: dict[int, float] = {}
        for exchange in self.exchanges("update_job", "updateJob"):
            state = exchange.request.get("job_status", exchange.request.get("state"))
            data = exchange.response.get("data", exchange.response) or {}
            if state in FINAL and data.get("StatusCode") == 0:
                found.setdefault(int(exchange.request.get("job_id", exchange.request.get("jobId", 0))), exchange.time)
        return found

    def exchanges(self, *methods: str) -> Iterator[Exchange]:
        """The calls of these methods, in order."""
        with open(self.top / "record.jsonl", "rb") as file:
            for line in file:
                entry = json.loads(line)
                method = entry["path"].rpartition("/")[2]
                if method in methods and entry["status"] == "200 OK":
                    yield Exchange(
                        entry["time"], method, _body(entry["request_body"]), json.loads(entry["response_body"])
                    )

    def _definition(self, arguments: str) -> dict[str, Any]:
        name = uuid.uuid4().hex[:12]
        return {
            "jobName": name,
            "prodSourceLabel": "managed",
            "transformation": f"./{SCRIPT}",
            "jobPars": f"out.{name}.dat{arguments}",
            "attemptNr": 1,
            "coreCount": 1,
            "maxWalltime": 3600,
            "prodUserID": "Bench User",
            "inFiles": SCRIPT,
            "fsize": str(self.script.stat().st_size),
            "checksum": f"ad:{file_checksums(self.script, ['adler32'])['adler32']}",
            "GUID": str(uuid.uuid4()),
            "scopeIn": SCOPE,
            "ddmEndPointIn": ENDPOINT,
            "realDatasetsIn": "bench.in",
            "prodDBlockToken": "NULL",
            "outFiles": f"out.{name}.dat,log.{name}.tgz",
            "scopeOut": SCOPE,
            "scopeLog": SCOPE,
            "ddmEndPointOut": f"{ENDPOINT},{ENDPOINT}",
            "realDatasets": "bench.out,bench.out",
            "destinationDblock": "bench.out,bench.out",
            "logFile": f"log.{name}.tgz",
            "logGUID": str(uuid.uuid4()),
        }

    def _write_records(self, timefloor: int) -> None:
        """The queue as the PanDA server gives it, the same as CRIC gives it, and the storage."""
        queue = _queue_record(timefloor)
        protocol = {"endpoint": "file://localhost", "path": str(self.storage), "flavour": "POSIX", "id": 1}
        storage = {
            "name": ENDPOINT,
            "type": "DATADISK",
            "state": "ACTIVE",
            "is_deterministic": True,
            "arprotocols": {activity: [protocol] for activity in ACTIVITIES},
        }
        records = {"queuedata": queue, "schedconf": {QUEUE: queue}, "storagedata": {ENDPOINT: storage}}
        for name, record in records.items():
            (self.top / "files" / f"{name}.json").write_text(json.dumps(record))


def _queue_record(timefloor: int) -> dict[str, Any]:
    return {
        "nickname": QUEUE,
        "panda_resource": QUEUE,
        "atlas_site": "BENCH",
        "state": "ACTIVE",
        "status": "online",
        "type": "unified",
        "resource_type": "local",
        "catchall": "mv_final_destination",
        "container_type": "",
        "copytools": {"mv": {"setup": ""}},
        "acopytools": {activity: ["mv"] for activity in ACTIVITIES},
        "astorages": {activity: [ENDPOINT] for activity in ACTIVITIES},
        "corecount": 1,
        "maxwdir": 2000,
        "maxrss": 2000,
        "maxinputsize": 1000,
        "timefloor": timefloor,
        "maxtime": 0,
    }


def _body(body: Any) -> dict[str, Any]:
    """A request's arguments: JSON plain or compressed, or a form, of which Pilot 3.7 makes all its calls."""
    if isinstance(body, dict):
        return dict(body["gzip_json"])
    if body.startswith("{"):
        return dict(json.loads(body))
    return {key: values[-1] for key, values in parse_qs(body).items()}
