"""Job definitions as the server hands them out, and what its adder makes of a final report."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Definition = Mapping[str, Any]
EC_ADDER = 200  # ddmErrorCode of the adder, panda-server's dataservice/ErrorCode.py
_MD5 = re.compile(r"[0-9a-fA-F]{32}")

# Not part of the dispatcher's answer: where the job may run, and how this server treats it.
QUEUE = "computingSite"
RAW = "_raw"
PLACEHOLDER = "{devserver}"

# Order of keys, and values of a job of which nothing is known: `jobdispatcher/Protocol.py`, and the recorded jobs.
_DEFAULTS: Mapping[str, Any] = {
    "prodSourceLabel": "managed",
    "swRelease": "NULL",
    "homepackage": "NULL",
    "transformation": "NULL",
    "jobName": "NULL",
    "jobDefinitionID": 1,
    "cloud": "NULL",
    "inFiles": "",
    "dispatchDblock": "NULL",
    "dispatchDBlockToken": "NULL",
    "dispatchDBlockTokenForOut": None,
    "outFiles": "",
    "destinationDblock": None,
    "destinationDBlockToken": None,
    "prodDBlocks": None,
    "prodDBlockToken": None,
    "realDatasets": None,
    "realDatasetsIn": None,
    "fileDestinationSE": None,
    "logFile": "",
    "logGUID": "",
    "jobPars": "",
    "attemptNr": 1,
    "GUID": None,
    "checksum": None,
    "fsize": None,
    "scopeIn": None,
    "scopeOut": None,
    "scopeLog": "NULL",
    "ddmEndPointIn": None,
    "ddmEndPointOut": None,
    "destinationSE": "NULL",
    "prodUserID": "NULL",
    "maxCpuCount": 0,
    "minRamCount": 0,
    "maxDiskCount": 0,
    "cmtConfig": "NULL",
    "processingType": "NULL",
    "transferType": "NULL",
    "sourceSite": "NULL",
    "currentPriority": 1000,
    "taskID": "NULL",
    "coreCount": 1,
    "jobsetID": "NULL",
    "reqID": "NULL",
    "nucleus": "NULL",
    "maxWalltime": 0,
    "resource_type": "SCORE",
    "ioIntensity": None,
    "ioIntensityUnit": None,
}
_PER_INPUT = (
    "prodDBlocks",
    "prodDBlockToken",
    "realDatasetsIn",
    "GUID",
    "checksum",
    "fsize",
    "scopeIn",
    "ddmEndPointIn",
)
_PER_OUTPUT = (
    "dispatchDBlockTokenForOut",
    "destinationDblock",
    "destinationDBlockToken",
    "realDatasets",
    "fileDestinationSE",
    "ddmEndPointOut",
)


class DefinitionError(ValueError):
    """A job definition, or a file of them, that cannot be offered."""


def names(definition: Definition, key: str) -> list[str]:
    """The LFNs of a comma list such as `inFiles`, without empty ones and `NULL`."""
    return [name for name in str(definition.get(key) or "").split(",") if name not in ("", "NULL")]


def complete(definition: Definition, job_id: int) -> dict[str, Any]:
    """The job as the dispatcher sends it: every key it always sends, in its order, then what else was given.

    A definition with a true `_raw` is sent as it is, so that a test can leave keys out.
    """
    given = {key: value for key, value in definition.items() if key != QUEUE and not key.startswith("_")}
    if definition.get(RAW):
        return {"StatusCode": 0, **given}
    given.pop("PandaID", None)
    given.pop("StatusCode", None)
    if given.get("logFile") and not given.get("logGUID"):
        given["logGUID"] = str(uuid.uuid4())
    return {"StatusCode": 0, "PandaID": job_id, **_DEFAULTS, **_lists(given), **given}


def _lists(definition: Definition) -> dict[str, str]:
    """`NULL` once per file for the lists that go with the files; scopeOut leaves out the log, as the real one does."""
    inputs, outputs = names(definition, "inFiles"), names(definition, "outFiles")
    without_log = [name for name in outputs if name != definition.get("logFile")]
    counts = {**dict.fromkeys(_PER_INPUT, inputs), **dict.fromkeys(_PER_OUTPUT, outputs), "scopeOut": without_log}
    return {key: ",".join(["NULL"] * len(files)) for key, files in counts.items()}


def load(path: Path) -> list[dict[str, Any]]:
    """Definitions of a file (one job, a list, or one a line), or of every *.json and *.jsonl of a directory, by name.

    Raises:
        DefinitionError: a file that is no such JSON; OSError: one that cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
        return [definition for file in files for definition in load(file)]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path}: {error}") from None
    try:
        return definitions(json.loads(text))
    except json.JSONDecodeError as error:
        whole = error
    try:
        return definitions([json.loads(line) for line in text.splitlines() if line.strip()])
    except json.JSONDecodeError:
        raise DefinitionError(f"{path}: neither JSON nor one JSON job a line: {whole}") from None


