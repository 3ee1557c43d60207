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
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from copytools import _presigned as presigned
from copytools._objects import CONNECT, LANES, MIB, PART, SILENCE, Told, dataset_path, fetch, md5_in, refuse_other, same
from copytools._parts import Body, Lanes, Part, Reader, content_type, opened_output, receive, split, sum_part
from copytools._s3faults import faults, passes, status_of
from pilot.download import DownloadError, check_url
from pilot.errors import Code, Trait, TransferError
from pilot.job import File
from pilot.staging.checksum import Hasher, computable
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction

if TYPE_CHECKING:
    from urllib3 import PoolManager

logger = logging.getLogger(__name__)

#: Parts that a file may have: the storage allows 10000 (Amazon S3 limits).
MOST_PARTS = 9_000

#: Smaller files are sent from memory: streamed, a server has to agree first (`Expect: 100-continue`).
IN_MEMORY = 2 * MIB


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object is; `endpoint` is empty for Amazon's."""

    endpoint: str
    bucket: str
    key: str


class S3(CopyTool):
    """Objects in S3 storages, by boto3; presigned URLs too.

    Credentials, the first of: the queue's options `credentials_file` and `profile`, `PANDA_PILOT_AWS_PROFILE`,
    `S3_ACCESS_KEY` with `S3_SECRET_KEY`, then whatever boto3 finds (AWS_... variables, files, the role of the machine).
    Other options of the queue: `endpoint_url`, `region`, `addressing_style`.
    """

    name = "s3"
    schemes = frozenset({"s3", "s3+rucio", "https", "http"})
    checksums = frozenset({"adler32", "md5", "crc32c"})
    needs: ClassVar[Mapping[str, str]] = {"boto3": "pip install 'pilot-toolkit[s3]'"}

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[str, Any] = {}
        self._connections: PoolManager | None = None

    def storage_path(self, file: File, storage_type: str, queue: str, job_id: int) -> str | None:
        """As Pilot 3 (PILOT3 4.6): only in storages for events and logs."""
        return dataset_path(file, queue, job_id) if storage_type in ("OS_ES", "OS_LOGS") else None

    def sends_plain_logs(self, log: File) -> bool:
        """As Pilot 3 (PILOT3 4.6): where the site says so."""
        return log.lfn.endswith("log.tgz") and bool(self.context.environ.get("PANDA_PILOT_COPY_OUT_EXTEND"))

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring an object, in ranges side by side if it is large."""
        if self._is_presigned(transfer.url):
            with presigned.presigned_faults(Direction.IN, transfer.url):
                source = presigned.PresignedSource(self._pool(), transfer.url, PART)
                return fetch(transfer, source, handle)
        with faults(Direction.IN, transfer.url):
            whole = transfer.size is not None and transfer.size <= PART
            return fetch(transfer, _ObjectSource(self._object(transfer.url), whole=whole), handle)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Store a file, in parts side by side if it is large."""
        if self._is_presigned(transfer.url):
            return presigned.put(self._pool(), transfer, handle)
        with faults(Direction.OUT, transfer.url), opened_output(transfer.path) as (fd, size):
            target = self._object(transfer.url)
            there = target.look()
            if there is not None:
                return same(transfer, there, fd, size, handle, partial(_read_back, target, handle=handle))
            upload = _Upload(target, transfer, fd, size, handle)
            return upload.whole() if size <= PART else upload.in_parts()

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and checksums as the storage has them, and `adler32` if a pilot stored the object."""
        if self._is_presigned(url):
            return presigned.stat(self._pool(), url)
        with faults(Direction.OUT, url):
            there = self._object(url).head()
            return Stored(url=url, size=there.size, checksums=there.checksums) if there else None

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """Read the first byte of an object."""
        if self._is_presigned(url):
            return presigned.stat(self._pool(), url)
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

    def _pool(self) -> PoolManager:
        with self._lock:
            self._connections = self._connections or presigned.new_pool()
            return self._connections

    def _object(self, url: str) -> _Object:
        place = place_of(url, self._endpoint_of(url))
        with self._lock:
            if place.endpoint not in self._clients:
                self._clients[place.endpoint] = self._client(place.endpoint)
            return _Object(self._clients[place.endpoint], place)

    def _endpoint_of(self, url: str) -> str:
        """The endpoint that the site has set, if any."""
        return str(self.context.options.get("endpoint_url") or self.context.environ.get("S3_ENDPOINT_URL", ""))

    def _client(self, endpoint: str) -> Any:
        if endpoint:
            check_endpoint(endpoint, bool(self.context.settings.get("allow_http")))
        try:
            from botocore.config import Config
        except ImportError:  # not `unavailable`: presigned URLs work without it
            detail = f"s3 needs boto3 ({self.needs['boto3']})"
            raise TransferError(Code.UNKNOWNCOPYTOOL, detail, Trait.NEXT) from None
        options, environ = self.context.options, self.context.environ
        style = options.get("addressing_style") or ("path" if endpoint else "auto")
        config = Config(
            # The checksum header vouches for the bytes: to sum them up once more for the signature is for nothing.
            s3={"addressing_style": style, "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=CONNECT,
            read_timeout=SILENCE,
            max_pool_connections=32,
        )
        keys = {}
        if environ.get("S3_ACCESS_KEY") and environ.get("S3_SECRET_KEY") and not self._profile():
            keys = {"aws_access_key_id": environ["S3_ACCESS_KEY"], "aws_secret_access_key": environ["S3_SECRET_KEY"]}
        session = self._session = self._session or self._new_session()
        region = options.get("region") or session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config, **keys)

    def _profile(self) -> str:
        """The profile to use; naming one makes boto3 pass over keys in the environment."""
        options = self.context.options
        given = options.get("profile") or self.context.environ.get("PANDA_PILOT_AWS_PROFILE", "")
        return str(given or ("default" if options.get("credentials_file") else ""))

    def _new_session(self) -> Any:
        import boto3
        import botocore.session

        core = botocore.session.Session(profile=self._profile() or None)
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


class _Object:
    """One object, by a client of its endpoint."""

    def __init__(self, client: Any, place: Place) -> None:
        self.client = client
        self.where = {"Bucket": place.bucket, "Key": place.key}

    def head(self) -> Told | None:
        """What the storage says of it; None if it is not there."""
        from botocore.exceptions import ClientError

        try:
            return told(self.client.head_object(**self.where, ChecksumMode="ENABLED"))
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise

    def first_byte(self) -> Told | None:
        """As `head`, of an object that can be read."""
        from botocore.exceptions import ClientError

        there = self.head()
        if there is None or not there.size:
            return there
        try:
            with closing(self.client.get_object(**self.where, Range="bytes=0-0")["Body"]) as stream:
                stream.read(1)
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise
        return there

    def look(self) -> Told | None:
        """As `head`; but to those who may not list, Amazon does not tell what is not there from what they may not see.

        Whether we may write, the write will say; and it does not replace anything.
        """
        from botocore.exceptions import ClientError

        try:
            return self.head()
        except ClientError as error:
            if status_of(error) == 403:
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


class _ObjectSource:
    """An object to be read by a client.

    Args:
        target: the object.
        whole: ask for all of it at once, which saves asking what it is.
    """

    def __init__(self, target: _Object, *, whole: bool) -> None:
        ask = target.client.get_object if whole else target.client.head_object
        reply = ask(**target.where, ChecksumMode="ENABLED")
        self.told = told(reply)
        self._target = target
        self._open = reply.get("Body")

    def bring(self, fd: int, part: Part, advance: Callable[[int], None]) -> None:
        """Write the bytes of a part to their place in a file."""
        receive(fd, part, self._ask, advance, passes)

    def _ask(self, part: Part) -> Reader:
        """The bytes of a part, of the same object as the first."""
        stream, self._open = self._open, None
        if stream is None:
            reply = self._target.client.get_object(
                **self._target.where, Range=f"bytes={part.start}-{part.end - 1}", IfMatch=self.told.etag
            )
            stream = reply["Body"]
            if not reply.get("ContentRange", "").startswith(f"bytes {part.start}-"):
                stream.close()
                raise Direction.IN.fault("the storage did not give the range that it was asked for", Trait.NEXT)
        found: Reader = stream
        return found

    def close(self) -> None:
        """Free the connection of a stream that nobody read."""
        if self._open is not None:
            self._open.close()


def told(reply: Mapping[str, Any]) -> Told:
    """Size and checksums in a reply to HEAD or GET."""
    found = {kind: value for kind in ("adler32", "md5") if (value := str(reply.get("Metadata", {}).get(kind, "")))}
    etag = str(reply.get("ETag", ""))
    if md5 := md5_in(etag, encrypted=bool(reply.get("SSECustomerAlgorithm") or reply.get("SSEKMSKeyId"))):
        found["md5"] = md5
    if crc := crc_in(reply):
        found["crc32c"] = crc
    return Told(int(reply["ContentLength"]), etag, found)


def crc_in(reply: Mapping[str, Any]) -> str:
    """The crc32c of all bytes that a reply tells, in hex digits; empty if it does not, or has a sum of sums."""
    text = str(reply.get("ChecksumCRC32C", ""))
    if not text or "-" in text or reply.get("ChecksumType") == "COMPOSITE":
        return ""
    with suppress(ValueError):
        return binascii.a2b_base64(text).hex()
    return ""


def _read_back(target: _Object, kind: str, handle: Handle) -> Mapping[str, str]:
    """The checksum of an object, of all its bytes."""
    hasher = Hasher([kind])
    stream = target.client.get_object(**target.where)["Body"]
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
        self._about = {
            "ContentType": content_type(fd, transfer.path.name),
            "Metadata": {kind: value for kind, value in transfer.checksums.items() if kind in known},
        }

    def whole(self) -> Stored:
        """In one request."""
        part = Part(1, 0, self._size)
        sum_part(self._fd, part, [self._sums], self._handle.check)
        refuse_other(self._transfer, self._sums.digests())
        with Lanes(1, self._handle) as lanes:
            body: Body | bytes = Body(self._fd, part, lanes.advance)
            if self._size <= IN_MEMORY:
                body = Body(self._fd, part, lambda count: None).read()
            send = partial(self._client.put_object, **self._where, **self._about, IfNoneMatch="*")
            reply = lanes.result(lanes.start(partial(send, Body=body, **_vouched(self._sums))))
            if isinstance(body, bytes):
                lanes.advance(self._size)
        try:
            self._confirm(part, _vouched(self._sums), reply)
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
        self._confirm(part, vouched, reply)
        kept = {name: reply[name] for name in vouched if name in reply}
        return {"PartNumber": part.number, "ETag": reply["ETag"], **kept}

    def _confirm(self, part: Part, vouched: Mapping[str, str], reply: Mapping[str, Any]) -> None:
        """The storage says back the checksum it has found, or tells the md5 of what it has."""
        if vouched and reply.get("ChecksumCRC32C") == vouched["ChecksumCRC32C"]:
            return
        encrypted = bool(reply.get("SSECustomerAlgorithm") or reply.get("SSEKMSKeyId"))
        if md5 := md5_in(str(reply.get("ETag", "")), encrypted=encrypted):
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
