"""The wrappers that sites have, unchanged, launch our release (`real_wrappers.py`), in a network of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import CACHE

SCRIPTS = Path(os.environ.get("PILOT_REAL_WRAPPERS", CACHE / "pilot-wrapper"))


@pytest.mark.slow
def test_the_wrappers_of_sites_launch_our_release(release: Path, tmp_path: Path) -> None:
    if not (SCRIPTS / "runpilot2-wrapper.sh").is_file():
        pytest.skip("put runpilot2-wrapper.sh and rubin-wrapper.sh of PanDAWMS/pilot-wrapper into .cache/pilot-wrapper")
    space = ["unshare", "--mount", "--net"]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to a network and mounts of its own")
    inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}"]
    done = subprocess.run(
        [*space, *inner, str(Path(__file__).with_name("real_wrappers.py"))],
        env=os.environ | {"PILOT_RELEASE": str(release), "PILOT_REAL_WRAPPERS": str(SCRIPTS.absolute())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
