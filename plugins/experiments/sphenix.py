r"""sPHENIX: outputs may be given as a pattern, `regex|DST_.*\.root`, and go straight to their storage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from pilot.errors import Code, JobDefinitionError
from pilot.experiment import OWN_NAMES
from pilot.job import File, Job
from pilot.jobfields import checked_lfn
from pilot.queuedata import Queue
from plugins.experiments import DOMA_URLS
from plugins.experiments.generic import Generic

#: Marks an LFN that is a regular expression for the names of files.
PATTERN = "regex|"


class Sphenix(Generic):
    """sPHENIX at RHIC."""

    name = "sphenix"
    base_urls = DOMA_URLS
    mv_to_final_destination = True

    def needs_container(self, job: Job, queue: Queue) -> bool:
        """Never: the payload starts what containers it wants."""
        return False

    def verify(self, job: Job) -> None:
        """Refuse a pattern that is no regular expression."""
        for file in job.outputs:
            try:
                re.compile(_expression(file))
            except (re.error, RecursionError) as error:
                text = f"{file.lfn!r} is no regular expression: {error}"
                raise JobDefinitionError("outFiles", text, Code.BADOUTPUTFILENAME) from None

    def outputs(self, job: Job, workdir: Path) -> tuple[File, ...]:
        """Patterns become the files that match; one that matches nothing stays, and is reported as missing.

        Raises:
            JobDefinitionError: BADOUTPUTFILENAME, a file that matches has a name that no storage takes.
        """
        if not any(map(_expression, job.outputs)):
            return job.outputs
        named = {file.lfn for file in (*job.inputs, *job.outputs, *([job.log] if job.log else []))}
        left = {path.name for path in workdir.glob("*") if path.is_file()}.difference(OWN_NAMES, named)
        found: dict[str, File] = {}
        for file in job.outputs:
            for match in _matches(file, sorted(left)):
                found.setdefault(match.lfn, match)
        return tuple(found.values())


def _expression(file: File) -> str:
    return file.lfn.removeprefix(PATTERN) if file.lfn.startswith(PATTERN) else ""


def _matches(file: File, names: list[str]) -> Iterator[File]:
    """The files that an output stands for: itself, unless it is a pattern that matches something."""
    expression = _expression(file)
    lfns = [name for name in names if re.search(expression, name)] if expression else []
    for lfn in lfns:
        checked_lfn("outFiles", lfn, output=True)
    if len(lfns) < 2:
        yield replace(file, lfn=lfns[0]) if lfns else file
        return
    for lfn in lfns:  # a GUID is one file's alone; made from the name, it is the same at every try
        yield replace(file, lfn=lfn, guid=str(uuid5(NAMESPACE_OID, f"{file.guid}/{lfn}")))
