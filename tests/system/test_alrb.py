"""ATLAS' real ALRB starts payloads of real pilots in a real apptainer.

Its scripts are those of Tier3SW/ATLASLocalRootBase (December 2018), unchanged: the newest that are public. They know
none of the options of today but `-c`, so `FRONT` gives the others by the variables that are documented as their equals.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.grid import Grid, Job, processes_with, until
from tests.parts import CACHE
from tests.parts.apptainer import Apptainer

SCRIPTS = Path(os.environ.get("PILOT_REAL_ALRB", CACHE / "alrb"))
pytestmark = pytest.mark.slow
if not (SCRIPTS / "utilities/startContainer.sh").is_file():
    pytest.skip("put the scripts of Tier3SW/ATLASLocalRootBase into .cache/alrb", allow_module_level=True)

FRONT = """
alrb_real=$ATLAS_SW_BASE/atlas.cern.ch/repo/ATLASLocalRootBase
export ATLAS_LOCAL_ROOT_BASE=$alrb_real
if [ "$1" != -c ]; then source $alrb_real/user/atlasLocalSetup.sh "$@"; return; fi
OPTIND=1
while getopts c:s:r:e:d alrb_option; do
    case $alrb_option in
        c) alrb_image=$OPTARG ;;
        s) export ALRB_CONT_POSTSETUP="source $OPTARG" ;;
        r) export ALRB_CONT_RUNPAYLOAD=$OPTARG ;;
        e) export ALRB_CONT_CMDOPTS=$OPTARG ;;
        d) alrb_less=nocvmfs+ ;;
    esac
