"""Whole pilots of experiments over an embedded server: what is different in the jobs that come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pilot.devserver.client import DevServer
from pilot.queuedata import hash_path

QUEUE, ENDPOINT, SCOPE = "Q", "DISK", "test"
_ACTIVITIES = ("read_lan", "write_lan", "pl", "pr", "pw")
_ROOT = Path(__file__).parents[2]

TRF = """#!/bin/bash
printf '%s\\n' "$@" > arguments.txt
env > environment.txt
echo '{"exitCode": 0}' > jobReport.json
touch AOD.root runargs.x.py
"""


class Site:
    """A server, a queue, a storage."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for name in ("files", "storage", "work"):
            (top / name).mkdir()
        self.server = DevServer(files=top / "files", adder_delay=0)
        self.describe()
        # CRIC, of which ATLAS' defaults speak, is not on this machine
        (top / "pilot.cfg").write_text(f"[Information]\nqueues_url = {self.server.url}/cache/queue.json\n")

    def describe(self, **fields) -> None:
        tools = {"copytools": {"mv": {}}, "acopytools": {activity: ["mv"] for activity in _ACTIVITIES}}
        queue = {"nickname": QUEUE, "panda_resource": QUEUE, "state": "ACTIVE", "status": "online", "timefloor": 60}
        queue |= {"astorages": {activity: [ENDPOINT] for activity in _ACTIVITIES}, "maxwdir": 2000} | tools | fields
        protocol = {"endpoint": "file://localhost", "path": str(self.top / "storage"), "flavour": "POSIX"}
        storage = {"name": ENDPOINT, "type": "DATADISK", "state": "ACTIVE", "is_deterministic": True}
        storage["arprotocols"] = {activity: [protocol] for activity in _ACTIVITIES}
        (self.top / "files" / "queue.json").write_text(json.dumps({QUEUE: queue}))
        (self.top / "files" / "storages.json").write_text(json.dumps({ENDPOINT: storage}))

    def job(self, *outputs: str, log: str, **fields) -> dict[str, object]:
        lfns = [*outputs, log]
        return {
            "transformation": "bash", "jobPars": "-c true", "outFiles": ",".join(lfns), "logFile": log,
            "ddmEndPointOut": ",".join([ENDPOINT] * len(lfns)), "scopeOut": ",".join([SCOPE] * len(outputs)),
            "scopeLog": SCOPE, **fields,
        }  # fmt: skip

    def pilot(self, user: str, *options: str, **environ: str) -> int:
        host, port = self.server.url.rsplit(":", 1)
        command = [
            *(sys.executable, "-m", "pilot.cli.main", "run", "-q", QUEUE, "-j", "managed", "--pilot-user", user),
            *("-a", str(self.top / "work"), "--url", host, "-p", port, "-v", "1", "-b", "-t"),
            *("--queuedata-url", f"{self.server.url}/cache/queue.json", "--config", str(self.top / "pilot.cfg")),
            *("--storagedata-url", f"{self.server.url}/cache/storages.json", *options),
        ]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.top), "PYTHONPATH": str(_ROOT), **environ}
        done = subprocess.run(command, cwd=self.top, env=env, capture_output=True, text=True, timeout=60, check=False)
        (self.top / "pilot.out").write_text(done.stdout + done.stderr)
        return done.returncode

    def stored(self, lfn: str) -> Path:
        return self.top / "storage" / hash_path(SCOPE, lfn)

    def in_log(self, lfn: str) -> set[str]:
        with tarfile.open(self.stored(lfn)) as archive:
            return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    (site.top / "files" / "trf.sh").write_text(TRF)
    yield site
    site.server.close()


