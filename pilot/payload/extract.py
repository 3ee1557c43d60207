"""The last words of what failed, for `pilotLog`: what a person would look at first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pilot.errors import Code
from pilot.payload.process import output_paths, tail

#: Bytes at the end of an output; the server takes 1024 characters.
_BYTES = 4096

#: What no reader of a web page wants to see: escape sequences, control characters, half surrogates.
_NOISE = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffd]"
)

_WHO = {Code.PREPROCESSFAILURE: "preprocess", Code.POSTPROCESSFAILURE: "postprocess"}


def last_words(workdir: Path, code: Code, mask: Callable[[str], str]) -> str:
    """The end of stderr, without empty lines; that of stdout where nothing was said there.

    Args:
        workdir: the job directory.
        code: of the job's error; says who failed.
        mask: hides secrets.
    """
    for path in reversed(output_paths(workdir, _WHO.get(code, "payload"))):
        lines = (_NOISE.sub("", line).rstrip() for line in mask(tail(path, _BYTES)).split("\n"))
        if text := "\n".join(filter(None, lines)):
            return text
    return ""