def definitions(value: Any) -> list[dict[str, Any]]:
    """One job or a list of jobs as a list.

    Raises:
        DefinitionError: something in it is not a JSON object.
    """
    jobs = value if isinstance(value, list) else [value]
    for job in jobs:
        if not isinstance(job, dict):
            raise DefinitionError(f"a job definition is a JSON object, not {type(job).__name__}")
    return jobs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the adder decides: the job's last state and, if it found fault, its own error."""

    state: str
    ddm_error_code: int = 0
    ddm_error_diag: str = ""


def outcome(definition: Definition, state: str, report: str, pilot_named_error: bool) -> Outcome:
    """What becomes of a job whose final report has come (`dataservice/adder_gen.py`).

    Args:
        definition: the job as it was sent.
        state: `finished` or `failed`, as the pilot said.
        report: `job_output_report`, the JSON text of outputs and log.
        pilot_named_error: whether the pilot gave an error code or an exit status, which explains a missing report.
    """
    log = str(definition.get("logFile") or "")
    expected = list(dict.fromkeys([*names(definition, "outFiles"), *([log] if log else [])]))
    if not expected:
        return Outcome(state)
    entries = _entries(report, names(definition, "inFiles"))
    if entries is None:
        diag = "" if pilot_named_error else "Could not get GUID/LFN/MD5/FSIZE/SURL from pilot JSON"
        return Outcome("failed", EC_ADDER if diag else 0, diag)
    missing = _missing(definition, state, [log] if state == "failed" else expected, entries)
    if missing:
        return Outcome("failed", EC_ADDER, f"expected output {missing[-1]} is missing in pilot JSON")
    unknown = set(entries) - set(expected) - set(names(definition, "inFiles"))
    return Outcome("failed" if unknown else state)


def _missing(definition: Definition, state: str, expected: Iterable[str], entries: Iterable[str]) -> list[str]:
    if state == "finished" and definition.get("eventService") == "True":
        return []
    excused = set(names(definition, "allowNoOutput"))
    return [lfn for lfn in expected if lfn and lfn not in entries and lfn not in excused]


def _entries(report: str, inputs: Sequence[str]) -> dict[str, Any] | None:
    """The report's files, or None if the adder cannot read it: outputs need guid, fsize and a checksum."""
    try:
        entries = report_files(report)
        if not entries and report != "{}":
            return None
        for lfn, entry in entries.items():
            if "guid" not in entry or not (lfn in inputs or (int(entry["fsize"]) >= 0 and _has_checksum(entry))):
                return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(entries)


def _has_checksum(entry: Mapping[str, Any]) -> bool:
    return "adler32" in entry or bool(_MD5.fullmatch(str(entry.get("md5sum"))))


def report_files(report: str) -> dict[str, Any]:
    """The files of a final report as a mapping, empty if it is not one. Harvester's is XML, a catalogue of POOL."""
    try:
        files = _catalogue(report) if report.lstrip().startswith("<") else json.loads(report)
    except (ValueError, LookupError, SyntaxError):  # ElementTree's error is one of syntax
        return {}
    return files if isinstance(files, dict) else {}


def _catalogue(report: str) -> dict[str, Any]:
    from xml.etree import ElementTree

    files = {}
    for file in ElementTree.fromstring(report.encode()).iter("File"):  # noqa: S314  (a server on loopback)
        entry = {item.attrib["att_name"]: item.attrib["att_value"] for item in file.iter("metadata")}
        files[file.findall(".//lfn")[0].attrib["name"]] = {"guid": file.attrib["ID"], **entry}
    return files
