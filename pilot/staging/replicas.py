"""Where inputs have replicas: one look into the catalogue for all of them, then an order to try them in.

A replica is near (LAN) if its endpoint is one that the queue reads from, else far (WAN); a queue that names no
endpoints leaves that to the catalogue. The queue says whether it reads near and far ones at all (`allow_lan`,
`allow_wan`). Near ones come first, in the order of the queue's endpoints, then the catalogue's order counts (PILOT3
4.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import Access, File, Job
from pilot.queuedata import Queue
from pilot.staging.catalogue import Catalogue, Replica
from pilot.staging.copytool import Handle

logger = logging.getLogger(__name__)

#: Schemes that a payload reads over the network itself, from near and from far (PILOT3 4.2).
DIRECT_LAN = ("root", "dcache", "dcap", "file", "https")
DIRECT_WAN = ("root", "https")

#: Reasons in an error that there is no replica.
_TOLD = 5


class Place(NamedTuple):
    """A replica that the queue may read."""

    replica: Replica
    near: bool


class Replicas:
    """The replicas of the inputs of a job.

    Args:
        queue: that reads them.
        near: its endpoints to read from, the preferred first.
        catalogue: knows them; None if nobody does.
        virtual: the job has `useVP`.
    """

    def __init__(
        self, queue: Queue, near: Sequence[str], catalogue: Catalogue | None = None, *, virtual: bool = False
    ) -> None:
        self._queue = queue
        self._near = tuple(near)
        self._catalogue = catalogue
        self._virtual = virtual
        self._known: Mapping[str, Sequence[Replica]] | None = None
        self.problem: PilotError | None = None

    def look_up(self, files: Sequence[File], handle: Handle, schemes: Sequence[str]) -> list[File]:
        """Ask the catalogue, once for all files; they come back with size and checksum where the job gave none.

        A catalogue that does not answer is not the end: a queue's own storage has files where its layout says.
        """
        if self._catalogue is None or not files:
            return list(files)
        try:
            if self._virtual:
                self._known = self._catalogue.virtual_replicas(files, handle, self._queue.site)
            else:
                self._known = self._catalogue.replicas(files, handle, schemes, self._queue.site)
        except PilotError as error:
            handle.check()  # a stop is not the catalogue's fault
            logger.warning("no replicas from %s: %s", self._catalogue.name, error)
            self.problem = error
            return list(files)
        return [_completed(file, self._known.get(file.lfn, ())) for file in files]

    @property
    def known(self) -> bool:
        """Whether the catalogue has answered: then only its replicas count."""
        return self._known is not None

    def of(self, file: File) -> list[Place]:
        """The replicas of an input that this queue may read, best first.

        Raises:
            TransferError: NOREPLICAS (1326), with those that it may not read.
        """
        replicas = (self._known or {}).get(file.lfn, ())
        far = self._queue.allow_wan or (".lib." in file.lfn and self._queue.catchall_flag("allow_wan_for_lib"))
        places = in_order(replicas, self._near, lan=self._queue.allow_lan, wan=far)
        if places:
            return places
        refused = "; ".join(f"{replica.endpoint} {self._why_not(replica)}" for replica in replicas[:_TOLD])
        raise TransferError(
            Code.NOREPLICAS, f"{file.scope}:{file.lfn}: {refused or 'the catalogue has none'}", Trait.FATAL
        )

    def near(self, endpoint: str) -> bool:
        """Whether the queue reads from an endpoint over its own network."""
        return endpoint in self._near

    def _why_not(self, replica: Replica) -> str:
        lan = is_near(replica, self._near)
        return f"is {'near' if lan else 'far'} and {'allow_lan' if lan else 'allow_wan'} is off"


def in_order(replicas: Iterable[Replica], near: Sequence[str], *, lan: bool, wan: bool) -> list[Place]:
    """The replicas that may be read, best first.

    Args:
        replicas: in the order of the catalogue.
        near: endpoints of the queue, the preferred first.
        lan: near ones may be read.
        wan: far ones may be read.
    """
    places = [Place(replica, is_near(replica, near)) for replica in replicas]
    rank = {endpoint: number for number, endpoint in enumerate(near)}
    return sorted(
        (place for place in places if (lan if place.near else wan)),
        key=lambda place: (not place.near, rank.get(place.replica.endpoint, len(rank)), place.replica.priority),
    )


def is_near(replica: Replica, near: Sequence[str]) -> bool:
    """Whether a replica is in the network of the queue."""
    return replica.endpoint in near if near else replica.domain == "lan"


def reads_directly(file: File, job: Job) -> bool:
    """Whether the payload shall read an input over the network: never a build job, an archive or a library."""
    return file.access is Access.DIRECT and not (job.is_build or file.is_tar or ".lib." in file.lfn)


def direct_schemes(queue: Queue, near: bool) -> tuple[str, ...]:
    """Schemes by which payloads of a queue read near or far replicas themselves; none if they do not."""
    if near:
        return DIRECT_LAN if queue.direct_access_lan else ()
    return DIRECT_WAN if queue.direct_access_wan else ()


def _completed(file: File, replicas: Sequence[Replica]) -> File:
    """The file with what only the catalogue says of it; where the two differ the job is believed."""
    size = next((replica.size for replica in replicas if replica.size is not None), None)
    checksums = next((replica.checksums for replica in replicas if replica.checksums), {})
    if file.size is not None and size not in (None, file.size):
        logger.warning("%s: the catalogue says %d bytes, the job %d", file.lfn, size, file.size)
    for kind in file.checksums.keys() & checksums.keys():
        if file.checksums[kind].lstrip("0").lower() != checksums[kind].lstrip("0").lower():
            text = "%s: the catalogue says %s %s, the job %s"
            logger.warning(text, file.lfn, kind, checksums[kind], file.checksums[kind])
    return replace(file, size=size if file.size is None else file.size, checksums=file.checksums or dict(checksums))
