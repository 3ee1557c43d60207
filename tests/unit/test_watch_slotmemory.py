"""What a payload may use of its slot: known from what is enforced, whoever enforces it, and from nothing else."""

import os

import pytest

from pilot.cgroup import Group
from pilot.slurm import slurm_memory
from pilot.watch import slotmemory
from pilot.watch.meter import Sample
from pilot.watch.slotmemory import slot_limits

NO_GROUP = Group(2, {})
SAMPLE = Sample(seconds=1.0, processes=2, rss=900, pss=700, held=450, swap=50)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """kB that the pilot and who started it use: RSS, and that without files."""
    monkeypatch.setattr(slotmemory, "_own_use", lambda: (40_000, 30_000))


def slurm(tmp_path, params="OverMemoryKill", gather="linux", **variables):
    conf = tmp_path / "slurm.conf"
    conf.write_text(f"JobAcctGatherType=jobacct_gather/{gather}\n jobacctgatherparams = {params}\n")
    return {"SLURM_JOB_ID": "1", "SLURM_CONF": str(conf), "SLURM_MEM_PER_NODE": "2000"} | variables


def group(folder, version=2, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return Group(version, {"memory": folder})


@pytest.mark.parametrize(
    ("megabytes", "variables"),
    [
        (0, {}),
        (2000, {"SLURM_MEM_PER_NODE": "2000"}),
        (1200, {"SLURM_MEM_PER_CPU": "300", "SLURM_CPUS_ON_NODE": "4", "SLURM_TASKS_PER_NODE": "2"}),
        (500, {"SLURM_MEM_PER_NODE": "2000", "SLURM_STEP_TASKS_PER_NODE": "4"}),
        (400, {"SLURM_MEM_PER_NODE": "2000", "SLURM_STEP_TASKS_PER_NODE": "4(x2),5,1", "SLURM_NODEID": "2"}),
        (2000, {"SLURM_MEM_PER_NODE": "2000", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "7"}),
        (0, {"SLURM_MEM_PER_CPU": "300", "SLURM_CPUS_ON_NODE": "all"}),
    ],
)
def test_slurm_tells_what_a_step_has_and_its_tasks_share_it(megabytes, variables):
    assert slurm_memory(variables) == megabytes


def test_what_slurm_polls_is_a_limit_less_the_pilot_and_a_reserve(tmp_path):
    (limit,) = slot_limits(slurm(tmp_path), NO_GROUP)
    assert limit.kb == (2000 << 10) - 40_000 - (64 << 10)
    assert limit.origin == "2000 MB of Slurm: 2048000 kB, less 40000 kB of the pilot and 65536 kB in reserve"
    assert (limit.counts, limit.used(SAMPLE), limit.hard - limit.kb) == ("RSS", 900, 32 << 10)


def test_what_slurm_counts_counts(tmp_path):
    (limit,) = slot_limits(slurm(tmp_path, "UsePss,OverMemoryKill"), NO_GROUP)
    assert (limit.counts, limit.used(SAMPLE)) == ("PSS", 700)


def test_what_nobody_enforces_is_no_limit(tmp_path):
    ad = tmp_path / "machine.ad"
    ad.write_text("Memory = 2000\n")
    assert slot_limits({"_CONDOR_MACHINE_AD": str(ad)}, NO_GROUP) == []
    assert slot_limits(slurm(tmp_path, "NoShared"), NO_GROUP) == []
    assert slot_limits(slurm(tmp_path, SLURM_JOB_ID=""), NO_GROUP) == []


def test_what_slurm_counts_otherwise_is_no_limit(tmp_path):
    """A page that eight processes share is eight in the sum of their RSS."""
    for told in [("NoShared,OverMemoryKill",), ("OverMemoryKill", "cgroup"), ("OverMemoryKill", "none")]:
        assert slot_limits(slurm(tmp_path, *told), NO_GROUP) == [], told


@pytest.mark.parametrize(
    ("often", "asked", "known"),
    [("0", {}, 0), ("energy=0,task=10", {}, 1), ("energy=5,Task=0", {}, 0), ("30", {"SLURM_ACCTG_FREQ": "task=0"}, 0)],
)
def test_where_slurm_looks_only_at_the_end_it_ends_nobody(tmp_path, often, asked, known):
    variables = slurm(tmp_path, **asked)
    with open(variables["SLURM_CONF"], "a") as conf:
        conf.write(f"JobAcctGatherFrequency={often}\n")
    assert len(slot_limits(variables, NO_GROUP)) == known


def test_where_it_is_not_known_what_is_shared_no_rss_counts(tmp_path):
    unknown = Sample(seconds=1.0, processes=8, rss=8_000_000)
    slot = group(tmp_path / "slot", memory__max=str(1 << 30), cgroup__procs=f"{os.getpid()}\n0\n")
    limits = slot_limits(slurm(tmp_path, "UsePss,OverMemoryKill"), slot)
    assert [limit.used(unknown) for limit in limits] == [0, 0]


def test_a_slot_that_is_hardly_enough_for_the_pilot_is_told_and_ends_no_payload(tmp_path, caplog):
    assert slot_limits(slurm(tmp_path, SLURM_MEM_PER_NODE="50"), NO_GROUP) == []
    assert "50 MB of Slurm: 51200 kB are less than the pilot needs (56384 kB)" in caplog.text


def test_the_lowest_limit_of_all_groups_above_counts_with_the_swap_there_is(tmp_path, monkeypatch):
    group(tmp_path / "job", memory__max="3000\n", memory__swap__max="max\n")
    slot = group(tmp_path / "job" / "step", memory__max="4000\n", memory__swap__max="0\n")
    monkeypatch.setattr("pilot.cgroup._swap_total", lambda: 0)
    assert slot.memory_bound == 3000
    monkeypatch.setattr("pilot.cgroup._swap_total", lambda: 1500)
    assert slot.memory_bound == 4000
    group(tmp_path / "job", memory__swap__max="200\n")
    assert slot.memory_bound == 3200
    assert group(tmp_path / "open", memory__max="max\n").memory_bound is None


def test_version_1_limits_memory_and_swap_together(tmp_path, monkeypatch):
    monkeypatch.setattr("pilot.cgroup._swap_total", lambda: 1500)
    files = {"memory__limit_in_bytes": "3000\n", "memory__memsw__limit_in_bytes": "3400\n"}
    slot = group(tmp_path / "slot", 1, **files, memory__stat="rss 1\ntotal_rss 70\ntotal_shmem 20\ntotal_swap 5\n")
    assert (slot.memory_bound, slot.memory_needed) == (3400, 95)


def test_in_a_group_of_ours_alone_the_kernel_says_what_is_used(tmp_path):
    stat = f"anon {300 << 20}\nfile {9 << 30}\nshmem {100 << 20}\n"
    files = {"memory__max": str(1 << 30), "memory__stat": stat, "memory__swap__current": "0"}
    slot = group(tmp_path, cgroup__procs=f"{os.getpid()}\n", **files)
    (limit,) = slot_limits({}, slot)
    assert limit.origin.startswith("control group of the slot: 1048576 kB, less 30000 kB of the pilot and 52428 kB ")
    assert (limit.counts, limit.used(SAMPLE)) == ("memory", (400 << 10) - 30_000)


def test_beside_others_only_what_the_payload_itself_has_counts_without_pages_of_files(tmp_path):
    """A 0 is a process outside of our pid namespace."""
    procs = f"{os.getpid()}\n0\n"
    slot = group(tmp_path, memory__max=str(1 << 30), memory__stat="anon 1073741824\n", cgroup__procs=procs)
    (limit,) = slot_limits({}, slot)
    assert limit.used(SAMPLE) == 450
