"""What a log sink is: where records go. A plug-in of group `pilot.logsinks`, one small file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pilot.logship.record import Record
from pilot.masking import Secret


class SinkError(Exception):
    """A batch was not taken.

    Args:
        problem: why, in a few words.
        retry: False if the same batch will never be taken.
        refused: without a retry, how many records of the batch were not taken; None is all of them.
        after: seconds to leave the sink alone, as it asked for (`Retry-After`).
    """

    def __init__(self, problem: str, *, retry: bool = True, refused: int | None = None, after: float = 0) -> None:
        super().__init__(problem)
        self.after = after
        self.retry = retry
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContext:
    """What a sink may know.

    Attributes:
        url: where to send, as `protocol://host:port`; empty for a sink that knows by itself.
        log_name: name of the log there (`--realtime-logname`).
        environ: the pilot's environment, for clients that have variables of their own.
        secrets: credentials by name: `logstash_login`, `logstash_password`.
        allow_http: let records leave the node unencrypted.
        tls: makes the context for TLS, which verifies; None for the library's own way.
        timeout: seconds that one `send` may take.
        options: further words of the choice, as `key=value`.
    """

    url: str = ""
    log_name: str = "pilot-log"
    environ: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    allow_http: bool = False
    tls: Callable[[], Any] | None = None
    timeout: float = 10.0
    options: Mapping[str, str] = field(default_factory=dict)


class LogSink(ABC):
    """A place for records. Plain blocking code: the engine calls it in threads, one call at a time.

    Attributes:
        name: as in `logserver=NAME;...`.
        needs: modules to how to install them.
        max_records, max_bytes: of one batch.
    """

    name: ClassVar[str]
    needs: ClassVar[Mapping[str, str]] = {}
    max_records: ClassVar[int] = 500
    max_bytes: ClassVar[int] = 1 << 20

    def __init__(self, context: SinkContext) -> None:
        self.context = context

    @abstractmethod
    def send(self, batch: Sequence[Record]) -> None:
        """Deliver a batch, all of it or nothing.

        Raises:
            SinkError: it was not taken; any other exception counts as one that a retry may mend.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """No more batches come."""
