"""XRootD when things go wrong: what the tool says, how soon, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from copytools.https import Https
from copytools.xrdcp import Xrdcp
from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.staging.handle import TransferHandle
from pilot.stop import Stop
from pilot.testing.copytool import Programs, checksums, content
from tests.parts import free_port, wait_until
from tests.parts.xrootd import server, xrootd  # noqa: F401 - a fixture

BIG = 512 << 20


@pytest.fixture(params=["bindings", "programs"])
def tool(request):
    return Xrdcp(ToolContext(options={"use": request.param}))


@pytest.fixture
def own():
    """A server that a test may break."""
    with server() as one:
        yield one


def handle(seconds=60.0):
    late = TransferError(Code.STAGEINTIMEOUT, "late", Trait.NEXT)
    return TransferHandle(Stop(), Programs(), seconds, late, os.environ)


def transfer(url, path, kind=Kind.INPUT, lfn="", **facts):
    return Transfer(file=File(lfn=lfn or path.name, kind=kind, scope="test"), url=url, path=path, **facts)


def output(url, path, **facts):
    data = path.read_bytes()
    return transfer(url, path, Kind.OUTPUT, **{"size": len(data), "checksums": checksums(data), **facts})


def failure(act):
    with pytest.raises(TransferError) as caught:
        act()
    return caught.value


def nothing_in(folder):
    assert [path.name for path in folder.rglob("*") if path.is_file()] == []


def sparse(own, name="big"):
    path = own.write(name, b"")
    os.truncate(path, BIG)
    return f"{own.url}//{name}"


def test_a_wrong_checksum_in_the_catalogue_is_1171(tool, xrootd, tmp_path):  # noqa: F811
    xrootd.write("sum", content(5000))
    one = transfer(f"{xrootd.url}//sum", tmp_path / "sum", checksums={"adler32": "00000001"})
    error = failure(lambda: tool.get(one, handle()))
    assert (error.code, error.trait) == (Code.GETADMISMATCH, Trait.NEXT)
    assert "00000001" in error.detail
    nothing_in(tmp_path)


def test_a_truncated_source_is_no_success(tool, xrootd, tmp_path):  # noqa: F811
    xrootd.write("cut", content(5000))
    error = failure(lambda: tool.get(transfer(f"{xrootd.url}//cut", tmp_path / "cut", size=5001), handle()))
    assert (error.code, error.trait) == (Code.STAGEINFAILED, Trait.NEXT)
    assert "5000 bytes, not 5001" in error.detail
    nothing_in(tmp_path)


def test_a_forbidden_directory_is_said_to_be_forbidden(tool, xrootd, tmp_path):  # noqa: F811
    xrootd.write("closed/file", b"x").parent.chmod(0o555)
    path = tmp_path / "out"
    path.write_bytes(b"data")
    error = failure(lambda: tool.put(output(f"{xrootd.url}//closed/out", path), handle()))
    assert (error.code, error.trait) == (Code.XRDCPERROR, Trait.NEXT)
    assert "denied" in error.detail.lower()


@pytest.mark.parametrize("way", ["bindings", "programs", "https"])
def test_a_file_of_5_gib_opens_with_its_size(way, xrootd):  # noqa: F811
    """Beyond 32 bits. Copies of such files are measured in tests/benchmarks: to write one takes half a minute here."""
    path = xrootd.write("large", b"")
    os.truncate(path, 5 << 30)
    https = way == "https"
    tool = Https(ToolContext()) if https else Xrdcp(ToolContext(options={"use": way}))
    seen = tool.probe(f"{xrootd.http_url}/large" if https else f"{xrootd.url}//large", handle())
    assert seen.size == 5 << 30


def test_a_refused_connection_is_told_at_once(tool, tmp_path):
    started = time.monotonic()
    error = failure(lambda: tool.get(transfer(f"root://127.0.0.1:{free_port()}//x", tmp_path / "x"), handle()))
    assert (error.code, error.trait) == (Code.STAGEINFAILED, Trait.RETRY)
    assert "onnect" in error.detail
    assert time.monotonic() - started < 5


def test_a_host_that_does_not_exist_is_an_error(tool, tmp_path):
    error = failure(lambda: tool.get(transfer("root://no-such-host.invalid//x", tmp_path / "x"), handle()))
    assert error.code is Code.STAGEINFAILED


def test_a_server_that_dies_in_mid_transfer_leaves_nothing_here(tool, own, tmp_path):
    url = sparse(own)
    killer = threading.Thread(target=kill_when, args=(own, lambda: list(tmp_path.glob("*.partial"))))
    killer.start()
    error = failure(lambda: tool.get(transfer(url, tmp_path / "big", size=BIG), handle()))
    killer.join()
    assert (error.code, error.trait) == (Code.STAGEINFAILED, Trait.RETRY)
    nothing_in(tmp_path)


def test_a_server_that_died_works_again_when_it_is_back(tool, own, tmp_path):
    own.write("file", b"data")
    tool.get(transfer(f"{own.url}//file", tmp_path / "one"), handle())
    own.process.kill()
    own.process.wait()
    failure(lambda: tool.get(transfer(f"{own.url}//file", tmp_path / "two"), handle()))
    own.start()
    tool.get(transfer(f"{own.url}//file", tmp_path / "three"), handle())
    assert (tmp_path / "three").read_bytes() == b"data"


def test_a_server_that_hangs_is_waited_for_until_the_time_is_over(tool, own, tmp_path):
    own.write("file", b"data")
    os.kill(own.pid, signal.SIGSTOP)
    mine = handle(1.5)
    threading.Timer(1.5, mine.terminate).start()  # as the engine does
    started = time.monotonic()
    with pytest.raises(TransferError, match="late"):
        tool.get(transfer(f"{own.url}//file", tmp_path / "file"), mine)
    assert time.monotonic() - started < 4
    nothing_in(tmp_path)


def test_a_stop_ends_an_upload_to_a_server_that_hangs(tool, own, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(content(1000))
    os.kill(own.pid, signal.SIGSTOP)
    stop, reason = Stop(), PilotError(Code.SIGTERM, "stopped")
    mine = TransferHandle(stop, Programs(), 60.0, reason, os.environ)
    threading.Timer(0.5, lambda: (stop.request(reason), mine.terminate())).start()
    started = time.monotonic()
    with pytest.raises(PilotError) as caught:
        tool.put(output(f"{own.url}//out", path), mine)
    assert caught.value is reason
    assert 0.5 <= time.monotonic() - started < 2.5


_STUCK = """
import os, signal, sys, threading
from pathlib import Path
from tests.faults.test_xrootd_faults import *
url, pid, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
mine = handle(1.0)
tool = Xrdcp(ToolContext(options={"use": "bindings"}))
one = threading.Timer(0.3, os.kill, (pid, signal.SIGSTOP))
one.start()
try:
    while True:
        tool.get(transfer(url, folder / "file"), mine)
