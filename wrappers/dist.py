#!/usr/bin/env python3
"""Build the release: `pilot3.tar.gz` for wrappers, the single file `pilot.pyz`, our wrapper, and `SHA256SUMS`.

Both carry what the pilot depends on, so a node needs nothing but Python >= 3.11. Pure packages are in `lib/`; compiled
ones in `lib/MACHINE/`, and those for one Python only in `lib/MACHINE/cp3XX/`. The same commit and the same lock file
give the same bytes: entries are sorted, owners dropped, and all times are that of the commit.

    python wrappers/dist.py [--output dist]       what `make dist` does
    python wrappers/dist.py --lock                take the newest versions that pyproject.toml allows into the lock
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_name("requirements.lock")
WRAPPER = Path(__file__).with_name("pilot-wrapper.sh")
MACHINES = ("x86_64", "aarch64")
PYTHONS = ("311", "312", "313", "314")
#: Of the repository, what the archive has.
CONTENT = ("pilot.py", "pilot", "copytools", "plugins", "LICENSE", "README.md", "CHANGELOG.md")
#: Tags of wheels that run on RHEL 8 and newer.
_PLATFORMS = ("manylinux2014_{}", "manylinux_2_17_{}", "manylinux_2_28_{}")

BOOTSTRAP = '''\
"""Unpack the pilot into a directory of its own and become it; the directory goes when it ends.

A signal waits until the directory is there to be removed.
"""

import os
import shutil
import signal
import sys
import tempfile
import zipfile

if sys.version_info < (3, 11):
    sys.exit("pilot.pyz: Python >= 3.11 is needed, this is " + sys.version.split()[0])
signals = [getattr(signal, "SIG" + name) for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "XCPU")]
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
top = ""
try:
    top = tempfile.mkdtemp(prefix="pilot-pyz-", dir=os.environ.get("PILOT_PYZ_DIR"))
    with zipfile.ZipFile(os.path.dirname(__file__)) as archive:
        archive.extractall(top)
except OSError as error:
    if top:
        shutil.rmtree(top, ignore_errors=True)
    sys.exit("pilot.pyz: " + top + ": " * bool(top) + str(error) + "; PILOT_PYZ_DIR names another directory")
become = (
    "import atexit, shutil, signal, sys; top = sys.argv.pop(1); sys.path.insert(0, top); "
    "atexit.register(shutil.rmtree, top, ignore_errors=True); signals = " + str([int(one) for one in signals]) + "; "
    "[signal.signal(one, lambda number, frame: sys.exit(128 + number)) "
    "for one in signals if signal.getsignal(one) is signal.SIG_DFL]; "
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, signals); "
    "import pilot_main; sys.exit(pilot_main.main())"
)
os.execv(sys.executable, [sys.executable, "-c", become, top, *sys.argv[1:]])
'''


def main() -> None:
    """Build, or renew the lock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--lock", action="store_true", help="renew requirements.lock instead of building")
    args = parser.parse_args()
    if args.lock:
        lock()
        return
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "pilot3"
        stage(tree, Path(scratch) / "wheels")
        when = commit_time()
        built = [tarball(tree, args.output / "pilot3.tar.gz", when), single_file(tree, args.output / "pilot.pyz", when)]
        built.append(Path(shutil.copy(WRAPPER, args.output)))
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in built)
    (args.output / "SHA256SUMS").write_text(sums)
    print(sums, end="")


def stage(tree: Path, wheels: Path) -> None:
    """Lay out what the archives contain."""
    tree.mkdir()
    for name in CONTENT:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignore)
        else:
            shutil.copyfile(source, tree / name)
    (tree / "PILOTVERSION").write_text(version() + "\n")  # wrappers print it
    for machine in MACHINES:
        for python in PYTHONS:
            download(wheels, machine, python, "--require-hashes", "-r", str(LOCK))
    for wheel in sorted(wheels.glob("*.whl")):
        unpack(wheel, tree / "lib")


def version() -> str:
    """The pilot's version."""
    found = re.search(r'__version__ = "(.+)"', (ROOT / "pilot" / "version.py").read_text())
    if found is None:
        raise SystemExit("pilot/version.py has no __version__")
    return found[1]


def download(wheels: Path, machine: str, python: str, *what: str) -> None:
    """Let pip fetch wheels for another machine or Python."""
    platforms = [f"--platform={platform.format(machine)}" for platform in _PLATFORMS]
    options = ["-q", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", f"--python-version={python}"]
    command = [sys.executable, "-m", "pip", "download", *options, *platforms, "-d", str(wheels), *what]
    subprocess.run(command, check=True)


def unpack(wheel: Path, lib: Path) -> None:
    """Put a wheel where `pilot.py` looks for it. PyYAML goes without its compiled part: it is one small file a job."""
    _, _, python, abi, platform = wheel.stem.split("-", 4)
    machine = next((name for name in MACHINES if platform.endswith(name)), "")
    pure = not machine or wheel.name.startswith("pyyaml")
    target = lib if pure else lib / machine if abi == "abi3" else lib / machine / python
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            licence = "/licenses/" in name
            if licence or not (".dist-info/" in name or (pure and name.endswith(".so"))):
                archive.extract(name, target)


def tarball(tree: Path, target: Path, when: int) -> Path:
    """`pilot3/...` as wrappers unpack it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        folder = tarfile.TarInfo(tree.name)  # first of all: Rubin's wrapper takes the archive's first name for it
        folder.type, folder.mtime, folder.mode = tarfile.DIRTYPE, when, 0o755
        archive.addfile(folder)
        for path in files(tree):
            entry = tarfile.TarInfo(str(path.relative_to(tree.parent)))
            entry.size, entry.mtime, entry.mode = path.stat().st_size, when, 0o644
            with open(path, "rb") as content:
                archive.addfile(entry, content)
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(buffer.getvalue())
    return target


def single_file(tree: Path, target: Path, when: int) -> Path:
    """A zip archive that Python runs."""
    stamp = time.gmtime(when)[:6]
    with open(target, "wb") as raw:
        raw.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
            texts = {"__main__.py": BOOTSTRAP.encode(), "pilot_main.py": (tree / "pilot.py").read_bytes()}
            contents = {str(path.relative_to(tree)): path.read_bytes() for path in files(tree)} | texts
            contents.pop("pilot.py")  # would hide the package of that name from nobody, but confuse readers
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name, stamp)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, contents[name])
    target.chmod(0o755)
    return target


def files(tree: Path) -> Iterator[Path]:
    """All files below, in an order that is always the same."""
    return iter(sorted(path for path in tree.rglob("*") if path.is_file()))


def commit_time() -> int:
    """Seconds since 1970 of SOURCE_DATE_EPOCH, else of the last commit, else 1980, where zip begins."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.stdout.strip() else 315532800


def lock() -> None:
    """Write exact versions and hashes of what pyproject.toml asks for."""
    ranges = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for machine in MACHINES:
            for python in PYTHONS:
                download(Path(scratch), machine, python, *ranges)
        for wheel in sorted(Path(scratch).glob("*.whl")):
            name, version = wheel.name.split("-")[:2]
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            found.setdefault(f"{re.sub('_', '-', name)}=={version}", []).append(digest)
    head = [line for line in LOCK.read_text().splitlines() if line.startswith("#")]
    pins = [f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{d}" for d in sorted(found[pin])) for pin in sorted(found)]
    LOCK.write_text("\n".join([*head, *pins]) + "\n")


if __name__ == "__main__":
    main()
