"""Copy tool `objectstore`: what Pilot 3 does by the `rucio` program with a PFN, into object stores for events and logs.

Nothing is registered there either, so Rucio is not needed: S3 URLs go by our `s3`, the others by the tool for their
scheme. Storages for events and logs (OS_ES, OS_LOGS) have all files side by side below their prefix (PILOT3 4.6).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from copytools.s3 import S3, plain_endpoint
from pilot.job import File
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer

#: Scheme to the module and class that move its files.
_OTHERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "davs": ("copytools.https", "Https"),
        "root": ("copytools.xrdcp", "Xrdcp"),
        "srm": ("copytools.gfal", "Gfal"),
        "gsiftp": ("copytools.gfal", "Gfal"),
    }
)

#: Values of S3_IS_SECURE, which Pilot 3 exports with the keys of a storage, for plain http.
_PLAIN = {"false", "0", "no"}


class ObjectStore(CopyTool):
    """Files in object stores; credentials and options as for the tool of the scheme, those of `s3` above all."""

    name = "objectstore"
    schemes = frozenset({*S3.schemes, *_OTHERS})
    checksums = S3.checksums

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._lock = threading.Lock()
        self._tools: dict[str, CopyTool] = {"": _KeyedS3(context)}

    def storage_path(self, file: File, storage_type: str, queue: str, job_id: int) -> str | None:
        """The name alone."""
        return file.lfn if storage_type in ("OS_ES", "OS_LOGS") else None

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring an object."""
        return self._for(transfer.url).get(transfer, handle)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Store a file."""
        return self._for(transfer.url).put(transfer, handle)

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and checksums of an object."""
        return self._for(url).stat(url, handle)

    def probe(self, url: str, handle: Handle) -> Stored | None:
        """Read the first byte of an object, if the tool for it can."""
        return self._for(url).probe(url, handle)

    def remove(self, url: str, handle: Handle) -> None:
        """Delete an object."""
        self._for(url).remove(url, handle)

    def _for(self, url: str) -> CopyTool:
        scheme = url.partition("://")[0]
        module, name = _OTHERS.get(scheme, ("", ""))
        key = scheme if module else ""
        with self._lock:
            if key not in self._tools:
                self._tools[key] = getattr(import_module(module), name)(self.context)
            return self._tools[key]


class _KeyedS3(S3):
    """`s3` with what Pilot 3 exports for a storage: S3_ACCESS_KEY, S3_SECRET_KEY, S3_IS_SECURE."""

    def _endpoint_of(self, url: str) -> str:
        said = self.context.environ.get("S3_IS_SECURE", "").lower()
        return (plain_endpoint(url) if said in _PLAIN else "") or super()._endpoint_of(url)
