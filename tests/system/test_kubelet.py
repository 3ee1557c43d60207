"""Our image and manifests under a real kubelet (`real_kubelet.py`), in namespaces of their own.

On demand: `.cache/kubernetes` needs `kubelet` and `kube-apiserver`, built from Debian's source package `kubernetes` as
`tests/parts/kubelet.py` says. Nothing of it is left on the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.kubelet import BUILT, TUNABLES, Group, installed, space
from tests.parts.podman import Podman


@pytest.fixture
def top() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="kubelet-"))  # a name of a socket has 107 bytes at most
    found.chmod(0o755)  # users of pods come by
    yield found
    shutil.rmtree(found)


def tunables() -> dict[str, str]:
    return {name: Path("/proc/sys", name).read_text() for name in TUNABLES}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_our_pods_run_under_a_real_kubelet(request: pytest.FixtureRequest, top: Path) -> None:
    if not all((BUILT / name).exists() for name in ("kubelet", "kube-apiserver")):
        pytest.skip("build kubelet and kube-apiserver of Debian's source package kubernetes into .cache/kubernetes")
    installed()
    podman: Podman = request.getfixturevalue("podman")
    pilot = request.getfixturevalue("image")
    (top / "Dockerfile").write_text('FROM localhost/base\nCMD ["sleep", "infinity"]\n')
    for command in (
        ("build", "--network=host", "--quiet", "--tag=localhost/sleep", str(top)),
        ("save", f"--output={top}/pilot.tar", pilot),
        ("save", f"--output={top}/base.tar", "localhost/sleep"),
    ):
        done = podman(*command, timeout=120)
        assert done.returncode == 0, done.stderr
    before = tunables()
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=400"]
    with Group(f"pilot-kubelet-{os.getpid()}") as group:
        done = subprocess.run(
            space(*tests, f"--basetemp={top / 'inside'}", str(Path(__file__).with_name("real_kubelet.py"))),
            env=os.environ | {"PILOT_NODE": str(top), "PILOT_GROUP": group},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-30000:] + done.stderr
    assert tunables() == before
    print((top / "figures").read_text())  # for people
