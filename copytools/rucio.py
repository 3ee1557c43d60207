"""Copy tool `rucio`: files by way of rucio-clients and the protocols that Rucio knows of an RSE.

The storage is spoken to by Rucio's own protocol classes, those of its download and upload clients: `xrdcp`, `gfal`,
WebDAV, whatever the RSE says. The clients themselves would choose the RSE's replica, retry, trace and name half-done
files as they like; here the engine does that, as for all tools.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, unquote

from copytools._remote import (
    checksum_types,
    local_faults,
    partial_file,
    partial_suffix,
    regular_size,
    same_content,
    speakable,
    verify,
)
from copytools._rucio import HINT, RucioProgram, allows_http
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import file_checksums
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction

#: A file by its RSE and name, wherever it is there: `rucio://RSE/SCOPE:NAME`, the name with %-escapes.
SCHEME = "rucio"


class Place(NamedTuple):
    """A file of an RSE: by its PFN, or by scope and name."""

    rse: str
    pfn: str = ""
    scope: str = ""
    name: str = ""


class Rucio(CopyTool):
    """Files of RSEs, by rucio-clients.

    A URL is a PFN of the RSE that the file names as its endpoint, or `rucio://RSE/SCOPE:NAME`. Options of the queue:
    `setup`, a file to source that brings Rucio; `no_register: false` to register each output when it is stored.
    """

    name = SCHEME
    schemes = frozenset({SCHEME, "root", "davs", "https", "srm", "gsiftp", "s3", "gs"})
    checksums = frozenset({"adler32"})
    works_by = ("rucio-clients",)
    needs: ClassVar[Mapping[str, str]] = {"rucio": HINT}

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        host = str(context.options.get("host") or context.settings.get("rucio_host") or "")
        self._rucio = RucioProgram(
            host, context.environ, options=context.options, allow_http=allows_http(context.settings)
        )
        self._registers = context.options.get("no_register", True) is False
        self._endpoints: dict[str, str] = {}
        self._lock = threading.Lock()

    def unavailable(self) -> str | None:
        """No rucio-clients."""
        return self._rucio.unavailable()

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """Bring a file into the job's directory."""
        place = self._place(transfer.url, transfer)
        with local_faults(Direction.IN, f"rucio to {transfer.path}"):
            transfer.path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(transfer.path) as partial, speakable(partial.parent) as folder:
                arguments = {"path": str(folder / partial.name), "timeout": int(transfer.timeout)}
                self._ask(handle, Direction.IN, "get", place, watch=partial, **arguments)
                found = file_checksums(partial, checksum_types(transfer), handle.check)
                stored = Stored(url=transfer.url, size=partial.stat().st_size, checksums=found)
                verify(stored, transfer, Direction.IN)
                partial.replace(transfer.path)
        return stored

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """Take a file of the job to the storage, and register it if the queue says so."""
        place = self._place(transfer.url, transfer)
        with local_faults(Direction.OUT, f"rucio of {transfer.path}"):
            size = regular_size(transfer.path)
            known = dict(transfer.checksums)
            if "adler32" not in known:
                known |= file_checksums(transfer.path, ["adler32"], handle.check)
            with speakable(transfer.path) as source:
                arguments = {"path": str(source), "suffix": partial_suffix(), "size": size, "adler32": known["adler32"]}
                arguments["timeout"] = int(transfer.timeout)
                done = self._ask(handle, Direction.OUT, "put", place, **arguments)
            url = transfer.url if place.pfn else done["pfn"]
            self._remember(url, place.rse)
            if "there" in done:
                stored = same_content(_stored(url, done["there"]), transfer, size, handle)
            else:
                stored = _stored(url, done["sent"])
                verify(stored, transfer, Direction.OUT)
            if self._registers:
                self._register(transfer, place, url, size, known, handle)
        return stored

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """Size and adler32 of a file, as its storage says."""
        found = self._ask(handle, Direction.OUT, "stat", self._place(url))
        return None if found is None else _stored(url, found)

    def remove(self, url: str, handle: Handle) -> None:
        """Delete a file from its storage; the catalogue is left as it is."""
        self._ask(handle, Direction.OUT, "remove", self._place(url))

    def _ask(self, handle: Handle, direction: Direction, action: str, place: Place, **arguments: Any) -> Any:
        return self._rucio.ask(handle, direction, action, place=place._asdict(), **arguments)

    def _register(
        self, transfer: Transfer, place: Place, url: str, size: int, known: Mapping[str, str], handle: Handle
    ) -> None:
        file = transfer.file
        scope, _, dataset = file.dataset.rpartition(":")
        new = {"rse": place.rse, "scope": file.scope, "name": file.lfn, "bytes": size, "checksums": dict(known),
               "pfn": url, "guid": file.guid, "events": file.events, "dataset": dataset,
               "dataset_scope": scope or file.scope}  # fmt: skip
        self._rucio.ask(handle, Direction.OUT, "register", files=[new], close=False)

    def _place(self, url: str, transfer: Transfer | None = None) -> Place:
        scheme, _, rest = url.partition("://")
        if scheme == SCHEME:
            rse, _, did = rest.partition("/")
            scope, _, name = did.partition(":")
            return Place(rse, "", unquote(scope), unquote(name))
        rse = transfer.file.endpoint if transfer else self._endpoints.get(url, "")
        if not rse:
            raise TransferError(Code.NOSTORAGE, f"{url}: rucio needs the endpoint that has it", Trait.NEXT)
        self._remember(url, rse)
        return Place(rse, url)

    def _remember(self, url: str, rse: str) -> None:
        with self._lock:
            self._endpoints[url] = rse


def file_url(rse: str, scope: str, name: str) -> str:
    """The URL of a file at an RSE by its name."""
    return f"{SCHEME}://{rse}/{quote(scope, safe='')}:{quote(name, safe='')}"


def _stored(url: str, found: Mapping[str, Any]) -> Stored:
    return Stored(url=url, size=found.get("size"), checksums={k: v for k, v in found.items() if k != "size"})
