"""A queue with its storages: what a job is staged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pilot.errors import Code, PilotError
from pilot.queuedata.fields import Fields
from pilot.queuedata.queue import Queue
from pilot.queuedata.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue with its storages, and where each was read.

    Storages stay JSON until they are asked for: an endpoint nobody uses cannot fail a job, and ATLAS has a thousand.
    """

    queue: Queue
    origin: str = ""
    storage_origin: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    storage_records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    storage_overrides: Mapping[str, Any] = field(default_factory=dict)

    def storage(self, endpoint: str) -> Storage:
        """The storage of that name.

        Raises:
            PilotError: NOSTORAGE if there is none, QUEUEDATANOTOK if its record has a wrong type.
        """
        if not endpoint:
            raise PilotError(
                Code.NOSTORAGE, f"no endpoint is named; queue {self.queue.name} has none for this activity"
            )
        override = Fields(self.storage_overrides, "overwriteStorageData").table(endpoint)
        record = self.storage_records.get(endpoint)
        if record is None and not override:
            problem = "is not in" if self.storage_records else "is unknown, no storagedata was read:"
            raise PilotError(
                Code.NOSTORAGE, f"endpoint {endpoint!r} {problem} {self.storage_origin or 'no source is set'}"
            )
        return Storage.from_record(merged(record or {}, override), endpoint)

    def overlaid(self, queue_overrides: Mapping[str, Any], storage_overrides: Mapping[str, Any]) -> QueueInfo:
        """The same with a job's `--overwriteQueueData` and `--overwriteStorageData` on top."""
        record = merged(self.record, queue_overrides)
        return replace(
            self,
            queue=Queue.from_record(record, self.queue.name) if queue_overrides else self.queue,
            record=record,
            storage_overrides=merged(self.storage_overrides, storage_overrides),
        )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overlaid by `over`: tables are merged at every depth, all else is replaced."""
    return {**base, **{key: _merged_value(base.get(key), value) for key, value in over.items()}}


def _merged_value(base: object, over: object) -> object:
    return merged(base, over) if isinstance(base, Mapping) and isinstance(over, Mapping) else over