except TransferError as error:
    print(error.detail)
"""


def test_a_process_ends_although_its_server_hangs_in_mid_transfer(own, tmp_path):
    """The bindings have threads, and files that are open: none may keep a pilot from its end."""
    argv = [sys.executable, "-c", _STUCK, sparse(own), str(own.pid), str(tmp_path)]
    started = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "late"), done.stderr
    assert time.monotonic() - started < 10


def test_a_server_without_the_checksum_type_is_believed_by_size(tool, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(content(1000))
    with server(checksums="md5") as other:
        one = output(f"{other.url}//out", path, checksums={"adler32": checksums(content(1000))["adler32"]})
        assert tool.put(one, handle()).size == 1000
        error = failure(lambda: tool.put(one, handle()))  # nobody can tell that it is the same
        assert error.code is Code.FILEEXISTS


def test_files_have_their_final_names_at_once_where_nothing_may_be_renamed(tool, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(content(1000))
    with server(extra="ofs.authorize 1\nacc.authdb {base}/authdb\n", authdb="u * / rliw\n") as strict:
        url = f"{strict.url}//some/out"
        stored = tool.put(output(url, path), handle())
        assert (stored.url, stored.checksums) == (url, {"adler32": checksums(content(1000))["adler32"]})
        assert (strict.data / "some/out").read_bytes() == content(1000)


def test_a_name_with_a_question_mark_is_refused_not_cut_short(tool, xrootd, tmp_path):  # noqa: F811
    path = tmp_path / "what?x"
    path.write_bytes(b"data")
    error = failure(lambda: tool.put(output(f"{xrootd.url}//what?x", path), handle()))
    assert error.code is Code.BADOUTPUTFILENAME
    assert not (xrootd.data / "what").exists()


def test_a_directory_is_no_file(tool, xrootd, tmp_path):  # noqa: F811
    xrootd.write("folder/file", b"x")
    failure(lambda: tool.get(transfer(f"{xrootd.url}//folder", tmp_path / "folder"), handle()))
    nothing_in(tmp_path)


def test_a_setup_prepares_the_programs_and_sees_none_of_their_arguments(xrootd, tmp_path):  # noqa: F811
    xrootd.write("it's $(here)", b"data")
    setup = tmp_path / "set up.sh"
    setup.write_text(f'export SEEN="$#:$*"\necho noise\nenv > "{tmp_path}/env"\n')
    for text in (f"'{setup}'", f"source '{setup}';", f". '{setup}' ; true"):
        tool = Xrdcp(ToolContext(options={"setup": text}))
        tool.get(transfer(f"{xrootd.url}//it's $(here)", tmp_path / "it's $(here)"), handle())
        assert (tmp_path / "it's $(here)").read_bytes() == b"data"
        assert "SEEN=0:\n" in (tmp_path / "env").read_text()
        assert "XRD_CONNECTIONRETRY=1\n" in (tmp_path / "env").read_text()


def test_a_setup_that_brings_no_program_says_so(tmp_path):
    tool = Xrdcp(ToolContext(options={"setup": "export PATH=/nowhere"}))
    error = failure(lambda: tool.get(transfer("root://127.0.0.1//x", tmp_path / "x"), handle()))
    assert (error.code, error.trait) == (Code.UNKNOWNCOPYTOOL, Trait.NEXT)


@pytest.mark.parametrize("options", [{"use": "magic"}])
def test_an_unknown_way_is_a_fault_of_the_queue(options):
    with pytest.raises(TransferError) as caught:
        Xrdcp(ToolContext(options=options))
    assert caught.value.code is Code.BADQUEUECONFIGURATION


def kill_when(own, true):
    wait_until(lambda: any(path.stat().st_size for path in true()), "a transfer has begun")
    own.process.kill()
    own.process.wait()
