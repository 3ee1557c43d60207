"""How fast files go to S3 and back: `python -m tests.benchmarks.bench_s3 [--files N] [--gib N] [--sparse N]`.

The server is a real one, SeaweedFS on loopback, and has to share the processors with us: so a ratio to boto3 is bounded
by what the server itself needs, which the rows of bare connections show: they send and get the bytes by requests that
were signed beforehand, and do nothing else. A site's storage is elsewhere: the rows of one that is 50 ms away have the
same server behind a proxy that keeps each byte for 25 ms, each way.

The figures of the engine are with checksums verified on both ends. Memory is that of a process of its own, for the
whole of its life, imports included.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from pilot.job import File, Kind
from pilot.processes import Processes
from pilot.staging.call import StagingLimits
from pilot.staging.engine import StagingEngine
from pilot.staging.plan import Candidate
from pilot.staging.toolbox import ToolBox
from pilot.stop import Stop

MIB = 1 << 20

#: Seconds to a storage that is not near, and back.
AWAY = 0.05


class Mine:
    """The pilot's engine with files in a bucket."""

    def __init__(self, endpoint: str, keys: tuple[str, str], folder: Path) -> None:
        self.folder = folder
        self.environ = {"S3_ENDPOINT_URL": endpoint, "S3_ACCESS_KEY": keys[0], "S3_SECRET_KEY": keys[1]}
        self.prefix = f"s3://jobs/{random.randbytes(6).hex()}/"
        self.processes = Processes()
        self.tools = ToolBox(launch_dir=folder, settings={}, environ=self.environ)

    def sources(self, file: File) -> list[Candidate]:
        return [Candidate(tool="s3", url=self.prefix + file.lfn)]

    destinations = sources

    def out(self, names: list[str], parallel: int) -> None:
        self._stage("stage_out", [File(lfn=name, kind=Kind.OUTPUT) for name in names], parallel)

    def back(self, names: list[str], parallel: int, into: Path) -> None:
        into.mkdir()
        files = [
            File(lfn=name, kind=Kind.INPUT, size=(self.folder / name).stat().st_size, checksums={}) for name in names
        ]
        self._stage("stage_in", files, parallel, into)

    def _stage(self, way: str, files: list[File], parallel: int, folder: Path | None = None) -> None:
        async def main() -> None:
            limits = StagingLimits(parallel=parallel)
            engine = StagingEngine(plan=self, tools=self.tools, launcher=self.processes, limits=limits)
            result = await getattr(engine, way)(files, folder or self.folder, Stop())
            if result.error:
                raise result.error

        asyncio.run(main())


def timed(what: str, act: Callable[[], Any], size: int, base: float | None = None) -> float:
    """Do it, print seconds, speed and how many times faster than `base` seconds."""
    start, used = time.perf_counter(), time.process_time()
    act()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    ratio = f"{base / seconds:>7.2f}x" if base else ""
    print(f"{what:<52} {seconds:>8.2f} s {size / seconds / MIB:>8.0f} MiB/s {used:>7.2f} s cpu {ratio}", flush=True)
    return seconds


def many(server: Any, port: int, folder: Path, count: int, lanes: tuple[int, ...]) -> None:
    """Files of 1 MiB, by the engine, by bare connections and one after the other by boto3.

    Args:
        server: that has the bucket.
        port: by which it is reached.
        folder: for the files.
        count: of files.
        lanes: files at once.
    """
    from tests.parts.s3 import OWNER, s3_client

    folder.mkdir()
    names, size = [f"file-{number}" for number in range(count)], count * MIB
    for name in names:
        (folder / name).write_bytes(random.randbytes(MIB))
    endpoint, prefix = f"http://127.0.0.1:{port}", random.randbytes(4).hex()
    client, mine = s3_client(endpoint, OWNER, "s3v4"), Mine(endpoint, OWNER, folder)
    base = timed(f"{count} x 1 MiB up, boto3, serial", lambda: [
        client.upload_file(str(folder / name), "jobs", f"{prefix}/{name}") for name in names], size)  # fmt: skip
    for parallel in lanes:
        mine.prefix = f"s3://jobs/{prefix}-{parallel}/"
        timed(f"  engine, {parallel} at once", lambda parallel=parallel: mine.out(names, parallel), size, base)
    bare(client, port, "put_object", [f"{prefix}-bare/{name}" for name in names], lanes[-1], base)
    target = folder / "serial"
    target.mkdir()
    base = timed(f"{count} x 1 MiB down, boto3, serial", lambda: [
        client.download_file("jobs", f"{prefix}/{name}", str(target / name)) for name in names], size)  # fmt: skip
    for parallel in lanes:
        into = folder / f"engine-{parallel}"
        timed(f"  engine, {parallel} at once", lambda p=parallel, i=into: mine.back(names, p, i), size, base)
    bare(client, port, "get_object", [f"{prefix}/{name}" for name in names], lanes[-1], base)


