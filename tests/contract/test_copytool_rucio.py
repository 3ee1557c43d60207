"""Copy tool `rucio` against a real Rucio server whose RSE is a real XRootD server."""

from __future__ import annotations

from urllib.parse import quote
from zlib import crc32

import pytest

from copytools.rucio import Rucio
from pilot.queuedata import hash_path
from pilot.staging.copytool import ToolContext
from pilot.testing.copytool import CopyToolConformance
from tests.parts.xrootd import server as xrootd_server

PREFIX = "//rucio/"


@pytest.fixture(scope="module")
def storage(rucio):
    """An XRootD server that is an RSE, with the tool's environment."""
    with xrootd_server() as one:
        rucio.make_rse("CONFORMANCE", one.url, PREFIX)
        one.environ = {"RUCIO_CONFIG": str(rucio.client_config())}
        yield one


class TestRucio(CopyToolConformance):
    @pytest.fixture(autouse=True)
    def place(self, storage, request):
        self.server = storage
        self.scope = f"conf{crc32(request.node.originalname.encode())}"

    @pytest.fixture
    def tool(self):
        return Rucio(ToolContext(environ=self.server.environ))

    def name(self, name: str) -> str:
        """XRootD has no names with `?` in them."""
        return name.replace("?", "%3F")

    def remote_url(self, name: str) -> str:
        return f"rucio://CONFORMANCE/{self.scope}:{quote(self.name(name), safe='')}"

    def path(self, name: str):
        return self.server.data / "rucio" / hash_path(self.scope, self.name(name))

    def store(self, name: str, data: bytes) -> None:
        self.server.write(f"rucio/{hash_path(self.scope, self.name(name))}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.path(name).read_bytes() if self.path(name).exists() else None

    def forbid(self, name: str) -> bool:
        self.path(name).chmod(0)
        return True
