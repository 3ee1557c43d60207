"""Copy tool `gs`: objects of Google Cloud Storage, `gs://BUCKET/NAME`, by google-cloud-storage.

Credentials are those that Google's library finds (`GOOGLE_APPLICATION_CREDENTIALS`, the service account of the machine)
or the service account in the file that the queue's option `credentials_file` names. The client is made when the first
file moves. `STORAGE_EMULATOR_HOST` is another server, without credentials.

Uploads are resumable and go in chunks, downloads are ranges side by side; the library asks again where a connection
breaks. The storage checks and tells crc32c of every object, and md5 of those that were stored whole.
"""

from __future__ import annotations

import os
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import quote

from copytools._objects import CONNECT, MIB, SILENCE, Told, dataset_path, fetch, refuse_other, same
from copytools._parts import Body, Lanes, Part, content_type, opened_output, sum_part
from copytools._s3faults import refusal
from pilot.download import DownloadError, check_url
from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File
from pilot.staging.checksum import Hasher, computable
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction, of_os_error

#: Bytes of a chunk of an upload: it is held in memory, and must be a multiple of 256 KiB. Smaller files go in one
#: request.
CHUNK = 8 * MIB

#: Seconds that the library tries again by itself, before the engine does.
PATIENCE = 15.0


class Gs(CopyTool):
    """Objects in Google Cloud Storage."""

    name = "gs"
    schemes = frozenset({"gs"})
    checksums = frozenset({"adler32", "md5", "crc32c"})
    works_by = ("google-cloud-storage",)
    needs: ClassVar[Mapping[str, str]] = {"google.cloud.storage": "pip install 'pilot-toolkit[gs]'"}

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._lock = threading.Lock()
        self._made: Any = None

    def unavailable(self) -> str | None:
        """Google's library is an extra."""
        try:
            found = find_spec("google.cloud.storage")
        except ModuleNotFoundError:
            found = None
        return None if found else "google-cloud-storage is missing (pip install 'pilot-toolkit[gs]')"

    def storage_path(self, file: File, storage_type: str, queue: str, job_id: int) -> str | None:
        """As Pilot 3 (PILOT3 4.6)."""
        return dataset_path(file, queue, job_id)

    def sends_plain_logs(self, log: File) -> bool:
        """As Pilot 3 (PILOT3 4.6)."""
        return log.lfn.endswith("log.tgz")

    def public_url(self, url: str) -> str:
        """Where Google shows an object."""
        bucket, name = place_of(url)
        return f"https://storage.googleapis.com/{bucket}/{quote(name, safe='/~')}"

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring an object, in ranges side by side if it is large."""
        with _faults(Direction.IN, transfer.url):
            blob = self._blob(transfer.url)
            blob.reload(timeout=_TIMEOUT, retry=_retry())
            return fetch(transfer, _BlobSource(blob), handle)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Store a file where nothing is."""
        with _faults(Direction.OUT, transfer.url), opened_output(transfer.path) as (fd, size):
            blob = self._blob(transfer.url)
            there = _look(blob)
            if there is not None:
                return same(transfer, there, fd, size, handle, partial(_read_back, blob, handle=handle))
            return _upload(blob, transfer, fd, size, handle)

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and checksums as the storage has them, and `adler32` if a pilot stored the object."""
        with _faults(Direction.OUT, url):
            there = _head(self._blob(url))
            return Stored(url=url, size=there.size, checksums=there.checksums) if there else None

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """Read the first byte of an object."""
        with _faults(Direction.IN, url):
            blob = self._blob(url)
            there = _head(blob)
            if there is None:
                return None
            if there.size:
                ends = {"start": 0, "end": 0, "raw_download": True, "checksum": None}
                blob.download_as_bytes(**ends, timeout=_TIMEOUT, retry=_retry())
            return Stored(url=url, size=there.size)

    def remove(self, url: str, handle: Handle) -> None:
        """Delete an object."""
        from google.api_core.exceptions import NotFound

        with _faults(Direction.OUT, url):
            try:
                self._blob(url).delete(timeout=_TIMEOUT, retry=_retry())
            except NotFound:
                pass

    def _blob(self, url: str) -> Any:
        bucket, name = place_of(url)
        with self._lock:
            self._made = self._made or self._client()
            return self._made.bucket(bucket).blob(name)

    def _client(self) -> Any:
        from google.cloud.storage import Client

        emulator = self.context.environ.get("STORAGE_EMULATOR_HOST", "")
        if emulator:
            _check_endpoint(emulator, bool(self.context.settings.get("allow_http")))
        if file := self.context.options.get("credentials_file"):
            return Client.from_service_account_json(str(file))
        return Client(project=None)


def place_of(url: str) -> tuple[str, str]:
    """Bucket and name of an object. The name is what stands behind the bucket, unquoted, without leading slashes."""
    bucket, _, name = url.partition("://")[2].partition("/")
    name = name.lstrip("/")
    if not bucket or not name:
        raise TransferError(Code.BADQUEUECONFIGURATION, "a URL of this storage is gs://bucket/name", Trait.NEXT)
    return bucket, name


_TIMEOUT = (CONNECT, SILENCE)


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(PATIENCE)


def _check_endpoint(url: str, allow_http: bool) -> None:
    try:
        check_url(url if "://" in url else f"http://{url}", allow_http)
    except DownloadError as error:
        raise TransferError(Code.BADQUEUECONFIGURATION, f"STORAGE_EMULATOR_HOST: {error}", Trait.NEXT) from None


class _BlobSource:
    """An object to be read. Not another one that takes its name meanwhile."""

    def __init__(self, blob: Any) -> None:
        self.told = _told(blob)
        # a blob that knows its generation but no media link: the library quotes names, not every server does
        self._blob = blob.bucket.blob(blob.name, generation=blob.generation)

    def bring(self, fd: int, part: Part, advance: Callable[[int], None]) -> None:
        """Write the bytes of a part to their place in a file."""
        if part.size:
            sink = _Sink(fd, part, advance)
            self._blob.download_to_file(
                sink,
                start=part.start,
                end=part.end - 1,
                raw_download=True,
                if_generation_match=self._blob.generation,
                timeout=_TIMEOUT,
                checksum=None,
                retry=_retry(),
            )
            sink.close()

    def close(self) -> None:
        """Nothing is open."""


class _Sink:
    """A part of a file, to be written by the library."""

    def __init__(self, fd: int, part: Part, advance: Callable[[int], None]) -> None:
        self._fd, self._place, self._end = fd, part.start, part.end
        self._advance = advance

    def write(self, data: bytes) -> int:
        """The next bytes."""
        if self._place + len(data) > self._end:
            raise Direction.IN.fault("the storage gave more than it was asked for", Trait.NEXT)
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, self._place)
            view, self._place = view[count:], self._place + count
        self._advance(len(data))
        return len(data)

    def tell(self) -> int:
        """Place in the file, bytes."""
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere in the file: the library begins anew."""
        self._place = place
        return place

    def close(self) -> None:
        """All bytes must have come."""
        if self._place != self._end:
            raise Direction.IN.fault(f"it ended after {self._place} bytes of {self._end}")


