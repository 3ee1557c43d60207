r"""Outputs given by pattern: `regex|DST_.*\.root` as sPHENIX writes it, or a glob, `DST_*.root`.

A regular expression is searched for anywhere in a name; a glob must match all of it. A name with `*`, `?` or `[` in it
that is there as it stands is that file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from fnmatch import translate
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from pilot.errors import Code, JobDefinitionError
from pilot.job import File, Job
from pilot.jobfields import checked_lfn
from pilot.matchers import time_limit

#: Marks an LFN that is a regular expression for the names of files.
REGEX = "regex|"

#: Seconds that all patterns of a job may take: there are regular expressions that take for ever, and nothing else of
#: the pilot runs meanwhile. A good one takes 1 ms for 1000 files.
_TIME = 2.0

_GLOB = re.compile(r"[*?\[]")


def check_patterns(job: Job) -> None:
    """Refuse a pattern that is no regular expression.

    Raises:
        JobDefinitionError: BADOUTPUTFILENAME.
    """
    for file in job.outputs:
        _compiled(file.lfn)


def expanded(job: Job, workdir: Path, own: Collection[str]) -> tuple[File, ...]:
    """The outputs of a job; patterns become the files that match. One that matches nothing stays as it is.

    Args:
        job: whose outputs.
        workdir: its directory.
        own: names of the pilot's own files, which no pattern matches.

    Raises:
        JobDefinitionError: BADOUTPUTFILENAME, a file that matches has a name that no storage takes, a pattern is none
            (the log of such a job is made, too), or it takes too long to find out; or this is not the main thread,
            where nothing could end that.
    """
    if not any(is_pattern(file.lfn) for file in job.outputs):
        return job.outputs
    named = {file.lfn for file in (*job.inputs, *job.outputs, *([job.log] if job.log else []))}
    left = {path.name for path in workdir.glob("*") if path.is_file()}.difference(own, named)
    found: dict[str, File] = {}
    with time_limit(_TIME) as in_time:
        if in_time:
            for file in job.outputs:
                for match in _matches(file, workdir, sorted(left)):
                    found.setdefault(match.lfn, match)
            return tuple(found.values())
    raise JobDefinitionError("outFiles", "its patterns take too long to match", Code.BADOUTPUTFILENAME)


def is_pattern(lfn: str) -> bool:
    """Whether an LFN may stand for other names."""
    return lfn.startswith(REGEX) or _GLOB.search(lfn) is not None


def _compiled(lfn: str) -> re.Pattern[str] | None:
    try:
        if lfn.startswith(REGEX):
            return re.compile(lfn.removeprefix(REGEX))
        return re.compile(translate(lfn)) if _GLOB.search(lfn) else None
    except (re.error, RecursionError, OverflowError) as error:
        text = f"{lfn!r} is no regular expression: {error}"
        raise JobDefinitionError("outFiles", text, Code.BADOUTPUTFILENAME) from None


def _matches(file: File, workdir: Path, names: list[str]) -> Iterator[File]:
    """The files that an output stands for: itself, unless it is a pattern that matches something."""
    pattern = None if (workdir / file.lfn).is_file() else _compiled(file.lfn)
    lfns = [name for name in names if pattern.search(name)] if pattern else []
    for lfn in lfns:
        checked_lfn("outFiles", lfn, output=True)
    if not lfns:
        yield file
    # A GUID is one file's alone, also if others come, or this one has left early and is gone when they do. Made from
    # the name, it is the same at every try.
    for lfn in lfns:
        yield replace(file, lfn=lfn, guid=str(uuid5(NAMESPACE_OID, f"{file.guid}/{lfn}")))
