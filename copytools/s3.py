"""Copy tool `s3`: objects of Amazon S3 and of what speaks its protocol (Ceph, MinIO, SeaweedFS, dCache).

URLs, as Pilot 3 understands them (PILOT3 4.6), and Amazon's own:

    s3://HOST[:PORT]/BUCKET/KEY, s3+rucio://..., https://HOST/BUCKET/KEY
    s3://BUCKET/KEY            with an endpoint from the queue or `S3_ENDPOINT_URL`, or else at Amazon
    https://...&X-Amz-Signature=...    presigned: used as it is, with no credentials of ours

The key is everything after the bucket, as it stands: an LFN is not quoted, and `//` is `/`. A host that is not the
endpoint's is told from a bucket by its dot or port.

How bytes are vouched for: each request that writes carries the crc32c of its bytes, which the storage checks and says
back; one that does not know it (old Ceph) says an ETag that is the md5 of the bytes, and that is compared. `adler32`
goes along as metadata of the object, so that `stat` can tell it later.

Measured with SeaweedFS on loopback, 2 cores shared with it: `tests/benchmarks/bench_s3.py`.
"""

from __future__ import annotations

import binascii
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from copytools import _presigned as presigned
from copytools._http import proxy_of
from copytools._objects import CONNECT, LANES, MIB, PART, SILENCE, Told, dataset_path, fetch, md5_in, refuse_other, same
from copytools._parts import Body, Lanes, Part, content_type, opened_output, split, sum_part
from copytools._presigned import PresignedSource
from copytools._s3faults import faults, status_of
from pilot.download import DownloadError, check_url, open_pool
from pilot.errors import Code, Trait, TransferError
from pilot.job import File
from pilot.masking import Secret
from pilot.staging.checksum import Hasher, computable
from pilot.staging.copytool import CopyTool, Handle, StorageKeys, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction

if TYPE_CHECKING:
    from urllib3 import PoolManager

logger = logging.getLogger(__name__)

#: Parts that a file may have: the storage allows 10000 (Amazon S3 limits).
MOST_PARTS = 9_000

#: Seconds for which a request that we sign is good, if the keys are: longer than a transfer takes.
SIGNED = 86_400

#: Connections that are kept for a host: as many as files and their parts may move at once.
KEPT = 100

#: Where Debian has its CAs; elsewhere OpenSSL knows.
NODE_CAS = "/etc/ssl/certs/ca-certificates.crt"

#: What stands for any of Amazon's endpoints where a proxy is looked for.
AMAZON = "https://s3.amazonaws.com"

