"""A cluster of one node with Debian's own Slurm: munged, slurmctld and slurmd, all on loopback.

Nothing of the system's configuration is used: the key, the sockets and the files are the test's own. Names are resolved
by the system, so the network is the system's, too; every daemon is bound to 127.0.0.1.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.parts import cannot, debian, free_port, stop, wait_until

#: Seconds from TERM to KILL; the default of Slurm is 30.
KILL_WAIT = 10

_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge.socket
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait={kill_wait}
MailProg=/bin/true
PlugStackConfig={top}/plugstack.conf
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=16000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A running cluster.

    Args:
        top: its directory.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.environ = {"PATH": "/usr/bin:/bin", "SLURM_CONF": str(top / "slurm.conf"), "LANG": "C.UTF-8"}

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Run one of Slurm's programs; what it says."""
        done = subprocess.run(
            command, env=self.environ, cwd=cwd or self.top, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def job(self, job: str) -> Mapping[str, str]:
        """What `scontrol` shows of a job; empty once it is forgotten."""
        words = self.run("scontrol", "show", "job", "--oneliner", job, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that is idle."""
    if os.geteuid() != 0:
        cannot("Slurm needs root")
    debian("munge", "slurm-wlm", provides=("/usr/sbin/munged", "/usr/sbin/slurmctld", "/usr/sbin/slurmd", "sbatch"))
    top = tmp_path_factory.mktemp("slurm")
    top.chmod(0o755)
    for name in ("state", "spool"):
        (top / name).mkdir()
    config = _CONFIG.format(
        host=socket.gethostname().partition(".")[0],
        ports=(free_port(), free_port()),
        top=top,
        kill_wait=KILL_WAIT,
    )
    (top / "slurm.conf").write_text(config)
    (top / "plugstack.conf").touch()
    (top / "munge.key").write_bytes(secrets.token_bytes(128))
    (top / "munge.key").chmod(0o400)
    cluster = Cluster(top)
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_daemon(cluster, "/usr/sbin/munged", "--foreground", "--force", *_munge(top)))
        wait_until((top / "munge.socket").exists, f"munged, see {top}")
        started.append(_daemon(cluster, "/usr/sbin/slurmctld", "-D"))
        started.append(_daemon(cluster, "/usr/sbin/slurmd", "-D"))
        idle = ("sinfo", "--noheader", "--format=%t")
        wait_until(lambda: cluster.run(*idle, check=False) == "idle", f"an idle node, see {top}/*.log", 40)
        yield cluster
    finally:
        if len(started) == 3:
            cluster.run("scancel", "--full", "--user=root", "--signal=KILL", check=False)
            wait_until(lambda: not cluster.run("squeue", "--noheader", check=False), "all jobs of Slurm are gone", 30)
        for process in reversed(started):
            stop(process)


def _munge(top: Path) -> list[str]:
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "munged.log", "seed-file": "seed"}
    return [f"--{option}={top}/{name if '.' in name else f'munge.{name}'}" for option, name in names.items()]


def _daemon(cluster: Cluster, *command: str) -> subprocess.Popen[bytes]:
    with open(cluster.top / f"{Path(command[0]).name}.out", "wb") as log:
        return subprocess.Popen(
            command,
            env=cluster.environ | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd=cluster.top,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
