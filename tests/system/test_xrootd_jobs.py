"""A queue whose storage is an XRootD server: its jobs get their input there and leave output and log there."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from pilot.queuedata import hash_path
from tests.benchmarks.field import ENDPOINT, QUEUE, SCOPE, SCRIPT, Field
from tests.parts.xrootd import XrootdServer, xrootd

__all__ = ["xrootd"]

ROOT = Path(__file__).parents[2]


def _use(place: Field, tool: str, options: dict[str, Any], endpoint: str) -> None:
    """Make the storage of the queue a directory of the server."""

    def change(name: str, act: Any) -> None:
        path = place.top / "files" / f"{name}.json"
        record = json.loads(path.read_text())
        act(record)
        path.write_text(json.dumps(record))

    def queue(record: dict[str, Any]) -> None:
        record |= {"copytools": {tool: options}, "acopytools": {name: [tool] for name in record["acopytools"]}}

    def storage(record: dict[str, Any]) -> None:
        protocol = {"endpoint": endpoint, "path": f"/{tool}/rucio", "id": 1}
        record[ENDPOINT]["arprotocols"] = {name: [protocol] for name in record[ENDPOINT]["arprotocols"]}

    change("queuedata", queue)
    change("schedconf", lambda record: queue(record[QUEUE]))
    change("storagedata", storage)


def _run(place: Field) -> tuple[int, dict[str, Any], dict[str, str]]:
    definition = place._definition("") | {"transformation": f"env; sh {SCRIPT}"}  # what is fetched has no x bit
    place.script.unlink()  # nobody is to find it on a disk
    (job_id,) = place.server.submit([definition])
    argv = [sys.executable, str(ROOT / "pilot.py"), *place.options]
    variables = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **place.environment}
    with open(place.top / "pilot.out", "wb") as out:
        done = subprocess.run(argv, cwd=place.launch, env=variables, stdout=out, stderr=out, timeout=100, check=False)
    names = {"output": f"out.{definition['jobName']}.dat", "log": definition["logFile"]}
    return done.returncode, place.server.job(job_id), names


@pytest.mark.parametrize(
    ("tool", "options"),
    [("xrdcp", {"use": "bindings"}), ("xrdcp", {"use": "programs"}), ("https", {})],
    ids=["xrdcp-bindings", "xrdcp-programs", "https"],
)
def test_a_job_takes_its_input_from_the_server_and_leaves_output_and_log_there(
    xrootd: XrootdServer,
    tmp_path: Path,
    tool: str,
    options: dict[str, Any],
) -> None:
    endpoint = f"{xrootd.url}/" if tool == "xrdcp" else xrootd.http_url
    with Field(tmp_path / "field") as place:
        _use(place, tool, options, endpoint)
        xrootd.write(f"{tool}/rucio/{hash_path(SCOPE, SCRIPT)}", place.script.read_bytes())
        status, job, names = _run(place)
    assert (status, job["state"]) == (0, "finished"), (place.top / "pilot.out").read_text()[-4000:]
    for name in names.values():
        path = f"/{tool}/rucio/{hash_path(SCOPE, name)}"
        data = (xrootd.data / path[1:]).read_bytes()
        told = job["files"][name]
        assert told["surl"] == endpoint + path
        assert (told["fsize"], told["adler32"]) == (len(data), f"{zlib.adler32(data):08x}")
    assert (xrootd.data / f"{tool}/rucio/{hash_path(SCOPE, names['output'])}").read_bytes() == b"an output\n"
    assert list(xrootd.data.rglob("*.partial")) == []


pytestmark = pytest.mark.timeout(200)