#: Asks the storage for the checksum that it keeps: to boto3, and in the request.
_TELL: Mapping[str, str] = MappingProxyType({"ChecksumMode": "ENABLED"})
_TOLD: Mapping[str, str] = MappingProxyType({"x-amz-checksum-mode": "ENABLED"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object is; `endpoint` is empty for Amazon's."""

    endpoint: str
    bucket: str
    key: str


class S3(CopyTool):
    """Objects in S3 storages, by boto3; presigned URLs too.

    Credentials, the first of: what the PanDA server has for the storage; the queue's options `credentials_file` and
    `profile`, `PANDA_PILOT_AWS_PROFILE`, `S3_ACCESS_KEY` with `S3_SECRET_KEY`, then whatever boto3 finds (AWS_...
    variables, files, the role of the machine). Other options of the queue: `endpoint_url`, `region`,
    `addressing_style`.
    """

    name = "s3"
    schemes = frozenset({"s3", "s3+rucio", "https", "http"})
    checksums = frozenset({"adler32", "md5", "crc32c"})
    works_by = ("boto3",)
    needs: ClassVar[Mapping[str, str]] = {"boto3": "pip install 'pilot-toolkit[s3]'"}

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._lock = threading.Lock()
        self._core: Any = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._pools: dict[str, PoolManager] = {}

    def storage_path(self, file: File, storage_type: str, queue: str, job_id: int) -> str | None:
        """As Pilot 3 (PILOT3 4.6): only in storages for events and logs."""
        return dataset_path(file, queue, job_id) if storage_type in ("OS_ES", "OS_LOGS") else None

    def sends_plain_logs(self, log: File) -> bool:
        """As Pilot 3 (PILOT3 4.6): where the site says so."""
        return log.lfn.endswith("log.tgz") and bool(self.context.environ.get("PANDA_PILOT_COPY_OUT_EXTEND"))

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring an object, in ranges side by side if it is large."""
        with faults(Direction.IN, transfer.url):
            if self._is_presigned(transfer.url):
                source = PresignedSource(self._pool(transfer.url), lambda: transfer.url, PART)
            else:
                source = self._object(transfer.url).open(PART)
            return fetch(transfer, source, handle)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Store a file, in parts side by side if it is large."""
        if self._is_presigned(transfer.url):
            return presigned.put(self._pool(transfer.url), transfer, handle)
        with faults(Direction.OUT, transfer.url), opened_output(transfer.path) as (fd, size):
            target = self._object(transfer.url)
            there = target.look()
            if there is None:
                upload = _Upload(target, transfer, fd, size, handle)
                try:
                    return upload.whole() if size <= PART else upload.in_parts()
                except TransferError as error:  # FILEEXISTS: a request may have had its way without an answer
                    if error.code is not Code.FILEEXISTS or (there := target.look()) is None:
                        raise
            return same(transfer, there, fd, size, handle, partial(_read_back, target, handle=handle))

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and checksums as the storage has them, and `adler32` if a pilot stored the object."""
        if self._is_presigned(url):
            return presigned.stat(self._pool(url), url)
        with faults(Direction.OUT, url):
            there = self._object(url).head()
            return Stored(url=url, size=there.size, checksums=there.checksums) if there else None

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """Read the first byte of an object."""
        if self._is_presigned(url):
            return presigned.stat(self._pool(url), url)
        with faults(Direction.IN, url):
            there = self._object(url).first_byte()
            return Stored(url=url, size=there.size) if there else None

    def remove(self, url: str, handle: Handle) -> None:
        """Delete an object."""
        if self._is_presigned(url):
            raise TransferError(Code.STAGEOUTFAILED, "a presigned URL is for one file to be put, or got", Trait.NEXT)
        with faults(Direction.OUT, url):
            self._object(url).delete()

    def _is_presigned(self, url: str) -> bool:
        if not is_presigned(url):
            return False
        check_endpoint(url, bool(self.context.settings.get("allow_http")))
        return True

    def _pool(self, url: str) -> PoolManager:
        import ssl

        origin = "://".join(urlsplit(url)[:2])
        with self._lock:
            if origin not in self._pools:
                context = ssl.create_default_context(cafile=self._authorities() or None)
                self._pools[origin] = open_pool(proxy_of(origin, self.context.environ), context, KEPT)
            return self._pools[origin]

    def _authorities(self) -> str:
        """File with those to trust, for boto3 and for what it only signs: as it is told, else those of the node."""
        import ssl

        environ = self.context.environ
        said = self._core and self._core.get_config_variable("ca_bundle")
        said = said or environ.get("AWS_CA_BUNDLE") or environ.get("REQUESTS_CA_BUNDLE")
        return str(said or ssl.get_default_verify_paths().cafile or next(filter(os.path.exists, [NODE_CAS]), ""))

    def _object(self, url: str) -> _Object:
        place, keys = place_of(url, self._endpoint_of(url)), self.context.keys(url)
        with self._lock:
            at_amazon = not place.endpoint or place.endpoint.endswith(".amazonaws.com")
            where = f"{place.endpoint}/{place.bucket}" if at_amazon else place.endpoint  # buckets have a region each
            key = (where, keys.access if keys else "")
            if key not in self._clients:
                client = self._client(place.endpoint, keys)
                if at_amazon:
                    client = self._client(place.endpoint, keys, region_of(client, place.bucket))
                self._clients[key] = client
            client = self._clients[key]
        return _Object(client, self._pool(place.endpoint or AMAZON), place)

    def _endpoint_of(self, url: str) -> str:
        """The endpoint that the site has set, if any."""
        if given := self.context.options.get("endpoint_url") or self.context.environ.get("S3_ENDPOINT_URL", ""):
            return str(given)
        keys = self.context.keys(url)
        return plain_endpoint(url) if keys and not keys.secure else ""

    def _client(self, endpoint: str, keys: StorageKeys | None, region: str = "") -> Any:
        if endpoint:
            check_endpoint(endpoint, bool(self.context.settings.get("allow_http")))
        try:
            from botocore.config import Config
        except ImportError:  # not `unavailable`: presigned URLs work without it
            detail = f"s3 needs boto3 ({self.needs['boto3']})"
            raise TransferError(Code.UNKNOWNCOPYTOOL, detail, Trait.NEXT) from None
        options, environ = self.context.options, self.context.environ
        style = options.get("addressing_style") or ("path" if endpoint else "auto")
        proxy = proxy_of(endpoint or AMAZON, environ)
        config = Config(
            proxies={urlsplit(endpoint or AMAZON).scheme: proxy.geturl()} if proxy else {},
            signature_version="s3v4",
            # The checksum header vouches for the bytes: to sum them up once more for the signature is for nothing.
            s3={"addressing_style": style, "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=CONNECT,
            read_timeout=SILENCE,
            max_pool_connections=32,
        )
        if environ.get("S3_ACCESS_KEY") and environ.get("S3_SECRET_KEY") and not self._profile():
            keys = keys or StorageKeys(environ["S3_ACCESS_KEY"], Secret(environ["S3_SECRET_KEY"]))
        own = {"aws_access_key_id": keys.access, "aws_secret_access_key": keys.secret.reveal()} if keys else {}
        session = self._new_session()
        region = region or options.get("region") or session.region_name or "us-east-1"
        trusted = self._authorities() or None
        return session.client(
            "s3", endpoint_url=endpoint or None, region_name=region, config=config, verify=trusted, **own
        )

    def _profile(self) -> str:
        """The profile to use; naming one makes boto3 pass over keys in the environment."""
        options = self.context.options
        given = options.get("profile") or self.context.environ.get("PANDA_PILOT_AWS_PROFILE", "")
        return str(given or ("default" if options.get("credentials_file") else ""))

    def _new_session(self) -> Any:
        import boto3
        import botocore.session

        core = self._core = botocore.session.Session(profile=self._profile() or None)
        if file := self.context.options.get("credentials_file"):
            core.set_config_variable("credentials_file", str(file))
        return boto3.session.Session(botocore_session=core)


def place_of(url: str, custom: str = "") -> Place:
    """Endpoint, bucket and key of a URL.

    Args:
        url: in one of the forms above, not presigned.
        custom: URL of the endpoint that the site has set, if any.

    Raises:
        TransferError: there is no bucket or key in it.
    """
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    own = custom.partition("://")[2].partition("/")[0]
    if scheme in ("https", "http"):
        endpoint = f"{scheme}://{host}"
    elif own and host == own:
        endpoint = custom
    elif ":" in host or (not own and ("." in host or host == "localhost")):
        endpoint = f"https://{host}"
    else:
        endpoint, path = custom, f"{host}/{path}"
    bucket, _, key = re.sub("/+", "/", path).lstrip("/").partition("/")
    if not bucket or not key or "@" in host:
        raise TransferError(Code.BADQUEUECONFIGURATION, "an S3 URL is s3://host/bucket/key", Trait.NEXT)
    return Place(endpoint, bucket, key)


def plain_endpoint(url: str) -> str:
    """The endpoint of a storage that does not speak TLS; empty if the URL has its own scheme."""
    scheme, _, rest = url.partition("://")
    return f"http://{rest.partition('/')[0]}" if scheme.startswith("s3") else ""


def check_endpoint(url: str, allow_http: bool = False) -> None:
    """Raise for plain http to another node, unless it is allowed."""
    try:
        check_url(url, allow_http)
    except DownloadError as error:
        raise TransferError(Code.BADQUEUECONFIGURATION, f"S3 endpoint: {error}", Trait.NEXT) from None


def is_presigned(url: str) -> bool:
    """Whether the URL has a signature in it, of version 4 or 2."""
    if not url.startswith(("https://", "http://")):
        return False
    names = parse_qs(urlsplit(url).query).keys()
    return "X-Amz-Signature" in names or {"Signature", "AWSAccessKeyId"} <= names


def region_of(client: Any, bucket: str) -> str:
    """The region of Amazon that a bucket is in, which its URLs must be signed for."""
    from botocore.exceptions import ClientError

    try:
        reply = client.head_bucket(Bucket=bucket)
    except ClientError as error:  # also who may not ask that is told
        reply = error.response
    headers = reply["ResponseMetadata"].get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or client.meta.region_name)


class _Object:
    """One object. What is asked of it boto3 signs and urllib3 asks, for half of what it costs boto3 to ask."""

    def __init__(self, client: Any, pool: PoolManager, place: Place) -> None:
        self.client = client
        self.pool = pool
        self.where = {"Bucket": place.bucket, "Key": place.key}

    def signed(self, action: str, **more: Any) -> str:
        """The URL for one request."""
        return str(self.client.generate_presigned_url(action, Params={**self.where, **more}, ExpiresIn=SIGNED))

    def open(self, first: int) -> PresignedSource:
        """To be read, the first so many bytes at once."""
        return PresignedSource(self.pool, partial(self.signed, "get_object", **_TELL), first, _TOLD)

    def head(self) -> Told | None:
        """What the storage says of it; None if it is not there."""
        return presigned.head(self.pool, self.signed("head_object", **_TELL), _TOLD)

    def first_byte(self) -> Told | None:
        """As `head`, of an object that can be read."""
        try:
            source = self.open(1)
        except TransferError as error:
            if error.code is Direction.IN.missing:
                return None
            raise
        source.close()
        return source.told

    def look(self) -> Told | None:
        """As `head`; but to those who may not list, Amazon does not tell what is not there from what they may not see.

        Whether we may write, the write will say; and it does not replace anything.
        """
        try:
            return self.head()
        except TransferError as error:
            if error.code is Direction.OUT.refused:
                return None
            raise

    def delete(self) -> None:
        """Make it go away."""
        from botocore.exceptions import ClientError

        try:
            self.client.delete_object(**self.where)
        except ClientError as error:
            if status_of(error) != 404:
                raise


def _read_back(target: _Object, kind: str, handle: Handle) -> Mapping[str, str]:
    """The checksum of an object, of all its bytes."""
    hasher = Hasher([kind])
    stream = presigned.request(target.pool, "GET", target.signed("get_object"), Direction.IN, headers={})
    try:
        while block := stream.read(MIB):
            handle.check()
            hasher.update(memoryview(block))
    finally:
        stream.close()
    return hasher.digests()


def _ours() -> list[str]:
    """The type of checksum that goes with each request, if we can compute it."""
    return ["crc32c"] if computable("crc32c") else []


class _Upload:
    """An output on its way into an object."""

    def __init__(self, target: _Object, transfer: Transfer, fd: int, size: int, handle: Handle) -> None:
        self._client, self._where = target.client, target.where
        self._target = target
        self._transfer = transfer
        self._fd = fd
        self._size = size
        self._handle = handle
        known = [kind for kind in transfer.checksums if computable(kind)] or [transfer.checksum_type]
        self._sums = Hasher(dict.fromkeys([*known, *_ours()]))
        self._type = content_type(fd, transfer.path.name)
        self._kept = {kind: value for kind, value in transfer.checksums.items() if kind in known}
        self._about = {"ContentType": self._type, "Metadata": self._kept}

    def whole(self) -> Stored:
        """In one request."""
        part = Part(1, 0, self._size)
        sum_part(self._fd, part, [self._sums], self._handle.check)
        refuse_other(self._transfer, self._sums.digests())
        vouched = _vouched(self._sums)
        url = self._target.signed("put_object", **self._about, **vouched, IfNoneMatch="*")
        headers = {"Content-Type": self._type, "Content-Length": str(self._size), "If-None-Match": "*"}
        headers |= {f"x-amz-meta-{kind}": value for kind, value in self._kept.items()}
        if vouched:
            headers["x-amz-checksum-crc32c"] = vouched["ChecksumCRC32C"]
        with Lanes(1, self._handle) as lanes:
            body = Body(self._fd, part, lanes.advance)
            send = partial(presigned.request, self._target.pool, "PUT", url, Direction.OUT, headers=headers, body=body)
            said = lanes.result(lanes.start(send)).headers
        try:
            self._confirm(part, vouched, said.get("x-amz-checksum-crc32c", ""), presigned.md5_of(said))
        except TransferError:
            self._target.delete()
            raise
        return self._stored()

    def in_parts(self) -> Stored:
        """In parts; what is not complete is taken back."""
        kind = {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"} if _ours() else {}
        begun = self._client.create_multipart_upload(**self._where, **self._about, **kind)
        upload = {**self._where, "UploadId": begun["UploadId"]}
        try:
            with Lanes(LANES, self._handle) as lanes:
                done = self._send_all(upload, lanes)
                refuse_other(self._transfer, self._sums.digests())
                full = {"ChecksumType": "FULL_OBJECT"} if begun.get("ChecksumType") == "FULL_OBJECT" else {}
                end = partial(self._client.complete_multipart_upload, **upload, IfNoneMatch="*", **full)
                if full:
                    end = partial(end, **_vouched(self._sums))
                reply = lanes.result(lanes.start(partial(end, MultipartUpload={"Parts": done})))
        except BaseException:
            self._abort(upload)
            raise
        logger.debug("%d parts became %s", len(done), reply.get("ETag"))
        return self._stored()

    def _send_all(self, upload: Mapping[str, Any], lanes: Lanes) -> list[dict[str, Any]]:
        length = max(PART, -(-self._size // MOST_PARTS // MIB + 1) * MIB if self._size > PART * MOST_PARTS else 0)
        sent: list[Future[dict[str, Any]]] = []
        for part in split(self._size, length):
            sums = Hasher(_ours())
            sum_part(self._fd, part, [self._sums, sums], self._handle.check)
            sent.append(lanes.start(partial(self._send, upload, part, _vouched(sums), lanes.advance)))
        return [lanes.result(future) for future in sent]

    def _send(
        self, upload: Mapping[str, Any], part: Part, vouched: Mapping[str, str], advance: Callable[[int], None]
    ) -> dict[str, Any]:
        body = Body(self._fd, part, advance)
        reply = self._client.upload_part(**upload, PartNumber=part.number, Body=body, **vouched)
        encrypted = bool(reply.get("SSECustomerAlgorithm") or reply.get("SSEKMSKeyId"))
        self._confirm(part, vouched, reply.get("ChecksumCRC32C", ""), md5_in(reply["ETag"], encrypted=encrypted))
        kept = {name: reply[name] for name in vouched if name in reply}
        return {"PartNumber": part.number, "ETag": reply["ETag"], **kept}

    def _confirm(self, part: Part, vouched: Mapping[str, str], crc: str, md5: str) -> None:
        """The storage says back the checksum it has found, or tells the md5 of what it has."""
        if crc and crc in vouched.values():
            return
        if md5:
            sums = Hasher(["md5"])
            sum_part(self._fd, part, [sums], lambda: None)
            if (sent := sums.digests()["md5"]) != md5:
                detail = f"part {part.number} was sent with md5 {sent}, the storage has {md5}"
                raise TransferError(Direction.OUT.mismatch("md5"), detail)

    def _stored(self) -> Stored:
        """Each request was confirmed, so what was summed up here is what is there."""
        return Stored(url=self._transfer.url, size=self._size, checksums=self._sums.digests())

    def _abort(self, upload: Mapping[str, Any]) -> None:
        try:
            self._client.abort_multipart_upload(**upload)
        except Exception as error:  # the first error is what counts; a storage's own rules remove what is left
            logger.warning("the parts of %s may be left in the storage: %s", self._where["Key"], error)


def _vouched(sums: Hasher) -> dict[str, str]:
    """The header by which the storage checks the bytes that it gets."""
    crc = sums.digests().get("crc32c")
    return {"ChecksumCRC32C": binascii.b2a_base64(bytes.fromhex(crc), newline=False).decode()} if crc else {}
