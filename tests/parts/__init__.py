"""Real parts for tests: servers and programs, installed when they are missing, started on loopback, ended by pid.

A test asks for what it needs with `debian`, `environment` or `program`. Where the machine cannot provide it the test is
skipped with the reason, but fails under `CI=true`: continuous integration must not pass for want of a server.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

CACHE = Path(__file__).parents[2] / ".cache"
_INSTALL_TIMEOUT = 600.0


def cannot(reason: str) -> NoReturn:
    """Skip loudly; fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"a real part is missing: {reason}", pytrace=False)
    pytest.skip(f"a real part is missing: {reason}")


def program(name: str) -> str:
    """The path of a program that must be there."""
    return shutil.which(name) or cannot(f"no program {name}")


def debian(*packages: str, provides: Sequence[str]) -> None:
    """Install Debian packages if one of the programs or files they provide is missing. Needs root for that."""
    if all(shutil.which(name) or Path(name).exists() for name in provides):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        cannot(f"{', '.join(provides)}: needs root and apt-get to install {' '.join(packages)}")
    with alone("apt"):
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
        if _run(install) != 0 and (_run(["apt-get", "update", "-q"]) != 0 or _run(install) != 0):
            cannot(f"apt-get install {' '.join(packages)} failed")


def environment(name: str, *requirements: str) -> Path:
    """The `bin` directory of a virtual environment of its own with these packages, made below `.cache` at first use."""
    top = CACHE / "venvs" / name
    wanted = "\n".join(requirements)
    done = top / "requirements.txt"
    with alone(name):
        if not (done.exists() and done.read_text() == wanted):
            shutil.rmtree(top, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(top)], check=True)
            pip = [str(top / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            if _run([*pip, *requirements]) != 0:
                cannot(f"pip install {' '.join(requirements)} failed")
            done.write_text(wanted)
    return top / "bin"


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Poll until something is true; fail with what it was otherwise."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether something accepts connections on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stop(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """End a server that we started: TERM, then KILL."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run(argv: Sequence[str]) -> int:
    done = subprocess.run(
        argv,
        timeout=_INSTALL_TIMEOUT,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One installation of a kind at a time, also over several test runs."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
