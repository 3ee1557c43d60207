"""Facts of the node beside those of /proc: GPUs, maps, features, what HTCondor is told, what is around."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.batch import BatchFacts
from pilot.cgroup import own_group
from pilot.chirp import find_chirp, set_attributes
from pilot.errors import Code, PilotError
from pilot.features import benchmark_share, read_features
from pilot.gpus import Gpu, parse_gpus, read_gpus
from pilot.node import read_node
from pilot.nodechecks import busy, check_cvmfs, space_limit
from pilot.nodemap import copy_maps, gpu_maps, node_map, tell_node
from pilot.queuedata import Queue
from pilot.server.offline import NoServer
from pilot.slotend import NO_END, batch_end
from pilot.surroundings import describe, virtualisation

CARD = """<gpu id="0000000{}:00:00.0"><product_name>{}</product_name>
<product_architecture>Ampere</product_architecture><fb_memory_usage><total>40960 MiB</total>
<reserved>600 MiB</reserved></fb_memory_usage></gpu>"""
SMI = """<?xml version="1.0" ?><!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd"><nvidia_smi_log>
<driver_version>535.104.05</driver_version><cuda_version>12.2</cuda_version><attached_gpus>3</attached_gpus>
{}</nvidia_smi_log>"""
A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
XML = SMI.format(CARD.format(1, A100) + CARD.format(2, A100) + CARD.format(3, T4))


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_gpus_are_counted_by_model(tmp_path: Path) -> None:
    (tmp_path / "xml").write_text(XML)
    program(tmp_path / "bin", "nvidia-smi", f'[ "$*" = "-q -x" ] && cat {tmp_path}/xml')
    gpus = read_gpus({"PATH": f"{tmp_path}/bin:/bin"})
    facts = {"memory": 40960, "architecture": "Ampere", "driver": "535.104.05", "cuda": "12.2"}
    assert gpus == {Gpu(model=A100, **facts): 2, Gpu(model=T4, **facts): 1}


@pytest.mark.parametrize("script", ["echo no driver; exit 9", "echo '<open>'", "kill -SEGV $$"])
def test_an_nvidia_smi_that_fails_says_nothing(tmp_path: Path, script: str) -> None:
    program(tmp_path / "bin", "nvidia-smi", script)
    assert read_gpus({"PATH": f"{tmp_path}/bin:/bin"}) == {}


def test_a_node_without_gpus_has_none(tmp_path: Path) -> None:
    assert read_gpus({"PATH": str(tmp_path)}) == {}
    assert parse_gpus(b"<nvidia_smi_log><attached_gpus>0</attached_gpus></nvidia_smi_log>") == {}


class Listener(NoServer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Mapping[str, Any]] = []

    async def update_worker_node(self, mapping: Mapping[str, Any]) -> None:
        self.told.append(mapping)

    async def update_worker_gpu(self, mapping: Mapping[str, Any]) -> None:
        self.told.append(mapping)


def test_maps_are_written_sent_and_put_into_the_log_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "xml").write_text(XML)
    program(tmp_path / "bin", "nvidia-smi", f"cat {tmp_path}/xml")
    main, job, server = tmp_path / "main", tmp_path / "job", Listener()
    main.mkdir()
    job.mkdir()
    queue = Queue(name="Q", resource="R", site="SITE")
    environ = {"PATH": f"{tmp_path}/bin:/bin"}
    asyncio.run(tell_node(read_node(), queue, main, environ, server))
    node = json.loads((main / "workernode_map.json").read_text())
    assert (node["site"], node["panda_queue"]) == ("SITE", "Q")
    assert {"host_name", "cpu_model", "n_logical_cpus", "total_memory", "total_local_disk"} <= node.keys()
    models = json.loads((main / "gpu_map.json").read_text())
    assert [(one["model"], one["count"], one["vram"], one["framework"]) for one in models] == [
        (A100, 2, 40960, "CUDA"),
        (T4, 1, 40960, "CUDA"),
    ]
    assert server.told == [node, *models]
    (job / "gpu_map.json").write_text("the job's own")
    copy_maps(main, job)
    assert json.loads((job / "workernode_map.json").read_text()) == node
    assert (job / "gpu_map.json").read_text() == "the job's own"


def test_what_is_not_known_of_a_node_is_not_in_its_map() -> None:
    facts = node_map(read_node(Path("/nowhere"), {}), Queue(name="Q", resource="R"), 0)
    assert facts["site"] == "R"
    assert facts["cpu_model"]
    assert all(facts.values())
    (one,) = gpu_maps({Gpu(model="X", memory=0): 1}, read_node(), Queue(name="Q", resource="R"))
    assert one == {"site": "R", "host_name": one["host_name"], "vendor": "NVIDIA", "model": "X", "count": 1}


def test_features_are_read_from_directories_and_urls(tmp_path: Path) -> None:
    for key, value in (("hs06", "320.5\n"), ("total_cpu", "32"), ("unknown", "1")):
        (tmp_path / key).write_text(value)
    here = {"MACHINEFEATURES": str(tmp_path)}
    assert read_features(here) == {"hs06": "320.5", "total_cpu": "32"}
    assert benchmark_share(here, 8) == {"hs06": "80.12"}
    assert benchmark_share({}, 8) == {}

    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        if url.endswith("/wall_limit_secs"):
            return b"3600\n"
        raise PilotError(Code.GENERALERROR, "404")

    assert read_features({"JOBFEATURES": "https://site.example/jf/"}, fetch) == {"wall_limit_secs": "3600"}
    assert asked[0] == "https://site.example/jf/allocated_cpu"

    def dead(url: str) -> bytes:
        asked.append(url)
        raise TimeoutError

    asked.clear()
    assert read_features({"JOBFEATURES": "https://site.example/jf/"}, dead) == {}
    assert len(asked) == 1


def test_condor_is_told_by_its_own_program_with_quoted_texts(tmp_path: Path) -> None:
    program(tmp_path / "libexec", "condor_chirp", f'echo "$@" >> {tmp_path}/said')
    environ = {"_CONDOR_LIBEXEC": f"{tmp_path}/libexec", "_CONDOR_JOB_AD": "x", "PATH": "/bin"}
    found = find_chirp(environ)
    assert found == f"{tmp_path}/libexec/condor_chirp"
    set_attributes(found, {"PandaID": "17", "PandaPilotId": 'a "b"|PR'}, environ)
    assert (tmp_path / "said").read_text() == ('set_job_attr PandaID "17"\nset_job_attr PandaPilotId "a \\"b\\"|PR"\n')
    assert find_chirp({"_CONDOR_LIBEXEC": f"{tmp_path}/libexec", "PATH": "/bin"}) is None


def test_a_chirp_that_fails_is_not_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chirp = program(tmp_path, "condor_chirp", f"echo x >> {tmp_path}/said; echo 'no proxy' >&2; exit 1")
    with caplog.at_level("INFO"):
        set_attributes(str(chirp), {"PandaID": "17", "PandaPilotId": "x"}, {})
    assert (tmp_path / "said").read_text() == "x\n"
    assert "no proxy" in caplog.text


def test_the_surroundings_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nflags : fpu hypervisor lm\n")
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_name").write_text("KVM\n")
    (tmp_path / ".dockerenv").touch()
    ad = tmp_path / ".machine.ad"
    ad.write_text('Cpus = 4\nMemory = 8000\nGLIDEIN_Site = "CERN"\n')
    environ = {"_CONDOR_MACHINE_AD": str(ad), "clusterid": "7.0", "storageLimitMiB": "9000"}
    line = describe(environ, BatchFacts.read(environ), own_group(tmp_path), tmp_path)
    assert line.startswith("virtualisation docker, virtual machine (KVM); control groups ")
    for part in ("Condor 7.0", "slot Cpus=4 Memory=8000", "site CERN", "pod storage 9000 MB"):
        assert part in line
    assert virtualisation(tmp_path, {"KUBERNETES_SERVICE_HOST": "1"}).startswith("kubernetes, ")
    assert virtualisation(tmp_path / "none", {}) == ""


def test_the_end_of_the_slot_is_the_earliest_that_is_told(tmp_path: Path) -> None:
    assert batch_end({}) == NO_END
    assert batch_end({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "2000"}).time == 2000
    job, machine = tmp_path / "job", tmp_path / "machine"
    job.write_text("JobCurrentStartDate = 1000\nAllowedJobDuration = 500\nAllowedExecuteDuration = 600\n")
    machine.write_text("GLIDEIN_ToDie = 1800\n")
    environ = {"_CONDOR_JOB_AD": str(job), "_CONDOR_MACHINE_AD": str(machine)}
    assert batch_end(environ) == (1500, "AllowedJobDuration of HTCondor")
    assert batch_end({"_CONDOR_MACHINE_AD": str(machine)}) == (1800, "GLIDEIN_ToDie")


def test_an_old_slurm_is_asked_once(tmp_path: Path) -> None:
    program(tmp_path, "squeue", 'echo "$@" > $(dirname $0)/said; echo 2026-11-22T12:00:00')
    environ = {"SLURM_JOB_ID": "77", "PATH": f"{tmp_path}:/bin:/usr/bin"}
    assert batch_end(environ).time % 60 == 0
    assert (tmp_path / "said").read_text() == "--noheader --jobs=77 --format=%e\n"
    program(tmp_path, "squeue", "echo NONE")
    assert batch_end(environ) == NO_END


def test_cvmfs_is_alive_when_all_its_paths_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "sw").mkdir()
    (tmp_path / "lastUpdate").write_text("1234567890\n")
    asyncio.run(check_cvmfs(str(tmp_path), ("sw", "lastUpdate")))
    asyncio.run(check_cvmfs(str(tmp_path), ()))
    (tmp_path / "lastUpdate").write_text("")
    with pytest.raises(PilotError, match=r"lastUpdate is empty; .*none: No such file") as caught:
        asyncio.run(check_cvmfs(str(tmp_path), ("sw", "lastUpdate", "none")))
    assert caught.value.code is Code.CVMFSISNOTALIVE
    assert caught.value.code.exit_code == 64


def test_a_cvmfs_that_hangs_is_not_alive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lastUpdate")  # nobody writes: to open it waits for ever
    with pytest.raises(PilotError, match=r"1 of 1 paths below .* did not answer"):
        asyncio.run(check_cvmfs(str(tmp_path), ("lastUpdate",), patience=0.1))


def test_a_node_is_busy_above_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (9.0, 1.0, 1.0))
    monkeypatch.setattr("os.sysconf", lambda name: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # Python 3.13 in a slot of one core: PYTHON_CPU_COUNT
    assert busy(1.2) == ""
    assert busy(1.1) == "load 9.0 on 8 cores, the limit is 1.1 for each"


def test_a_pod_has_the_disk_of_its_manifest() -> None:
    assert [space_limit({"storageLimitMiB": text}) for text in ("500", "", "0", "5G")] == [500, None, None, None]
    assert space_limit({}) is None
