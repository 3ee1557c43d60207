"""Words of jobMetrics that are measured."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from pilot.cgroup import Nest
from pilot.job import File, Job, Kind, Limits
from pilot.processes import Processes
from pilot.queuedata import Queue
from pilot.server.report import Usage
from pilot.settings import Settings
from pilot.stop import Deadline
from pilot.watch import guard
from pilot.watch.metrics import payload_metrics

JOB = Job(job_id=1, inputs=(File(lfn="in", kind=Kind.INPUT, size=1000),), outputs=(File(lfn="out", kind=Kind.OUTPUT),))


def test_what_was_measured_is_told(tmp_path):
    (tmp_path / "in").write_bytes(bytes(1000))
    (tmp_path / "out").write_bytes(bytes(500))
    (tmp_path / "eventLoopHeartBeat.txt").write_text("x done processing event #1, a\ny done processing event #27, b\n")
    rows = [f"{100 + step}\t{900 if step < 5 else 1000 + 2 * step}\t10" for step in range(20)]
    (tmp_path / "memory_monitor_output.txt").write_text("\n".join(["Time\tpss\tswap", *rows, "1\t2"]))
    gpus = {"nGPU": 2, "gpu_0": {"name": "A 100"}}

    assert payload_metrics(JOB, Usage(cores=3.6, tot_rbytes=1500), tmp_path, 2000, gpus) == {
        "actualCoreCount": "4", "workDirSize": "500", "leak": "2.00", "chi2": "0.00", "intersect": "810.00",
        "eventnumber": "27", "readbyterate": "1.50", "GPU_name": "A 100", "nGPU": "2",
    }  # fmt: skip


def test_what_is_not_known_is_not_told(tmp_path):
    (tmp_path / "memory_monitor_output.txt").write_bytes(b"Time\tpss\n\xff\n1\t2\n")
    os.mkfifo(tmp_path / "eventLoopHeartBeat.txt")
    (tmp_path / "in").symlink_to("/dev/zero")

    assert payload_metrics(JOB, Usage(), tmp_path, 0, {"nGPU": 0}) == {}


def test_a_directory_that_cannot_be_looked_at_takes_a_stop_none_of_its_time(tmp_path, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(guard, "tree_size", lambda top: hangs.wait(30))
    places = {"workdir": tmp_path, "main_dir": tmp_path, "own_files": (), "environ": {}, "nest": Nest("off")}
    post = guard.Post(
        job=JOB,
        queue=Queue(),
        settings=Settings(),
        limits=Limits(),
        processes=Processes(),
        slot_end=Deadline(),
        **places,
    )
    made, began = guard.Guard(post), time.monotonic()
    asyncio.run(made.metrics(Deadline(0.1)))
    assert time.monotonic() - began < 0.9
    hangs.set()
