"""Docker's daemon with containerd and runc, and a registry: this system's packages, unpacked below `.cache`.

Nothing of the system is touched: the daemon has a mount namespace of its own, all its state below one directory, no
bridge and no rules of a firewall. It needs root, and runs without CAP_SYS_RESOURCE and without systemd.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import CACHE, alone, cannot, debian, free_port, listens, stop, wait_until

_PACKAGES = ("docker.io", "containerd", "docker-registry")

#: The daemon makes directories in /run and /opt, too, wherever its state is: they are its own, and go with it.
_START = 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /opt && exec "$@"'

#: An image of a few links: programs and libraries come by `OPTIONS` from this system. Its user is not ours, and it
#: wants a volume.
IMAGE = "localhost/pilot-test:1"
OPTIONS = "-v /usr:/usr:ro"
_USER = "12345:12345"

#: Who may enter the registry, and the same as htpasswd(1) writes it, with bcrypt.
LOGIN = ("somebody", "glpat-7c1d9e44aa01")
_ENTRY = "somebody:$2b$04$1QZqcXFJvb4u8wxJZpLe2utV7IJLnJSwEWV8oETGBqhpAwJZ25yUu"
_REGISTRY = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {top}/data}}}}
http: {{addr: 127.0.0.1:{port}}}
auth: {{htpasswd: {{realm: test, path: {top}/htpasswd}}}}
"""


@dataclass(frozen=True, slots=True)
class Docker:
    """How to reach the daemon."""

    environ: Mapping[str, str]

    def __call__(self, *words: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command of it."""
        environ = {"HOME": "/nonexistent", **self.environ}
        return subprocess.run(
            ["docker", *words], env=environ, capture_output=True, text=True, timeout=timeout, check=False
        )

    def containers(self) -> list[str]:
        """Ids of all containers that there are."""
        return self("ps", "--all", "--quiet", "--no-trunc").stdout.split()


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    """A daemon that has `IMAGE`."""
    found = installed()
    top = Path(tempfile.mkdtemp(prefix="docker-"))  # a name of a socket has 107 bytes at most
    path = f"{found}/usr/bin:{found}/usr/sbin:{os.environ['PATH']}"
    made = Docker({"PATH": path, "DOCKER_HOST": f"unix://{top}/socket"})
    group = f"pilot-docker-{os.getpid()}"
    with open(top / "log", "wb") as log:
        words = ["unshare", "--mount", "sh", "-c", _START, "sh", *_daemon(top, group)]
        process = subprocess.Popen(words, env=os.environ | {"PATH": path}, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or made("version").returncode == 0, "docker's daemon answers")
        done = made("import", "--change", f"USER {_USER}", "--change", "VOLUME /data", str(_image(top)), IMAGE)
        if done.returncode == 0:
            done = made("run", "--rm", "--network=host", *OPTIONS.split(), IMAGE, "/bin/true")
        if done.returncode != 0:
            cannot(f"docker cannot run a container: {done.stderr[-300:]} {(top / 'log').read_text()[-300:]}")
        yield made
    finally:
        with suppress(subprocess.TimeoutExpired):  # a daemon that hangs is ended all the same
            if left := made.containers():
                made("rm", "--force", *left)
        stop(process)
        shutil.rmtree(top)
        for tree in Path("/sys/fs/cgroup").glob(f"*/{group}"):
            tree.rmdir()


@pytest.fixture(scope="session")
def registry(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that lets nobody in without `LOGIN`: its address. It has `IMAGE` as `private/test:1`."""
    top, port = tmp_path_factory.mktemp("registry"), free_port()
    (top / "htpasswd").write_text(_ENTRY)
    (top / "config.yml").write_text(_REGISTRY.format(top=top, port=port))
    auth = base64.b64encode(":".join(LOGIN).encode()).decode()
    address = f"127.0.0.1:{port}"
    (top / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
    with open(top / "log", "wb") as log:
        words = [installed() / "usr/bin/docker-registry", "serve", top / "config.yml"]
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port), "the registry answers")
        name = f"{address}/private/test:1"
        for command in (["tag", IMAGE, name], ["--config", str(top), "push", name], ["rmi", name]):
            done = docker(*command)
            assert done.returncode == 0, done.stderr
        yield address
    finally:
        stop(process)


def _daemon(top: Path, group: str) -> list[str]:
    (top / "daemon.json").write_text(f'{{"deprecated-key-path": "{top}/key.json"}}')  # not in /etc
    return [
        *("dockerd", f"--config-file={top}/daemon.json", f"--host=unix://{top}/socket", f"--pidfile={top}/pid"),
        *(f"--data-root={top}/data", f"--exec-root={top}/exec", "--storage-driver=overlay2"),
        *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
        *("--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{group}", "--oom-score-adjust=0"),
    ]


def _image(top: Path) -> Path:
    path = top / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name, text in (("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\n"), ("etc/group", b"root:x:0:\n")):
            file = tarfile.TarInfo(name)
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text))
    return path


def installed() -> Path:
    """The directory with the programs. They are not installed, as that would end another docker of this machine."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        cannot("docker's daemon: needs root and apt-get")
    debian("runc", "libdevmapper1.02.1", provides=("runc",))
    top = CACHE / "docker"
    with alone("docker"):
        if not (top / "done").exists():
            shutil.rmtree(top, ignore_errors=True)
            top.mkdir()
            if not (_fetched(top) or (_apt(top, "update") and _fetched(top))):
                cannot(f"apt-get download {' '.join(_PACKAGES)} failed")
            for package in top.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, top], check=True)
                package.unlink()
            (top / "done").touch()
    return top


def _fetched(top: Path) -> bool:
    return _apt(top, "download", *_PACKAGES)


def _apt(top: Path, *words: str) -> bool:
    words = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", *words)
    return subprocess.run(words, cwd=top, capture_output=True, check=False).returncode == 0
