"""The objectstore tool against the conformance suite: a real S3 server with Pilot 3's variables, and XRootD."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from copytools.objectstore import ObjectStore
from copytools.s3 import S3
from pilot.errors import Code, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle
from tests.parts.s3 import OWNER, S3Server
from tests.parts.xrootd import XrootdServer, xrootd

__all__ = ["xrootd"]

KEYS = {"S3_ACCESS_KEY": OWNER[0], "S3_SECRET_KEY": OWNER[1]}


class TestS3Objects(CopyToolConformance):
    @pytest.fixture(autouse=True)
    def place(self, s3_server: S3Server) -> Iterator[None]:
        self.server = s3_server
        self.prefix = uuid.uuid4().hex
        yield
        assert s3_server.unfinished() == [], "parts of an upload are left in the storage"

    @pytest.fixture
    def tool(self) -> ObjectStore:
        return ObjectStore(ToolContext(environ={**KEYS, "S3_IS_SECURE": "False"}))

    def remote_url(self, name: str) -> str:
        return self.server.url(f"{self.prefix}/{name}", "s3+rucio")

    def store(self, name: str, data: bytes) -> None:
        self.server.store(f"{self.prefix}/{name}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.server.fetch(f"{self.prefix}/{name}")


def test_files_for_events_and_logs_lie_side_by_side() -> None:
    tool = ObjectStore(ToolContext())
    file = File(lfn="x.log.tgz", kind=Kind.LOG, dataset="some.dataset")
    assert tool.storage_path(file, "OS_LOGS", "QUEUE", 7) == "x.log.tgz"
    assert tool.storage_path(file, "DATADISK", "QUEUE", 7) is None


def test_another_scheme_goes_by_its_own_tool(xrootd: XrootdServer) -> None:
    xrootd.write("objects/one", b"12345")
    tool = ObjectStore(ToolContext())
    stored = tool.stat(f"{xrootd.url}//objects/one", WatchfulHandle())
    assert stored is not None
    assert stored.size == 5


def test_without_word_of_it_tls_is_spoken(s3_server: S3Server) -> None:
    tool = ObjectStore(ToolContext(environ=KEYS))
    with pytest.raises(TransferError) as caught:
        tool.stat(s3_server.url("x"), WatchfulHandle())
    assert caught.value.code is not Code.MISSINGCREDENTIALS
    assert S3.checksums == tool.checksums
