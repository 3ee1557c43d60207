"""From the server's job definition to a `Job`: the wire names of PILOT3 2.3 end here.

Both encodings are read (JSON with numbers, `a=b&c=d` with text only), everything is checked once, and what cannot be
used is refused with one `JobDefinitionError` that names the field.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pilot import jobpars
from pilot.errors import Code, JobDefinitionError
from pilot.job import NOTHING, Access, File, Job, Kind, Utility
from pilot.jobfields import Fields, checked_lfn, is_null, parse_checksum, parse_dictionary, shorten, whole_number
from pilot.jobpars import JobFilters
from pilot.masking import Secret

#: Attributes of `Job` and the fields they come from, by type.
_TEXTS = {
    "request_id": "reqID",
    "definition_id": "jobDefinitionID",
    "name": "jobName",
    "user": "prodUserID",
    "label": "prodSourceLabel",
    "processing_type": "processingType",
    "transfer_type": "transferType",
    "transformation": "transformation",
    "homepackage": "homepackage",
    "release": "swRelease",
    "resource_type": "resource_type",
    "destination_dblock": "destinationDblock",
    "nucleus": "nucleus",
    "debug_command": "debug_command",
    "scheduler_ip": "scheduler_ip",
    "session_ip": "session_ip",
}
_NUMBERS = {
    "min_ram": "minRamCount",
    "max_walltime": "maxWalltime",
    "max_cpu": "maxCpuCount",
    "max_disk": "maxDiskCount",
}
_FLAGS = {
    "event_service": "eventService",
    "event_service_merge": "eventServiceMerge",
    "is_hpo": "isHPO",
    "use_vp": "useVP",
    "no_exec_str_conv": "noExecStrCnv",
    "debug": "debug",
}

#: Comma lists beside `inFiles`, in the order that `_inputs` takes them apart.
_INPUT_LISTS = ("realDatasetsIn", "GUID", "fsize", "checksum", "scopeIn", "prodDBlockToken", "ddmEndPointIn")

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Schemes whose URLs end in the name of an object as it is, `?` and `#` included.
OBJECT_SCHEMES = ("gs", "s3")

#: Schemes whose URLs carry escaped paths.
ESCAPED_SCHEMES = ("file", "http", "https", "dav", "davs")

#: The storage token of an input that must be copied.
_READ_LOCALLY = "local"

#: Marks of files that are copied whatever the job says: archives and raw data, which no payload reads over the network.
_NEVER_DIRECT = (".tar.gz", ".lib.tgz", ".raw.")


def job_identity(raw: Mapping[str, Any]) -> tuple[int, int]:
    """PandaID and attempt number, for the report of a job whose definition is otherwise bad.

    An attempt number that cannot be read counts as 0.

    Raises:
        JobDefinitionError: there is no usable PandaID.
    """
    fields = Fields(raw)
    job_id = fields.number("PandaID")
    if not job_id:
        raise JobDefinitionError("PandaID", "is missing")
    try:
        return job_id, fields.number("attemptNr") or 0
    except JobDefinitionError:
        return job_id, 0


def parse_job(
    raw: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = NOTHING,
    filters: JobFilters | None = None,
    image_base: str = "",
) -> Job:
    """The job that a server's definition describes.

    Args:
        raw: the definition, from either encoding.
        environ: the pilot's environment: ATHENA_PROC_NUMBER, PILOT_LOGFILE and IMAGE_BASE count.
        filters: the experiment's changes of jobPars.
        image_base: directory of unpacked images from the queue's catchall, if the environment gives none.

    Raises:
        JobDefinitionError: the first thing found that cannot be used.
    """
    job_id, _ = job_identity(raw)
    fields = Fields(raw)
    fields.check_sizes()
    pars = jobpars.clean(fields.verbatim("jobPars"), filters)
    write_to_file, parameters = jobpars.split_write_to_file(fields.verbatim("writeToFile").strip(), pars.parameters)
    image = pars.container_image or fields.text("container_name")
    outputs, log = _outputs(fields, environ.get("PILOT_LOGFILE", ""))
    return Job(
        job_id=job_id,
        attempt=fields.number("attemptNr") or 0,
        task_id=fields.number("taskID"),
        jobset_id=fields.number("jobsetID"),
        parameters=parameters,
        cores=_cores(fields, environ),
        container_image=with_image_base(image, environ.get("IMAGE_BASE", "") or image_base),
        inputs=_inputs(fields, pars.parameters),
        outputs=outputs,
        log=log,
        is_build=any(".lib." in file.lfn and ".log." not in file.lfn for file in outputs),
        write_to_file=write_to_file,
        queue_overrides=pars.queue_overrides,
        storage_overrides=pars.storage_overrides,
        zip_map=pars.zip_map,
        **_plain(fields),
        **_special(fields),
    )


def _plain(fields: Fields) -> dict[str, Any]:
    """What is taken as it stands."""
    texts = {name: fields.text(wire) for name, wire in _TEXTS.items()}
    numbers = {name: fields.limit(wire) for name, wire in _NUMBERS.items()}
    flags = {name: fields.flag(wire) for name, wire in _FLAGS.items()}
    return texts | numbers | flags


def _special(fields: Fields) -> dict[str, Any]:
    """What has a form or a meaning of its own."""
    platform, _, user_platform = fields.text("cmtConfig").partition("@")
    return {
        "platform": platform,
        "user_platform": user_platform.partition("@")[0],
        "is_analysis": _is_analysis(fields),
        "alt_stageout": {"on": True, "off": False}.get(fields.text("altStageOut").lower()),
        "looping_check": fields.flag("loopingCheck", default=True),
        "allow_no_output": tuple(pattern for pattern in fields.entries("allowNoOutput") if not is_null(pattern)),
        "container_options": _container_options(fields),
        "preprocess": _utility(fields, "preprocess"),
        "postprocess": _utility(fields, "postprocess"),
        "coprocess": _utility(fields, "coprocess"),
        "secrets": _secrets(fields),
        "pilot_secrets": pilot_secrets(fields.raw.get("pilotSecrets")),
    }


def _is_analysis(fields: Fields) -> bool:
    return fields.text("transformation").startswith(("http://", "https://"))


def _cores(fields: Fields, environ: Mapping[str, str]) -> int:
    """ATHENA_PROC_NUMBER of the site wins; a value of it that is no number is the site's slip, not the job's."""
    site = environ.get("ATHENA_PROC_NUMBER", "").strip()
    if site.isascii() and site.isdigit() and 0 < len(site) < 6 and int(site):
        return int(site)
    return fields.limit("coreCount") or 1


def with_image_base(image: str, base: str) -> str:
    """The unpacked copy of a container image below `base`, by its last name or its whole one; `image` if there is none.

    `base` is IMAGE_BASE of the environment, or `IMAGE_BASE=` of the queue's catchall.
    """
    if image and base:
        for path in (os.path.join(base, os.path.basename(image)), os.path.join(base, image)):
            if os.path.exists(path):
                return path
    return image


def _container_options(fields: Fields) -> dict[str, str]:
    options, inner = _inside(fields, "containerOptions")
    return {name: inner.verbatim(f"containerOptions.{name}") for name, value in options.items() if value is not None}


def _inside(fields: Fields, name: str) -> tuple[dict[str, Any], Fields]:
    """The object in a field, and its values as fields of their own, named by their place."""
    found = fields.dictionary(name)
    return found, Fields({f"{name}.{key}": value for key, value in found.items()})


def _utility(fields: Fields, name: str) -> Utility | None:
    found, inner = _inside(fields, name)
    if not found:
        return None
    command = inner.text(f"{name}.command")
    if not command:
        raise JobDefinitionError(f"{name}.command", "is missing")
    return Utility(command=command, args=inner.verbatim(f"{name}.args"))


def _secrets(fields: Fields) -> Secret | None:
    """The job's secrets: JSON text, or an object, whose text is JSON in one encoding and Python's `repr` in the other.

    Text that is neither goes to the payload as it is.
    """
    value = fields.raw.get("secrets")
    if value is None or (isinstance(value, str) and is_null(value)):
        return None
    if isinstance(value, str):
        text = fields.verbatim("secrets")
        try:
            value = parse_dictionary("secrets", text, secret=True)
        except JobDefinitionError:
            return Secret(text)
        if _is_json(text):
            return Secret(text)
    if not isinstance(value, Mapping | list):
        raise JobDefinitionError("secrets", "expected JSON text or an object")
    return Secret(_json("secrets", value))


def pilot_secrets(value: object) -> dict[str, Secret]:
    """`pilotSecrets` of a job or of an answer to an update, object or text; never shown, not even in an error.

    Raises:
        JobDefinitionError: it is something else.
    """
    found = Fields({"pilotSecrets": value}).dictionary("pilotSecrets", secret=True)
    return {
        name: Secret(secret if isinstance(secret, str) else _json("pilotSecrets", secret))
        for name, secret in found.items()
        if secret is not None
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json(field: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise JobDefinitionError(field, "holds what JSON cannot") from None


def _inputs(fields: Fields, parameters: str) -> tuple[File, ...]:
    """The inputs: comma lists side by side; `NULL` and a name that came before are passed over."""
    lfns = fields.entries("inFiles")
    columns = [fields.column(name, "inFiles", len(lfns)) for name in _INPUT_LISTS]
    wish = _AccessWish(fields, parameters)
    files: dict[str, File] = {}
    for lfn, dataset, guid, size, checksum, scope, token, endpoint in zip(lfns, *columns, strict=True):
        if lfn in ("", "NULL") or lfn in files:
            continue
        named = _named("inFiles", lfn)
        files[lfn] = File(
            kind=Kind.INPUT,
            scope=scope,
            dataset=dataset,
            guid=guid,
            # the server says 0 for a size that it does not know
            size=whole_number("fsize", size) or None,
            checksums=parse_checksum("checksum", checksum),
            endpoint=endpoint,
            token=token,
            access=wish.access(named["lfn"], token),
            **named,
        )
    return distinct("inFiles", files.values())


class _AccessWish:
    """How the job wants its inputs read (PILOT3 2.3, "Access mode per file")."""

    def __init__(self, fields: Fields, parameters: str) -> None:
        self._direct = _is_analysis(fields) or fields.text("transferType") == "direct"
        self._option: Access | None = None
        if "--accessmode=copy" in parameters or "--useLocalIO" in parameters:
            self._option = Access.COPY
        elif "--accessmode=direct" in parameters:
            self._option = Access.DIRECT

    def access(self, lfn: str, token: str) -> Access:
        """For one file: an option in jobPars wins over the job's kind and the file's token."""
        name = lfn.lower()
        if name.startswith("raw.") or any(mark in name for mark in _NEVER_DIRECT):
            return Access.COPY
        if self._option:
            return self._option
        return Access.DIRECT if self._direct and token != _READ_LOCALLY else Access.COPY


def _named(field: str, entry: str, *, output: bool = False) -> dict[str, Any]:
    """LFN and what its form says: `zip://name` is an archive with the files, a URL is where the file lies."""
    is_tar = entry.startswith("zip://")
    entry = entry.removeprefix("zip://")
    url = entry if URL.match(entry) else ""
    lfn = name_in_url(entry) if url else entry
    return {"lfn": checked_lfn(field, lfn, output=output), "is_tar": is_tar, "url": url}


def name_in_url(url: str) -> str:
    """The last part of a URL's path, unescaped where the scheme escapes; empty if the URL ends in a slash."""
    scheme = url.partition("://")[0].lower()
    if scheme in OBJECT_SCHEMES:
        return url.rpartition("/")[2]
    try:
        name = urlsplit(url).path.rpartition("/")[2]
    except ValueError:  # a host that is none
        return ""
    return unquote(name) if scheme in ESCAPED_SCHEMES else name


