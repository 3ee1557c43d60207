"""What a pilot looks at on its node before it takes a job, and what it tells of the node."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pilot.doctor.check import Level, Patient
from pilot.doctor.node import gpus
from pilot.settings import Settings
from tests.grid import ENVIRON, Grid, Pilot, until
from tests.parts.nvidia import nvidia_smi
from tests.unit.test_node_facts import A100, CARD, SMI, program


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        cric = f"[Information]\nqueues_url = {grid.server.url}/cache/{{pandaqueue}}.json\n"  # instead of ATLAS' own
        grid.settings.write_text(grid.settings.read_text() + cric)
        yield grid


def told(grid: Grid, kind: str) -> list[dict[str, Any]]:
    return [notice["arguments"] for notice in grid.server.notices(kind)]


def test_an_experiment_that_wants_maps_gets_them_and_each_log_has_them(grid: Grid) -> None:
    queue = grid.queue("MAP", atlas_site="MAPSITE")
    (grid.top / "xml").write_text(SMI.format(CARD.format(1, A100)))
    program(grid.top / "bin", "nvidia-smi", f"cat {grid.top}/xml")
    program(grid.top / "bin", "condor_chirp", f'echo "$@" >> {grid.top}/chirped')
    (grid.top / "ad").write_text("Cpus = 2\n")
    (job_id,) = grid.submit(grid.job("sleep 0.5", queue=queue))
    env = {"PATH": f"{grid.top}/bin:{os.environ['PATH']}", "_CONDOR_JOB_AD": str(grid.top / "ad")}
    pilot = grid.pilot("--pilot-user", "atlas", queue=queue, env=env)
    assert pilot.wait() == 0, pilot.text
    (node,), (gpu,) = told(grid, "update_worker_node"), told(grid, "update_worker_node_gpu")
    log = grid.job_of(job_id).log()
    for sent, name in ((node, "workernode_map.json"), (gpu, "gpu_map.json")):
        kept = json.loads(log[name])
        assert kept["site"] == "MAPSITE"
        assert kept == {key: value for key, value in sent.items() if key in kept}
    assert (gpu["model"], gpu["count"]) == (A100, 1)
    assert f'set_job_attr PandaID "{job_id}"' in (grid.top / "chirped").read_text()


def test_the_program_of_gpus_without_their_driver_harms_no_job(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = grid.queue("DRIVERLESS")
    (job_id,) = grid.submit(grid.job("sleep 3", queue=queue))
    monkeypatch.setenv("PATH", f"{nvidia_smi()}:{os.environ['PATH']}")
    pilot = grid.pilot("--pilot-user", "atlas", queue=queue, env={"PATH": os.environ["PATH"]})
    assert pilot.wait() == 0, pilot.text
    assert "nvidia-smi does not tell the GPUs" in pilot.text
    assert "gpu_map.json" not in grid.job_of(job_id).log()
    found = gpus(Patient(settings=Settings.from_flags({"pilot_user": "atlas", "queue": queue}, {}), environ={}))
    assert found is not None
    assert (found.level, "couldn't communicate with the NVIDIA driver" in found.found) == (Level.WARNING, True)


def test_other_experiments_keep_the_map_to_themselves(grid: Grid) -> None:
    before = len(grid.server.notices("update_worker_node"))
    queue = grid.queue("NOMAP")
    (job_id,) = grid.submit(grid.job(queue=queue))
    assert grid.pilot(queue=queue).wait() == 0
    assert len(grid.server.notices("update_worker_node")) == before
    assert "workernode_map.json" in grid.job_of(job_id).log()


def test_without_its_software_an_experiment_takes_no_job(grid: Grid) -> None:
    queue = grid.queue("CVMFS")
    (job_id,) = grid.submit(grid.job(queue=queue))
    options = [option for option in grid.options("--pilot-user", "atlas", queue=queue) if option != "-b"]
    environ = {**ENVIRON, "ATLAS_SW_BASE": str(grid.top)}
    cwd = grid.top / "cvmfs"
    pilot = Pilot([sys.executable, "-m", "pilot.cli.main", "run", *options], cwd=cwd, env=environ)
    assert pilot.wait() == 64
    assert "1377" in pilot.text
    assert grid.job_of(job_id).state == "activated"


def test_a_busy_node_takes_no_job(grid: Grid) -> None:
    queue = grid.queue("BUSY")
    (job_id,) = grid.submit(grid.job(queue=queue))
    env = {"PILOT_ENABLE_DELAY_TO_GET_JOB": "True", "PILOT_LOAD_FACTOR": "0"}
    pilot = grid.pilot(queue=queue, env=env)
    assert pilot.wait() == 0
    assert "no job is asked for: load" in pilot.text
    assert grid.job_of(job_id).state == "activated"


@pytest.mark.parametrize("same", ["True", "False"])
def test_further_jobs_come_from_the_same_task_unless_told_otherwise(grid: Grid, same: str) -> None:
    queue = grid.queue(f"TASK{same}")
    ids = grid.submit(*(grid.job(queue=queue, taskID=task) for task in (71, 72, 71)))
    pilot = grid.pilot("--allow-same-user", same, queue=queue)
    assert pilot.wait() == 0
    states = [grid.job_of(job_id).state for job_id in ids]
    assert states == ["finished", "activated" if same == "True" else "finished", "finished"]
    until(lambda: "pilot ends" in pilot.text)


def test_a_slot_whose_end_has_passed_takes_no_job(grid: Grid) -> None:
    queue = grid.queue("PASSED")
    (job_id,) = grid.submit(grid.job(queue=queue))
    pilot = grid.pilot(queue=queue, env={"SLURM_JOB_END_TIME": "1000"})
    assert pilot.wait() == 0
    assert "the end of the Slurm job has passed" in pilot.text
    assert grid.job_of(job_id).state == "activated"
