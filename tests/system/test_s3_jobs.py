"""A queue whose storage is an S3 server: its jobs get their input there and leave output and log there."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pilot.queuedata import hash_path
from tests.benchmarks.field import ENDPOINT, QUEUE, SCOPE, SCRIPT, Field
from tests.parts.s3 import OWNER, S3Server

ROOT = Path(__file__).parents[2]


def _key(lfn: str) -> str:
    return f"rucio/{hash_path(SCOPE, lfn)}"


def _use_s3(place: Field, server: S3Server, tool: str = "s3", **keys: Any) -> None:
    """Make the storage of the queue a bucket, and put the input there; `keys` are what it says of them."""

    def change(name: str, act: Any) -> None:
        path = place.top / "files" / f"{name}.json"
        record = json.loads(path.read_text())
        act(record)
        path.write_text(json.dumps(record))

    def queue(record: dict[str, Any]) -> None:
        record |= {"copytools": {tool: {}}, "acopytools": {name: [tool] for name in record["acopytools"]}}

    def storage(record: dict[str, Any]) -> None:
        protocol = {"endpoint": f"s3://{server.host}/", "path": f"/{server.bucket}/rucio", "id": 1}
        record[ENDPOINT]["arprotocols"] = {name: [protocol] for name in record[ENDPOINT]["arprotocols"]}
        record[ENDPOINT]["rprotocols"] = {"1": {"settings": keys}}

    change("queuedata", queue)
    change("schedconf", lambda record: queue(record[QUEUE]))
    change("storagedata", storage)
    server.store(_key(SCRIPT), place.script.read_bytes())


def _submit(place: Field) -> dict[str, Any]:
    definition = place._definition("") | {"transformation": f"env; sh {SCRIPT}"}  # an object has no x bit
    place.script.unlink()  # nobody is to find it on a disk
    (job_id,) = place.server.submit([definition])
    return {"id": job_id, "output": f"out.{definition['jobName']}.dat", "log": definition["logFile"]}


def _run(place: Field, environment: dict[str, str]) -> int:
    argv = [sys.executable, str(ROOT / "pilot.py"), *place.options]
    variables = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **place.environment, **environment}
    with open(place.top / "pilot.out", "wb") as out:
        done = subprocess.run(argv, cwd=place.launch, env=variables, stdout=out, stderr=out, timeout=100, check=False)
    return done.returncode


def test_a_job_takes_its_input_from_s3_and_leaves_output_and_log_there(s3_server: S3Server, tmp_path: Path) -> None:
    keys = {"S3_ENDPOINT_URL": s3_server.endpoint, "AWS_ACCESS_KEY_ID": OWNER[0], "AWS_SECRET_ACCESS_KEY": OWNER[1]}
    with Field(tmp_path / "field") as place:
        _use_s3(place, s3_server)
        names = _submit(place)
        status = _run(place, keys)
        job = place.server.job(names["id"])
    told = (place.top / "pilot.out").read_text()
    assert (status, job["state"]) == (0, "finished"), told[-4000:]
    assert s3_server.fetch(_key(names["output"])) == b"an output\n"
    assert job["files"][names["output"]]["surl"] == f"s3://{s3_server.host}//{s3_server.bucket}/{_key(names['output'])}"
    stdout = _payload_stdout(s3_server.fetch(_key(names["log"])))
    assert b"a line on stdout" in stdout
    assert b"AWS_" not in stdout, "the payload has the credentials of the pilot"
    assert OWNER[1] not in told


@pytest.mark.parametrize(("tool", "api"), [("s3", "v1"), ("objectstore", "legacy")])
def test_keys_that_a_storage_names_come_from_the_server_once_and_go_to_nobody(
    s3_server: S3Server, tmp_path: Path, tool: str, api: str
) -> None:
    (tmp_path / "keys").write_text(json.dumps({"store.public": OWNER[0], "store.private": OWNER[1]}))
    with Field(tmp_path / "field", api=api, grants={"keys": tmp_path / "keys"}) as place:
        names = {"access_key": "store.public", "secret_key": "store.private"}
        _use_s3(place, s3_server, tool, **names, is_secure=False)
        sent = _submit(place)
        status = _run(place, {"AWS_EC2_METADATA_DISABLED": "true"})
        job = place.server.job(sent["id"])
        record = (place.top / "record.jsonl").read_text()
    told = (place.top / "pilot.out").read_text()
    assert (status, job["state"]) == (0, "finished"), told[-4000:]
    assert s3_server.fetch(_key(sent["output"])) == b"an output\n"
    log = s3_server.fetch(_key(sent["log"]))
    assert len([line for line in record.splitlines() if "store.private" in line]) == 1
    assert OWNER[1] not in told + json.dumps(job) + record
    assert log is not None
    with tarfile.open(fileobj=io.BytesIO(log)) as archive:
        files = [file.read() for member in archive if (file := archive.extractfile(member))]
    assert not any(key.encode() in text for key in OWNER for text in files), "the payload or the log has a key"


def test_a_server_that_gives_no_keys_leaves_others_to_be_used(s3_server: S3Server, tmp_path: Path) -> None:
    keys = {"S3_ENDPOINT_URL": s3_server.endpoint, "AWS_ACCESS_KEY_ID": OWNER[0], "AWS_SECRET_ACCESS_KEY": OWNER[1]}
    with Field(tmp_path / "field") as place:
        _use_s3(place, s3_server, access_key="store.public", secret_key="store.private")
        names = _submit(place)
        _run(place, keys)
        state = place.server.job(names["id"])["state"]
    told = (place.top / "pilot.out").read_text()
    assert state == "finished", told[-4000:]
    assert told.count("the server gives no keys of") == 1
    assert "not authorized with 'k'" in told


def test_a_job_without_credentials_fails_with_1364_and_says_what_is_missing(
    s3_server: S3Server, tmp_path: Path
) -> None:
    nothing = {"S3_ENDPOINT_URL": s3_server.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    with Field(tmp_path / "field") as place:
        _use_s3(place, s3_server)
        names = _submit(place)
        _run(place, nothing)
        job = place.server.job(names["id"])
    assert job["state"] == "failed"
    assert "Unable to locate credentials" in json.dumps(job["updates"]) + json.dumps(job["fields"])


def _payload_stdout(log: bytes | None) -> bytes:
    assert log is not None, "there is no log"
    with tarfile.open(fileobj=io.BytesIO(log)) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/payload.stdout"))
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


pytestmark = pytest.mark.timeout(200)
