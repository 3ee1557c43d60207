"""What the batch system, the factory and Harvester say about this slot: read once from the environment they gave it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pilot.classad import ClassAd

#: Variable with a job id to the batch system that sets it; the first one set counts (PILOT3 1.2, order included).
BATCH_SYSTEMS: Mapping[str, str] = {
    "QSUB_REQNAME": "BQS",
    "BQSCLUSTER": "BQS",
    "PBS_JOBID": "Torque",
    "LSB_JOBID": "LSF",
    "JOB_ID": "Grid Engine",
    "clusterid": "Condor",  # not HTCondor's own: put there by submit files
    "SLURM_JOB_ID": "SLURM",
    "K8S_JOB_ID": "Kubernetes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """Who started this pilot, and where.

    Attributes:
        system, job_id: batch system (`Condor`, `SLURM`, ...) and the job's id there; both empty outside of one.
        node: `[slot@]host`, as in the server's records.
        scheduler_id: of the factory, `unknown` if it did not say.
        gtag: URL of the batch log, may be empty.
        harvester_id, worker_id: who submitted the worker, and its number; empty and None without Harvester.
        harvester_workdir: where Harvester left files for the worker, when no option says so.
        glidein_site, schedd: GLIDEIN_Site and RemoteScheddName of HTCondor's ClassAds.
    """

    node: str
    system: str = ""
    job_id: str = ""
    scheduler_id: str = "unknown"
    gtag: str = ""
    harvester_id: str = ""
    worker_id: int | None = None
    harvester_workdir: str = ""
    glidein_site: str = ""
    schedd: str = ""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> BatchFacts:
        """The facts of an environment and of the ClassAd files it names; a file that cannot be read says nothing."""
        job_ad, machine_ad = ClassAd.of_job(environ), ClassAd.of_machine(environ)
        system, job_id = _batch_job(environ, job_ad)
        worker = environ.get("HARVESTER_WORKER_ID", "").strip()
        return cls(
            node=_node_name(environ),
            system=system,
            job_id=job_id,
            scheduler_id=environ.get("PANDA_JSID") or "unknown",
            gtag=environ.get("GTAG", ""),
            harvester_id=environ.get("HARVESTER_ID", ""),
            worker_id=int(worker) if worker.isascii() and worker.isdigit() else None,
            harvester_workdir=environ.get("HARVESTER_WORKDIR", ""),
            glidein_site=machine_ad.text("GLIDEIN_Site") or job_ad.text("GLIDEIN_Site"),
            schedd=machine_ad.text("RemoteScheddName") or job_ad.text("RemoteScheddName"),
        )

    @property
    def from_harvester(self) -> bool:
        """True if the server can be told which worker this is (`updateWorkerPilotStatus`)."""
        return bool(self.harvester_id) and self.worker_id is not None


def _batch_job(environ: Mapping[str, str], job_ad: ClassAd) -> tuple[str, str]:
    for variable, system in BATCH_SYSTEMS.items():
        if environ.get(variable):
            return system, environ[variable]
    job_id = job_ad.text("GlobalJobId")
    return ("Condor", job_id) if job_id else ("", "")


def _node_name(environ: Mapping[str, str]) -> str:
    host = environ.get("PANDA_HOSTNAME") or os.uname().nodename
    slot = environ.get("_CONDOR_SLOT")
    return f"{slot}@{host}" if slot else host
