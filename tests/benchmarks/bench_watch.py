"""What the watch over a payload costs: `python -m tests.benchmarks.bench_watch [--processes N] [--seconds S]`.

All looks run over a tree of processes that sleep, as they do under a pilot, and their CPU time is compared with the
wall time. Bar: at most 1 % of a core for 200 processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from pilot.cgroup import Nest
from pilot.job import Job, Limits
from pilot.payload.process import PayloadProcess
from pilot.processes import Processes
from pilot.queuedata import Queue
from pilot.settings import Settings
from pilot.stop import Deadline, Stop
from pilot.watch.guard import Guard, Post
from pilot.watch.look import watch

BAR = 0.01


def main() -> int:
    """Measure, print, and fail above the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        share, each = asyncio.run(_measure(Path(folder), args.processes, args.seconds))
    print(
        f"{args.processes} processes, {args.seconds:g} s: {share:.2%} of a core, one sample takes {each * 1e3:.1f} ms"
    )
    return 0 if share <= BAR else 1


async def _measure(workdir: Path, count: int, seconds: float) -> tuple[float, float]:
    """Share of a core that watching takes, and the seconds of one sample with PSS."""
    processes = Processes()
    environment = {"PATH": os.environ["PATH"]}
    text = f"for i in $(seq {count - 1}); do sleep 3600 & done; wait"
    payload = PayloadProcess.start(text, workdir=workdir, environment=environment, processes=processes)
    try:
        while len(payload.members()) < count:
            await asyncio.sleep(0.05)
        looks = _guard(workdir, processes).attach(payload.pid, payload.members)
        started, used = time.monotonic(), time.process_time()
        looks[0].look()
        each = time.process_time() - used
        watching = asyncio.create_task(watch(looks, Stop(), 25.0))
        await asyncio.sleep(seconds)
        share = (time.process_time() - used) / (time.monotonic() - started)
        watching.cancel()
        await asyncio.wait({watching})
        return share, each
    finally:
        await payload.stop(Deadline(10), grace=2)
        await payload.wait()


def _guard(workdir: Path, processes: Processes) -> Guard:
    """As a pilot makes it for a job with every limit."""
    post = Post(
        job=Job(job_id=1, resource_type="MCORE", cores=8),
        queue=Queue(maxwdir=20_000, maxtime=100_000),
        settings=Settings(max_processes=10_000),
        limits=Limits(),
        workdir=workdir,
        main_dir=workdir,
        own_files=(),
        processes=processes,
        environ=os.environ,
        nest=Nest("off"),
        slot_end=Deadline(100_000),
        resource_types=[],
    )
    return Guard(post)


if __name__ == "__main__":
    raise SystemExit(main())
