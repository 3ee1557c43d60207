"""A real XRootD server: root:// and, by its HTTP plug-in, http:// and WebDAV.

It refuses to run as root and has no setting for the address to listen on. So it runs as the user its package makes, in
a directory of its own that this user can reach, and a shim turns every address it binds into loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.parts import CACHE, cannot, debian, free_port, listens, program, stop, wait_until

_LOOPBACK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>
int bind(int file, const struct sockaddr *address, socklen_t length) {
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    if (!address || address->sa_family != AF_INET) return next(file, address, length);
    struct sockaddr_in loopback = *(const struct sockaddr_in *)address;
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return next(file, (struct sockaddr *)&loopback, sizeof loopback);
}
"""

_CONFIG = """
all.role server
xrd.port {port}
oss.localroot {data}
all.export / r/w
all.adminpath {base}/admin
all.pidpath {base}/admin
xrootd.chksum max 4 {checksums}
xrd.protocol http:{http_port} libXrdHttp.so
"""


@dataclass
class XrootdServer:
    """A server that runs, or can be started again.

    Attributes:
        base: its directory.
        extra: lines for its configuration, where `{base}` stands for that.
        checksums: the types it knows.
        authdb: who may do what, if `extra` says that it counts.
        environ: further variables of the server.
    """

    base: Path
    extra: str = ""
    authdb: str = ""
    checksums: str = "adler32 md5 crc32"
    port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """Where its files are."""
        return self.base / "data"

    @property
    def url(self) -> str:
        """`root://` and host; a path follows with two slashes."""
        return f"root://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """`http://` and host."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        """Of the server while it runs."""
        assert self.process is not None
        return self.process.pid

    def write(self, name: str, content: bytes) -> Path:
        """Make a file of the server's user in its storage."""
        path = self.data / name
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if os.geteuid() == 0:
            for made in (path, *missing):
                shutil.chown(made, "xrootd", "xrootd")
        return path

    def start(self) -> None:
        """Start and wait until it listens."""
        config = self.base / "xrootd.cfg"
        config.write_text((_CONFIG + self.extra).format(**vars(self), data=self.data))
        (self.base / "authdb").write_text(self.authdb)
        self.process = subprocess.Popen(
            [program("xrootd"), "-I", "v4", "-n", "t", "-c", str(config), "-l", str(self.base / "logs" / "log")],
            cwd=self.base / "admin",
            env=os.environ | self.environ | {"LD_PRELOAD": str(_shim())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **({"user": "xrootd", "group": "xrootd", "extra_groups": []} if os.geteuid() == 0 else {}),
        )
        wait_until(lambda: listens(self.port) and listens(self.http_port), f"XRootD listens, see {self.base}/logs")

    def end(self) -> None:
        """End it; one that was stopped too."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            stop(self.process)
        self.process = None


@contextmanager
def server(extra: str = "", **more: Any) -> Iterator[XrootdServer]:
    """A server of one's own."""
    debian("xrootd-server", "xrootd-server-plugins", "xrootd-client", "xrootd-plugins", provides=["xrootd", "xrdcp"])
    base = Path(tempfile.mkdtemp(prefix="xrootd-"))  # pytest's own directories are closed to other users
    try:
        base.chmod(0o755)
        for name in ("data", "admin", "logs"):
            (base / name).mkdir()
            if os.geteuid() == 0:
                shutil.chown(base / name, "xrootd", "xrootd")
        one = XrootdServer(base, extra, **more)
        try:
            one.start()
            yield one
        finally:
            one.end()
    finally:
        shutil.rmtree(base)


@pytest.fixture(scope="session")
def xrootd() -> Iterator[XrootdServer]:
    """A server for all tests that leave it as it was."""
    with server() as one:
        yield one


def _shim() -> Path:
    made = CACHE / "loopback-bind.so"
    if not made.exists():
        debian("gcc", "libc6-dev", provides=["gcc"])
        CACHE.mkdir(exist_ok=True)
        fresh = made.with_suffix(f".{os.getpid()}")
        build = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(fresh), "-x", "c", "-", "-ldl"]
        if subprocess.run(build, input=_LOOPBACK.encode(), check=False).returncode:
            cannot("gcc cannot build the loopback shim")
        fresh.replace(made)
    return made