def distinct(field: str, files: Collection[File]) -> tuple[File, ...]:
    """Files that can lie side by side in the job directory."""
    seen: set[str] = set()
    for file in files:
        if file.lfn in seen:
            code = Code.CONVERSIONFAILURE if file.kind is Kind.INPUT else Code.BADOUTPUTFILENAME
            raise JobDefinitionError(field, f"{shorten(file.lfn)} is named twice", code)
        seen.add(file.lfn)
    return tuple(files)


def _outputs(fields: Fields, new_log_name: str) -> tuple[tuple[File, ...], File | None]:
    """Outputs and log.

    Args:
        fields: the definition.
        new_log_name: what the log shall be called instead (PILOT_LOGFILE), empty to leave it.
    """
    lfns, log_lfn = fields.entries("outFiles"), fields.text("logFile")
    datasets = fields.column("realDatasets", "outFiles", len(lfns))
    endpoints = fields.column("ddmEndPointOut", "outFiles", len(lfns))
    rows = list(zip(lfns, datasets, endpoints, _output_scopes(fields, lfns, log_lfn), strict=True))
    if log_lfn and log_lfn not in lfns:
        rows.append((log_lfn, "", "", fields.text("scopeLog")))
    files: list[File] = []
    for lfn, dataset, endpoint, scope in rows:
        if lfn in ("", "NULL"):
            continue
        if lfn == log_lfn:
            named = _named("logFile", new_log_name or lfn, output=True)
            kind, guid = Kind.LOG, fields.text("logGUID")
        else:
            named = _named("outFiles", lfn, output=True)
            kind, guid = Kind.OUTPUT, ""
        guid = guid or str(uuid4())
        files.append(File(kind=kind, guid=guid, scope=scope, dataset=dataset, endpoint=endpoint, **named))
    distinct("outFiles", files)
    log = next((file for file in files if file.kind is Kind.LOG), None)
    return tuple(file for file in files if file is not log), log


def _output_scopes(fields: Fields, lfns: list[str], log: str) -> list[str]:
    """The log is in `outFiles` but not in `scopeOut`: it has `scopeLog`. A list that has its scope too is taken."""
    others = len(lfns) - lfns.count(log) if log else len(lfns)
    given = fields.column("scopeOut", "outFiles (without the log)", others, len(lfns))
    if len(given) == len(lfns):
        return [
            fields.text("scopeLog") or scope if lfn == log else scope for lfn, scope in zip(lfns, given, strict=True)
        ]
    scopes = iter(given)
    return [fields.text("scopeLog") if lfn == log else next(scopes) for lfn in lfns]
