"""A storage (DDM endpoint, RSE) as a value, and where in it a file lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot.errors import Code, PilotError
from pilot.queuedata.fields import Fields, first_of, ordered


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageProtocol:
    """A way into a storage: `endpoint` is scheme, host and port, `path` the prefix of its files."""

    endpoint: str
    path: str = ""
    flavour: str = ""
    id: str = ""

    @property
    def scheme(self) -> str:
        """The URL scheme, without `://`."""
        return self.endpoint.partition("://")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A storage (DDM endpoint, RSE).

    Attributes:
        name: of the endpoint.
        pk: CRIC's number of it.
        type: such as `DATADISK`; `OS_ES` and `OS_LOGS` are object stores.
        token: space token.
        is_deterministic: the path of a file follows from its scope and name.
        arprotocols: activity to protocols, best first.
        rprotocols: id of a protocol to its settings (names of keys, not the keys).
        bucket_id: number of the bucket of an object store.
    """

    name: str
    pk: int = 0
    type: str = ""
    token: str = ""
    is_deterministic: bool = False
    state: str = ""
    site: str = ""
    arprotocols: Mapping[str, tuple[StorageProtocol, ...]] = field(default_factory=dict)
    rprotocols: Mapping[str, Any] = field(default_factory=dict)
    bucket_id: str = ""

    @classmethod
    def from_record(cls, record: Mapping[str, Any], name: str = "") -> Storage:
        """The storage that `record`, CRIC's JSON object of one endpoint, describes.

        Raises:
            PilotError: QUEUEDATANOTOK, naming the field that has the wrong type.
        """
        fields = Fields(record, "storagedata", name)
        resource = Fields(fields.table("resource"), "storagedata resource", name)
        table = fields.table("arprotocols").items()
        return cls(
            name=fields.text("name") or name,
            pk=fields.number("id"),
            is_deterministic=fields.flag("is_deterministic", False),
            type=fields.text("type"),
            token=fields.text("token"),
            state=fields.text("state"),
            site=fields.text("site"),
            arprotocols={activity: _protocols(fields, entries) for activity, entries in table},
            rprotocols=fields.table("rprotocols"),
            bucket_id=resource.text("bucket_id"),
        )

    def protocols(self, activities: str | Sequence[str], schemas: Sequence[str] = ()) -> tuple[StorageProtocol, ...]:
        """Protocols of the first of `activities` that has any, best first.

        Args:
            activities: such as `write_lan`, `write_wan`, in the order to try.
            schemas: schemes to keep, in the order of preference; all if empty.

        Raises:
            PilotError: NOSTORAGEPROTOCOL if none is left.
        """
        found = first_of(self.arprotocols, ordered(activities)) or ()
        if schemas:
            found = tuple(protocol for scheme in schemas for protocol in found if protocol.scheme == scheme)
        if not found:
            wanted = f" with schemes {', '.join(schemas)}" if schemas else ""
            raise PilotError(Code.NOSTORAGEPROTOCOL, f"{self.name} for {', '.join(ordered(activities))}{wanted}")
        return found

    def surl(self, protocol: StorageProtocol, scope: str, lfn: str, path: str | None = None) -> str:
        """Where a file lies: protocol endpoint, protocol path, then `path` or the layout of `hash_path`.

        Raises:
            PilotError: NONDETERMINISTICDDM if no path is given and the storage has no layout of its own.
        """
        if path is None:
            if not self.is_deterministic:
                raise PilotError(Code.NONDETERMINISTICDDM, f"{lfn} at {self.name}")
            path = hash_path(scope, lfn)
        prefix = protocol.path
        return f"{protocol.endpoint}{prefix}{'' if not prefix or prefix.endswith('/') else '/'}{path}"


def _protocols(fields: Fields, entries: object) -> tuple[StorageProtocol, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise fields.wrong("arprotocols", "lists of tables", entries)
    readers = [Fields(entry, "storagedata arprotocols") for entry in entries]
    names = ("endpoint", "path", "flavour", "id")
    return tuple(StorageProtocol(**{name: reader.text(name) for name in names}) for reader in readers)


def hash_path(scope: str, lfn: str) -> str:
    """Rucio's deterministic layout: `user.x` and `f` become `user/x/01/9f/f`, from the md5 of `user.x:f`."""
    from hashlib import md5

    digest = md5(f"{scope}:{lfn}".encode()).hexdigest()
    return "/".join(part for part in (*scope.split("."), digest[:2], digest[2:4], lfn) if part)