def _upload(blob: Any, transfer: Transfer, fd: int, size: int, handle: Handle) -> Stored:
    part = Part(1, 0, size)
    known = [kind for kind in transfer.checksums if computable(kind)] or [transfer.checksum_type]
    hasher = Hasher(dict.fromkeys([*known, "crc32c"]))
    sum_part(fd, part, [hasher], handle.check)
    digests = hasher.digests()
    refuse_other(transfer, digests)
    blob.metadata = {kind: digests[kind] for kind in known}
    blob.chunk_size = CHUNK
    with Lanes(1, handle) as lanes:
        send = partial(
            blob.upload_from_file,
            Body(fd, part, lanes.advance, least=0),
            size=size,
            content_type=content_type(fd, transfer.path.name),
            if_generation_match=0,
            checksum="crc32c",
            timeout=_TIMEOUT,
            retry=_retry(),
        )
        lanes.result(lanes.start(send))
    stored = _told(blob)
    if stored.checksums.get("crc32c") != digests["crc32c"]:
        blob.delete(timeout=_TIMEOUT, retry=_retry())
        detail = f"crc32c {digests['crc32c']} was sent, {stored.checksums.get('crc32c')} is there"
        raise TransferError(Direction.OUT.mismatch("crc32c"), detail)
    return Stored(url=transfer.url, size=stored.size, checksums=digests)


