"""What an ATLAS payload is told of its inputs, and what it tells of its outputs: PoolFileCatalog.xml, metadata.xml.

The formats are Pilot 3's (PILOT3 4.7, 5.6). A payload that reads an input over the network finds its TURL in the
catalogue; one of production has it in its parameters and lists of files, too (PILOT3 5.1).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilot.errors import Code, PilotError
from pilot.job import File, Job
from pilot.left import open_left

logger = logging.getLogger(__name__)

CATALOGUE, METADATA = "PoolFileCatalog.xml", "metadata.xml"

#: Bytes of metadata.xml that are read; a file takes about 1 kB in it.
_LIMIT = 4 << 20

#: TURLs that may stand in a command as they are: nothing in them means something to a shell.
_PLAIN = re.compile(r"[\w.:/@%+=,~?-]+", re.ASCII)
_COUNT = re.compile("[0-9]{1,15}")
_GUID = re.compile(r"[0-9A-Fa-f]{8}(-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}")


def pool_catalogue(inputs: Sequence[File]) -> str:
    """The catalogue of inputs: GUID to TURL, or to LFN of what lies in the job directory."""
    from xml.sax.saxutils import quoteattr

    files = "".join(
        f"  <File ID={quoteattr(file.guid)}>\n    <physical>\n"
        f'      <pfn filetype="ROOT_All" name={quoteattr(file.turl or file.lfn)}/>\n'
        "    </physical>\n    <logical/>\n  </File>\n"
        for file in inputs
    )
    head = '<?xml version="1.0" ?>\n<!DOCTYPE POOLFILECATALOG SYSTEM "InMemory">\n'
    return f"{head}<POOLFILECATALOG>\n{files}</POOLFILECATALOG>\n"


def write_pool_catalogue(job: Job, workdir: Path) -> None:
    """Write it, if the job has inputs.

    Raises:
        PilotError: FILEHANDLINGFAILURE.
    """
    if not job.inputs:
        return
    try:
        with open(workdir / CATALOGUE, "x", encoding="utf-8") as file:
            file.write(pool_catalogue(job.inputs))
    except OSError as error:
        raise PilotError(Code.FILEHANDLINGFAILURE, f"{CATALOGUE}: {error.strerror}") from error


def by_cache(job: Job, proxy: str) -> Job:
    """A job that reads near inputs of XRootD doors by a cache in front of them (PILOT3 4.3).

    Args:
        job: with TURLs.
        proxy: `ALRB_XCACHE_PROXY`, such as `root://localhost:1094//`; empty if there is none.
    """
    inputs = (
        replace(file, turl=proxy + file.turl) if proxy and file.near and file.turl.startswith("root://") else file
        for file in job.inputs
    )
    return replace(job, inputs=tuple(inputs))


def with_turls(job: Job) -> Job:
    """A job of production whose parameters and lists of files name the TURLs of inputs that have no local copy."""
    turls = {file.lfn: file.turl for file in job.inputs if file.turl}
    if not turls or job.is_analysis or job.is_build:
        return job
    for lfn, turl in turls.items():
        if not _PLAIN.fullmatch(turl):
            raise PilotError(Code.SETUPFAILURE, f"the TURL of {lfn} cannot stand in a command: {turl!r}")
    names = re.compile(rf"(?<![\w./:-])(?:{'|'.join(map(re.escape, sorted(turls, key=len, reverse=True)))})(?![\w.-])")
    return replace(
        job,
        parameters=names.sub(lambda found: turls[found[0]], job.parameters),
        write_to_file={
            name: tuple(turls.get(line.rpartition("/")[2], line) for line in lines)
            for name, lines in job.write_to_file.items()
        },
    )


def direct_options(job: Job, command: str) -> str:
    """What a user's transformation must be told when inputs have no local copy, as far as it is not told yet."""
    if not any(file.turl for file in job.inputs):
        return ""
    return "".join(f" {option}" for option in ("--usePFCTurl", "--directIn") if option not in command)


def with_facts(outputs: Sequence[File], report: str, workdir: Path) -> tuple[File, ...]:
    """Outputs with the GUID and number of events that the payload tells in its job report, else in metadata.xml."""
    known = _facts_of_report(report) or read_metadata(workdir)
    return tuple(_with(file, known.get(file.lfn, {})) for file in outputs)


def _with(file: File, facts: Mapping[str, str]) -> File:
    guid, events = facts.get("guid", ""), facts.get("events", "")
    return replace(
        file,
        guid=guid if _GUID.fullmatch(guid) else file.guid,
        events=int(events) if _COUNT.fullmatch(events) else file.events,
    )


def read_metadata(workdir: Path) -> Mapping[str, Mapping[str, str]]:
    """What metadata.xml says: LFN to names and values such as `events`, and the `guid`; empty if there is no such file.

    A payload can write what it likes there: entities, which can make gigabytes of a few bytes, are refused.
    """
    from xml.etree import ElementTree

    try:
        with open_left(workdir / METADATA) as file:
            text = file.read(_LIMIT + 1)
        if len(text) > _LIMIT or b"<!ENTITY" in text or b"\0" in text:  # UTF-16 could hide them
            raise ValueError("too large, or with entities")
        top = ElementTree.fromstring(text)  # noqa: S314 - what makes XML dangerous is refused
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        logger.warning("%s is passed over: %s", METADATA, error)
        return {}
    found = {}
    for entry in top.iter("File"):
        facts = {one.get("att_name", ""): one.get("att_value", "") for one in entry.iter("metadata")}
        for lfn in entry.iter("lfn"):
            found[lfn.get("name", "")] = {**facts, "guid": entry.get("ID", "")}
    return found


def _facts_of_report(report: str) -> dict[str, dict[str, str]]:
    """LFN to GUID and events in a job report; empty if there is none, or if it is no such report."""
    try:
        content: Any = json.loads(report)
        files = [sub for entry in content["files"]["output"] for sub in entry.get("subFiles", ())]
        return {
            str(file["name"]): {"guid": str(file["file_guid"]), "events": str(file.get("nentries", ""))}
            for file in files
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
