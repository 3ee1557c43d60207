"""How fast files are copied and summed up: `python -m tests.benchmarks.bench_copy [--gib N] [--repeat N] [--dir DIR]`.

Ways are taken in turns, each from a disk at rest, the source in the page cache. All ratios are to the first way: that
of the medians is the one that counts, that of the best times tells how much of it is the machine's unrest. They differ
a lot where others work on the same machine: look at the load that is printed, and at the CPU time, which is our own.
Bars: `mv` with adler32 verified on both ends within 1.15 times `cp`, adler32 at 90 % of the speed of reading (ratio
1.11), at most 64 MiB of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.staging.checksum import file_checksums
from pilot.staging.engine import StagingEngine
from pilot.staging.plan import Candidate
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop

Timed = dict[str, Callable[[], object]]


class Bench:
    """A big file, and ways to read and copy it."""

    def __init__(self, folder: Path, gib: float) -> None:
        self.folder = folder
        self.source = folder / "source"
        piece = random.Random(1).randbytes(1 << 20)
        with open(self.source, "wb") as file:
            for _ in range(max(1, int(gib * 1024))):
                file.write(piece)
        self.size = self.source.stat().st_size
        self.adler32 = file_checksums(self.source, ["adler32"])
        self.processes = Processes()

    def cp(self) -> None:
        subprocess.run(["cp", self.source, self.folder / "copy"], check=True)

    def stage_in(self, mode: str = "copy") -> None:
        file = File(lfn="copy", kind=Kind.INPUT, size=self.size, checksums=self.adler32)
        self._stage(mode, lambda engine, stop: engine.stage_in([file], self.folder, stop))

    def stage_out(self) -> None:
        file = File(lfn="source", kind=Kind.OUTPUT)
        self._stage("copy", lambda engine, stop: engine.stage_out([file], self.folder, stop))

    def sources(self, file: File) -> list[Candidate]:
        return [Candidate(tool="mv", url=str(self.source))]

    def destinations(self, file: File) -> list[Candidate]:
        return [Candidate(tool="mv", url=str(self.folder / "copy"))]

    def read(self) -> None:
        buffer = bytearray(1 << 20)
        with open(self.source, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def zlib(self) -> None:
        value = 1
        with open(self.source, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                value = zlib.adler32(block, value)

    def rest(self) -> None:
        """The disk at rest, and memory at hand for a copy: to get back what the host of this machine took costs 1 s."""
        (self.folder / "copy").unlink(missing_ok=True)
        os.sync()
        with open(self.folder / "warm", "wb") as file:
            for _ in range(self.size >> 20):
                file.write(bytes(1 << 20))
            (self.folder / "warm").unlink()

    def _stage(self, mode: str, call: Callable) -> None:
        async def main() -> None:
            tools = ToolBox(launch_dir=self.folder, settings={"mv_stagein": mode, "mv_stageout": mode})
            result = await call(StagingEngine(plan=self, tools=tools, launcher=self.processes), Stop())
            if result.error:
                raise result.error

        asyncio.run(main())


def measured(ways: Timed, repeat: int, rest: Callable[[], None]) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of each way, best first."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(repeat + 1):
        for name, way in ways.items():
            rest()
            start, used = time.perf_counter(), sum(os.times()[:4])
            way()
            if round_:  # the first warms up
                taken[name].append((time.perf_counter() - start, sum(os.times()[:4]) - used))
    return {name: sorted(seconds) for name, seconds in taken.items()}


def table(title: str, taken: dict[str, list[tuple[float, float]]], size: int) -> None:
    """Print median, best and worst time, the speed by the median, the ratios to the first way, and the same for CPU."""
    head = f"{'median s':>8} {'best':>7} {'worst':>7} {'GB/s':>6} {'ratio':>6} {'of best':>8} {'cpu s':>6} {'ratio':>6}"
    print(f"\n{title:<44} {head}")
    first = next(iter(taken.values()))
    base, base_best = statistics.median(one for one, _ in first), first[0][0]
    base_cpu = statistics.median(used for _, used in first)
    for name, each in taken.items():
        median, best, worst = statistics.median(one for one, _ in each), each[0][0], each[-1][0]
        used = statistics.median(used for _, used in each)
        print(
            f"{name:<44} {median:>8.3f} {best:>7.3f} {worst:>7.3f} {size / median / 1e9:>6.2f}"
            f" {median / base:>6.2f} {best / base_best:>8.2f} {used:>6.2f} {used / base_cpu:>6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--dir", type=Path, help="where to copy (default: the temporary directory)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-copy-", dir=args.dir))
    try:
        bench = Bench(folder, args.gib)
        copies: Timed = {
            "cp": bench.cp,
            "mv in, copy, adler32 verified on both ends": bench.stage_in,
            "mv out, copy, adler32 verified on both ends": bench.stage_out,
            "mv in, link, adler32 verified": lambda: bench.stage_in("link"),
        }
        table(f"copy of {args.gib:g} GiB", measured(copies, args.repeat, bench.rest), bench.size)
        reads: Timed = {
            "plain read, blocks of 1 MiB": bench.read,
            "adler32 of the pilot": lambda: file_checksums(bench.source, ["adler32"]),
            "adler32 of zlib": bench.zlib,
        }
        table(f"read of {args.gib:g} GiB", measured(reads, args.repeat, bench.rest), bench.size)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; peak memory {memory:.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
