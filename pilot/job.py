"""A job and its files as values: typed, frozen, checked once at the door (`pilot.jobdef`) and trusted from there on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from pilot.masking import Secret

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Access(Enum):
    """How the payload reads an input: from a local copy, or over the network where the queue allows it."""

    COPY = "copy"
    DIRECT = "direct"


class Kind(Enum):
    """What a file is to its job."""

    INPUT = "input"
    OUTPUT = "output"
    LOG = "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a job: an input to bring, an output or the log to take out.

    Attributes:
        lfn: logical file name, a single path component.
        kind: input, output or log.
        scope: Rucio scope.
        dataset: dataset name the file belongs to.
        guid: unique id, upper or lower case as the server gave it; empty when it gave none.
        size: bytes as the catalogue says, None if it does not.
        checksums: type (`adler32`, `md5`, `crc32c`) to lower-case hex digits, as the catalogue says.
        endpoint: DDM endpoint (RSE) to read from or write to.
        token: storage token (`prodDBlockToken`), often empty.
        access: for inputs, whether direct access is wanted.
        is_tar: for inputs, the LFN was given as `zip://name`: an archive with the real files.
        url: a full source or destination given by the job itself (`gs://...`, or a path in `pilot local`); else empty.
        turl: of an input that has no local copy: where the payload reads it over the network.
        near: of such an input: over the network of the site (LAN).
        events: of an output: how many are in it, as the payload says; None if it does not.
    """

    lfn: str
    kind: Kind
    scope: str = ""
    dataset: str = ""
    guid: str = ""
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    endpoint: str = ""
    token: str = ""
    access: Access = Access.COPY
    is_tar: bool = False
    url: str = ""
    turl: str = ""
    near: bool = True
    events: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Utility:
    """A command beside the payload: pre-, post- or coprocess."""

    command: str
    args: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job may use, beside the limits of its queue; 0 for no limit. Memory and disk in MB of 10**6 bytes."""

    memory_mb: int = 0
    walltime_s: int = 0
    disk_mb: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as the server gave it.

    Attributes:
        job_id: PandaID.
        attempt: attempt number, the server refuses updates that carry another one.
        parameters: jobPars, cleaned of what was meant for the pilot.
        cores: cores the job was given, at least 1.
        min_ram: MB, 0 if not given. max_walltime, max_cpu: s, 0 if not given. max_disk: MB, 0 if not given.
        alt_stageout: True `on`, False `off`, None if the job does not say.
        allow_no_output: patterns of output LFNs that may be missing.
        write_to_file: file name to its lines (job option, then LFNs), to be written into the job directory.
        queue_overrides, storage_overrides: CRIC keys to values from `--overwriteQueueData` / `--overwriteStorageData`.
        zip_map: text of `<ZIP_MAP>` in jobPars.
        secrets: the job's secrets (JSON text), for a file only its owner may read; never logged.
        pilot_secrets: credentials for the pilot itself, such as `logstash_login`.
        environment: variables the job asks to be set for its payload (`pilot local`).
    """

    job_id: int
    task_id: int | None = None
    attempt: int = 0
    jobset_id: int | None = None
    request_id: str = ""
    definition_id: str = ""
    name: str = ""
    user: str = ""
    label: str = ""
    processing_type: str = ""
    transfer_type: str = ""
    transformation: str = ""
    parameters: str = ""
    homepackage: str = ""
    release: str = ""
    platform: str = ""
    user_platform: str = ""
    cores: int = 1
    min_ram: int = 0
    max_walltime: int = 0
    max_cpu: int = 0
    max_disk: int = 0
    resource_type: str = ""
    destination_dblock: str = ""
    nucleus: str = ""
    alt_stageout: bool | None = None
    is_analysis: bool = False
    is_build: bool = False
    event_service: bool = False
    event_service_merge: bool = False
    is_hpo: bool = False
    use_vp: bool = False
    no_exec_str_conv: bool = False
    looping_check: bool = True
    debug: bool = False
    debug_command: str = ""
    allow_no_output: tuple[str, ...] = ()
    container_image: str = ""
    container_options: Mapping[str, str] = field(default_factory=dict)
    preprocess: Utility | None = None
    postprocess: Utility | None = None
    coprocess: Utility | None = None
    scheduler_ip: str = ""
    session_ip: str = ""
    inputs: tuple[File, ...] = ()
    outputs: tuple[File, ...] = ()
    log: File | None = None
    write_to_file: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    queue_overrides: Mapping[str, Any] = field(default_factory=dict)
    storage_overrides: Mapping[str, Any] = field(default_factory=dict)
    zip_map: str = ""
    secrets: Secret | None = None
    pilot_secrets: Mapping[str, Secret] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
