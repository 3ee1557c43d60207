"""A server that speaks the API of Google Cloud Storage, on loopback: gcp-storage-emulator.

It keeps everything in memory, checks crc32c and md5, and resumes uploads; it knows no credentials and ignores
conditions on generations.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.parts import environment, free_port, listens, stop, wait_until

PACKAGE = "gcp-storage-emulator==2026.7.19"
BUCKET = "jobs"


@dataclass
class GcsServer:
    """A running server with an empty bucket `jobs`."""

    port: int
    process: subprocess.Popen[bytes]
    bucket: str = BUCKET
    clients: list[Any] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """Google's own client, kept."""
        if not self.clients:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud.storage import Client

            options = {"api_endpoint": self.endpoint}
            self.clients.append(Client(project="tests", credentials=AnonymousCredentials(), client_options=options))
        return self.clients[0]

    def store(self, name: str, data: bytes) -> None:
        self.client.bucket(self.bucket).blob(name).upload_from_string(data)

    def fetch(self, name: str) -> bytes | None:
        from google.api_core.exceptions import NotFound

        try:
            data: bytes = self.client.bucket(self.bucket).blob(name).download_as_bytes(raw_download=True)
        except NotFound:
            return None
        return data

    def end(self) -> None:
        for client in self.clients:
            client.close()
        stop(self.process)


def start_gcs(folder: Path) -> GcsServer:
    """Start a server; `folder` is for its log."""
    program = environment("gcs", PACKAGE) / "gcp-storage-emulator"
    port = free_port()
    argv = [str(program), "start", "-H", "127.0.0.1", "--port", str(port), "-M", "-q"]
    with open(folder / "server.log", "wb") as log:
        quiet = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=quiet)
    server = GcsServer(port, process)
    try:
        wait_until(lambda: process.poll() is not None or listens(port), "the GCS server listens")
        server.client.create_bucket(server.bucket)
    except BaseException:
        server.end()
        raise
    return server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """One server for all tests."""
    server = start_gcs(tmp_path_factory.mktemp("gcs"))
    yield server
    server.end()