def test_a_user_job_of_atlas(site):
    raw = site.job(
        "arguments.txt", "environment.txt", log="a.tgz", coreCount=2, taskID=5, processingType="panda-client"
    )
    raw["transformation"] = f"{site.server.url}/cache/trf.sh"
    raw["jobPars"] = """-i x --athenaopts "A:$ATHENA_CORE_NUMBER" --overwriteQueueData "{'maxrss': 1000}" """
    (job_id,) = site.server.submit(raw)
    site.describe(catchall="mv_final_destination")
    assert site.pilot("ATLAS", RUCIO_ACCOUNT="pilot") == 0
    job = site.server.job(job_id)
    assert job["state"] == "finished", job["fields"]
    assert site.stored("arguments.txt").read_text().split() == ["-i", "x", "--athenaopts", "A:2"]
    environment = site.stored("environment.txt").read_text().splitlines()
    assert {"PANDA_RESOURCE=Q", f"FRONTIER_ID=[5_{job_id}]", "TZ=UTC", "RUCIO_APPID=panda-client"} <= set(environment)
    assert not [line for line in environment if line.startswith("RUCIO_ACCOUNT")]
    assert json.loads(job["fields"]["meta_data"]) == {"exitCode": 0}
    names = site.in_log("a.tgz")
    assert {"runargs.x.py", "payload.stdout", "jobReport.json", "pilotlog.txt"} <= names
    assert not names & {"AOD.root", "arguments.txt", "environment.txt"}


@pytest.fixture
def alrb(tmp_path):
    """ATLASLocalRootBase with an `asetup` that knows one release."""
    for name, text in {
        "user/atlasLocalSetup.sh": f"export AtlasSetup={tmp_path}/AtlasSetup",
        "AtlasSetup/scripts/asetup.sh": 'case "$1" in Athena,25.0.1,notest) export ASETUP="$*";; *) '
        'echo "AtlasSetup: No release candidates found with $1"; return 1;; esac',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def test_a_release_of_atlas_is_set_up_before_the_payload(site, alrb):
    raw = site.job("setup.txt", log="b.tgz", swRelease="Atlas-25.0.1", homepackage="Athena/25.0.1")
    raw["jobPars"] = """-c 'echo "$ASETUP" > setup.txt'"""
    (job_id,) = site.server.submit(raw)
    site.describe(catchall="mv_final_destination")
    assert site.pilot("atlas", ATLAS_LOCAL_ROOT_BASE=str(alrb)) == 0
    job = site.server.job(job_id)
    assert job["state"] == "finished", job["fields"]
    assert site.stored("setup.txt").read_text() == "Athena,25.0.1,notest --makeflags=$MAKEFLAGS\n"


def test_a_release_that_is_not_there_is_not_done_without(site, alrb):
    (job_id,) = site.server.submit(site.job(log="b2.tgz", swRelease="Atlas-1.0.0", homepackage="Athena"))
    site.describe(catchall="mv_final_destination")
    site.pilot("atlas", ATLAS_LOCAL_ROOT_BASE=str(alrb))
    job = site.server.job(job_id)
    assert (job["state"], job["fields"]["pilot_error_code"]) == ("failed", 1244)
    assert "No release candidates found" in job["fields"]["pilot_error_diag"]


def test_outputs_of_sphenix_are_found_by_pattern_and_go_to_their_storage(site):
    raw = site.job(r"regex|DST_.*\.root", log="c.tgz")
    raw["jobPars"] = "-c 'echo 1 > DST_1.root; echo 2 > DST_2.root; echo 3 > other'"
    (job_id,) = site.server.submit(raw)
    site.describe()
    assert site.pilot("sphenix") == 0
    files = site.server.job(job_id)["files"]
    assert set(files) == {"DST_1.root", "DST_2.root", "c.tgz"}
    assert len({file["guid"] for file in files.values()}) == 3
    assert {file["endpoint"] for file in files.values()} == {ENDPOINT}
    assert site.stored("DST_2.root").read_text() == "2\n"
    names = site.in_log("c.tgz")
    assert "other" in names
    assert not names & {"DST_1.root", "DST_2.root"}


def test_a_pushed_pilot_of_rubin_ends_with_its_job_and_another_goes_on(site):
    site.describe(catchall="mv_final_destination")
    ids = site.server.submit([site.job(log=f"d{n}.tgz") for n in range(3)])
    gtag = "https://logs.example/PandaJob_1.out"
    assert site.pilot("rubin", "--harvester-submit-mode", "PUSH", GTAG=gtag) == 0
    states = site.server.states()
    assert [states[job_id] for job_id in ids] == ["finished", "activated", "activated"]
    fields = site.server.job(ids[0])["fields"]
    assert fields["pilot_id"].startswith(f"https://logs.example/PandaJob_{ids[0]}.out|")
    assert site.pilot("rubin", GTAG=gtag) == 0
    assert [site.server.states()[job_id] for job_id in ids] == ["finished"] * 3
    assert f"PandaJob_{ids[2]}.out" in site.server.job(ids[2])["fields"]["pilot_id"]
