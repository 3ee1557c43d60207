"""The image of `containers/Dockerfile`, built with podman on a base made from this machine: no registry is asked.

The base has what the official Python images have: Debian's Python, a shell and the small tools.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import cannot, debian
from tests.parts.podman import Podman
from tests.parts.release import ROOT

#: Debian packages of the base, without what they depend on.
_PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "python3.11", "libpython3.11-stdlib", "media-types"),
    *("bash", "dash", "coreutils", "grep", "tar", "gzip", "sed", "findutils", "mawk", "ca-certificates"),
    *("libc6", "libc-bin", "libtinfo6", "libselinux1", "libpcre2-8-0", "libacl1", "libattr1", "libgmp10", "zlib1g"),
    *("libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1"),
    *("libncursesw6", "libreadline8", "libcrypt1", "libgcc-s1", "libstdc++6"),
)
_LEFT_OUT = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/lib/python3.11/test/")
_LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/python3": "python3.11",
    "usr/bin/sh": "dash",
    "usr/bin/awk": "mawk",
}
_FOLDERS = {"tmp": 0o1777, "proc": 0o555, "sys": 0o555, "dev": 0o755, "root": 0o700, "build": 0o755}
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\n",
    "etc/group": b"root:x:0:\n",
    "etc/hosts": b"127.0.0.1 localhost\n",
}


@pytest.fixture(scope="session")
def image(podman: Podman, release: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the pilot's image."""
    debian("python3.11", provides=("/usr/bin/python3.11",))
    archive = tmp_path_factory.mktemp("base") / "base.tar"
    _pack(archive)
    build = ["build", "--network=host", "--build-arg=BASE=localhost/base", "--tag=localhost/pilot", "--quiet"]
    for words in (
        ["import", "--quiet", str(archive), "localhost/base"],
        [*build, f"--file={ROOT / 'containers' / 'Dockerfile'}", str(release)],
    ):
        done = podman(*words, timeout=300)
        if done.returncode != 0:
            pytest.fail(f"podman {words[0]}: {done.stderr[-2000:]}")
    archive.unlink()
    return "localhost/pilot"


def _pack(target: Path) -> None:
    with tarfile.open(target, "w") as archive:
        for name, mode in _FOLDERS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for name, link in _LINKS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
        for path in sorted({*_paths()} - {f"/{name}" for name in _LINKS}):
            archive.add(path, recursive=False)
        for name, content in _FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _paths() -> Iterator[str]:
    """Files of the packages, by the names that they have below /usr; and the certificates."""
    done = subprocess.run(["dpkg", "-L", *_PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        cannot(f"the base image: {done.stderr.strip()}")
    for name in {*done.stdout.splitlines(), "/etc/ssl/certs/ca-certificates.crt"}:
        path = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        is_ours = path.startswith(("/usr/", "/etc/ssl")) and not path.startswith(_LEFT_OUT)
        if is_ours and (os.path.islink(path) or os.path.isfile(path)):
            yield path
