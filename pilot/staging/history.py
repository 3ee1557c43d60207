"""What has just failed and what has worked in a job: the next files are tried first where it works.

A tool that is broken, or a storage that is down, would cost each of a hundred files its tries. A tool that could not
move some files in a row from or to a storage comes last there; it is tried when nothing else is left, and one success
forgives it all.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable

from pilot.errors import Code, PilotError
from pilot.staging.choice import Candidate

logger = logging.getLogger(__name__)

#: Files in a row that must have failed. One may be chance.
PATIENCE = 3

#: Errors that are about the file and not about who moved it.
_OF_THE_FILE = {
    *(Code.MISSINGINPUTFILE, Code.NOSUCHFILE, Code.FILEEXISTS, Code.MISSINGOUTPUTFILE, Code.ZEROFILESIZE),
    *(Code.GETADMISMATCH, Code.GETMD5MISMATCH, Code.LFNTOOLONG, Code.BADOUTPUTFILENAME, Code.SIZETOOLARGE),
    *(Code.NOLOCALSPACE, Code.REMOTEFILECOULDNOTBEOPENED),
}


class PassedOver(Exception):  # noqa: N818 - nothing went wrong
    """Another way is to be tried first."""


class History:
    """Counts the files in a row that each tool could not move from or to a storage. Any thread may call it."""

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._failures: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def failed(self, candidate: Candidate, error: PilotError) -> None:
        """A file was given up by this way."""
        if error.code in _OF_THE_FILE:
            return
        tool, storage = key = _key(candidate)
        with self._lock:
            self._failures[key] += 1
            count = self._failures[key]
        if count == self._patience:
            logger.warning("%s with %s failed for %d files in a row: comes last now", tool, storage or "a path", count)

    def worked(self, candidate: Candidate) -> None:
        """A file has arrived."""
        with self._lock:
            self._failures.pop(_key(candidate), None)

    def shuns(self, candidate: Candidate) -> bool:
        """Whether others should be tried first."""
        with self._lock:
            return self._failures[_key(candidate)] >= self._patience

    def overtaken(self, candidate: Candidate, others: Iterable[Candidate]) -> bool:
        """Whether one of the others should be tried before this one."""
        return self.shuns(candidate) and not all(self.shuns(other) for other in others)


def _key(candidate: Candidate) -> tuple[str, str]:
    """Tool and storage; a place without endpoint is known by its host."""
    host = candidate.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return candidate.tool, candidate.endpoint or host
