"""The s3 tool against the conformance suite, with a real S3 server; with credentials and by presigned URLs."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from copytools.s3 import S3, Place, place_of, region_of
from pilot.errors import Trait, TransferError
from pilot.job import Kind
from pilot.staging.copytool import CopyTool, ToolContext, Transfer
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
