"""Logs that people read in an object store: file by file, masked, their URL in the pilot's id (PILOT3 4.6)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.queuedata import hash_path
from tests.grid import SCOPE, Grid, Job
from tests.parts.gcs import GcsServer
from tests.parts.s3 import OWNER, S3Server

SECRET = "a-secret-that-nobody-may-read"


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    with Grid(tmp_path / "grid") as made:
        yield made


def use(grid: Grid, tool: str, endpoint: str, path: str, *, kind: str = "OS_LOGS", deterministic: bool = False) -> None:
    """Logs go to an object store; other files do not."""
    storages = json.loads((grid.files / "storages.json").read_text())
    protocol = {"endpoint": endpoint, "path": path, "id": 2}
    storages["LOGS"] = {
        "name": "LOGS", "type": kind, "state": "ACTIVE", "is_deterministic": deterministic,
        "arprotocols": {"write_lan": [protocol]},
    }  # fmt: skip
    (grid.files / "storages.json").write_text(json.dumps(storages))
    grid.queue(
        "Q",
        copytools={tool: {}, "mv": {}},
        acopytools={"pl": [tool], "read_lan": ["mv"], "write_lan": ["mv"]},
        astorages={"pl": ["LOGS"], "write_lan": ["TEST_DISK"], "read_lan": ["TEST_DISK"]},
    )


def run(grid: Grid, env: dict[str, str], dataset: str) -> Job:
    log = f"{uuid.uuid4()}.log.tgz"
    secrets = json.dumps({"password": SECRET})
    wanted: dict[str, Any] = {"realDatasets": dataset, "secrets": secrets, "ddmEndPointOut": "LOGS"}
    (job_id,) = grid.submit(grid.job(f"mkdir plain_logs; echo hello; echo {SECRET}; echo oops >&2", log=log, **wanted))
    pilot = grid.pilot(env={"GTAG": "https://batch.example.org/log", **env})
    assert pilot.wait() == 0, pilot.text
    job = grid.job_of(job_id)
    assert job.state == "finished", (job.diag, pilot.text)
    return job


def s3_keys(server: S3Server) -> dict[str, str]:
    return {"S3_ACCESS_KEY": OWNER[0], "S3_SECRET_KEY": OWNER[1], "S3_ENDPOINT_URL": server.endpoint}


def entry(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = job.files[job.known["definition"]["logFile"]]
    return found


def test_gs_has_the_files_of_the_log_and_google_s_url_of_it_is_in_the_pilot_s_id(
    grid: Grid, gcs_server: GcsServer
) -> None:
    dataset = f"logs-{uuid.uuid4().hex}.#{{pandaid}}"
    use(grid, "gs", f"gs://{gcs_server.bucket}", "/rubin")
    job = run(grid, {"STORAGE_EMULATOR_HOST": gcs_server.endpoint}, dataset)
    folder = f"rubin/Q/{dataset.replace('#{pandaid}', str(job.id))}"
    blobs = {blob.name: blob for blob in gcs_server.client.list_blobs(gcs_server.bucket, prefix=folder)}
    names = {name.removeprefix(folder + "/") for name in blobs}
    assert {"payload.stdout", "payload.stderr", "pilotlog.txt"} <= names
    assert not any(name.endswith(".tgz") for name in names)
    assert (
        blobs[f"{folder}/pilotlog.txt"].content_type == blobs[f"{folder}/payload.stdout"].content_type == "text/plain"
    )
    stdout = gcs_server.fetch(f"{folder}/payload.stdout")
    assert stdout is not None
    assert b"hello" in stdout
    assert SECRET.encode() not in stdout
    pilot_log = gcs_server.fetch(f"{folder}/pilotlog.txt")
    assert pilot_log is not None
    assert str(job.id).encode() in pilot_log
    url = f"https://storage.googleapis.com/{gcs_server.bucket}/{folder}/pilotlog.txt"
    assert job.fields["pilot_id"].split("|")[0] == url
    first = next(update["fields"]["pilot_id"] for update in job.known["updates"])
    assert first.startswith("https://batch.example.org/log|")
    assert entry(job)["surl"] == f"gs://{gcs_server.bucket}/{folder}"
    assert int(entry(job)["fsize"]) > 0


def test_s3_has_them_where_the_site_says_so_again_if_need_be_else_it_has_the_archive(
    grid: Grid, s3_server: S3Server
) -> None:
    dataset = f"logs-{uuid.uuid4().hex}"
    use(grid, "s3", f"s3://{s3_server.host}/", f"/{s3_server.bucket}/os")
    for _ in range(2):  # a dataset without a PandaID: the second job's log takes the place of the first one's
        job = run(grid, {**s3_keys(s3_server), "PANDA_PILOT_COPY_OUT_EXTEND": "1"}, dataset)
    stdout = s3_server.fetch(f"os/Q/{dataset}/payload.stdout")
    assert stdout is not None
    assert b"hello" in stdout
    assert SECRET.encode() not in stdout
    pilot_log = s3_server.fetch(f"os/Q/{dataset}/pilotlog.txt")
    assert pilot_log is not None
    assert str(job.id).encode() in pilot_log
    where = f"s3://{s3_server.host}//{s3_server.bucket}/os/Q/{dataset}"
    assert (entry(job)["surl"], job.fields["pilot_id"].split("|")[0]) == (where, f"{where}/pilotlog.txt"[:200])
    archived = run(grid, s3_keys(s3_server), dataset)
    assert archived.fields["pilot_id"].startswith("https://batch.example.org/log|")
    assert s3_server.fetch(f"os/Q/{dataset}/{archived.known['definition']['logFile']}")


def test_s3_makes_a_folder_of_the_log_s_name_where_a_storage_has_its_layout(grid: Grid, s3_server: S3Server) -> None:
    prefix = uuid.uuid4().hex
    use(grid, "s3", f"s3://{s3_server.host}/", f"/{s3_server.bucket}/{prefix}", kind="DATADISK", deterministic=True)
    job = run(grid, {**s3_keys(s3_server), "PANDA_PILOT_COPY_OUT_EXTEND": "1"}, "logs")
    key = f"{prefix}/{hash_path(SCOPE, job.known['definition']['logFile'])}"
    assert s3_server.fetch(f"{key}/payload.stderr") == b"oops\n"
