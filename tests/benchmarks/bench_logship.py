"""The numbers of live logs: `python -m tests.benchmarks.bench_logship [--seconds N] [SINK...]`.

Latency at 100 lines/s; the share of a core at 20,000 lines/s to a file and 5,000 to each sink of the network, with the
receiver in a process of its own; what four quiet files cost; memory. The writer is a thread that does nothing else, and
its own time is taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin, RecordMaker
from pilot.logship.shipper import LogShip
from pilot.logship.sink import LogSink, SinkContext
from pilot.masking import Masker
from pilot.stop import Deadline

ORIGIN = Origin(task_id="7", job_id="42", worker_id="9", harvester_id="h", host="wn1", queue="Q")
RATES = {"file": 20_000}
NETWORK_RATE = 5_000
SINKS = ("file", "loki", "logstash-http", "logstash-tcp", "fluentd", "opensearch", "google-cloud-logging")


def receive(kind: str, pipe: Any) -> None:
    """A receiver in a process of its own: says its port, then how many lines it has when asked."""
    server = _receiver(kind)
    pipe.send(server.port)
    pipe.recv()
    pipe.send(len(server.lines))
    pipe.recv()
    server.close()


def _receiver(kind: str) -> Any:
    if kind == "google-cloud-logging":
        from tests.parts.gcl import GclServer

        return GclServer()
    if kind == "fluentd":
        from tests.parts.fluentd import FluentdServer

        return FluentdServer()
    if kind == "opensearch":
        from tests.parts.opensearch import start_search

        server: Any = start_search()
        server.port = int(server.url.rpartition(":")[2])
        server.close = server.process.terminate
        # What is measured is the pilot: with fields to index, this server takes 2,000 documents a second at most.
        unread = {"index_patterns": ["pilot-log-*"], "template": {"mappings": {"enabled": False}}}
        server.call("PUT", "/_index_template/unread", unread)
        type(server).lines = property(_indexed)
        return server
    from tests.parts.logs import LineServer, LogstashServer, LokiServer

    return {"loki": LokiServer, "logstash-http": LogstashServer, "logstash-tcp": LineServer}[kind]()


def _indexed(server: Any) -> range:
    server.call("POST", "/pilot-log-*/_refresh")
    return range(server.call("GET", "/pilot-log-*/_count")["count"])


def address(kind: str, port: int, top: Path) -> str:
    """The words of a sink."""
    name, _, scheme = kind.partition("-") if kind.startswith("logstash") else (kind, "", "http")
    if kind == "file":
        return f"file;{top / 'out.jsonl'}"
    return f"{name};{'tcp' if kind == 'fluentd' else scheme}://127.0.0.1:{port}"


def write(path: Path, rate: float, seconds: float, spent: list[float]) -> int:
    """Lines of 100 bytes at a rate, in 50 portions a second; how many. `spent` gets the CPU time of this thread."""
    count, began = 0, time.monotonic()
    with open(path, "ab", buffering=0) as file:
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate) - count
            if due > 0:
                now = time.time()
                file.write(b"".join(b"%.6f %s\n" % (now, b"x" * 81) for _ in range(due)))
                count += due
            time.sleep(0.02)
    spent.append(time.thread_time())
    return count


async def ship(top: Path, sink: LogSink, rate: float, seconds: float) -> dict[str, Any]:
    """Ship lines that come at a rate; what it cost."""
    log = LogShip(ORIGIN, top, Masker(), [sink], top / "spool")
    path = top / "payload.stdout"
    path.touch()
    log.follow(path)
    log.start()
    counted: list[int] = []
    spent: list[float] = []
    thread = threading.Thread(target=lambda: counted.append(write(path, rate, seconds, spent)))
    began, cpu = time.monotonic(), time.process_time()
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.05)
    await log.finish(Deadline(30))
    used = time.process_time() - cpu - spent[0]
    return {
        "lines": counted[0],
        "lost": sum(log.losses().values()),
        "core": used / seconds,
        "behind": time.monotonic() - began - seconds,
    }


def throughput(kind: str, seconds: float) -> dict[str, Any]:
    """A sink at its rate, its library loaded before the clock starts."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        return _with_receiver(kind, lambda port: _measure(kind, port, top, seconds))


def _measure(kind: str, port: int, top: Path, seconds: float) -> dict[str, Any]:
    (sink,) = make_sinks(parse(address(kind, port, top)), SinkContext())
    warm = asyncio.run(ship(top, sink, 100, 0.5))
    (sink,) = make_sinks(parse(address(kind, port, top)), SinkContext())
    (top / "payload.stdout").unlink()
    before = _rss()
    found = asyncio.run(ship(top, sink, RATES.get(kind, NETWORK_RATE), seconds))
    return found | {"memory": _rss() - before, "warm": warm["lines"]}


