"""Where queue and storage records are read from: caches, files, CVMFS, CRIC and PanDA, in the order of PILOT3 4.1."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pilot.download import TIMEOUT, DownloadError, shown
from pilot.errors import Code, PilotError
from pilot.queuedata.documents import StorageRecords, UnusableError, queue_record
from pilot.queuedata.info import QueueInfo, merged
from pilot.queuedata.queue import Queue
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a cache file is used without asking its source.
CACHE_TIME = 3 * 3600.0

#: Times that a remote source is asked, and the mean wait in seconds after the first; it doubles after each.
TRIES = 3
PAUSE = 2.0

#: Names of the cache files, Pilot 3's (PILOT3 1.5).
QUEUE_CACHE = "queuedata.json"
CRIC_CACHE = "cric_pandaqueues.json"
STORAGE_CACHE = "cric_ddmendpoints.json"

_FAILURES = (PilotError, OSError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The places to read from: `http(s)` or `file` URLs, or paths. An empty one is left out.

    `{pandaqueue}` in a place stands for the queue's name, `CVMFS_PATH` for `cvmfs_base`.

    Attributes:
        queuedata_url: the queue's record as PanDA has it.
        queuedata_cvmfs: a file with that, asked when the URL fails.
        schedconf_file: a file with the queue's record, asked before CRIC's.
        queues_cvmfs, queues_url: CRIC's record of the queue, as a file on CVMFS and as a service.
        storagedata_url: the storages that the operator wants used.
        storages_cvmfs, storages_url: CRIC's list of storages.
        cvmfs_base: where CVMFS is mounted.
        storages_prefer_cache: the storages in the cache win over `storagedata_url`.
    """

    queuedata_url: str = ""
    queuedata_cvmfs: str = ""
    schedconf_file: str = ""
    queues_cvmfs: str = ""
    queues_url: str = ""
    storagedata_url: str = ""
    storages_cvmfs: str = ""
    storages_url: str = ""
    cvmfs_base: str = "/cvmfs"
    storages_prefer_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A place to read from.

    Attributes:
        cache: it is a file that we wrote ourselves. max_age: s it may be old.
        keep: name of the cache file for what it says.
    """

    name: str
    place: str
    cache: bool = False
    max_age: float = math.inf
    keep: str = ""

    @property
    def remote(self) -> bool:
        return urlsplit(self.place).scheme in ("http", "https")

    def __str__(self) -> str:
        return f"{self.name} {shown(self.place)}"


@dataclass(frozen=True, slots=True)
class _Format(Generic[T]):
    """How to read a document, told whether it is our own cache, and how to write one for the cache."""

    read: Callable[[str, bool], T]
    write: Callable[[T], str]


class QueuedataLoader:
    """Reads a queue and its storages.

    Args:
        queue: its name; empty for the only one that the source has.
        cache_dir: where copies of remote documents are kept.
        fetch: brings the bytes of an `http(s)` URL, or raises; blocks, and is called in a thread.
        sources: where to read.
        pause: seconds, see `PAUSE`.
        timeout: seconds that one reading of one source may take.
    """

    def __init__(
        self,
        queue: str,
        cache_dir: Path,
        fetch: Callable[[str], bytes],
        sources: Sources,
        pause: float = PAUSE,
        timeout: float = TIMEOUT,
    ) -> None:
        self.queue = queue
        self.cache_dir = cache_dir
        self.fetch = fetch
        self.sources = sources
        self.pause = pause
        self.timeout = timeout

    async def load(self, stop: Stop) -> QueueInfo:
        """The queue: CRIC's record overlaid by PanDA's, with its storages.

        Storages are looked for if the queue names any or the operator gave a source; without them the queue is still
        good for jobs that need none.

        Raises:
            PilotError: QUEUEDATA if no source has the queue, QUEUEDATANOTOK if a field is wrong, or the stop's reason.
        """
        record, origin = await self._queue(stop)
        queue = Queue.from_record(record, self.queue)
        records: Mapping[str, Mapping[str, Any]] = {}
        storage_origin = ""
        if queue.astorages or self.sources.storagedata_url:
            records, storage_origin = await self._storages(stop)
        return QueueInfo(
            queue=queue, origin=origin, storage_origin=storage_origin, record=record, storage_records=records
        )

    async def _queue(self, stop: Stop) -> tuple[Mapping[str, Any], str]:
        form = _Format(
            lambda text, own: queue_record(text, self.queue, own),
            lambda record: json.dumps({self.queue or "queue": record}),
        )
        problems: list[str] = []
        parts = [
            await self._first(sources, form, stop, problems)
            for sources in (self._cric_sources(), self._panda_sources())
        ]
        found = [part for part in parts if part is not None]
        if not found:
            why = "; ".join(problems) or "no source is set: --queuedata-url names its JSON"
            raise PilotError(Code.QUEUEDATA, f"queue {self.queue}: {why}")
        record: Mapping[str, Any] = {}
        for part, _ in found:
            record = merged(record, part)
        return record, " + ".join(origin for _, origin in found)

    async def _storages(self, stop: Stop) -> tuple[Mapping[str, Mapping[str, Any]], str]:
        problems: list[str] = []
        form = _Format(lambda text, own: StorageRecords(text), lambda records: records.text)
        found = await self._first(self._storage_sources(), form, stop, problems)
        if found is None:
            logger.warning("no storagedata: %s", "; ".join(problems) or "no source is set")
        return found or ({}, "; ".join(problems))

    def _cric_sources(self) -> list[_Source]:
        s = self.sources
        return self._present(
            _Source(name="LOCAL", place=s.schedconf_file),
            *self._cached(
                CRIC_CACHE,
                _Source(name="CVMFS", place=s.queues_cvmfs),
                _Source(name="CRIC", place=s.queues_url, keep=CRIC_CACHE),
            ),
        )

    def _panda_sources(self) -> list[_Source]:
        s = self.sources
        panda = _Source(name="PANDA", place=s.queuedata_url, keep=QUEUE_CACHE)
        cvmfs = _Source(name="CVMFS", place=s.queuedata_cvmfs)
        if panda.remote or not s.queuedata_url:
            return self._present(*self._cached(QUEUE_CACHE, panda, cvmfs))
        return self._present(panda, *self._cached(QUEUE_CACHE, cvmfs))  # a file that is at hand needs no cache

    def _storage_sources(self) -> list[_Source]:
        s = self.sources
        user = _Source(name="USER", place=s.storagedata_url, keep=STORAGE_CACHE)
        others = (
            _Source(name="CVMFS", place=s.storages_cvmfs),
            _Source(name="CRIC", place=s.storages_url, keep=STORAGE_CACHE),
        )
        if s.storages_prefer_cache:
            return self._present(*self._cached(STORAGE_CACHE, user, *others))
        return self._present(user, *self._cached(STORAGE_CACHE, *others))

    def _cached(self, name: str, *sources: _Source) -> tuple[_Source, ...]:
        """`sources` between the young cache, which spares asking them, and the old one, for when all have failed."""
        place = str(self.cache_dir / name)
        young = _Source(name="LOCAL", place=place, cache=True, max_age=CACHE_TIME)
        return (young, *sources, _Source(name="OLD", place=place, cache=True))

    def _present(self, *sources: _Source) -> list[_Source]:
        """The sources that have a place, with its placeholders filled in; what is at hand is not kept."""
        filled = [source if source.cache else replace(source, place=self._filled(source)) for source in sources]
        return [source if source.remote else replace(source, keep="") for source in filled if source.place]

    def _filled(self, source: _Source) -> str:
        name = quote(self.queue, safe="") if source.remote else self.queue
        return source.place.replace("{pandaqueue}", name).replace("CVMFS_PATH", self.sources.cvmfs_base)

    async def _first(
        self, sources: Sequence[_Source], form: _Format[T], stop: Stop, problems: list[str]
    ) -> tuple[T, str] | None:
        """What the first source that can be read says, and which one it was. Why the others failed: `problems`."""
        for source in sources:
            try:
                value = await self._read(source, form, stop)
            except _FAILURES as error:
                stop.check()
                problem = f"{source}: {_text(error)}"
                logger.log(logging.DEBUG if source.cache else logging.WARNING, "%s", problem)
                problems += [] if source.cache else [problem]
            else:
                logger.log(logging.WARNING if source.name == "OLD" else logging.INFO, "read %s", source)
                return value, str(source)
        return None

    async def _read(self, source: _Source, form: _Format[T], stop: Stop) -> T:
        """Read one source, a remote one several times if it fails in a way that may pass."""
        tries = 1
        while True:
            try:
                return await stop.guard(asyncio.wait_for(in_thread(self._load, source, form), self.timeout))
            except _FAILURES as error:
                if tries >= TRIES or not source.remote or not _may_pass(error):
                    raise
                logger.info("%s: %s, will try again", source, _text(error))
            # Jitter: the slots of a cluster start together and must not come back together.
            if await stop.wait(self.pause * 2 ** (tries - 1) * random.uniform(0.5, 1.5)):
                stop.check()
            tries += 1

    def _load(self, source: _Source, form: _Format[T]) -> T:
        """Blocking: read, understand and keep one document."""
        value = form.read(self._bytes(source).decode("utf-8-sig"), source.cache)
        if source.keep:
            self._keep(source.keep, form.write(value))
        return value

    def _bytes(self, source: _Source) -> bytes:
        if source.remote:
            return self.fetch(source.place)
        path = _local_path(source.place)
        if time.time() - path.stat().st_mtime > source.max_age:
            raise UnusableError("is too old")
        return path.read_bytes()

    def _keep(self, name: str, text: str) -> None:
        """Write a cache file in one step. That it cannot be written is no harm: the value is here."""
        partial = self.cache_dir / f".{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.cache_dir / name)
        except OSError as error:
            logger.info("%s is not kept: %s", name, error)


def _local_path(place: str) -> Path:
    """The file that a path or a `file` URL names."""
    if "://" not in place:
        return Path(place)
    parts = urlsplit(place)
    if parts.scheme != "file":
        raise UnusableError(f"URLs of scheme {parts.scheme} cannot be read")
    return Path(unquote(parts.path))


def _may_pass(error: Exception) -> bool:
    return error.retry if isinstance(error, DownloadError) else not isinstance(error, UnusableError)


def _text(error: Exception) -> str:
    """What went wrong, without the place, which is said beside it."""
    if isinstance(error, PilotError):
        return error.detail
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (isinstance(error, OSError) and error.strerror) or str(error)
