"""How fast copy tool `xrdcp` is: `python -m tests.benchmarks.bench_xrootd [--gib N] [--files N] [--repeat N]`.

A real server on loopback, storage and files in the page cache, medians of runs taken in turns. Bars: 1 GiB with its
checksum verified within 1.1 times plain `xrdcp`; 500 files of 1 MiB by the engine 5 times as fast as one `xrdcp` after
another; 64 MiB of memory while 5 GiB are copied.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from copytools._xrootd_programs import settings
from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.staging.call import StagingLimits
from pilot.staging.checksum import file_checksums
from pilot.staging.copytool import CopyTool
from pilot.staging.engine import StagingEngine
from pilot.staging.plan import Candidate
from pilot.staging.toolbox import ToolBox, find_tool
from pilot.stop import Stop

if TYPE_CHECKING:
    from tests.parts.xrootd import XrootdServer

MIB = 1 << 20


class Place:
    """Where files are on both ends: a directory here, a directory of the server there.

    Args:
        url: of the directory there.
        folder: here.
        use: `bindings` or `programs` of `xrdcp`, or `https`.
    """

    def __init__(self, url: str, folder: Path, use: str) -> None:
        self.tool = "https" if use == "https" else "xrdcp"
        self.url = url
        self.folder = folder
        self.use = use

    def sources(self, file: File) -> Sequence[Candidate]:
        return [Candidate(tool=self.tool, url=f"{self.url}/{file.lfn}")]

    destinations = sources

    def find(self, name: str) -> type[CopyTool]:
        return find_tool(name)

    def engine(self, parallel: int = 4) -> StagingEngine:
        def options(name: str) -> Mapping[str, str]:
            return {"use": self.use}

        tools = ToolBox(options=options, launch_dir=self.folder, settings={})
        limits = StagingLimits(parallel=parallel)
        return StagingEngine(plan=self, tools=tools, launcher=Processes(), limits=limits, environment=os.environ)

    def get(self, files: Sequence[File]) -> None:
        result = asyncio.run(_with_stop(lambda stop: self.engine().stage_in(files, self.folder, stop)))
        if result.error:
            raise result.error

    def put(self, files: Sequence[File]) -> None:
        result = asyncio.run(_with_stop(lambda stop: self.engine().stage_out(files, self.folder, stop)))
        if result.error:
            raise result.error


async def _with_stop(call: Callable) -> object:
    return await call(Stop())


def make(path: Path, size: int, seed: int = 1) -> dict[str, str]:
    """A file; its checksum."""
    piece = random.Random(seed).randbytes(min(size, 16 * MIB))
    with open(path, "wb") as file:
        for _ in range(size // len(piece)):
            file.write(piece)
    return file_checksums(path, ["adler32"])


def xrdcp(*argv: str) -> None:
    """The program as a person would use it."""
    subprocess.run(["xrdcp", "--nopbar", "--silent", *argv], check=True, env=os.environ | settings())


def medians(ways: Mapping[str, Callable[[], object]], repeat: int, clean: Callable[[], None]) -> dict[str, float]:
    """Seconds of each way, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            clean()
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    clean()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def server() -> AbstractContextManager[XrootdServer]:
    """A server; imported late, since the process whose memory is measured needs none of the tools for tests."""
    from tests.parts import xrootd

    return xrootd.server()


def rows(gib: float = 1, files: int = 500, repeat: int = 3) -> Iterator[tuple[str, float, float]]:
    """What was done, seconds, and how many times as long as the first of its group."""
    with server() as remote, tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield from _one_big(remote, Path(name), int(gib * 1024) * MIB, repeat)
    with server() as remote, tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield from _many_small(remote, Path(name), files)


