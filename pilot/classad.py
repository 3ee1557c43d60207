"""HTCondor's ClassAd files of a slot, `.job.ad` and `.machine.ad`: lines `Name = value` (HTCondor manual, ClassAds).

Only plain values are understood: texts, numbers, and products of numbers such as `10 * 60`, as which configuration
macros arrive there. Other expressions say nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

#: Most characters to read of a ClassAd file; real ones have some 10 kB.
_AD_LIMIT = 1 << 20

_ATTRIBUTE = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_TEXT = re.compile(r'"(.*)"')
_PRODUCT = re.compile(r"\d+(\.\d+)?([ \t]*\*[ \t]*\d+(\.\d+)?)*")


class ClassAd:
    """Attributes of a ClassAd; the case of a name has no meaning."""

    def __init__(self, text: str = "") -> None:
        self._values = {name.lower(): value for name, value in _ATTRIBUTE.findall(text)}

    @classmethod
    def read(cls, path: str) -> ClassAd:
        """The ad in a file; empty if there is none, or no path."""
        if not path:
            return cls()
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                return cls(stream.read(_AD_LIMIT))
        except OSError:
            return cls()

    @classmethod
    def of_job(cls, environ: Mapping[str, str]) -> ClassAd:
        """The job's ad, which `_CONDOR_JOB_AD` names."""
        return cls.read(environ.get("_CONDOR_JOB_AD", ""))

    @classmethod
    def of_machine(cls, environ: Mapping[str, str]) -> ClassAd:
        """The slot's ad, which `_CONDOR_MACHINE_AD` names; factories call it `CONDOR_MACHINE_AD`."""
        return cls.read(environ.get("_CONDOR_MACHINE_AD") or environ.get("CONDOR_MACHINE_AD", ""))

    def text(self, name: str) -> str:
        """A text without its quotes; empty if the attribute is none, or not there."""
        found = _TEXT.fullmatch(self._values.get(name.lower(), ""))
        return re.sub(r"\\(.)", r"\1", found[1]) if found else ""

    def number(self, name: str) -> float | None:
        """A number; None if the attribute is none, or not there."""
        value = self._values.get(name.lower(), "")
        if not _PRODUCT.fullmatch(value):
            return None
        return math.prod(float(factor) for factor in value.split("*"))
