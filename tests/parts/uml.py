"""A Linux kernel that runs as an ordinary process (user-mode Linux of Debian sid), for what this kernel cannot show.

Here the memory controller may be one of control groups of version 1; inside it is one of version 2. The root is that of
this system, read-only; what is written goes to a tmpfs, and to one shared directory. It starts in a second, but system
calls are some fifty times slower than outside: it is for functions, not for times.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import CACHE, alone, debian
from tests.parts.suites import fetch

_PACKAGES = ("user-mode-linux/sid", "libc6/trixie")
_LIBRARIES = Path("lib/usr/lib/x86_64-linux-gnu")

#: Where inside the tmpfs and the shared directory are: not below /tmp, where a checkout may be.
TOP = Path("/mnt")
SHARED = TOP / "shared"

#: First process: what it needs, the command, and the power off. `exec` of the last would be a panic.
_INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME={top} TMPDIR={top}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o size=8g tmpfs {top}
mount -t cgroup2 cgroup2 /sys/fs/cgroup
[ ! -d /dev/shm ] && mkdir /dev/shm
mount -t tmpfs tmpfs /dev/shm
mkdir {shared}
mount -t hostfs none {shared} -o {outside}
cd {cwd} || exit 1
{command} > {shared}/output 2>&1
echo $? > {shared}/status
sync
echo o > /proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True, slots=True)
class Uml:
    """The kernel, ready to boot."""

    program: Path

    def run(self, command: list[str], shared: Path, *, memory: str = "1G", seconds: float = 300.0) -> str:
        """Boot, run a command as root in the directory that we are in, power off; what the command printed.

        Args:
            command: to run inside.
            shared: an empty directory; inside it is `SHARED`.
            memory: of the machine.
            seconds: until it is given up.

        Raises:
            AssertionError: the command failed, or the kernel did not come to its end.
        """
        init = shared / "init"
        words = {"top": TOP, "shared": SHARED, "outside": shared, "cwd": Path.cwd()}
        init.write_text(_INIT.format(command=shlex.join(command), **words))
        init.chmod(0o755)
        root = ("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}")
        options = (f"mem={memory}", "seccomp=on", f"uml_dir={shared}/", *root, "con=null", "con0=fd:0,fd:1")
        with open(shared / "console", "wb") as console:
            done = subprocess.run(
                [str(self.program), *options],
                env=os.environ | {"TMPDIR": str(shared)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                timeout=seconds,
                check=False,
            )
        status = shared / "status"
        output = (shared / "output").read_text(errors="replace") if (shared / "output").exists() else ""
        told = f"{output[-3000:]}\n{(shared / 'console').read_text(errors='replace')[-2000:]}"
        assert status.exists() and status.read_text().strip() == "0", f"kernel ended with {done.returncode}: {told}"
        return output


@pytest.fixture(scope="session")
def uml() -> Uml:
    """A kernel of its own. On demand, since it is a download of 39 MB from a suite that moves: also in CI it skips."""
    if not (os.environ.get("PILOT_UML") == "1" or _program().exists()):
        pytest.skip("user-mode Linux is on demand, also in CI: set PILOT_UML=1 to download it (39 MB)")
    if os.geteuid() != 0 or os.uname().machine != "x86_64":
        pytest.skip("user-mode Linux is on demand, and needs root on x86_64")
    return Uml(_installed())


def _program() -> Path:
    return CACHE / "uml" / "linux"


def _installed() -> Path:
    program = _program()
    with alone("uml"):
        if not program.exists():
            debian("patchelf", provides=("patchelf",))
            if problem := fetch(program.parent, _PACKAGES):
                pytest.skip(f"user-mode Linux cannot be had: {problem}")
            _unpack(program.parent)
    return program


def _unpack(top: Path) -> None:
    for package in sorted(top.glob("*.deb")):
        folder = "app" if package.name.startswith("user-mode-linux") else "lib"
        subprocess.run(["dpkg", "-x", package.name, folder], cwd=top, check=True)
        package.unlink()
    kernel, libraries = top / "app/usr/bin/linux.uml", top / _LIBRARIES
    linker = ["--set-interpreter", f"{libraries}/ld-linux-x86-64.so.2"]
    subprocess.run(["patchelf", *linker, "--force-rpath", "--set-rpath", str(libraries), str(kernel)], check=True)
    kernel.rename(top / "linux")
    for name in ("app", "lists", "cache"):
        shutil.rmtree(top / name, ignore_errors=True)
