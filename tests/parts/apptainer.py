"""Apptainer of Debian sid, unpacked below `.cache`, with a C library of its own: it needs a newer one than is here.

It finds its own configuration beside the program, so nothing is installed.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import CACHE, alone, cannot, debian
from tests.parts.suites import fetch

_PACKAGES = ("apptainer/sid", "libc6/trixie", "libsqlite3-0/trixie", "libseccomp2/trixie")
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")

#: As root: a container may not have more capabilities than we have, and there is no systemd.
_CHANGES = {"root default capabilities": "no", "systemd cgroups": "no"}


@dataclass(frozen=True, slots=True)
class Apptainer:
    """The program, and a directory that serves as an image: the system itself, read-only."""

    program: Path
    image: Path
    options: str


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Apptainer:
    """An apptainer that can run an image made of this system."""
    program = _installed()
    image = tmp_path_factory.mktemp("apptainer") / "image; touch $HOME"
    binds = [name for name in ("/usr", "/lib", "/lib64", "/bin", "/sbin") if Path(name).exists()]
    for name in (*binds, "/etc", "/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/root", "/home"):
        (image / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (image / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (image / "etc/group").write_text("root:x:0:\n")
    options = f"-c -i -B {','.join(f'{name}:{name}:ro' for name in binds)}"
    done = subprocess.run(
        [str(program), "exec", *options.split(), str(image), "/bin/true"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        cannot(f"apptainer cannot run a container: {done.stderr[-300:]}")
    return Apptainer(program, image, options)


def _installed() -> Path:
    top = CACHE / "apptainer"
    program = top / "app/usr/bin/apptainer"
    with alone("apptainer"):
        if not (top / "done").exists():
            debian("patchelf", provides=("patchelf",))
            if problem := fetch(top, _PACKAGES):
                cannot(f"apptainer: {problem}")
            _unpack(top)
            (top / "done").touch()
    return program


def _unpack(top: Path) -> None:
    for package in sorted(top.glob("*.deb")):
        folder = "app" if package.name.startswith("apptainer") else "lib"
        subprocess.run(["dpkg", "-x", package.name, folder], cwd=top, check=True)
        package.unlink()
    libraries = top / "lib" / _LIBRARIES
    for name in ("usr/bin/apptainer", f"{_LIBRARIES}/apptainer/bin/starter"):
        linker = ["--set-interpreter", f"{libraries}/ld-linux-x86-64.so.2"]
        # An rpath counts for the libraries of libraries, too; a runpath does not.
        words = ["patchelf", *linker, "--force-rpath", "--set-rpath", str(libraries), str(top / "app" / name)]
        subprocess.run(words, check=True)
    (top / "app/etc").rename(top / "app/usr/etc")
    (top / "app/usr/lib/var/lib/apptainer/mnt/session").mkdir(parents=True)
    _configure(top / "app/usr/etc/apptainer/apptainer.conf")


def _configure(path: Path) -> None:
    lines = path.read_text().splitlines()
    changed = [
        next((f"{key} = {value}" for key, value in _CHANGES.items() if line.startswith(f"{key} =")), line)
        for line in lines
    ]
    path.write_text("\n".join(changed) + "\n")
