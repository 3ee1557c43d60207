"""Pilot 3 itself, as PyPI has it: in an environment of its own, and only in a PID namespace of its own.

Without that it might signal processes of others: it looks for orphans of its user (PILOT3 5.5). It runs as it is.
Python 3.13 has no module `pipes` any more, which it imports; the package `standard-pipes` is that module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.benchmarks.field import Field
from tests.benchmarks.pilots import Pilot
from tests.parts import CACHE, cannot, environment, program

VERSION = "3.7.0.36"
_SHA256 = "8b5b754fa9fbea835b14215c2957a59a393988113c5209f5c826e6c67b46f03e"
_PACKAGES = ("psutil>=5.9,<8", "standard-pipes; python_version >= '3.13'")


def pilot3() -> Pilot:
    """Pilot 3, installed if it is not there; where it cannot run, the test is skipped (and fails in CI)."""
    program("curl")  # it makes its requests by it
    python = environment("peer", *_PACKAGES) / "python"
    source = _source(python)
    return Pilot(
        name=f"Pilot {VERSION}",
        api="legacy",
        command=[*_namespace(), str(python), str(source / "pilot.py")],
        nested=True,
        options=_options,
        environment=_environment,
        patience=400.0,
    )


def _options(place: Field) -> list[str]:
    # Its mv tool looks for inputs below the directory where they should go to, if the queue has mv_final_destination.
    return ["--input-destination-dir", str(place.storage)]


def _environment(place: Field) -> dict[str, str]:
    return {"PILOT_NOKILL": "1", "LOCAL_AGIS_SCHEDCONF": f"{place.server.url}/cache/schedconf.json"}


def _namespace() -> list[str]:
    command = [program("unshare"), *([] if os.geteuid() == 0 else ["--map-root-user"])]
    command += ["-pf", "--mount-proc", "--kill-child"]
    done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        cannot(f"PID namespace: {done.stderr.strip()}")
    return command


def _source(python: Path) -> Path:
    """The unpacked source distribution: its wheel lacks `pilot.py`, which starts it."""
    top = CACHE / "peer" / f"panda-pilot-{VERSION}"
    if not (top / "pilot.py").exists():
        shutil.rmtree(CACHE / "peer", ignore_errors=True)
        (CACHE / "peer").mkdir(parents=True)
        wanted = CACHE / "peer" / "requirements.txt"
        wanted.write_text(f"panda-pilot=={VERSION} --hash=sha256:{_SHA256}\n")
        fetch = [str(python), "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        fetch += ["--no-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", str(CACHE / "peer")]
        done = subprocess.run(fetch, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            cannot(f"pip download panda-pilot=={VERSION}: {done.stderr.strip()}")
        with tarfile.open(next((CACHE / "peer").glob("*.tar.gz"))) as archive:
            archive.extractall(CACHE / "peer", filter="data")
    return top
