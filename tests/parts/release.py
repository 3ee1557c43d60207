"""The release archives, built once for all tests that start a pilot as sites do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(output: Path) -> None:
    """Build archives into a directory."""
    subprocess.run([sys.executable, ROOT / "wrappers" / "dist.py", "--output", output], check=True, capture_output=True)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `pilot3.tar.gz`, `pilot.pyz`, `pilot-wrapper.sh`, `SHA256SUMS`; everybody may read it."""
    top = tmp_path_factory.mktemp("release")
    build(top)
    return top
