"""What can go wrong with an S3 storage, on a real one: the right code, the right advice to the engine, nothing left."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from copytools.s3 import PART, S3
from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.testing.copytool import WatchfulHandle, checksums, content
from tests.parts import free_port
from tests.parts.s3 import OWNER, READER, S3Server, s3_client, start_s3

LARGE = 3 * PART


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests, and no looking for those of a machine at Amazon."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def a_tool(endpoint: str, identity: tuple[str, str] | None = OWNER, **options: Any) -> S3:
    keys = {"S3_ACCESS_KEY": identity[0], "S3_SECRET_KEY": identity[1]} if identity else {}
    return S3(ToolContext(environ={"S3_ENDPOINT_URL": endpoint, **keys}, options=options))


def transfer(url: str, path: Path, kind: Kind, **facts: Any) -> Transfer:
    data = {"size": path.stat().st_size, "checksums": checksums(path.read_bytes())} if kind is Kind.OUTPUT else {}
    return Transfer(file=File(lfn=path.name, kind=kind), url=url, path=path, **{**data, **facts})


def refused(act: Callable[[], object]) -> TransferError:
    with pytest.raises(TransferError) as caught:
        act()
    for secret in (OWNER[1], READER[1], "Signature="):
        assert secret not in str(caught.value)
    return caught.value


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "an output.root"
    path.write_bytes(content(100_000))
    return path


# ---------------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    "identity", [("NOBODYKNOWS", OWNER[1]), (OWNER[0], "wrong-secret-0123456789")], ids=["key", "secret"]
)
def test_a_wrong_key_or_secret_is_told_as_such_and_not_tried_again(
    s3_server: S3Server, output: Path, tmp_path: Path, identity: tuple[str, str]
) -> None:
    tool = a_tool(s3_server.endpoint, identity)
    s3_server.store("wrong-key", b"x")
    url = s3_server.url("wrong-key")
    put = refused(lambda: tool.put(transfer(s3_server.url("wk"), output, Kind.OUTPUT), WatchfulHandle()))
    got = refused(lambda: tool.get(transfer(url, tmp_path / "in", Kind.INPUT), WatchfulHandle()))
    seen = refused(lambda: tool.stat(url, WatchfulHandle()))
    assert (put.code, got.code) == (Code.STAGEOUTAUTHENTICATIONFAILURE, Code.STAGEINAUTHENTICATIONFAILURE)
    assert {put.trait, got.trait, seen.trait} == {Trait.NEXT}
    assert s3_server.fetch("wk") is None
    assert not (tmp_path / "in").exists()


def test_no_credentials_at_all_is_1364(s3_server: S3Server, output: Path) -> None:
    error = refused(
        lambda: a_tool(s3_server.endpoint, None).put(
            transfer(s3_server.url("none"), output, Kind.OUTPUT), WatchfulHandle()
        )
    )
    assert (int(error.code), error.trait) == (1364, Trait.NEXT)
    assert "Unable to locate credentials" in error.diag


def test_a_profile_that_is_not_there_is_1364(s3_server: S3Server, output: Path) -> None:
    tool = S3(ToolContext(environ={"S3_ENDPOINT_URL": s3_server.endpoint, "PANDA_PILOT_AWS_PROFILE": "absent"}))
    error = refused(lambda: tool.put(transfer(s3_server.url("p"), output, Kind.OUTPUT), WatchfulHandle()))
    assert int(error.code) == 1364


def test_credentials_come_from_a_profile_of_the_environment_or_from_a_file_of_the_queue(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    section = f"aws_access_key_id = {OWNER[0]}\naws_secret_access_key = {OWNER[1]}\n"
    file.write_text(f"[default]\n{section}[site]\n{section}")
    s3_server.store("mine", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHERS")  # a profile that is named wins
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other-secret")
    by_file = a_tool(s3_server.endpoint, None, credentials_file=str(file))
    assert by_file.stat(s3_server.url("mine"), WatchfulHandle())
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    names = {"S3_ENDPOINT_URL": s3_server.endpoint, "PANDA_PILOT_AWS_PROFILE": "site"}
    assert S3(ToolContext(environ=names)).stat(s3_server.url("mine"), WatchfulHandle())
    assert refused(lambda: a_tool(s3_server.endpoint, None).stat(s3_server.url("mine"), WatchfulHandle()))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", OWNER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", OWNER[1])
    assert a_tool(s3_server.endpoint, None).stat(s3_server.url("mine"), WatchfulHandle())


@pytest.mark.parametrize("size", [1000, PART + 1], ids=["one request", "parts"])
def test_who_may_only_read_gets_but_does_not_put(s3_server: S3Server, tmp_path: Path, size: int) -> None:
    tool = a_tool(s3_server.endpoint, READER)
    path = tmp_path / "out"
    path.write_bytes(content(size))
    s3_server.store("readable", b"abc")
    tool.get(transfer(s3_server.url("readable"), tmp_path / "in", Kind.INPUT), WatchfulHandle())
    error = refused(lambda: tool.put(transfer(s3_server.url("forbidden"), path, Kind.OUTPUT), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.STAGEOUTAUTHENTICATIONFAILURE, Trait.NEXT)
    assert s3_server.fetch("forbidden") is None
    assert refused(lambda: tool.remove(s3_server.url("readable"), WatchfulHandle()))
    assert s3_server.fetch("readable") == b"abc"


def test_a_bucket_that_is_not_there_is_a_missing_input(s3_server: S3Server, tmp_path: Path) -> None:
    url = f"s3://{s3_server.host}/no-such-bucket/x"
    tool = a_tool(s3_server.endpoint)
    assert refused(lambda: tool.get(transfer(url, tmp_path / "in", Kind.INPUT), WatchfulHandle())).code == 1331


# ------------------------------------------------------------------------------------------------------- presigned URLs


def presigned(server: S3Server, method: str, key: str, seconds: int = 60) -> str:
    where = {"Bucket": server.bucket, "Key": key}
    return str(server.client().generate_presigned_url(method, Params=where, ExpiresIn=seconds))


def test_an_expired_presigned_url_is_refused_and_never_shown(s3_server: S3Server, output: Path, tmp_path: Path) -> None:
    s3_server.store("for-a-second", b"x")
    get = presigned(s3_server, "get_object", "for-a-second", 1)
    put = presigned(s3_server, "put_object", "too-late", 1)
    time.sleep(2.1)
    tool = S3(ToolContext())
    got = refused(lambda: tool.get(transfer(get, tmp_path / "in", Kind.INPUT), WatchfulHandle()))
    sent = refused(lambda: tool.put(transfer(put, output, Kind.OUTPUT), WatchfulHandle()))
    assert (got.code, sent.code) == (Code.STAGEINAUTHENTICATIONFAILURE, Code.STAGEOUTAUTHENTICATIONFAILURE)
    assert (got.trait, sent.trait) == (Trait.NEXT, Trait.NEXT)
    assert s3_server.fetch("too-late") is None


def test_a_presigned_url_for_get_does_not_put(s3_server: S3Server, output: Path) -> None:
    url = presigned(s3_server, "get_object", "one-way")
    error = refused(lambda: S3(ToolContext()).put(transfer(url, output, Kind.OUTPUT), WatchfulHandle()))
    assert error.code is Code.STAGEOUTAUTHENTICATIONFAILURE
    assert s3_server.fetch("one-way") is None


# ---------------------------------------------------------------------------------------------------- what is not right


def test_a_file_that_another_pilot_completed_meanwhile_is_not_replaced(s3_server: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "race"
    path.write_bytes(content(LARGE))

    def overtake() -> None:
        s3_server.store("race", b"theirs")

    error = refused(
        lambda: a_tool(s3_server.endpoint).put(
            transfer(s3_server.url("race"), path, Kind.OUTPUT), WatchfulHandle(once(overtake))
        )
    )
    assert error.code is Code.FILEEXISTS
    assert s3_server.fetch("race") == b"theirs"
    assert s3_server.unfinished() == []


def test_the_same_file_in_other_parts_and_without_metadata_is_known_by_reading_it(
    s3_server: S3Server, tmp_path: Path
) -> None:
    path = tmp_path / "parts"
    path.write_bytes(content(12 << 20))
    s3_server.client().upload_file(str(path), s3_server.bucket, "parts")
    stored = a_tool(s3_server.endpoint).put(transfer(s3_server.url("parts"), path, Kind.OUTPUT), WatchfulHandle())
    assert stored.checksums["adler32"] == checksums(path.read_bytes())["adler32"]


def test_stat_tells_all_checksums_of_a_file_that_went_out_in_parts(s3_server: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_bytes(content(LARGE + 1))
    tool, url = a_tool(s3_server.endpoint), s3_server.url("known")
    put = tool.put(transfer(url, path, Kind.OUTPUT), WatchfulHandle())
    seen = tool.stat(url, WatchfulHandle())
    assert seen is not None
    assert seen.size == LARGE + 1
    assert seen.checksums == put.checksums
    assert seen.checksums.keys() == {"adler32", "md5", "crc32c"}


def test_an_output_that_changes_while_it_is_sent_leaves_nothing(s3_server: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "changing"
    path.write_bytes(content(LARGE))
    asked = transfer(s3_server.url("changing"), path, Kind.OUTPUT)

    def change() -> None:
        with open(path, "r+b") as file:
            file.seek(LARGE - 10)
            file.write(os.urandom(5))

    error = refused(lambda: a_tool(s3_server.endpoint).put(asked, WatchfulHandle(once(change))))
    assert error.code in (Code.PUTADMISMATCH, Code.PUTMD5MISMATCH)
    assert s3_server.fetch("changing") is None
    assert s3_server.unfinished() == []


def test_plain_http_to_another_node_is_refused_unless_allowed() -> None:
    asked = ["http://storage.example.org/bucket/key", "http://storage.example.org/b/k?X-Amz-Signature=abc"]
    for url in asked:
        error = refused(lambda url=url: S3(ToolContext()).stat(url, WatchfulHandle()))  # type: ignore[misc]
        assert "plain http" in error.diag


# -------------------------------------------------------------------------------------------------------- dying servers


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3(tmp_path_factory.mktemp("own"))
    yield server
    server.end()


def once(act: Callable[[], None]) -> Callable[[], None]:
    done = threading.Event()

    def look() -> None:
        if not done.is_set():
            done.set()
            act()

    return look


def test_a_server_that_dies_in_mid_transfer_leaves_no_half_file(own_server: S3Server, tmp_path: Path) -> None:
    own_server.store("large", content(LARGE))
    handle = WatchfulHandle(once(lambda: own_server.signal(signal.SIGKILL)))
    error = refused(
        lambda: a_tool(own_server.endpoint).get(
            transfer(own_server.url("large"), tmp_path / "large", Kind.INPUT), handle
        )
    )
    assert error.trait is Trait.RETRY
    assert list(tmp_path.iterdir()) == []


def test_a_stop_ends_a_transfer_at_once_while_the_server_hangs(own_server: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(content(LARGE))
    asked = transfer(own_server.url("hanging"), path, Kind.OUTPUT)
    handle = WatchfulHandle(once(lambda: own_server.signal(signal.SIGSTOP)))
    stopper = threading.Timer(1.0, lambda: handle.stop.request(handle.stopped_by))
    resume = threading.Timer(2.5, lambda: own_server.signal(signal.SIGCONT))
    stopper.start()
    resume.start()
    start = time.monotonic()
    with pytest.raises(PilotError) as caught:
        a_tool(own_server.endpoint).put(asked, handle)
    resume.join()
    assert caught.value is handle.stopped_by
    assert time.monotonic() - start < 8
    assert own_server.fetch("hanging") is None
    assert own_server.unfinished() == []


class Cutter:
    """Stands before a server and cuts the connection, once, after so many bytes of an answer."""

    def __init__(self, port: int, after: int) -> None:
        self._target, self._left, self.cuts = port, after, 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                if counts and self._is_over(len(data)):
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _is_over(self, count: int) -> bool:
        with self._lock:
            before, self._left = self._left, self._left - count
            over = before > 0 >= self._left
            self.cuts += over
            return over

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("way", ["credentials", "presigned"])
def test_a_connection_that_breaks_costs_only_the_rest_of_a_part(s3_server: S3Server, tmp_path: Path, way: str) -> None:
    data = content(LARGE)
    s3_server.store("broken", data)
    cutter = Cutter(s3_server.ports["s3"], after=5 << 20)
    place = f"127.0.0.1:{cutter.port}"
    url = f"s3://{place}/{s3_server.bucket}/broken"
    if way == "presigned":
        client = s3_client(f"http://{place}", OWNER, "s3v4")
        where = {"Bucket": s3_server.bucket, "Key": "broken"}
        url = client.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    asked = transfer(url, tmp_path / "broken", Kind.INPUT, checksums=checksums(data))
    handle = WatchfulHandle()
    a_tool(f"http://{place}").get(asked, handle)
    cutter.close()
    assert (tmp_path / "broken").read_bytes() == data
    assert cutter.cuts == 1
    assert handle.moved == LARGE


def test_nobody_there_is_a_service_that_may_come_back(output: Path) -> None:
    port = free_port()
    error = refused(
        lambda: a_tool(f"http://127.0.0.1:{port}").put(
            transfer(f"s3://127.0.0.1:{port}/b/k", output, Kind.OUTPUT), WatchfulHandle()
        )
    )
    assert (error.code, error.trait) == (Code.SERVICENOTAVAILABLE, Trait.RETRY)
