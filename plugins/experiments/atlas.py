"""ATLAS: releases by `asetup`, catalogues of inputs, reports of transformations, user jobs.

The facts are in PILOT3 1.3, 1.4, 2.7, 5.1, 5.6 and 5.7.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pilot.errors import Code, JobDefinitionError, PilotError
from pilot.experiment import Service
from pilot.job import File, Job
from pilot.matchers import row
from pilot.queuedata import Queue
from plugins.experiments._atlas_catalogue import by_cache, direct_options, with_facts, with_turls, write_pool_catalogue
from plugins.experiments._atlas_files import KEPT, REDUNDANT, WORKDIR
from plugins.experiments._atlas_release import ALRB, release_setup
from plugins.experiments.generic import Generic

logger = logging.getLogger(__name__)

_CRIC = "https://atlas-cric.cern.ch/cache"
_CVMFS = "CVMFS_PATH/atlas.cern.ch/repo/sw/local/etc"

#: `--athenaopts` and its values, as far as quoting them anew would change what the shell makes of them: `$` in double
#: quotes or bare is a variable, in single quotes it is none.
_ATHENA_OPTIONS = re.compile(r"""(?<!\S)--athenaopts(?:=|\s+)(?:"[^"]*"|[^\s"']+)(?:\s+"[^"]*")*(?!\S)""")
_HIDDEN = "athenaopts-hidden-"

#: The inputs that a user job reads: `-i "['a', 'b']"`.
_INPUT_OPTION = re.compile(r"""-i "\[([\w.,-]+)\]\"""", re.ASCII)

#: What a name of an output looks like in ATLAS; names that do not are only warned of, as test jobs have them.
_LFN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,250}")

#: The order of jobMetrics (PILOT3 2.7); others follow.
_METRICS = (
    *("actualCoreCount", "nEvents", "nEventsW", "dbTime", "dbData", "resimevents", "workDirSize", "rucioTraceError"),
    *("hs06", "leak", "chi2", "intersect", "eventnumber", "schedulerIP", "sessionIP"),
)

#: Warnings of a job report that the server gets; a report may have 100,000 of them.
_WARNINGS = 25


#: What `xcache start` says of the cache.
_XCACHE = {
    "ALRB_XCACHE_PROXY": r'ALRB_XCACHE_PROXY = "(.+)"',
    "ALRB_XCACHE_PROXY_REMOTE": r'ALRB_XCACHE_PROXY_REMOTE = "(.+)"',
    "ALRB_XCACHE_MYPROCESS": r"ALRB_XCACHE_MYPROCESS = (.+)",
    "ALRB_XCACHE_LOG": r"Messages logs: +(.+)",
}


