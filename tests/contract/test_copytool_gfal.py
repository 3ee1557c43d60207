"""Copy tool `gfal` with the real gfal2 programs against a real XRootD server, by root:// and by WebDAV."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from copytools.gfal import Gfal, GfalError
from copytools.gfalcopy import GfalCopy
from pilot import plugins
from pilot.errors import Code, Trait
from pilot.staging.copytool import CopyTool, ToolContext
from pilot.staging.faults import Direction
from pilot.testing.copytool import CopyToolConformance
from tests.parts import debian
from tests.parts.xrootd import xrootd  # noqa: F401 - a fixture

PACKAGES = ("gfal2-util-scripts", "python3-gfal2-util", "gfal2-plugin-file", "gfal2-plugin-xrootd", "gfal2-plugin-http")

#: Debian's programs look for /usr/bin/python, which Debian does not have.
SETUP = "export GFAL_PYTHONBIN=/usr/bin/python3; export PATH=/usr/bin:/bin"


@pytest.fixture(scope="module", autouse=True)
def programs():
    debian(*PACKAGES, provides=["gfal-copy", "gfal-rename"])


class GfalConformance(CopyToolConformance):
    scheme = ""

    @pytest.fixture(autouse=True)
    def place(self, xrootd, request):  # noqa: F811
        self.server = xrootd
        self.folder = f"gfal-{self.scheme}-{request.node.originalname}"

    @pytest.fixture
    def tool(self):
        return Gfal(ToolContext(options={"setup": SETUP}))

    def name(self, name: str) -> str:
        """XRootD stores no name with a `?`, whatever the protocol."""
        return f"{self.folder}/{name.replace('?', '!')}"

    def remote_url(self, name: str) -> str:
        port = self.server.port if self.scheme == "root" else self.server.http_port
        return f"{self.scheme}://127.0.0.1:{port}//{quote(self.name(name))}"

    def store(self, name: str, data: bytes) -> None:
        self.server.write(self.name(name), data)

    def fetch(self, name: str) -> bytes | None:
        path = self.server.data / self.name(name)
        return path.read_bytes() if path.exists() else None

    def forbid(self, name: str) -> bool:
        (self.server.data / self.name(name)).chmod(0)
        return True


class TestGfalByXrootd(GfalConformance):
    scheme = "root"


class TestGfalByWebDav(GfalConformance):
    scheme = "dav"


@pytest.mark.parametrize(("name", "made"), [("gfal", Gfal), ("gfalcopy", GfalCopy)])
def test_queues_may_say_either_name(name, made):
    assert plugins.load("pilot.copytools", name, CopyTool) is made


@pytest.mark.parametrize(
    ("text", "status", "code", "trait"),
    [
        ("gfal-copy error: 110 (Connection timed out) - x", 110, Code.STAGEINTIMEOUT, Trait.RETRY),
        ("gfal-copy error: 62 (Timer expired) - x", 62, Code.STAGEINTIMEOUT, Trait.RETRY),
        ("gfal-copy error: 2 (No such file or directory) - x", 2, Code.MISSINGINPUTFILE, Trait.NEXT),
        ("gfal-copy error: 17 (File exists) - x", 17, Code.FILEEXISTS, Trait.NEXT),
        ("gfal-copy error: 28 (No space left on device) - x", 28, Code.NOLOCALSPACE, Trait.NEXT),
        ("gfal-copy error: 70 - globus_xio: Unable to connect", 70, Code.GETGLOBUSSYSERR, Trait.RETRY),
        ("gfal-copy error: 5 - Could not establish context", 5, Code.NOPROXY, Trait.NEXT),
        ("gfal-copy error: 5 - ... SRM_FILE_BUSY", 5, Code.FILEEXISTS, Trait.RETRY),
        ("gfal-copy error: 111 (Connection refused) - x", 111, Code.STAGEINFAILED, Trait.RETRY),
        ("gfal-copy error: 13 (Permission denied) - x", 13, Code.STAGEINFAILED, Trait.NEXT),
        ("", 99, Code.STAGEINFAILED, Trait.RETRY),
    ],
)
def test_what_an_exit_code_means(text, status, code, trait):
    error = GfalError(text, status, Direction.IN, "srm://h/x")
    assert (error.code, error.trait) == (code, trait)


def test_a_number_above_255_is_read_from_the_text():
    assert GfalError("gfal-copy error: 3011 (Unknown error 3011) - x", 195, Direction.OUT, "srm://h/x").number == 3011


def test_an_srm_url_has_its_name_at_its_end():
    tool = Gfal(ToolContext(options={"setup": SETUP}))
    assert tool.beside("srm://h:8446/srm/managerv2?SFN=/d/x", ".p") == "srm://h:8446/srm/managerv2?SFN=/d/x.p"
    assert tool.beside("https://h/d/x?k=v", ".p") == "https://h/d/x.p?k=v"