def _one_big(remote: XrootdServer, folder: Path, size: int, repeat: int) -> Iterator[tuple[str, float, float]]:
    sums = make(folder / "out", size)
    url, (bindings, programs) = (
        f"{remote.url}//",
        (Place(remote.url + "/", folder, use) for use in ("bindings", "programs")),
    )
    out, back = File(lfn="out", kind=Kind.OUTPUT), File(lfn="in", kind=Kind.INPUT, size=size, checksums=sums)

    def clean() -> None:
        for path in (remote.data / "out", remote.data / "plain", folder / "in"):
            path.unlink(missing_ok=True)

    ups = {
        "up: xrdcp": lambda: xrdcp(str(folder / "out"), url + "plain"),
        "up: xrdcp --cksum adler32:source": lambda: xrdcp("-C", "adler32:source", str(folder / "out"), url + "plain"),
        "up: pilot, bindings, verified": lambda: bindings.put([out]),
        "up: pilot, programs, verified": lambda: programs.put([out]),
    }
    yield from _ratios(medians(ups, repeat, clean))
    shutil.copyfile(folder / "out", remote.write("in", b""))

    def clean_in() -> None:
        (folder / "in").unlink(missing_ok=True)

    source, target = url + "in", str(folder / "in")
    downs = {
        "down: xrdcp": lambda: xrdcp(source, target),
        "down: xrdcp --cksum adler32:source": lambda: xrdcp("-C", "adler32:source", source, target),
        "down: pilot, bindings, verified": lambda: bindings.get([back]),
        "down: pilot, programs, verified": lambda: programs.get([back]),
    }
    yield from _ratios(medians(downs, repeat, clean_in))


def _many_small(remote: XrootdServer, folder: Path, count: int) -> Iterator[tuple[str, float, float]]:
    sums = {f"{i}": make(folder / f"{i}", MIB, i) for i in range(count)}
    outs = [File(lfn=name, kind=Kind.OUTPUT) for name in sums]
    ins = [File(lfn=name, kind=Kind.INPUT, size=MIB, checksums=found) for name, found in sums.items()]

    def serial(names: Callable[[str], tuple[str, str]]) -> Callable[[], None]:
        return lambda: [xrdcp(*names(name)) for name in sums] and None

    def place(use: str, top: str) -> Place:
        (folder / use).mkdir(exist_ok=True)
        return Place(f"{remote.url}//{top}", folder, use)

    def down(use: str) -> Callable[[], None]:
        one = place(use, "plain")
        target = Place(one.url, folder / use, use)
        return lambda: target.get(ins)

    label = f"{count} x 1 MiB"
    ups = {
        f"{label} up: xrdcp, one after another": serial(
            lambda name: (str(folder / name), f"{remote.url}//plain/{name}")
        ),
        f"{label} up: pilot, bindings, verified": lambda: place("bindings", "bindings").put(outs),
        f"{label} up: pilot, programs, verified": lambda: place("programs", "programs").put(outs),
    }
    yield from _ratios(medians(ups, 1, lambda: None))
    (folder / "plain").mkdir()
    downs = {
        f"{label} down: xrdcp, one after another": serial(
            lambda name: (f"{remote.url}//plain/{name}", str(folder / "plain" / name))
        ),
        f"{label} down: pilot, bindings, verified": down("bindings"),
        f"{label} down: pilot, programs, verified": down("programs"),
    }
    yield from _ratios(medians(downs, 1, lambda: None))


def _ratios(seconds: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    base = next(iter(seconds.values()))
    for name, value in seconds.items():
        yield name, value, value / base


def memory(gib: float = 5) -> dict[str, float]:
    """Peak memory in MiB of a process that copies so much up and down, all of it and its programs, for each way."""
    found = {}
    for use in ("bindings", "programs", "https"):
        with server() as remote, tempfile.TemporaryDirectory(prefix="bench-") as folder:
            url = remote.http_url if use == "https" else remote.url
            argv = [sys.executable, "-m", "tests.benchmarks.bench_xrootd", "--copy", use, url, folder, str(gib)]
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            found |= {f"{use}: {what}": mib for what, mib in json.loads(done.stdout).items()}
    return found


def copy(use: str, url: str, folder: str, gib: float) -> None:
    """Copy a sparse file up and down, then say how much memory that took."""
    import resource

    path = Path(folder) / "sparse"
    with open(path, "wb") as file:
        file.truncate(int(gib * 1024) * MIB)
    place = Place(url + "/", Path(folder), use)
    place.put([File(lfn="sparse", kind=Kind.OUTPUT)])
    path.unlink()
    place.get([File(lfn="sparse", kind=Kind.INPUT)])
    # not ru_maxrss: at first we were a copy of whoever started us, and that counts there
    ours = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    programs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({"the process": ours, "its largest program": programs}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=5)
    parser.add_argument("--copy", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.copy:
        copy(*args.copy[:3], float(args.copy[3]))
        return
    for name, seconds, ratio in rows(args.gib, args.files, args.repeat):
        print(f"{name:<48} {seconds:>8.2f} s {ratio:>8.2f}", flush=True)
    for name, mib in memory(args.memory_gib).items():
        print(f"memory, {args.memory_gib:g} GiB, {name:<30} {mib:>8.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
