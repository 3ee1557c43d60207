"""jobPars: the payload's arguments, cleaned of what is in them for the pilot (PILOT3 2.3, "jobPars clean-up order").

Text that holds nothing for the pilot comes through byte for byte. Only where a dictionary of overrides is taken out are
the other words quoted anew, as Pilot 3 does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pilot.errors import JobDefinitionError
from pilot.jobfields import checked_lfn, parse_dictionary

_QUEUE = "--overwriteQueueData"
_STORAGE = "--overwriteStorageData"

#: Pilot 1's form of the overrides: dropped, nobody reads it any more. Bounded, since the text may have 1 MB.
_OLD_OVERRIDES = re.compile(r"--overwriteQueuedata=\{[^}\n]{0,10000}\}")
#: `--containerImage X`, `--containerImage=X`, X in quotes, or the whole word in quotes as `shlex.quote` leaves it.
_IMAGE = re.compile(
    r"""(?:^|\s)(?:'--containerImage=([^']+)'|--containerImage(?:=|\s+)"""
    r"""(?:"([^"]+)"|'([^']+)'|([^\s'"-][^\s'"]*)))(?!\S)"""
)


class JobFilters(Protocol):
    """What an experiment may do to jobPars around the clean-up; `pilot.experiment.Experiment` is one.

    The ATLAS one hides `--athenaopts ".."` in a word that needs no quotes, and brings it back.
    """

    def before_clean_up(self, parameters: str) -> str:
        """Change the text before anything is taken out."""

    def after_clean_up(self, parameters: str) -> str:
        """Change what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPars:
    """The arguments for the payload, and what was among them for the pilot; see `pilot.job.Job`."""

    parameters: str
    queue_overrides: Mapping[str, Any] = field(default_factory=dict)
    storage_overrides: Mapping[str, Any] = field(default_factory=dict)
    zip_map: str = ""
    container_image: str = ""


def clean(text: str, filters: JobFilters | None = None) -> JobPars:
    """Take what is for the pilot out of jobPars.

    Args:
        text: jobPars as the server gave it.
        filters: the experiment's own changes before and after.

    Raises:
        JobDefinitionError: a dictionary of overrides that is none.
    """
    if filters:
        text = filters.before_clean_up(text)
    text = _OLD_OVERRIDES.sub("", text)
    # before the overrides, not after as in Pilot 3: quoting the words anew would tear a map with blanks in it apart
    text, zip_map = _cut_zip_map(text)
    text, overrides = _take_overrides(text)
    text, image = _cut_image(text)
    if filters:
        text = filters.after_clean_up(text)
    return JobPars(
        parameters=text,
        queue_overrides=overrides.get(_QUEUE, {}),
        storage_overrides=overrides.get(_STORAGE, {}),
        zip_map=zip_map,
        container_image=image,
    )


def _cut_zip_map(text: str) -> tuple[str, str]:
    """`text` without ` <ZIP_MAP>..</ZIP_MAP>`, its quotes and the blank before it; and the map."""
    before, opening, rest = text.partition("<ZIP_MAP>")
    zip_map, closing, after = rest.partition("</ZIP_MAP>")
    if not opening or not closing:
        return text, ""
    if before.endswith("'") and after.startswith("'"):
        before, after = before[:-1], after[1:]
    return before.removesuffix(" ") + after, zip_map


def _cut_image(text: str) -> tuple[str, str]:
    """`text` without `--containerImage X` and the blank before it; and the first X."""
    first = _IMAGE.search(text)
    if not first:
        return text, ""
    return _IMAGE.sub("", text), next(group for group in first.groups() if group)


def _take_overrides(text: str) -> tuple[str, dict[str, dict[str, Any]]]:
    if _QUEUE not in text and _STORAGE not in text:
        return text, {}
    kept, found = _sort_words(_words(text))
    if not found:  # it stands inside an argument that is somebody else's
        return text, {}
    overrides = {name: parse_dictionary(f"jobPars {name}", value) for name, value in found.items()}
    return " ".join(shlex.quote(word) for word in kept), overrides


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        name = _QUEUE if _QUEUE in text else _STORAGE
        raise JobDefinitionError(f"jobPars {name}", f"cannot be taken out, the text has {error}") from None


def _sort_words(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words that stay, and the value after (or behind the `=` of) each option for overrides; the last one counts."""
    kept: list[str] = []
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in (_QUEUE, _STORAGE):
            found[name] = value if equals else next(rest, "")
        else:
            kept.append(word)
    return kept, found


def split_write_to_file(text: str, parameters: str) -> tuple[dict[str, tuple[str, ...]], str]:
    """Take the long lists of inputs out of the arguments and into files (`writeToFile`, PILOT3 2.3).

    `name:lfn,lfn^name2:lfn` makes a file `name.txt` with the option that had `=@name` in `parameters`, then the LFNs,
    a line each; `--option=@name` becomes `@name.txt`, and `--autoConfiguration=everything` goes.

    Returns:
        file names to lines, and the new parameters.
    """
    lists = dict(_named_list(part) for part in text.split("^")) if text else {}
    if not lists:
        return {}, parameters
    files = {f"{name}.txt": (*_options(name, parameters), *lfns) for name, lfns in lists.items()}
    return files, _point_to_files(list(lists), parameters).replace("--autoConfiguration=everything", "")


def _named_list(part: str) -> tuple[str, list[str]]:
    name, colon, lfns = part.partition(":")
    if not colon:
        raise JobDefinitionError("writeToFile", "expected name:lfn,lfn^name2:lfn, there is a part without a colon")
    checked_lfn("writeToFile", f"{name}.txt")
    return name, lfns.split(",")


def _options(name: str, parameters: str) -> list[str]:
    option = re.search(rf"(?<![\w-])(-[\w-]+)=@{re.escape(name)}(?![\w.-])", parameters)
    return [option[1]] if option else []


def _point_to_files(names: list[str], parameters: str) -> str:
    """All names in one pass, the longest first: one may be the beginning of another."""
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?:(?<![\w-])-[\w-]+=(?=@))?(@?)({any_name})", r"\1\2.txt", parameters)
