"""Queues and storages: from the JSON of CRIC and PanDA to typed, frozen values, and where that JSON comes from.

Formats: a queue's record is CRIC's `schedconfig` JSON, either alone or as `{queue: record}`; storages are CRIC's
`ddmendpoints` JSON, `{endpoint: record}`. Fields have CRIC's names, but for those that Pilot 3 renamed (`nickname` is
`name`, `cmtconfig` is `platform`), and CRIC's units, but for `timefloor`: seconds here, minutes there.
"""

from pilot.queuedata.info import QueueInfo
from pilot.queuedata.loader import QueuedataLoader, Sources
from pilot.queuedata.queue import Queue, check_active
from pilot.queuedata.storage import Storage, StorageProtocol, hash_path

__all__ = [
    "Queue",
    "QueueInfo",
    "QueuedataLoader",
    "Sources",
    "Storage",
    "StorageProtocol",
    "check_active",
    "hash_path",
]
