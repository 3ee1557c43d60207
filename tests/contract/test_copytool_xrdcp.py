"""Copy tool `xrdcp` against a real XRootD server, by its bindings and by its programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from copytools.xrdcp import Xrdcp
from pilot.errors import TransferError
from pilot.staging.copytool import ToolContext
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle
from tests.parts.proxy import Throttle
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

    def test_a_directory_is_no_file(self, tool):
        self.store("folder/f", b"data")
        with pytest.raises(TransferError, match="is a directory"):
            tool.stat(self.remote_url("folder"), WatchfulHandle())


class TestXrdcpByBindings(XrdcpConformance):
    use = "bindings"


class TestXrdcpByPrograms(XrdcpConformance):
    use = "programs"


#: Answers are waited for one second, in a process of its own since the library has one such setting.
_IMPATIENT = """
import sys
from pathlib import Path
from copytools import _xrootd
_xrootd.CLIENT_SETTINGS = {**_xrootd.CLIENT_SETTINGS, "RequestTimeout": 1, "TimeoutResolution": 1}
from copytools.xrdcp import Xrdcp
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.testing.copytool import WatchfulHandle
use, url, path = sys.argv[1:]
transfer = Transfer(file=File(lfn="f", kind=Kind.INPUT), url=url, path=Path(path), size=None, checksums={},
                    checksum_type="adler32", timeout=60)
Xrdcp(ToolContext(options={"use": use})).get(transfer, WatchfulHandle())
"""


@pytest.mark.parametrize("use", ["bindings", "programs"])
def test_a_block_on_a_slow_way_is_waited_for_longer_than_an_answer(xrootd, tmp_path: Path, use: str):  # noqa: F811
    data = bytes(4 << 20)
    xrootd.write(f"slow-{use}", data)
    with Throttle(xrootd.port, 0, 1 << 20) as way:
        url = f"root://127.0.0.1:{way.port}//slow-{use}"
        argv = [sys.executable, "-c", _IMPATIENT, use, url, str(tmp_path / "f")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f").read_bytes() == data


def test_nothing_is_left_in_the_storage_but_whole_files(xrootd):  # noqa: F811
    left = [path.name for path in xrootd.data.rglob("*.partial")]
    assert not left