def bare(client: Any, port: int, action: str, keys: list[str], parallel: int, base: float) -> None:
    """What the server can do: requests signed beforehand, by `parallel` connections."""
    paths = [client.generate_presigned_url(action, {"Bucket": "jobs", "Key": key}).split("/", 3)[3] for key in keys]
    body = random.randbytes(MIB) if action == "put_object" else None

    def some(paths: list[str]) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            for path in paths:
                connection.request("PUT" if body else "GET", f"/{path}", body)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200

    def act() -> None:
        with ThreadPoolExecutor(parallel) as threads:
            list(threads.map(some, [paths[first::parallel] for first in range(parallel)]))

    timed(f"  bare connections, {parallel} at once", act, len(keys) * MIB, base)


def large(server: Any, keys: tuple[str, str], folder: Path, gib: float) -> None:
    """One large file, by the engine and by boto3's transfer manager."""
    size = int(gib * 1024) * MIB
    piece = random.randbytes(MIB)
    with open(folder / "large", "wb") as file:
        for _ in range(size // MIB):
            file.write(piece)
    client, mine = server.client(), Mine(server.endpoint, keys, folder)
    base = timed(f"{gib:g} GiB up, boto3 upload_file", lambda: client.upload_file(
        str(folder / "large"), "jobs", "large"), size)  # fmt: skip
    timed("  engine", lambda: mine.out(["large"], 4), size, base)
    base = timed(f"{gib:g} GiB down, boto3 download_file", lambda: client.download_file(
        "jobs", "large", str(folder / "boto3")), size)  # fmt: skip
    timed("  engine", lambda: mine.back(["large"], 4, folder / "back"), size, base)


def peak(endpoint: str, keys: tuple[str, str], folder: Path, gib: float) -> None:
    """In a process of its own: a sparse file up and down, and the most memory that took."""
    with open(folder / "sparse", "wb") as file:
        file.truncate(int(gib * 1024) * MIB)
    mine, size = Mine(endpoint, keys, folder), int(gib * 1024) * MIB
    for what, act in (
        ("up", lambda: mine.out(["sparse"], 4)),
        ("down", lambda: mine.back(["sparse"], 4, folder / "peak")),
    ):
        timed(f"{gib:g} GiB, sparse, {what}", act, size)
        print(f"  peak memory {_peak():.0f} MiB", flush=True)


def _peak() -> float:
    """MiB. Not from getrusage(2): that begins with what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    from tests.parts.far import far
    from tests.parts.s3 import OWNER, start_s3

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--sparse", type=float, default=5.0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="s3-", dir=os.environ.get("TMPDIR")))
    server = start_s3(folder / "server")
    try:
        if args.files:
            many(server, server.ports["s3"], folder / "near", args.files, (1, 4, 8))
            with far(server.ports["s3"], AWAY) as port:
                print(f"a storage {AWAY * 1000:.0f} ms away", flush=True)
                many(server, port, folder / "far", args.files, (4, 16))
        (folder / "files").mkdir()
        if args.gib:
            large(server, OWNER, folder / "files", args.gib)
        if args.sparse:
            context = multiprocessing.get_context("spawn")
            child = context.Process(target=peak, args=(server.endpoint, OWNER, folder / "files", args.sparse))
            child.start()
            child.join()
    finally:
        server.end()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
