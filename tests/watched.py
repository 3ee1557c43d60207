"""One job under a whole pilot process, with an embedded server, for tests of what watches payloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilot.devserver.client import DevServer
from pilot.queuedata import hash_path

QUEUE, ENDPOINT, SCOPE, LOG = "WATCHED", "WATCHED_DISK", "watched", "watched.log.tgz"
_ACTIVITIES = ("read_lan", "write_lan", "pl", "pr", "pw")


@dataclass(frozen=True, slots=True)
class Watched:
    """What became of it: the job as the server has it, its last update, the pilot's log, the files of its log."""

    job: dict[str, Any]
    report: dict[str, Any]
    log: str
    files: dict[str, bytes]
    top: Path

    @property
    def code(self) -> int:
        """The pilot error code that was reported."""
        return int(self.report.get("pilot_error_code") or 0)

    @property
    def diag(self) -> str:
        """Its text."""
        return str(self.report.get("pilot_error_diag") or "")


def watched(
    top: Path,
    payload: str,
    *options: str,
    queue: Mapping[str, Any] | None = None,
    settings: str = "",
    environ: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    **fields: Any,
) -> Watched:
    """Run a pilot with one job.

    Args:
        top: an empty directory.
        payload: a bash script.
        options: of `pilot run`.
        queue: what its queue has beside the usual.
        settings: lines for `[Pilot]` of its file.
        environ: variables for the pilot.
        prefix: what runs the pilot.
        fields: of the job definition.
    """
    for name in ("files", "storage", "work"):
        (top / name).mkdir()
    (top / "files" / "payload.sh").write_text(f"#!/bin/bash\n{payload}\n")
    (top / "pilot.cfg").write_text(f"[Pilot]\n{settings}\n")
    _write_records(top, queue or {})
    with DevServer(files=top / "files", adder_delay=0, record=top / "record.jsonl") as server:
        (job_id,) = server.submit([_definition(server.url) | fields])
        _run_pilot(top, server.url, options, environ or {}, prefix)
        job = server.job(job_id)
    return Watched(job, job["updates"][-1]["fields"], _pilot_log(top), _files(top), top)


def _run_pilot(
    top: Path, url: str, options: tuple[str, ...], environ: Mapping[str, str], prefix: Sequence[str]
) -> None:
    host, port = url.rsplit(":", 1)
    command = [
        *prefix,
        *(sys.executable, "-m", "pilot.cli.main", "run", "-q", QUEUE, "-j", "managed", "--pilot-user", "generic"),
        *("-a", str(top / "work"), "--url", host, "-p", port, "-v", "1", "--config", str(top / "pilot.cfg")),
        *("--queuedata-url", f"{url}/cache/queue.json", "--storagedata-url", f"{url}/cache/storages.json"),
        *options,
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(top), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with open(top / "out.txt", "wb") as out:
        process = subprocess.Popen(command, cwd=top, env={**env, **environ}, stdout=out, stderr=out)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.terminate()  # so that it ends its payload; the test fails for what the report says
            process.wait(30)


def _definition(url: str) -> dict[str, Any]:
    return {
        "jobName": uuid.uuid4().hex,
        "prodSourceLabel": "managed",
        "transformation": f"{url}/cache/payload.sh",
        "jobPars": "",
        "attemptNr": 1,
        "coreCount": 1,
        "outFiles": LOG,
        "scopeLog": SCOPE,
        "ddmEndPointOut": ENDPOINT,
        "realDatasets": "watched.out",
        "logFile": LOG,
        "logGUID": str(uuid.uuid4()),
    }


def _write_records(top: Path, queue: Mapping[str, Any]) -> None:
    record = {
        "nickname": QUEUE,
        "panda_resource": QUEUE,
        "state": "ACTIVE",
        "status": "online",
        "type": "unified",
        "catchall": "mv_final_destination",
        "copytools": {"mv": {}},
        "acopytools": {activity: ["mv"] for activity in _ACTIVITIES},
        "astorages": {activity: [ENDPOINT] for activity in _ACTIVITIES},
        "corecount": 1,
        "maxwdir": 2000,
        "timefloor": 0,
        **queue,
    }
    protocol = {"endpoint": "file://localhost", "path": str(top / "storage"), "flavour": "POSIX", "id": 1}
    storage = {"name": ENDPOINT, "type": "DATADISK", "state": "ACTIVE", "is_deterministic": True}
    storage["arprotocols"] = {activity: [protocol] for activity in _ACTIVITIES}
    (top / "files" / "queue.json").write_text(json.dumps({QUEUE: record}))
    (top / "files" / "storages.json").write_text(json.dumps({ENDPOINT: storage}))


def _pilot_log(top: Path) -> str:
    return (top / "out.txt").read_text(errors="replace")


def _files(top: Path) -> dict[str, bytes]:
    path = top / "storage" / hash_path(SCOPE, LOG)
    if not path.exists():
        return {}
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        return {member.name.partition("/")[2]: file.read() for member, file in members if file}