done
source $alrb_real/user/atlasLocalSetup.sh -c "$alrb_less$alrb_image"
"""
#: Versions of tools that are there, as ALRB lists them. AtlasSetup itself is not public.
MAPS = {"AtlasSetup": "10003|S|V01-00-03|V01-00-03|current|", "acm": "125|S|0.1.25|0.1.25|current|"}
ASETUP = "AtlasSetup/V01-00-03/AtlasSetup/scripts/asetup.sh"
#: It asks for three numbers, and apptainer says its name first.
SINGULARITY = '#!/bin/sh\n[ "$1" = --version ] && exec echo 3.8.7-1\nexec {program} "$@"\n'

GOOD = """cat in.txt > {out}; (echo $PWD $TMPDIR $ATLAS_LOCAL_ROOT_BASE $ALRB_SCRATCH $PandaID; echo "$SAYS"
echo $X509_USER_PROXY; cat $X509_USER_PROXY; readlink /proc/self/ns/ipc) >> {out}"""
#: Ends with 3 at the first TERM, after what it needs ALRB's home for, and counts how often it came.
OBEYS = "trap 'echo told >> told.txt; sleep 0.5; cat $X509_USER_PROXY >> told.txt; exit 3' TERM; touch up; {loop}"
IGNORES = """trap "" TERM; setsid bash -c 'trap "" TERM; {loop}' & touch up; {loop}"""
LOOP = "while :; do sleep 0.1; done"
PROXY = "no proxy but a word\n"
VALUE = "a  'b' \"c\" $(touch hacked) `touch hacked` * &"


@dataclass(frozen=True, slots=True)
class Site:
    """A grid whose queues start payloads by ALRB; CVMFS is a directory."""

    top: Path
    grid: Grid
    options: str

    def queue(self, name: str, options: str = "", **fields: Any) -> str:
        environ = f"X509_USER_PROXY={self.top / 'proxy'} SAYS={shlex.quote(VALUE)}"
        options = f"{self.options} {options}"
        return self.grid.queue(
            name, container_type="apptainer:pilot", container_options=options, environ=environ, **fields
        )

    def job(self, command: str, **fields: Any) -> dict[str, Any]:
        return self.grid.job(command, **{"queue": "ALRB", "container_name": str(self.top / "image"), **fields})

    def pilot(self, *more: str, queue: str = "ALRB") -> Any:
        environ = {
            "PATH": f"{self.top}/bin:{os.environ['PATH']}",
            "HOME": f"{self.top}/home",
            "ATLAS_SW_BASE": f"{self.top}/cvmfs",
            "ATLAS_LOCAL_ROOT_BASE": f"{self.top}/front",
            "ALRB_RELOCATECVMFS": "YES",
            "ALRB_localConfigDir": f"{self.top}/home",
            "ALRB_SCRATCH": f"{self.top}/home/.alrb",
        }
        return self.grid.pilot("--pilot-user", "atlas", *more, queue=queue, env=environ)

    def run(self, *jobs: dict[str, Any], queue: str = "ALRB") -> list[Job]:
        ids = self.grid.submit(*jobs)
        pilot = self.pilot(queue=queue)
        assert pilot.wait(60) == 0, pilot.text
        assert not list(self.top.rglob("hacked"))
        return [self.grid.job_of(job_id) for job_id in ids]

    def homes(self) -> list[Path]:
        """What ALRB makes for a container on the node, with a copy of the proxy, and takes away."""
        return list(self.top.glob("home/.alrb/container/singularity/home.*"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, apptainer: Apptainer) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("alrb")
    repository = top / "cvmfs/atlas.cern.ch/repo"
    alrb = repository / "ATLASLocalRootBase"
    shutil.copytree(SCRIPTS, alrb)
    machine = os.uname().machine
    files = {
        alrb / "logDir/installed": f"{machine}/a tool\n",
        **{alrb / machine / tool / ".alrb/mapfile.txt": text + "\n" for tool, text in MAPS.items()},
        alrb / machine / ASETUP: 'export ASETUP="$*"\n',
        alrb / machine / "acm/0.1.25/bin/none": "",
        repository / "sw/local/setup-compat.sh": "",
        top / "front/user/atlasLocalSetup.sh": FRONT,
        top / "bin/singularity": SINGULARITY.format(program=apptainer.program),
        top / "home/none": "",
        top / "proxy": PROXY,
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    images = repository / "containers/fs/singularity"
    images.mkdir(parents=True)
    for link in (top / "image", images / "x86_64-centos7"):
        link.symlink_to(apptainer.image)
    with Grid(top / "grid") as grid:
        queues = f"[Information]\nqueues_url = {grid.server.url}/cache/ALRB.json\n"
        grid.settings.write_text(grid.settings.read_text() + queues)
        made = Site(top, grid, f"{apptainer.options},/etc/alternatives:/etc/alternatives:ro")
        made.queue("ALRB")
        yield made


@pytest.fixture(scope="module")
def results(site: Site) -> dict[str, Job]:
    """Several jobs that one pilot runs one after the other."""
    platform = {"container_name": "", "cmtConfig": "x86_64-centos7-gcc8-opt"}
    release = {"swRelease": "Atlas-25.0.1", "homepackage": "Athena/25.0.1", "outputs": ["s.txt"]}
    cases = {
        "good": site.job(GOOD.format(out="o.txt"), inputs={"in.txt": b"hello\n"}, outputs=["o.txt"]),
        "seven": site.job("echo words >&2; exit 7"),
        "like apptainer": site.job("exit 255"),
        "platform": site.job('echo "$ASETUP" > s.txt; ls -d /cvmfs/atlas.cern.ch', **platform, **release),
        "no such path": site.job("true", container_name="/no/such/image"),
        "no name": site.job("true", container_name=f"/x; touch {site.top}/hacked #"),
    }
    return dict(zip(cases, site.run(*cases.values()), strict=True))


def test_a_good_payload_has_its_inputs_outputs_and_variables(site: Site, results: dict[str, Job]) -> None:
    job = results["good"]
    assert (job.state, job.code) == ("finished", 0), job.diag
    lines = job.path("o.txt").read_text().splitlines()
    inside = "/cvmfs/atlas.cern.ch/repo/ATLASLocalRootBase"
    assert lines[:2] == ["hello", f"/srv /srv {inside} /home/home/.alrb {job.id}"]
    assert lines[2:5] == [VALUE, "/alrb/proxy", PROXY.strip()]
    assert lines[5] != os.readlink("/proc/self/ns/ipc")
    assert site.homes() == []


@pytest.mark.parametrize(("name", "status"), [("seven", 7), ("like apptainer", 255)])
def test_the_status_of_a_payload_is_its_own(results: dict[str, Job], name: str, status: int) -> None:
    job = results[name]
    assert (job.state, job.code) == ("failed", 1305), job.diag
    assert f"exit status {status}" in job.diag


def test_alrb_finds_the_image_of_a_platform_and_sets_up_the_release_in_it(results: dict[str, Job]) -> None:
    job = results["platform"]
    assert job.state == "finished", job.diag
    expected = "Athena,25.0.1,notest --platform x86_64-centos7-gcc8-opt --makeflags=$MAKEFLAGS\n"
    assert job.path("s.txt").read_text() == expected


def test_a_release_is_set_up_on_the_node_itself(site: Site) -> None:
    queue = site.grid.queue("node")
    release = {"swRelease": "Atlas-25.0.1", "homepackage": "Athena/25.0.1"}
    (job,) = site.run(
        site.job('echo "$ASETUP" > n.txt', queue=queue, container_name="", outputs=["n.txt"], **release), queue=queue
    )
    assert job.state == "finished", job.diag
    assert job.path("n.txt").read_text() == "Athena,25.0.1,notest --makeflags=$MAKEFLAGS\n"


@pytest.mark.parametrize(("name", "what"), [("no such path", "/no/such/image"), ("no name", "hacked")])
def test_an_image_that_is_not_there_is_1360_and_says_which(results: dict[str, Job], name: str, what: str) -> None:
    job = results[name]
    assert (job.state, job.code) == ("failed", 1360), job.diag
    assert what in job.diag


@pytest.mark.parametrize(
    ("payload", "options"),
    [(OBEYS, ""), (OBEYS, "--pid --pwd /tmp"), (IGNORES, "")],
    ids=["obeys", "pid namespace", "ignores"],
)
def test_a_stop_reaches_the_payload_once_and_leaves_nothing(site: Site, payload: str, options: str) -> None:
    queue = site.queue("stops", options)
    (job_id,) = site.grid.submit(site.job(payload.replace("{loop}", LOOP), queue=queue))
    pilot = site.pilot("--grace", "8", queue=queue)
    workdir = until(lambda: next(site.grid.work.glob(f"*/PanDA_Pilot-{job_id}"), None))
    until((workdir / "up").exists)
    pilot.signal(signal.SIGTERM)
    assert pilot.wait(20) == 143
    job = site.grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", 1201), job.diag
    if payload is OBEYS:
        assert job.log()["told.txt"].decode() == f"told\n{PROXY}"
        assert "status 3" in pilot.text
    until(lambda: not processes_with(f"PandaID={job_id}"), 5)
    assert site.homes() == []
