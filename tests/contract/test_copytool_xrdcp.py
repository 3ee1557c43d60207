"""Copy tool `xrdcp` against a real XRootD server, by its bindings and by its programs."""

from __future__ import annotations

import pytest

from copytools.xrdcp import Xrdcp
from pilot.staging.copytool import ToolContext
from pilot.testing.copytool import CopyToolConformance
from tests.parts.xrootd import server, xrootd  # noqa: F401 - fixtures


class XrdcpConformance(CopyToolConformance):
    use = ""
    setup = ""

    @pytest.fixture(autouse=True)
    def place(self, xrootd, request):  # noqa: F811
        self.server = xrootd
        self.folder = f"{request.node.originalname}-{self.use}"

    @pytest.fixture
    def tool(self):
        return Xrdcp(ToolContext(options={"use": self.use, "setup": self.setup}))

    def name(self, name: str) -> str:
        """A name can have no `?` in XRootD: test the others, and this one as others write it."""
        return f"{self.folder}/{name.replace('?', '%3F')}"

    def remote_url(self, name: str) -> str:
        return f"{self.server.url}//{self.name(name)}"

    def store(self, name: str, data: bytes) -> None:
        self.server.write(self.name(name), data)

    def fetch(self, name: str) -> bytes | None:
        path = self.server.data / self.name(name)
        return path.read_bytes() if path.exists() else None

    def forbid(self, name: str) -> bool:
        path = self.server.data / self.name(name)
        path.chmod(0)
        return True


class TestXrdcpByBindings(XrdcpConformance):
    use = "bindings"


class TestXrdcpByPrograms(XrdcpConformance):
    use = "programs"


def test_nothing_is_left_in_the_storage_but_whole_files(xrootd):  # noqa: F811
    left = [path.name for path in xrootd.data.rglob("*.partial")]
    assert not left
