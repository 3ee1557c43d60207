"""The gs tool against the conformance suite, with an emulator of the storage; and what that cannot show."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from copytools.gs import Gs, place_of
from pilot.errors import Code, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle, content
from tests.parts import free_port
from tests.parts.gate import Gate
from tests.parts.gcs import GcsServer


class TestGs(CopyToolConformance):
    @pytest.fixture(autouse=True)
    def place(self, gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
        self.server = gcs_server
        self.prefix = uuid.uuid4().hex

    @pytest.fixture
    def tool(self, gcs_server: GcsServer) -> Gs:
        return Gs(ToolContext(environ={"STORAGE_EMULATOR_HOST": gcs_server.endpoint}))

    def remote_url(self, name: str) -> str:
        return f"gs://{self.server.bucket}/{self.prefix}/{name}"

    def store(self, name: str, data: bytes) -> None:
        self.server.store(f"{self.prefix}/{name}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.server.fetch(f"{self.prefix}/{name}")

    def test_a_download_lands_where_it_should_and_not_in_the_current_directory(
        self, tool: Gs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:  # as it did in Pilot 3 (PILOT3 10.5, 14)
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        self.store("file", b"abc")
        self.get(tool, "file", tmp_path / "job" / "file")
        assert (tmp_path / "job" / "file").read_bytes() == b"abc"
        assert list((tmp_path / "cwd").iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "data", "kind"),
        [
            ("payload.stdout", b"some text\n", "text/plain"),
            ("memory_monitor.json", b"{}", "application/json"),
            ("job.log.tgz", b"\x1f\x8b\x08....", "application/gzip"),
            ("data.root", b"root\0\0", "application/octet-stream"),
        ],
    )
    def test_a_log_can_be_read_in_a_browser(self, tool: Gs, tmp_path: Path, name: str, data: bytes, kind: str) -> None:
        (tmp_path / name).write_bytes(data)
        self.put(tool, name, tmp_path / name)
        blob = self.server.client.bucket(self.server.bucket).get_blob(f"{self.prefix}/{name}")
        assert blob.content_type == kind

    def test_stat_tells_adler32_and_crc32c(self, tool: Gs, tmp_path: Path) -> None:
        (tmp_path / "known").write_bytes(content(20 << 20))
        put = self.put(tool, "known", tmp_path / "known")
        seen = tool.stat(self.remote_url("known"), WatchfulHandle())
        assert seen is not None
        assert seen.checksums.keys() == {"adler32", "md5", "crc32c"}
        assert seen.checksums == put.checksums

    def test_an_upload_that_is_cut_is_begun_anew_and_its_session_is_not_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = Gate(self.server.port)
        environ = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{gate.port}"}
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", environ["STORAGE_EMULATOR_HOST"])
        tool = Gs(ToolContext(environ=environ))
        (tmp_path / "cut").write_bytes(content(20 << 20))
        gate.cut(2 << 20)
        with pytest.raises(TransferError) as caught:
            self.put(tool, "cut", tmp_path / "cut")
        assert caught.value.trait is Trait.RETRY
        assert "upload_id" not in caught.value.detail
        self.put(tool, "cut", tmp_path / "cut")
        assert self.fetch("cut") == content(20 << 20)
        gate.close()


def test_no_client_is_made_before_a_file_moves() -> None:
    Gs(ToolContext(environ={"STORAGE_EMULATOR_HOST": "http://storage.example.org"}))


def test_an_emulator_on_another_node_is_not_spoken_to_in_plain_http() -> None:
    tool = Gs(ToolContext(environ={"STORAGE_EMULATOR_HOST": "http://storage.example.org"}))
    with pytest.raises(TransferError, match="plain http"):
        tool.stat("gs://bucket/name", WatchfulHandle())


def test_no_credentials_is_told_as_such_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    asked = Transfer(file=File(lfn="x", kind=Kind.INPUT), url="gs://bucket/x", path=tmp_path / "x")
    with pytest.raises(TransferError) as caught:
        Gs(ToolContext()).get(asked, WatchfulHandle())
    assert (caught.value.code, caught.value.trait) == (Code.STAGEINAUTHENTICATIONFAILURE, Trait.NEXT)


def test_nobody_there_is_a_service_that_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", nobody)
    monkeypatch.setattr("copytools.gs.PATIENCE", 0.5)
    asked = Transfer(file=File(lfn="x", kind=Kind.INPUT), url="gs://bucket/x", path=tmp_path / "x")
    with pytest.raises(TransferError) as caught:
        Gs(ToolContext(environ={"STORAGE_EMULATOR_HOST": nobody})).get(asked, WatchfulHandle())
    assert (caught.value.code, caught.value.trait) == (Code.SERVICENOTAVAILABLE, Trait.RETRY)


def test_the_name_of_an_object_is_what_stands_behind_the_bucket() -> None:
    assert place_of("gs://b//logs/a%41?b#c") == ("b", "logs/a%41?b#c")
