"""Names for records, the same at every try: a sink that knows them does not keep a repeated batch twice."""

from __future__ import annotations

import hashlib
import os

from pilot.logship.record import Record


class Identity:
    """Names the records of one pilot for one sink.

    A name is made of source and sequence number, and of some random bits: should another pilot run the same job again,
    nothing is taken for a repetition that is none.
    """

    def __init__(self) -> None:
        self._salt = os.urandom(8)
        self._prefixes: dict[str, str] = {}

    def of(self, record: Record) -> str:
        """The name: letters, digits and `-`, at most 40 characters."""
        prefix = self._prefixes.get(record.source)
        if prefix is None:
            digest = hashlib.blake2b(record.source.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=8)
            prefix = self._prefixes[record.source] = digest.hexdigest()
        return f"{prefix}-{record.sequence}"
