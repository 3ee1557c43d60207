"""Podman with runc, configured by a file of its own: nothing in /etc is touched.

Each session gets a store of its own, so that what others run with podman is not seen here, and is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import cannot, debian

#: runc: crun refuses a hybrid of both versions of control groups. The limits: without CAP_SYS_RESOURCE a container may
#: not have more than its parent.
_CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{top}/tmp"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{top}/root"
runroot = "{top}/run"
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """How to reach it: variables for its environment, and where it runs: conmon leaves a file `oom` there."""

    environ: Mapping[str, str]
    folder: Path

    def __call__(self, *words: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command of it."""
        environ = {"PATH": os.environ["PATH"], "HOME": "/root", **self.environ}
        return subprocess.run(
            ["podman", *words],
            env=environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def containers(self) -> list[str]:
        """Ids of all containers that there are."""
        return self("ps", "--all", "--quiet", "--no-trunc").stdout.split()


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """A podman that can run `/` as an image."""
    debian("podman", "runc", "conmon", provides=("podman", "runc", "conmon"))
    top = Path(tempfile.mkdtemp(prefix="podman-"))  # with a longer name podman waits 20 s for the end of each container
    (top / "containers.conf").write_text(_CONFIG.format(top=top))
    (top / "storage.conf").write_text(_STORAGE.format(top=top))
    found = Podman(
        {"CONTAINERS_CONF": str(top / "containers.conf"), "CONTAINERS_STORAGE_CONF": str(top / "storage.conf")}, top
    )
    done = found("run", "--rm", "--network=host", "--rootfs", "/:O", "/bin/true")
    if done.returncode != 0:
        cannot(f"podman cannot run a container: {done.stderr[-300:]}")
    yield found
    if left := found.containers():
        found("rm", "--force", *left)
    found("unmount", "--all")
    shutil.rmtree(top, ignore_errors=True)
    _remove_groups()


def _remove_groups() -> None:
    """The empty control groups that podman leaves in each hierarchy of version 1."""
    for tree in Path("/sys/fs/cgroup").glob("*"):
        for name in ("libpod_parent/conmon", "libpod_parent"):
            try:
                (tree / name).rmdir()
            except OSError:
                continue