def _head(blob: Any) -> Told | None:
    from google.api_core.exceptions import NotFound

    try:
        blob.reload(timeout=_TIMEOUT, retry=_retry())
    except NotFound:
        return None
    return _told(blob)


def _look(blob: Any) -> Told | None:
    """As `_head`; who may only create objects may not see them, and a condition guards what is there."""
    from google.api_core.exceptions import Forbidden

    try:
        return _head(blob)
    except Forbidden:
        return None


def _told(blob: Any) -> Told:
    checksums = {kind: value for kind, value in (blob.metadata or {}).items() if kind in ("adler32", "md5")}
    for kind, text in (("md5", blob.md5_hash), ("crc32c", blob.crc32c)):
        if text:
            checksums[kind] = b64decode(text).hex()
    return Told(int(blob.size or 0), str(blob.etag or ""), checksums)


def _read_back(blob: Any, kind: str, handle: Handle) -> Mapping[str, str]:
    hasher = Hasher([kind])

    class Summing:
        def write(self, data: bytes) -> int:
            handle.check()
            hasher.update(memoryview(data))
            return len(data)

    blob.download_to_file(Summing(), raw_download=True, checksum=None, timeout=_TIMEOUT, retry=None)
    return hasher.digests()


@contextmanager
def _faults(direction: Direction, url: str) -> Iterator[None]:
    """What Google's library, requests and the operating system raise, as errors of the table."""
    try:
        yield
    except TransferError as error:
        raise TransferError(error.code, f"{url}: {error.detail}", error.trait) from error
    except PilotError:
        raise
    except Exception as error:
        found = _of_library(error, direction, url)
        if found is not None:
            raise found from error
        if isinstance(error, OSError):
            raise of_os_error(error, direction, url) from error
        raise


def _of_library(error: Exception, direction: Direction, url: str) -> TransferError | None:
    """The transfer's error for one of Google's library or of requests, whose errors are OSErrors; None for others."""
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests import exceptions as http

    said = re.sub(r"\?\S+", "?...", str(error))  # with its URL one may go on with an upload
    text = f"{url}: {said}"
    if isinstance(error, api.RetryError) and isinstance(error.cause, Exception):
        return _of_library(error.cause, direction, url) or direction.fault(text)
    if isinstance(error, auth.TransportError) or "Content-Range" in said:  # an upload was cut, and goes on elsewhere
        return direction.fault(text)
    if isinstance(error, api.GoogleAPICallError):
        return refusal(direction, int(error.code or 0), "", text)
    if isinstance(error, DataCorruption):
        return TransferError(direction.mismatch("crc32c"), text)
    if isinstance(error, InvalidResponse):
        return refusal(direction, int(error.response.status_code), "", text)
    if isinstance(error, auth.GoogleAuthError):
        return TransferError(direction.refused, text, Trait.NEXT)
    if isinstance(error, http.SSLError):
        return direction.fault(text, Trait.NEXT)
    if isinstance(error, http.Timeout):
        return TransferError(direction.timed_out, text)
    if isinstance(error, http.ConnectionError | ConnectionError):
        return TransferError(Code.SERVICENOTAVAILABLE, text)
    return direction.fault(text) if isinstance(error, http.RequestException) else None
