"""The s3 tool against the conformance suite, with a real S3 server; with credentials and by presigned URLs."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from copytools import s3
from copytools._s3faults import refusal
from copytools.s3 import S3, Place, place_of, region_of
from pilot.errors import Code, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import CopyTool, ToolContext, Transfer
from pilot.staging.faults import Direction
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle
from tests.parts.s3 import OWNER, S3Server


def owner(server: S3Server, **options: str) -> S3:
    keys = {"S3_ACCESS_KEY": OWNER[0], "S3_SECRET_KEY": OWNER[1], "S3_ENDPOINT_URL": server.endpoint}
    return S3(ToolContext(environ=keys, options=options))


class S3Conformance(CopyToolConformance):
    scheme = "s3"

    @pytest.fixture(autouse=True)
    def place(self, s3_server: S3Server) -> Iterator[None]:
        self.server = s3_server
        self.prefix = uuid.uuid4().hex
        yield
        assert s3_server.unfinished() == [], "parts of an upload are left in the storage"

    @pytest.fixture
    def tool(self, s3_server: S3Server) -> S3:
        return owner(s3_server)

    def remote_url(self, name: str) -> str:
        return self.server.url(f"{self.prefix}/{name}", self.scheme)

    def store(self, name: str, data: bytes) -> None:
        self.server.store(f"{self.prefix}/{name}", data)

    def fetch(self, name: str) -> bytes | None:
        return self.server.fetch(f"{self.prefix}/{name}")


class TestS3(S3Conformance):
    pass


class TestPresigned(S3Conformance):
    """A URL is for one method: the suite asks for one of the right kind for each transfer."""

    version = "s3v4"

    @pytest.fixture
    def tool(self) -> S3:
        return S3(ToolContext())  # no credentials

    def remote_url(self, name: str, method: str = "get_object") -> str:
        where = {"Bucket": self.server.bucket, "Key": f"{self.prefix}/{name}"}
        client = self.server.client(version=self.version)
        return str(client.generate_presigned_url(method, Params=where, ExpiresIn=600))

    def _transfer(self, name: str, kind: Kind, path: Path, **facts: Any) -> Transfer:
        made = super()._transfer(name, kind, path, **facts)
        return replace(made, url=self.remote_url(name, "put_object")) if kind is Kind.OUTPUT else made

    def test_remove_can_be_repeated(self, tool: CopyTool) -> None:
        self.store("kept", b"x")
        with pytest.raises(TransferError) as caught:
            tool.remove(self.remote_url("kept"), WatchfulHandle())
        assert caught.value.trait is Trait.NEXT
        assert self.fetch("kept") == b"x"

    def test_signatures_of_version_2_too(self, tool: CopyTool, tmp_path: Path) -> None:
        self.version = "s3"
        assert "AWSAccessKeyId=" in self.remote_url("old")
        self._round_trip(tool, tmp_path, "old", b"x" * 3_000_000)


@pytest.mark.parametrize(
    ("url", "custom", "place"),
    [
        ("https://s3.cern.ch/bucket/a/b", "", Place("https://s3.cern.ch", "bucket", "a/b")),
        ("s3://s3.cern.ch:443//atlas-es/x.tar", "", Place("https://s3.cern.ch:443", "atlas-es", "x.tar")),
        ("s3+rucio://s3.cern.ch/b//c///d", "", Place("https://s3.cern.ch", "b", "c/d")),
        ("s3://bucket/a/b", "", Place("", "bucket", "a/b")),
        ("s3://bucket/a", "https://own:9000", Place("https://own:9000", "bucket", "a")),
        ("s3://my.bucket/a", "https://own:9000", Place("https://own:9000", "my.bucket", "a")),
        ("s3://own:9000/bucket/a", "http://own:9000", Place("http://own:9000", "bucket", "a")),
        ("s3://other:9000/bucket/a", "http://own:9000", Place("https://other:9000", "bucket", "a")),
        ("s3://h.x/b/a%41?b=c#d e;$(f)", "", Place("https://h.x", "b", "a%41?b=c#d e;$(f)")),
    ],
)
def test_a_url_is_understood_as_pilot_3_and_amazon_do(url: str, custom: str, place: Place) -> None:
    assert place_of(url, custom) == place


def test_a_bucket_of_amazon_is_asked_for_its_region_also_by_who_may_not_look_into_it() -> None:
    import boto3
    from botocore.awsrequest import AWSResponse
    from urllib3 import HTTPResponse

    def answer(request: Any, **_: Any) -> AWSResponse:  # as Amazon's, HEAD Bucket
        status = 403 if "eu-west-1" in request.url else 301
        return AWSResponse(
            request.url, status, {"x-amz-bucket-region": "eu-west-1"}, HTTPResponse(io.BytesIO(), preload_content=False)
        )

    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    client.meta.events.register("before-send.s3", answer)
    assert region_of(client, "bucket") == "eu-west-1"


@pytest.mark.parametrize("url", ["s3://host.x/bucket", "s3://bucket", "https://host/", "s3://user:pass@host.x/b/k"])
def test_a_url_without_bucket_or_key_or_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(TransferError) as caught:
        place_of(url)
    assert "pass@" not in caught.value.diag


def test_the_region_is_asked_for_also_where_the_url_names_a_host_of_amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "region_of", lambda client, bucket: f"region-of-{bucket}")
    tool = S3(ToolContext(environ={"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b"}))
    for bucket in ("one", "two"):
        signed = tool._object(f"https://s3.us-east-1.amazonaws.com/{bucket}/key").signed("get_object")
        assert f"%2Fregion-of-{bucket}%2F" in signed
        assert signed.startswith(f"https://s3.us-east-1.amazonaws.com/{bucket}/key?")


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_small_and_large_files_trust_the_same_authorities(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ca.pem").touch()
    ours = str(tmp_path / "ca.pem")
    monkeypatch.setenv(variable, ours)
    tool = S3(ToolContext(environ={"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b", variable: ours}))
    assert tool._client("https://127.0.0.1:1", None)._endpoint.http_session._verify == ours
    assert tool._authorities() == ours


def test_a_signature_for_another_region_is_refused_as_a_wrong_one_is() -> None:
    """Amazon says so with 400; requests have their signatures in the URL."""
    error = refusal(Direction.IN, 400, "AuthorizationQueryParametersError", "the region is wrong")
    assert (error.code, error.trait) == (Code.STAGEINAUTHENTICATIONFAILURE, Trait.NEXT)


DATA = bytes(range(256)) * (160 << 10)  # of three parts


KEYS = {"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b"}


class Odd(http.server.BaseHTTPRequestHandler):
    """A storage, or a proxy before one, that answers as the name of the object says."""

    protocol_version = "HTTP/1.1"
    busy = 0
    users: tuple[str, ...] = ()
    stored = b""
    tokens: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        type(self).tokens |= set(re.findall(r"Security-Token=(\w+)", self.path))
        type(self).users += (self.headers.get("Proxy-Authorization", ""),)
        first, last = (int(text) for text in re.findall(r"\d+", self.headers["Range"]))
        last = min(last, len(DATA) - 1)
        name, span = self.path.partition("?")[0].rpartition("/")[2], f"bytes {first}-{last}/{len(DATA)}"
        if name == "ignored":
            self._say(200, {}, DATA)
        elif name == "broken":
            self._say(200, {"Content-Length": str(len(DATA))}, DATA[: 20 << 20])
            self.close_connection = True
        elif name == "unknown":
            self._say(206, {"Content-Range": "bytes 0-4/*"}, b"hello")
        elif name == "chunked":
            self._say(200, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n")
        elif name == "other":
            self._say(206, {"Content-Range": f"bytes 0-{last - first}/{len(DATA)}"}, DATA[: last - first + 1])
        elif name == "busy" and first and type(self).busy < 2:
            type(self).busy += 1
            self._say(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        else:
            self._say(206, {"Content-Range": span}, DATA[first : last + 1])

    def do_HEAD(self) -> None:
        stored = type(self).stored
        self._say(200 if stored else 404, {"x-amz-meta-adler32": f"{zlib.adler32(stored):08x}"}, stored)

    def do_DELETE(self) -> None:
        type(self).users += (self.headers.get("Proxy-Authorization", ""),)
        self._say(204, {}, b"")

    def do_PUT(self) -> None:
        """The first answer is lost, the second one is that the storage is busy."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).busy += 1
        if type(self).busy == 1:
            self.close_connection = True
        elif type(self).busy == 2:
            self._say(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        else:
            type(self).stored = body
            self._say(412 if "late" in self.path else 200, {}, b"")

    def _say(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not {"Transfer-Encoding", "Content-Length"} & headers.keys():
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(b"" if self.command == "HEAD" else body)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def odd() -> Iterator[str]:
    Odd.busy, Odd.users, Odd.stored, Odd.tokens = 0, (), b"", frozenset()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def bring(url: str, path: Path, environ: Mapping[str, str] = MappingProxyType({}), **more: Any) -> bytes:
    file = File(lfn=path.name, kind=Kind.INPUT)
    transfer = Transfer(file=file, url=url, path=path, size=None, checksum_type="adler32", timeout=60)
    S3(ToolContext(environ={**KEYS, **environ}, **more)).get(transfer, WatchfulHandle())
    return path.read_bytes()


def test_each_part_is_asked_for_with_the_keys_as_they_are_then(odd: str, tmp_path: Path) -> None:
    """Those of a role end after an hour, and boto3 renews them: here at each use."""
    until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    keys = {"AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "$(date +%N)", "Expiration": until}
    script, profile = tmp_path / "keys.sh", tmp_path / "credentials"
    script.write_text(f"cat <<EOF\n{json.dumps({'Version': 1, **keys})}\nEOF\n")
    profile.write_text(f"[role]\ncredential_process = sh {script}\n")
    transfer = Transfer(file=File(lfn="x", kind=Kind.INPUT), url=f"http://{odd}/bucket/key", path=tmp_path / "x")
    S3(ToolContext(options={"credentials_file": profile, "profile": "role"})).get(transfer, WatchfulHandle())
    assert (tmp_path / "x").read_bytes() == DATA
    assert len(Odd.tokens) == 3


def test_all_bytes_of_a_cache_that_gives_no_ranges_are_taken_as_they_come(odd: str, tmp_path: Path) -> None:
    assert bring(f"http://{odd}/bucket/ignored", tmp_path / "input") == DATA
    assert len(Odd.users) == 1


@pytest.mark.parametrize("name", ["broken", "unknown", "chunked", "other"])
def test_what_is_not_surely_the_object_is_no_input(odd: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(TransferError) as caught:
        bring(f"http://{odd}/bucket/{name}", tmp_path / "input")
    assert caught.value.trait is (Trait.RETRY if name == "broken" else Trait.NEXT)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_storage_is_asked_again_for_a_part_and_not_for_all(odd: str, tmp_path: Path) -> None:
    assert bring(f"http://{odd}/bucket/busy", tmp_path / "input") == DATA
    assert Odd.busy == 2


@pytest.mark.parametrize("name", ["heard", "late"])
def test_a_busy_storage_is_given_an_output_again_and_what_it_has_is_not_in_the_way(
    odd: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "output").write_bytes(b"an output")
    file = File(lfn="output", kind=Kind.OUTPUT)
    transfer = Transfer(file=file, url=f"http://{odd}/bucket/{name}", path=tmp_path / "output", size=9, timeout=60)
    S3(ToolContext(environ=KEYS)).put(transfer, WatchfulHandle())
    assert (Odd.stored, Odd.busy) == (b"an output", 3)
    assert "Signature" not in caplog.text


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_that_wants_to_know_who_asks_is_told(odd: str, scheme: str, tmp_path: Path) -> None:
    environ = {"http_proxy": f"{scheme}us%40er:pass@{odd}"}
    url, allowed = "http://s3.invalid/bucket/key", {"allow_http": True}
    assert bring(url, tmp_path / "input", settings=allowed, environ=environ) == DATA
    S3(ToolContext(environ={**KEYS, **environ}, settings=allowed)).remove(url, WatchfulHandle())  # by boto3 itself
    assert set(Odd.users) == {"Basic " + base64.b64encode(b"us@er:pass").decode()}
