"""Wrappers of Pilot 3 around our release, as a batch system starts them; run by `test_real_wrappers.py`.

The network is ours alone: the monitor of factories and the server's name are this machine. CVMFS is a directory with
the few files that the scripts source or look at.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.grid import Grid, Pilot, until

RELEASE, SCRIPTS = Path(os.environ["PILOT_RELEASE"]), Path(os.environ["PILOT_REAL_WRAPPERS"])
#: There may be several versions of Rubin's.
ATLAS, RUBIN = SCRIPTS / "runpilot2-wrapper.sh", sorted(SCRIPTS.glob("rubin-wrapper*.sh"))
#: Where monitors listen, and what the server's names are.
MONITORS, PORT = ("148.88.96.15", "148.88.67.14", "148.88.97.108"), 28527
NAMES = ("pandaserver.cern.ch", "pandaserver-doma.cern.ch", "apfmon.lancs.ac.uk")
CVMFS = {
    "atlas.cern.ch/repo/ATLASLocalRootBase/user/atlasLocalSetup.sh": "lsetup() { echo lsetup $*; }",
    "atlas.cern.ch/repo/sw/local/setup.sh": 'export SITE_SETUP="$*"',
}
ARCHIVES = ["atlas.cern.ch/repo/sw/PandaPilot/tar"]
for _system in ("linux-x86_64", "almalinux-x86_64"):
    CVMFS[f"sw.lsst.eu/{_system}/lsst_distrib/README"] = ""
    CVMFS[f"sw.lsst.eu/{_system}/panda_env/v1/conda/install/bin/activate"] = "rucio() { echo rucio $*; }"
    ARCHIVES.append(f"sw.lsst.eu/{_system}/panda_env/v1/pilot")


class Site:
    """A node: starts wrappers on a grid, and hears what they tell the monitor."""

    def __init__(self, top: Path, grid: Grid) -> None:
        self.top, self.grid = top, grid
        self.scratch = top / "scratch"
        self.scratch.mkdir()
        self.monitor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.monitor.bind(("", PORT))
        self.monitor.settimeout(5)
        self.pilots: list[Pilot] = []

    def queue(self, name: str, **fields: str | int) -> str:
        return self.grid.queue(name, container_options="", environ="FROM_QUEUE=yes", **fields)

    def launch(
        self, script: Path, *more: str, queue: str, path: str = "", files: dict[str, str] | None = None
    ) -> Pilot:
        """Start a wrapper in a session of its own, as batch systems do."""
        launch = self.top / f"launch-{len(self.pilots)}"
        launch.mkdir()
        (record,) = json.loads((self.grid.files / f"{queue}.json").read_text()).values()
        (launch / "queuedata.json").write_text(json.dumps(record, indent=1))  # it is read line by line
        for name, text in (files or {}).items():
            (launch / name).write_text(text)
        words = self.grid.options(*more, queue=queue)
        del words[words.index("-a") : words.index("-a") + 2]
        ids = {"APFFID": "factory", "APFCID": "12.3", "HARVESTER_ID": "H", "HARVESTER_WORKER_ID": "7", "GTAG": "G"}
        environ = {"PATH": f"{path}/usr/bin:/bin", "TMPDIR": str(self.scratch), "LANG": "C.UTF-8", **ids}
        environ["DAF_BUTLER_REPOSITORY_INDEX"] = "/dev/null"
        pilot = Pilot([str(script), *words], cwd=launch, env=environ, start_new_session=True)
        self.pilots.append(pilot)
        return pilot

    def heard(self) -> list[str]:
        return self.monitor.recv(2000).decode().split()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("site")
    cvmfs, hosts = top / "cvmfs", top / "hosts"
    for name, text in CVMFS.items():
        (cvmfs / name).parent.mkdir(parents=True, exist_ok=True)
        (cvmfs / name).write_text(f"{text}\n")
    for name in ARCHIVES:
        (cvmfs / name).mkdir(parents=True)
        shutil.copy(RELEASE / "pilot3.tar.gz", cvmfs / name)
    hosts.write_text("127.0.0.1 localhost " + " ".join(NAMES) + f" {socket.gethostname()}\n")
    made = not Path("/cvmfs").exists()
    Path("/cvmfs").mkdir(exist_ok=True)
    commands = ["ip link set lo up", *(f"ip addr add {address}/32 dev lo" for address in MONITORS)]
    commands += [f"mount --bind {cvmfs} /cvmfs", f"mount --bind {hosts} /etc/hosts"]
    for command in commands:
        subprocess.run(command.split(), check=True)
    with Grid(top / "grid") as grid:
        site = Site(top, grid)
        yield site
        for pilot in site.pilots:
            pilot.close()
        site.monitor.close()
    subprocess.run(["umount", "/cvmfs"], check=True)
    if made:
        Path("/cvmfs").rmdir()


def test_a_job_runs_in_the_release_from_cvmfs(site: Site) -> None:
    queue = site.queue("JOB")
    (job_id,) = site.grid.submit(site.grid.job("cat in > out", inputs={"in": b"x"}, outputs=["out"], queue=queue))
    pilot = site.launch(ATLAS, "--pythonversion", "3", "-w", "generic", queue=queue)

    assert pilot.wait() == 0, pilot.text
    assert site.grid.job_of(job_id).state == "finished"
    for text in (
        "Pilot exit status: 0",
        f"pandaids: {job_id}",
        "lsetup -q psutil",
        f"SITE_SETUP=-s {queue} -p python3",
    ):
        assert text in pilot.text
    assert list(site.scratch.iterdir()) == []
    assert site.heard()[1:] == ["factory:12.3", "running", "0", queue, "unknown", "H", "7", "G"]
    assert site.heard()[2] == "exiting"


def test_a_job_that_fails_is_no_fault_of_the_pilot(site: Site) -> None:
    queue = site.queue("FAILS")
    (job_id,) = site.grid.submit(site.grid.job("exit 3", queue=queue))
    assert site.launch(ATLAS, "--mute", queue=queue).wait() == 0
    assert (site.grid.job_of(job_id).state, site.grid.job_of(job_id).code) == ("failed", 1305)


@pytest.mark.parametrize(("kind", "status"), [("hpc_special", 82), ("hpc", 0), ("GRID", 0)])
def test_an_hpc_s_batch_system_hears_that_there_was_no_job(site: Site, kind: str, status: int) -> None:
    queue = site.queue(f"NONE_{kind}", resource_type=kind)
    assert site.launch(ATLAS, "--mute", queue=queue).wait() == status


@pytest.mark.parametrize(
    ("signum", "code", "status"),
    [(signal.SIGTERM, 1201, 1), (signal.SIGINT, 1208, 2), (signal.SIGUSR2, 1200, 140), (signal.SIGXCPU, 1204, 152)],
)
def test_a_signal_for_all_ends_the_job_in_order(site: Site, signum: signal.Signals, code: int, status: int) -> None:
    queue = site.queue(signum.name)
    (job_id,) = site.grid.submit(site.grid.job("sleep 60", queue=queue))
    pilot = site.launch(ATLAS, "--mute", "--localpy", queue=queue)
    until(lambda: site.grid.job_of(job_id).state == "running")
    os.killpg(pilot.pid, signum)
    assert pilot.wait(10) == status, pilot.text
    job = site.grid.job_of(job_id)
    assert (job.finals, job.code) == (["failed"], code)


def test_a_pilot_whose_log_is_old_is_ended(site: Site) -> None:
    """The hour and the quarters of an hour are made shorter: `sleep` takes a 300th, the log is made old."""
    queue = site.queue("OLD")
    tools = site.top / "tools"
    tools.mkdir()
    (tools / "sleep").write_text('#!/bin/sh\nexec /bin/sleep "$(awk "BEGIN {print $1 / 300}")"\n')
    (tools / "sleep").chmod(0o755)
    (job_id,) = site.grid.submit(site.grid.job("/bin/sleep 60", queue=queue))
    pilot = site.launch(ATLAS, "--mute", queue=queue, path=f"{tools}:")
    until(lambda: site.grid.job_of(job_id).state == "running")
    (log,) = site.scratch.glob("atlas_*/pilotlog.txt")
    long_ago = time.time() - 7200
    os.utime(log, (long_ago, long_ago))
    assert pilot.wait() == 2, pilot.text
    assert site.grid.job_of(job_id).code == 1208
    assert [site.heard()[0] for _ in range(4)] == ["TIME_DIFF", "TIME_DIFF", "SIGINT", "SIGINT"]


def test_a_pushed_job_is_found(site: Site) -> None:
    queue = site.queue("PUSH", timefloor=0)
    (job_id,) = site.grid.submit(site.grid.job(queue=queue))
    given = urlencode(site.grid.job_of(job_id).known["definition"])
    pilot = site.launch(
        ATLAS, "--mute", "--harvester-submit-mode", "PUSH", queue=queue, files={"pandaJobData.out": given}
    )
    assert pilot.wait() == 0, pilot.text
    assert site.grid.job_of(job_id).state == "finished"


@pytest.mark.parametrize("script", RUBIN, ids=lambda path: path.stem)
@pytest.mark.parametrize("url", ["", f"file://{RELEASE}/pilot3.tar.gz"], ids=["cvmfs", "url"])
def test_rubin_s_wrapper_launches_it_too(site: Site, script: Path, url: str) -> None:
    queue = site.queue("RUBIN")
    (job_id,) = site.grid.submit(site.grid.job(queue=queue))
    pilot = site.launch(script, "--mute", *(["--piloturl", url] if url else []), queue=queue)
    assert pilot.wait() == 0, pilot.text
    assert site.grid.job_of(job_id).state == "finished"
    for text in ("PANDA_PILOT_SOURCE=pilot3/", "Pilot exit status: 0", f"pandaids: {job_id}"):
        assert text in pilot.text
