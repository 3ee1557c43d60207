"""What became of a set of files, and who may listen while it becomes."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pilot.errors import PilotError, TransferError
from pilot.job import File, Kind
from pilot.staging.faults import Direction
from pilot.staging.handle import TransferHandle

logger = logging.getLogger(__name__)

#: What makes a URL presigned: at Amazon and those like it, of version 4 and 2, and at Google.
_SIGNED = re.compile(r"^https?://.*[?&](X-Amz-|X-Goog-)?Signature=")

#: What a file is called until it is whole, which is another name each time (`partial_suffix` of the copy tools).
_PARTIAL = re.compile(r"\.\d+-[0-9a-f]{8}\.partial\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A try that failed: with which tool, at which URL of which storage, why, after how many seconds."""

    tool: str
    url: str
    error: PilotError
    seconds: float
    endpoint: str = ""

    def __str__(self) -> str:
        where = shown(self.url)
        return f"{self.tool} {where}: {without(_PARTIAL.sub('', self.error.diag), where)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile:
    """A file that arrived and was verified.

    Attributes:
        file: with the endpoint that it came from or went to.
        path: on the node. Of an output it is where it was: a tool may have moved it.
        url: where it came from, or where it is now.
        size: bytes.
        checksums: type to hex digits, of the bytes that were moved; may be empty for an input nobody has a checksum of.
        tool: that moved it.
        seconds: that the last try took.
        verifying: of those, what was left to verify when the tool was done.
        attempts: those before it, that failed.
        local: False for an input that takes no local space because it is only linked.
        place: where the tool has it, if that is not `url`: for `mv` a path has escapes, as it is reported it has none.
    """

    file: File
    path: Path
    url: str
    size: int
    checksums: Mapping[str, str]
    tool: str
    seconds: float
    attempts: tuple[Attempt, ...] = ()
    local: bool = True
    verifying: float = 0.0
    place: str = ""

    @property
    def story(self) -> list[str]:
        """One line for each way that was tried before this one; empty if the first one was good."""
        if not self.attempts:
            return []
        lines = [f"{self.file.lfn}: {line}" for line in tried(self.attempts)]
        before = self.attempts[0].endpoint
        if self.file.kind is not Kind.INPUT and self.file.endpoint != before:  # the words are Pilot 3's
            lines.append(f"Alternative stage-out for [{self.file.lfn}]: {self.file.endpoint} instead of {before}")
        return [*lines, f"{self.file.lfn}: {self.tool} {shown(self.url)}: good"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One try to move a file, as it ended.

    Attributes:
        direction, file: what.
        tool, url, endpoint: how, and where from or to.
        began: when it had its turn, seconds since the epoch.
        seconds: that it took.
        staged: what arrived; None if it failed.
        error: why it failed; None if it did not.
    """

    direction: Direction
    file: File
    tool: str
    url: str
    endpoint: str
    began: float
    seconds: float
    staged: StagedFile | None = None
    error: PilotError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedFile:
    """A file that did not arrive; `error` has the first cause and, in its detail, all that was tried."""

    file: File
    error: PilotError
    attempts: tuple[Attempt, ...] = ()
    direction: Direction | None = None

    @property
    def story(self) -> list[str]:
        """One line for each way that was tried."""
        return [f"{self.file.lfn}: {line}" for line in tried(self.attempts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingResult:
    """All files of a call: those that arrived, in the order asked for, and those that did not, first failure first.

    Attributes:
        metrics: for the job's: name to value.
    """

    staged: tuple[StagedFile, ...] = ()
    failed: tuple[FailedFile, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def story(self) -> list[str]:
        """What was tried and failed, one line each, for people; empty if all went well at once."""
        stories = [*(staged.story for staged in self.staged), *(failure.story for failure in self.failed)]
        return [line for story in stories for line in story]

    @property
    def error(self) -> PilotError | None:
        """The first failure; None if all files arrived."""
        if not self.failed:
            return None
        error = self.failed[0].error
        others = sum(failure.error is not error for failure in self.failed)  # those it ended have the same error
        if not others or not isinstance(error, TransferError):
            return error
        return TransferError(error.code, f"{error.detail} ({others} more failed)", error.trait)


@dataclass(slots=True)
class Progress:
    """Where a call stands; read it as often as you like, it costs a few additions.

    Attributes:
        files, bytes: in all, as far as sizes are known.
        done: files that have arrived.
        finished: bytes of those.
        linked: of those, bytes that take no space on the node.
    """

    direction: Direction
    files: int
    bytes: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    running: set[TransferHandle] = field(default_factory=set)
    finished: int = 0
    linked: int = 0

    @property
    def moved(self) -> int:
        """Bytes that have arrived or are under way."""
        return self.finished + sum(handle.moved for handle in tuple(self.running))

    @property
    def written(self) -> int:
        """Bytes of those that take space on the node."""
        return self.moved - self.linked

    @property
    def speed(self) -> float:
        """Bytes per second since the start."""
        return self.moved / max(1e-6, time.monotonic() - self.started)


class StagingObserver:
    """Somebody who watches files go by. All methods are quick, return nothing, and are called from the event loop."""

    def started(self, progress: Progress) -> None:
        """A call begins."""

    def tried(self, trial: Trial) -> None:
        """A try is over; what a stop has ended is none."""

    def arrived(self, staged: StagedFile) -> None:
        """A file is where it should be."""

    def failed(self, failure: FailedFile) -> None:
        """A file is given up."""

    def ended(self, result: StagingResult) -> None:
        """The call is over."""


class Observers(StagingObserver):
    """Several observers as one. One that fails does so alone: files move whoever watches."""

    def __init__(self, *observers: StagingObserver) -> None:
        self._observers = observers

    def started(self, progress: Progress) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.started(progress))

    def tried(self, trial: Trial) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.tried(trial))

    def arrived(self, staged: StagedFile) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.arrived(staged))

    def failed(self, failure: FailedFile) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.failed(failure))

    def ended(self, result: StagingResult) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.ended(result))

    def _tell(self, what: Callable[[StagingObserver], None]) -> None:
        for one in self._observers:
            try:
                what(one)
            except Exception:  # the door: a bug in traces or a display is no reason to lose a job
                logger.exception("%s failed", type(one).__name__)


def tried(attempts: Sequence[Attempt]) -> list[str]:
    """One line for each way that failed in another manner than before, with the number of its tries."""
    counts = Counter(str(attempt) for attempt in attempts)
    return [text if count == 1 else f"{text} ({count} tries)" for text, count in counts.items()]


def without(text: str, url: str) -> str:
    """What an error says, for those who have just been told the URL: tools name it, too, some twice."""
    return text.replace(f"{url}: ", "").replace(f"{url} ", "")


def gave_up(file: File, attempts: Sequence[Attempt]) -> FailedFile:
    """A failure from what was tried: the first error is the cause, and the others are told behind it."""
    first = attempts[0].error
    detail = "; then ".join([f"{file.lfn}: {first.detail}", *tried(attempts)[1:]])
    trait = getattr(attempts[-1].error, "trait", None)
    error = TransferError(first.code, detail, trait) if trait else PilotError(first.code, detail)
    return FailedFile(file=file, error=error, attempts=tuple(attempts))


def unsigned(url: str) -> str:
    """A URL as it may be reported: a signature is a password for some hours, and no part of where a file is."""
    return shown(url) if _SIGNED.search(url) else url


def shown(url: str) -> str:
    """A URL as it may be logged: a query can be a signature, and what stands before the host a password."""
    scheme, mark, _ = url.partition("://")
    if not mark or scheme == "file":
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme}://..."
    return parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl()
