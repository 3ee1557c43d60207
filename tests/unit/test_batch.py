"""Facts about the slot: from which variable and file each one comes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import pilot
from pilot.batch import BATCH_SYSTEMS, BatchFacts
from pilot.wrap.wrapper import _KEPT


@pytest.fixture
def ad(tmp_path):
    """Write a ClassAd file and give its path."""

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_outside_of_a_batch_system_there_is_only_the_node():
    facts = BatchFacts.read({})

    assert facts == BatchFacts(node=os.uname().nodename)
    assert (facts.scheduler_id, facts.worker_id, facts.from_harvester) == ("unknown", None, False)


@pytest.mark.parametrize(("variable", "system"), BATCH_SYSTEMS.items())
def test_batch_system_is_known_by_its_variable(variable, system):
    facts = BatchFacts.read({variable: "4711.head"})

    assert (facts.system, facts.job_id) == (system, "4711.head")


def test_first_variable_that_is_set_wins():
    facts = BatchFacts.read({"K8S_JOB_ID": "pod", "SLURM_JOB_ID": "7", "clusterid": "12.0", "PBS_JOBID": ""})

    assert (facts.system, facts.job_id) == ("Condor", "12.0")


def test_condor_job_is_known_by_its_ad_when_no_variable_says_more(ad):
    job_ad = ad("job.ad", 'ClusterId = 12\nGlobalJobId = "schedd.example.org#12.0#1700000000"\nOwner = "x"\n')

    assert BatchFacts.read({"_CONDOR_JOB_AD": job_ad}).job_id == "schedd.example.org#12.0#1700000000"
    assert BatchFacts.read({"_CONDOR_JOB_AD": job_ad}).system == "Condor"
    assert BatchFacts.read({"_CONDOR_JOB_AD": job_ad, "SLURM_JOB_ID": "7"}).system == "SLURM"


@pytest.mark.parametrize("variable", ["_CONDOR_MACHINE_AD", "CONDOR_MACHINE_AD"])
def test_site_and_schedd_come_from_the_machine_ad(ad, variable):
    machine_ad = ad("machine.ad", 'glidein_site = "BNL \\"ATLAS\\""\n  RemoteScheddName="schedd@host"\nMemory = 2048\n')

    facts = BatchFacts.read({variable: machine_ad})

    assert (facts.glidein_site, facts.schedd) == ('BNL "ATLAS"', "schedd@host")


def test_what_the_machine_ad_does_not_say_may_be_in_the_job_ad(ad):
    facts = BatchFacts.read(
        {
            "_CONDOR_JOB_AD": ad("job.ad", 'GLIDEIN_Site = "job"\nRemoteScheddName = "schedd"\n'),
            "_CONDOR_MACHINE_AD": ad("machine.ad", 'GLIDEIN_Site = "machine"\n'),
        }
    )

    assert (facts.glidein_site, facts.schedd) == ("machine", "schedd")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"= = =\nGlobalJobId\n", b"GlobalJobId = undefined"])
def test_broken_ad_says_nothing(tmp_path, content):
    path = tmp_path / "ad"
    path.write_bytes(content)

    assert BatchFacts.read({"_CONDOR_JOB_AD": str(path), "_CONDOR_MACHINE_AD": str(path)}).system == ""


def test_ad_that_cannot_be_read_says_nothing(tmp_path):
    assert BatchFacts.read({"_CONDOR_JOB_AD": str(tmp_path / "none"), "_CONDOR_MACHINE_AD": str(tmp_path)}).system == ""


def test_node_is_slot_at_host():
    environ = {"PANDA_HOSTNAME": "wn7.example.org", "_CONDOR_SLOT": "slot1_2"}

    assert BatchFacts.read(environ).node == "slot1_2@wn7.example.org"
    assert BatchFacts.read({"_CONDOR_SLOT": "slot1_2"}).node == f"slot1_2@{os.uname().nodename}"


def test_harvester_names_worker_and_factory():
    facts = BatchFacts.read(
        {
            "HARVESTER_ID": "cern_central_A",
            "HARVESTER_WORKER_ID": "4711",
            "HARVESTER_WORKDIR": "/hv",
            "PANDA_JSID": "harvester-cern",
            "GTAG": "https://logs/1.out",
        }
    )

    assert (facts.harvester_id, facts.worker_id, facts.harvester_workdir) == ("cern_central_A", 4711, "/hv")
    assert (facts.scheduler_id, facts.gtag, facts.from_harvester) == ("harvester-cern", "https://logs/1.out", True)


@pytest.mark.parametrize("worker", ["", "None", "12a", "-3", "$(workerID)"])
def test_worker_that_is_no_number_cannot_be_told_to_the_server(worker):
    facts = BatchFacts.read({"HARVESTER_ID": "h", "HARVESTER_WORKER_ID": worker})

    assert facts.worker_id is None
    assert not facts.from_harvester


def test_what_the_pilot_reads_of_its_batch_system_gets_into_a_container_around_it():
    names = re.compile(r'"(_?CONDOR_[A-Z_]+|SLURM_[A-Z_]+)"')
    read = {name for path in Path(pilot.__file__).parent.rglob("*.py") for name in names.findall(path.read_text())}
    assert {"SLURM_JOB_END_TIME", "SLURM_MEM_PER_CPU", "_CONDOR_MACHINE_AD", "_CONDOR_LIBEXEC"} <= read
    assert read | set(BATCH_SYSTEMS) <= set(_KEPT)
