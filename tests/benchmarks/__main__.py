"""Measure this pilot, and Pilot 3 beside it, and print one table. Only a run that broke is an error."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

import pytest

from tests.benchmarks import bench_logship
from tests.benchmarks.measures import Bench, Plan
from tests.benchmarks.pilots import ROOT, BrokenRunError, Pilot, ours
from tests.benchmarks.table import table

FULL = Plan(runs=9, slots=3, sleeps=3, stops=3, jobs=20, sleep=60.0)
QUICK = Plan(runs=3, slots=1, sleeps=1, stops=1, jobs=20, sleep=10.0)
# One job of Pilot 3 takes half a minute, a stop three: few of its runs are enough to see the order.
PEER_FULL = Plan(runs=3, slots=1, sleeps=1, stops=1, jobs=3, sleep=60.0)
PEER_QUICK = Plan(runs=1, slots=1, sleeps=1, stops=1, jobs=2, sleep=10.0)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, a payload that sleeps 10 s and not 60")
    parser.add_argument("--no-peer", action="store_true", help="leave Pilot 3 out")
    parser.add_argument("--no-logs", action="store_true", help="leave live logs out")
    parser.add_argument("--dir", type=Path, default=ROOT / ".cache" / "benchmarks", help="where to work (%(default)s)")
    args = parser.parse_args()
    plan, peer_plan = (QUICK, PEER_QUICK) if args.quick else (FULL, PEER_FULL)
    peer = None if args.no_peer else _pilot3()
    try:
        theirs = Bench(peer, peer_plan, args.dir).measure() if peer else {}
        mine = Bench(ours(), plan, args.dir).measure()
        mine |= {} if args.no_logs else bench_logship.measure(3.0 if args.quick else 20.0)
    except BrokenRunError as error:
        print(f"a run broke: {error}", file=sys.stderr)
        return 1
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; median (least to most)\n")
    for line in table(plan, mine, theirs, peer.name if peer else "Pilot 3"):
        print(line)
    return 0


def _pilot3() -> Pilot | None:
    """Pilot 3, or None where it cannot run."""
    from tests.benchmarks.peer import pilot3

    try:
        return pilot3()
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        print(f"without Pilot 3: {reason}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
