"""Every copy tool of ours against the one suite that defines what a copy tool is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from copytools.mv import Mv
from pilot.staging.copytool import ToolContext
from pilot.testing.copytool import CopyToolConformance


class MvConformance(CopyToolConformance):
    mode_in = mode_out = ""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path):
        self.root = tmp_path / "storage"
        self.root.mkdir()
        yield
        os.seteuid(0) if os.getuid() == 0 else None

    @pytest.fixture
    def tool(self, tmp_path):
        settings = {"mv_stagein": self.mode_in, "mv_stageout": self.mode_out}
        return Mv(ToolContext(launch_dir=tmp_path, settings=settings))

    def remote_url(self, name: str) -> str:
        return (self.root / name).as_uri()

    def store(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def fetch(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def forbid(self, name: str) -> bool:
        (self.root / name).chmod(0)
        if os.getuid() == 0:  # root may read everything: be nobody until the end of the case
            self._open_up(self.root)
            os.seteuid(65534)
        return True

    def _open_up(self, folder: Path) -> None:
        for path in (folder, *folder.parents):
            if path.stat().st_mode & 0o005 != 0o005 and path.owner() == "root":
                path.chmod(path.stat().st_mode | 0o055)


class TestMvCopies(MvConformance):
    mode_in = mode_out = "copy"


class TestMvLinks(MvConformance):
    mode_in = mode_out = "link"


class TestMvMoves(MvConformance):
    mode_in = mode_out = "move"


class TestMvAsPilot3(MvConformance):
    """Inputs linked, outputs moved: what a queue that says nothing gets."""
