"""Copy tool `rucio` against a real Rucio server whose RSE is a real XRootD server."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from zlib import crc32

import pytest

from copytools.rucio import Rucio, file_url
from pilot.errors import Code, Trait, TransferError
from pilot.job import File, Kind
from pilot.queuedata import hash_path
from pilot.staging.copytool import ToolContext, Transfer
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle, checksums
from tests.grid import processes_with
from tests.parts import free_port
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
        return file_url("CONFORMANCE", self.scope, self.name(name))

    def path(self, name: str):
        return self.server.data / "rucio" / hash_path(self.scope, self.name(name))

    def store(self, name: str, data: bytes) -> None:
        self.server.write(f"rucio/{hash_path(self.scope, self.name(name))}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.path(name).read_bytes() if self.path(name).exists() else None

    def forbid(self, name: str) -> bool:
        self.path(name).chmod(0)
        return True


def transfer(url: str, path, rse: str = "CONFORMANCE", **facts) -> Transfer:
    file = File(lfn=path.name, kind=Kind.OUTPUT, scope="faults", endpoint=rse)
    return Transfer(file=file, url=url, path=path, **facts)


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "out.dat"
    path.write_bytes(b"an output")
    return path


class TestByPfn:
    def test_file_goes_to_the_pfn_that_the_engine_chose(self, storage, output):
        tool = Rucio(ToolContext(environ=storage.environ))
        url = f"{storage.url}{PREFIX}some/where/out.dat"
        stored = tool.put(transfer(url, output), WatchfulHandle())
        assert (stored.url, stored.size) == (url, 9)
        assert stored.checksums == {"adler32": checksums(b"an output")["adler32"]}
        assert tool.stat(url, WatchfulHandle()) == stored
        tool.get(transfer(url, output.with_name("back")), WatchfulHandle())
        assert output.with_name("back").read_bytes() == b"an output"
        tool.remove(url, WatchfulHandle())
        assert tool.stat(url, WatchfulHandle()) is None

    def test_file_by_name_says_where_it_went(self, storage, output):
        tool = Rucio(ToolContext(environ=storage.environ))
        stored = tool.put(transfer(file_url("CONFORMANCE", "faults", "by-name"), output), WatchfulHandle())
        assert stored.url == f"{storage.url}{PREFIX}{hash_path('faults', 'by-name')}"
        tool.remove(stored.url, WatchfulHandle())

    def test_rucio_may_come_from_a_setup_of_the_site(self, storage, output, tmp_path):
        setup = tmp_path / "setup.sh"
        setup.write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
        tool = Rucio(ToolContext(options={"setup": str(setup)}, environ={**storage.environ, "PATH": "/usr/bin:/bin"}))
        url = f"{storage.url}{PREFIX}by/setup"
        assert tool.put(transfer(url, output), WatchfulHandle()).size == 9


class TestFaults:
    @pytest.mark.parametrize(
        ("config", "rse", "code", "trait"),
        [
            ({"password": "wrong-password"}, "CONFORMANCE", Code.STAGEOUTAUTHENTICATIONFAILURE, Trait.NEXT),
            ({"rucio_host": "http://127.0.0.1:1"}, "CONFORMANCE", Code.RUCIOSERVICEUNAVAILABLE, Trait.RETRY),
            ({}, "NOWHERE", Code.NOSTORAGEPROTOCOL, Trait.NEXT),
            ({}, "DEAD", Code.SERVICENOTAVAILABLE, Trait.RETRY),
            ({}, "", Code.NOSTORAGE, Trait.NEXT),
        ],
        ids=["wrong password", "no catalogue", "no such RSE", "no storage", "no endpoint"],
    )
    def test_what_is_wrong_is_said(self, rucio, dead, storage, output, config, rse, code, trait):
        tool = Rucio(ToolContext(environ={"RUCIO_CONFIG": str(rucio.client_config(**config))}))
        url = f"{storage.url}{PREFIX}nothing"
        with pytest.raises(TransferError) as caught:
            tool.put(transfer(url, output, rse), WatchfulHandle())
        assert (caught.value.code, caught.value.trait) == (code, trait), caught.value
        assert "wrong-password" not in str(caught.value)

    def test_storage_that_is_away_leaves_nothing_here(self, dead, storage, tmp_path):
        tool = Rucio(ToolContext(environ=storage.environ))
        path = tmp_path / "never"
        with pytest.raises(TransferError) as caught:
            tool.get(transfer(file_url("DEAD", "faults", "never"), path), WatchfulHandle())
        assert caught.value.trait is Trait.RETRY
        assert not list(tmp_path.iterdir())

    def test_hanging_storage_ends_with_the_handle_and_leaves_no_program(self, storage, tmp_path):
        tool = Rucio(ToolContext(environ={**storage.environ, "HANGS": (mark := f"hangs-{os.getpid()}")}))
        storage.write(f"rucio/{hash_path('faults', 'big')}", b"x" * 1000)
        handle = WatchfulHandle()
        os.kill(storage.pid, signal.SIGSTOP)
        try:
            threading.Timer(1.5, handle.terminate).start()
            with pytest.raises(TransferError):
                tool.get(transfer(file_url("CONFORMANCE", "faults", "big"), tmp_path / "big"), handle)
            assert not processes_with(f"HANGS={mark}")
        finally:
            os.kill(storage.pid, signal.SIGCONT)
        assert not list(tmp_path.iterdir())

    def test_hanging_server_ends_with_the_handle(self, rucio, storage, output):
        tool = Rucio(ToolContext(environ=storage.environ))
        handle = WatchfulHandle()
        with rucio.hanging():
            threading.Timer(1.0, handle.terminate).start()
            started = time.monotonic()
            with pytest.raises(TransferError):
                tool.put(transfer(f"{storage.url}{PREFIX}hangs", output), handle)
            assert time.monotonic() - started < 4


@pytest.fixture(scope="module")
def dead(rucio):
    """An RSE whose server is away."""
    return rucio.make_rse("DEAD", f"root://127.0.0.1:{free_port()}", PREFIX)
