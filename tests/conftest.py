"""Servers that several test modules share, each started once in a session, when the first test asks for it.

`make test` runs modules side by side in three processes, since most tests wait for something; each process has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.parts.apptainer import apptainer
from tests.parts.docker import docker, registry
from tests.parts.gcs import gcs_server
from tests.parts.htcondor import htcondor
from tests.parts.image import image
from tests.parts.podman import podman
from tests.parts.release import release
from tests.parts.rucio import rucio
from tests.parts.s3 import s3_server
from tests.parts.slurm import slurm

__all__ = ["apptainer", "docker", "gcs_server", "htcondor", "image", "podman", "release", "rucio", "s3_server", "slurm"]
__all__ += ["registry"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What was logged goes from process to process as UTF-8; a file name in it may be none."""
    outcome: Any = yield
    report = outcome.get_result()
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
