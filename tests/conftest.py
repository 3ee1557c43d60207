"""Servers that several test modules share, each started once in a session, when the first test asks for it."""

from __future__ import annotations

from tests.parts.apptainer import apptainer
from tests.parts.gcs import gcs_server
from tests.parts.podman import podman
from tests.parts.release import release
from tests.parts.rucio import rucio
from tests.parts.s3 import s3_server

__all__ = ["apptainer", "gcs_server", "podman", "release", "rucio", "s3_server"]
