"""A personal pool of HTCondor 23.9 in a root of Debian trixie (this system has no such package), all on loopback.

The root is made once below `.cache` and is read-only to a pool. A pool lives in mount and pid namespaces of its own, so
nothing of it outlives its first process; it runs as an ordinary user. What it shares with tests is one directory, which
has the same path inside and outside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.parts import CACHE, alone, cannot, debian, free_port, wait_until

_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = ("condor", "procps", "python3")
#: The user of the pool: it has no name outside.
UID = 9618
#: Seconds from TERM to KILL that the machine gives; the default of HTCondor is 600.
VACATE = 12

_CONFIG = """\
RELEASE_DIR = /usr
BIN = /usr/bin
SBIN = /usr/sbin
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
LOCAL_DIR = {top}
RUN = {top}/run
LOG = {top}/log
LOCK = {top}/lock
SPOOL = {top}/spool
EXECUTE = {top}/execute
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = test
UID_DOMAIN = test
USE_SHARED_PORT = True
SHARED_PORT_PORT = {port}
COLLECTOR_HOST = 127.0.0.1:{port}
DAEMON_LIST = MASTER, SHARED_PORT, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_CLIENT_AUTHENTICATION_METHODS = FS
FS_LOCAL_DIR = {top}/shared
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_ADMINISTRATOR = *
ALLOW_NEGOTIATOR = *
NUM_CPUS = 32
MEMORY = 64000
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
RUNBENCHMARKS = False
START = True
SUSPEND = False
PREEMPT = False
KILL = False
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
JOB_START_DELAY = 0
PERIODIC_EXPR_INTERVAL = 2
STARTER_UPDATE_INTERVAL = 2
STARTER_INITIAL_UPDATE_INTERVAL = 1
UPDATE_INTERVAL = 2
MachineMaxVacateTime = {vacate}
GLIDEIN_Site = "TEST_SITE"
STARTD_ATTRS = GLIDEIN_Site
"""

#: What the first process of the pool's namespaces does: the root, read-only; what is shared; the daemons.
_ENTER = """\
set -e
root=$1 top=$2 uid=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root$top"
mount --bind "$top" "$root$top"
mount -o remount,ro,bind "$root"
exec chroot --userspec="$uid:$uid" "$root" \
    env -i PATH=/usr/sbin:/usr/bin HOME="$top" CONDOR_CONFIG="$top/condor_config" /usr/sbin/condor_master -f
"""


class Pool:
    """A running pool.

    Args:
        top: the directory that it shares with tests.
        process: it.
    """

    def __init__(self, top: Path, process: subprocess.Popen[bytes]) -> None:
        self.top = top
        self.process = process

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Run a command inside; what it says."""
        done = subprocess.run([*self.enter(cwd), *command], capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def enter(self, cwd: Path | None = None) -> list[str]:
        """What stands before a command to run it inside."""
        space = ["nsenter", f"--target={self.inside}", "--mount", "--pid", "--root"]
        user = [f"--setuid={UID}", f"--setgid={UID}", "--"]
        env = ["/usr/bin/env", "-i", f"--chdir={cwd or self.top}", "PATH=/usr/sbin:/usr/bin", f"HOME={self.top}"]
        return [*space, *user, *env, f"CONDOR_CONFIG={self.top}/condor_config"]

    def submit(self, file: Path, *macros: str) -> str:
        """Submit a file with `name=value` macros; the id of the one job."""
        out = self.run("condor_submit", "-terse", *macros, str(file), cwd=file.parent)
        return out.split()[0]

    def ad(self, job: str, *attributes: str) -> dict[str, Any]:
        """Attributes of a job in the queue, or in the history once it has left; empty if there is none."""
        chosen = ["-attributes", ",".join(attributes)] if attributes else []
        for program in (["condor_q"], ["condor_history", "-match", "1"]):
            out = self.run(program[0], *program[1:], job, "-json", *chosen, check=False).strip()
            if out and (found := json.loads(out)):
                return dict(found[0])
        return {}

    @property
    def inside(self) -> int:
        """The first process inside, the only child of the one that we started; 0 before it is there."""
        pid = self.process.pid
        return int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])


@pytest.fixture(scope="session")
def htcondor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool with 32 cores that does nothing yet."""
    if os.geteuid() != 0:
        cannot("HTCondor needs root to enter the system it is installed in")
    root = _installed()
    top = tmp_path_factory.mktemp("htcondor")
    for name in ("run", "log", "lock", "spool", "execute", "shared"):
        (top / name).mkdir()
    config = _CONFIG.format(top=top, port=free_port(), vacate=VACATE)
    (top / "condor_config").write_text(config)
    top.chmod(0o755)
    for path in (top, *top.iterdir()):
        os.chown(path, UID, UID)
    space = ["unshare", "--mount", "--pid", "--fork"]
    with open(top / "pool.log", "wb") as log:
        words = [*space, "sh", "-c", _ENTER, "pool", str(root), str(top), str(UID)]
        process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    pool = Pool(top, process)
    try:
        wait_until(lambda: _is_ready(pool), f"a pool of HTCondor, see {top}/log", 40)
        yield pool
    finally:
        if inside := pool.inside:
            os.kill(inside, signal.SIGKILL)  # the first process of a pid namespace takes all others along
        process.wait(10)
        shutil.rmtree(top, ignore_errors=True)


def _is_ready(pool: Pool) -> bool:
    if pool.process.poll() is not None:
        pytest.fail(f"the pool ended: {(pool.top / 'pool.log').read_text()[-1000:]}")
    if not pool.inside:
        return False
    return bool(pool.run("condor_status", "-af", "Name", check=False)) and bool(
        pool.run("condor_status", "-schedd", "-af", "Name", check=False)
    )


def _installed() -> Path:
    """The root with HTCondor: 370 MB, in a minute, once."""
    top = CACHE / "htcondor"
    root = top / "root"
    with alone("htcondor"):
        if not (top / "done").exists():
            debian("debootstrap", provides=("debootstrap",))
            shutil.rmtree(root, ignore_errors=True)
            top.mkdir(exist_ok=True)
            _make(["debootstrap", "--variant=minbase", "trixie", str(root), _MIRROR])
            policy = root / "usr/sbin/policy-rc.d"
            policy.write_text("#!/bin/sh\nexit 101\n")  # no service is started by its installation
            policy.chmod(0o755)
            _make([*_INSIDE, str(root), " ".join(_PACKAGES)])
            _append(root / "etc/passwd", f"pilot:x:{UID}:{UID}::/tmp:/bin/bash\n")
            _append(root / "etc/group", f"pilot:x:{UID}:\n")
            (top / "done").touch()
    return root


_INSTALL = "apt-get install -y -q --no-install-recommends $1 && apt-get clean"
_INSIDE = [
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"),
    'mount -t proc proc "$0/proc" && exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin '
    f"DEBIAN_FRONTEND=noninteractive sh -c '{_INSTALL}' install \"$1\"",
]


def _append(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(line)


def _make(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        cannot(f"{command[0]} failed: {(done.stdout + done.stderr)[-500:]}")