def _with_receiver(kind: str, work: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    if kind == "file":
        return work(0)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(kind, there))
    process.start()
    there.close()  # or nobody would hear that the receiver died
    try:
        found = work(here.recv())
        time.sleep(1)
        here.send(0)
        return found | {"arrived": here.recv() - found["warm"]}
    finally:
        with suppress(OSError):
            here.send(0)
        process.join(10)
        process.kill()


def indexing(seconds: float) -> tuple[float, float]:
    """Documents a second that the search server indexes with all their fields, from a bare loop and from the sink.

    They take turns, so that the load of the machine is the same for both.
    """
    from http.client import HTTPConnection

    from tests.parts import stop
    from tests.parts.opensearch import start_search

    server, maker, rounds = start_search(), RecordMaker(ORIGIN.fields(), "payload.stdout", ""), 0
    sink: Any = make_sinks(parse(f"opensearch;{server.url}"), SinkContext())[0]
    connection, spent = HTTPConnection(server.url.partition("//")[2]), [0.0, 0.0]
    while sum(spent) < seconds:
        batch = [maker.make(n, rounds * 1000 + n, f"{time.time():.6f} {'x' * 81}") for n in range(1000)]
        body = "".join(sink._lines(f"bare-{record.sequence}", record) for record in batch)
        began = time.monotonic()
        connection.request("POST", "/_bulk?filter_path=errors", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        middle = time.monotonic()
        sink.send(batch)
        spent = [spent[0] + middle - began, spent[1] + time.monotonic() - middle]
        rounds += 1
    stop(server.process)
    return rounds * 1000 / spent[0], rounds * 1000 / spent[1]


def latency(seconds: float) -> float:
    """The 99th percentile of the seconds from a line's writing to its record in the file sink, at 100 lines/s."""
    with tempfile.TemporaryDirectory() as folder:
        top, stop = Path(folder), threading.Event()
        out, seen = top / "out.jsonl", list[float]()
        (sink,) = make_sinks(parse(f"file;{out}"), SinkContext())
        watcher = threading.Thread(target=_watch, args=(out, seen, stop))
        watcher.start()
        asyncio.run(ship(top, sink, 100, seconds))
        stop.set()
        watcher.join()
        return sorted(seen)[int(len(seen) * 0.99)]


def _watch(path: Path, seen: list[float], stop: threading.Event) -> None:
    while not path.exists():
        time.sleep(0.01)
    with open(path) as file:
        while not stop.wait(0.01):
            now = time.time()
            for line in file:
                seen.append(now - float(json.loads(line)["message"].split()[0]))


async def _idle(seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (sink,) = make_sinks(parse(f"file;{top / 'out.jsonl'}"), SinkContext())
        log = LogShip(ORIGIN, top, Masker(), [sink], top / "spool")
        for number in range(4):
            (top / f"{number}.log").write_text("a line\n")
            log.follow(top / f"{number}.log")
        log.start()
        await asyncio.sleep(3)
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - cpu
        await log.finish(Deadline(5))
        return used / seconds


def measure(seconds: float, sinks: Sequence[str] = SINKS) -> dict[str, list[float]]:
    """All numbers, as the table of benchmarks wants them: `log_p99`, `log_idle`, and `log_SINK` for each, in percent.

    Args:
        seconds: of each run.
        sinks: names in `SINKS`.
    """
    print("live logs: latency and idle cost", file=sys.stderr)
    samples = {"log_p99": [latency(seconds)], "log_idle": [100 * asyncio.run(_idle(max(seconds, 10.0)))]}
    samples |= {"log_memory": [], "log_behind": [], "log_missing": []}
    for kind in sinks:
        print(f"live logs: {kind}", file=sys.stderr)
        found = throughput(kind, seconds)
        samples[f"log_{kind}"] = [100 * found["core"]]
        samples["log_memory"].append(found["memory"])
        samples["log_behind"].append(found["behind"])
        samples["log_missing"].append(found["lines"] - found.get("arrived", found["lines"]) + found["lost"])
    return samples


def _rss() -> float:
    """MiB now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("sinks", nargs="*", metavar="SINK", help=", ".join(SINKS))
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    print(f"latency p99 at 100 lines/s: {latency(args.seconds):.2f} s (at most 1)")
    print(f"four quiet files: {asyncio.run(_idle(args.seconds)):.3%} of a core (at most 0.05 %)")
    for kind in args.sinks or SINKS:
        found = throughput(kind, args.seconds)
        arrived = found.get("arrived", found["lines"])
        print(
            f"{kind:21} {found['lines'] / args.seconds:6.0f} lines/s, {found['core']:4.0%} of a core (at most 30 %), "
            f"{found['behind']:.1f} s behind, {found['memory']:+.1f} MiB, {arrived} of {found['lines']} arrived"
        )
        if kind == "opensearch":
            bare, ours = indexing(args.seconds)
            print(f"{'':21} {ours:6.0f} lines/s with all fields indexed, {ours / bare:.0%} of a bare loop ({bare:.0f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