class Atlas(Generic):
    """ATLAS at the LHC."""

    name = "atlas"
    base_urls = ("https://pandaserver.cern.ch/trf/user", "https://atlpan.web.cern.ch/atlpan")
    redundant_files = REDUNDANT
    kept_files = KEPT
    cvmfs_paths = (
        "atlas.cern.ch/repo/sw",
        "atlas.cern.ch/repo/ATLASLocalRootBase/logDir/lastUpdate",
        "atlas-condb.cern.ch/repo/conditions/logDir/lastUpdate",
        "atlas-nightlies.cern.ch/repo/sw/logs/lastUpdate",
        "sft.cern.ch/lcg/lastUpdate",
        "unpacked.cern.ch/logDir/lastUpdate",
        "sft-nightlies.cern.ch/lcg/lastUpdate",
    )
    trusts_job_report = True
    matchers = (
        row(r"FATAL out of memory: taking the application down", Code.PAYLOADOUTOFMEMORY, "stderr"),
        row(r"St9bad_alloc|std::bad_alloc", Code.PAYLOADOUTOFMEMORY, "stdout"),
        row(r"^sh:.*setup\.sh.*No such file or directory", Code.MISSINGINSTALLATION, "stdout"),
        row(r"No release candidates found", Code.NORELEASEFOUND, "stdout"),
        row(r"AtlasSetup\(FATAL\): Fatal exception", Code.SETUPFATAL, "stdout"),
    )
    settings: ClassVar[Mapping[str, Any]] = {
        # Pilot 3 has the same path over plain http, port 25085.
        "queuedata_url": "https://pandaserver.cern.ch:25443/cache/schedconfig/{pandaqueue}.all.json",
        "queuedata_cvmfs": f"{_CVMFS}/cric_pandaqueues.json",
        "queues_url": f"{_CRIC}/schedconfig/{{pandaqueue}}.json",
        "queues_cvmfs": f"{_CVMFS}/cric_pandaqueues.json",
        "storages_url": f"{_CRIC}/ddmendpoints.json",
        "storages_cvmfs": f"{_CVMFS}/cric_ddmendpoints.json",
        "rucio_host": "https://voatlasrucio-server-prod.cern.ch:443",
        "rucio_traces_url": "https://rucio-lb-prod.cern.ch/traces/",
        "kill_for_memory": True,
        "proxy_limit": 72 * 3600.0 - 20 * 60.0,
        "payload_proxy": "server",
        "container_setup": "alrb",
        "middleware_setup": f"{ALRB}; lsetup rucio davix xrootd",
    }

    def before_clean_up(self, parameters: str) -> str:
        """Hide `--athenaopts` in a word that looks the same in any quoting."""
        return _ATHENA_OPTIONS.sub(lambda found: _HIDDEN + found[0].encode().hex(), parameters)

    def after_clean_up(self, parameters: str) -> str:
        """Bring it back."""
        return re.sub(rf"{_HIDDEN}((?:[0-9a-f]{{2}})+)", _shown, parameters)

    def verify(self, job: Job) -> None:
        """Refuse names of outputs that ATLAS' catalogue cannot hold."""
        super().verify(job)
        for file in job.outputs:
            if not file.lfn.isascii():
                text = f"{file.lfn!r} has characters that are not ASCII"
                raise JobDefinitionError("outFiles", text, Code.BADOUTPUTFILENAME)
            if not _LFN.fullmatch(file.lfn):
                logger.warning("%s does not follow the naming convention %s", file.lfn, _LFN.pattern)

    def inputs_ready(self, job: Job, workdir: Path, variables: Mapping[str, str]) -> Job:
        """PoolFileCatalog.xml, and TURLs in what a job of production reads; near ones by a cache if there is one."""
        job = by_cache(job, variables.get("ALRB_XCACHE_PROXY", ""))
        write_pool_catalogue(job, workdir)
        return with_turls(job)

    def outputs(self, job: Job, workdir: Path) -> tuple[File, ...]:
        """With the GUIDs that a payload of production gave them, and their numbers of events."""
        found = super().outputs(job, workdir)
        return found if job.is_analysis else with_facts(found, super().payload_metadata(workdir), workdir)

    def release_setup(self, job: Job, queue: Queue, *, contained: bool) -> str:
        """`asetup`, as production calls it."""
        return release_setup(job, queue, contained=contained)

    def command(self, job: Job, transformation: str) -> str:
        """A user's transformation is a program of the job directory; one of production is a command, or Python's."""
        if job.no_exec_str_conv and "asetup.sh" in job.parameters:  # the whole command, set-up and all
            return job.parameters
        if job.is_analysis:
            command = super().command(job, transformation)
            return command + direct_options(job, command) + _guids_option(job)
        if job.release.startswith("Atlas-"):  # `asetup` has put it into PATH
            return super().command(job, transformation)
        if job.homepackage and "/" not in transformation:
            transformation = f"{job.homepackage}/{transformation}"
        return super().command(job, f"python3 {transformation}" if transformation.endswith(".py") else transformation)

    def services(self, job: Job, queue: Queue) -> tuple[Service, ...]:
        """The cache in front of XRootD doors, where the queue has `pilotXcache` in its catchall (PILOT3 5.3)."""
        if "pilotXcache" not in queue.catchall:
            return ()
        place = f"{job.job_id}/xcache"
        options = f"-d $PWD/{place} -C centos7 --disklow 4g --diskhigh 5g -b 4"
        log = '[ -f "$ALRB_XCACHE_LOG" ] && cp --remove-destination "$ALRB_XCACHE_LOG" xcache-messages.log'
        start = f"{ALRB}; lsetup xcache; xcache list; xcache start {options}"
        stop = f"{log}; {ALRB}; lsetup xcache; xcache kill -p $ALRB_XCACHE_MYPROCESS"
        return (Service(name="xcache", start=start, stop=stop, variables=_XCACHE, directory=str(job.job_id)),)

    def environment(self, job: Job) -> Mapping[str, str | None]:
        """What Frontier, Rucio, Athena, ROOT and make of a payload look at."""
        identity = f"[{job.task_id or 'NULL'}_{job.job_id}]"
        cores = str(job.cores) if job.cores > 1 else None  # with 1 Athena would start its machinery for several
        common = {
            "FRONTIER_ID": identity,
            "CMSSW_VERSION": identity,
            "INDS": _input_dataset(job),
            "RUCIO_APPID": job.processing_type or None,
            "RUCIO_ACCOUNT": None,
            "TZ": "UTC",
            "ATHENA_PROC_NUMBER": cores,
            "ATHENA_CORE_NUMBER": cores,
            "DASK_SCHEDULER_IP": job.scheduler_ip or None,
        }
        return common | (_analysis_environment(job) if job.is_analysis else {})

    def redundant(self, error: PilotError | None) -> tuple[str, ...]:
        """The directory a user's code works in goes too, unless it may tell why the job looped or took much memory."""
        telling = error is not None and error.code in (Code.LOOPINGJOB, Code.PAYLOADEXCEEDMAXMEM)
        return REDUNDANT if telling else (*REDUNDANT, WORKDIR)

    def metrics(self, job: Job, measured: Mapping[str, str]) -> Mapping[str, str]:
        """In ATLAS' order: what does not fit into 500 characters is cut off at the end."""
        dask = {"schedulerIP": job.scheduler_ip, "sessionIP": job.session_ip}
        known = {**measured, **(dask if all(dask.values()) else {})}
        return {name: known[name] for name in (*(name for name in _METRICS if name in known), *known)}

    def payload_metadata(self, workdir: Path) -> str:
        """The job report, its warnings cut to the first 25."""
        text = super().payload_metadata(workdir)
        try:
            report = json.loads(text)
            details = report["executor"][0]["logfileReport"]["details"]
            if len(details["WARNING"]) <= _WARNINGS:
                return text
            details["WARNING"] = details["WARNING"][:_WARNINGS]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):  # no such report
            return text
        return json.dumps(report)

    def proxy_role(self, job: Job | None) -> str:
        """Production for the pilot, none for a user."""
        return "atlas" if job else "atlas:/atlas/Role=production"

    def sends_node_map(self) -> bool:
        """The maps of worker nodes and GPUs are ATLAS'."""
        return True


def _shown(hidden: re.Match[str]) -> str:
    return bytes.fromhex(hidden[1]).decode(errors="replace")


def _analysis_environment(job: Job) -> dict[str, str]:
    return {
        "ROOT_TTREECACHE_SIZE": "1",
        "ROOTCORE_NCPUS": str(job.cores),
        "MAKEFLAGS": f"-j{job.cores} QUICK=1 -l1",
    }


def _input_dataset(job: Job) -> str:
    """The first dataset that is neither a database release nor a user's library."""
    datasets = (file.dataset for file in job.inputs)
    return next((name for name in datasets if name and "DBRelease" not in name and ".lib." not in name), "unknown")


def _guids_option(job: Job) -> str:
    """`--inputGUIDs` with the GUIDs of the inputs in `-i`, for payloads that read by GUID."""
    found = _INPUT_OPTION.search(job.parameters.replace("'", "").replace(", ", ","))
    if found is None or job.is_build:
        return ""
    known = {file.lfn: file.guid for file in job.inputs}
    guids = [known[lfn] for lfn in found[1].split(",") if re.fullmatch(r"[\w-]+", known.get(lfn, ""), re.ASCII)]
    return f' --inputGUIDs "{guids}"' if guids else ""
