"""What jobMetrics tell of a payload, beside what a report has fields for (PILOT3 2.7)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilot.job import Job
from pilot.left import open_left
from pilot.server.report import Usage
from pilot.watch.timeline import TABLE

#: Bytes that are read of a file: a time line of some weeks.
_LONGEST = 4 << 20

#: Points of a time line that a leak is fitted to, at least; those before and after them, when memory is taken and given
#: back (as Pilot 3).
_FEWEST, _HEAD, _TAIL = 8, 5, 2


def payload_metrics(job: Job, usage: Usage, workdir: Path, size: int, gpus: Mapping[str, Any]) -> dict[str, str]:
    """Those that are known.

    Args:
        job: whose payload it was.
        usage: of that.
        workdir: the job directory.
        size: bytes, the most that was in it.
        gpus: of the node, as prmon has them; empty for none.
    """
    own = size - sum(_size(workdir / file.lfn) for file in (*job.inputs, *job.outputs))
    needed = sum(file.size or 0 for file in job.inputs)
    found = {
        "actualCoreCount": int((usage.cores or 0) + 0.5) or "",
        "workDirSize": own if own > 0 else "",
        **_leak(workdir / TABLE),
        "eventnumber": _event(workdir / "eventLoopHeartBeat.txt"),
        "readbyterate": f"{usage.tot_rbytes / needed:.2f}" if needed and usage.tot_rbytes else "",
        "GPU_name": gpus.get("gpu_0", {}).get("name", ""),
        "nGPU": gpus.get("nGPU") or "",
    }
    return {name: str(value) for name, value in found.items() if value != ""}


def _size(path: Path) -> int:
    """Of a file; 0 for a link, whose target is not in the job directory."""
    try:
        return 0 if path.is_symlink() else path.stat().st_size
    except OSError:
        return 0


def _event(path: Path) -> str:
    found = re.findall(rb" done processing event #(\d+),", _read(path)[-2000:])
    return found[-1].decode() if found else ""


def _leak(table: Path) -> dict[str, str]:
    """The slope of PSS and swap over time, kB/s, with chi square and where it begins; nothing for a short time line."""
    points = list(_points(_read(table).decode(errors="replace").splitlines()))
    points = points[_HEAD : len(points) - _TAIL] if len(points) >= _FEWEST + _HEAD + _TAIL else points
    if len(points) < _FEWEST:
        return {}
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    if not slope:
        return {}
    start = mean_y - slope * mean_x
    expected = [(y, slope * x + start) for x, y in points]
    chi2 = sum((y - line) ** 2 / line for y, line in expected if line)
    return {"leak": f"{slope:.2f}", "chi2": f"{chi2:.2f}", "intersect": f"{start:.2f}"}


def _points(lines: Sequence[str]) -> Iterator[tuple[float, float]]:
    names = lines[0].split() if lines else []
    for line in lines[1:]:
        try:
            row = dict(zip(names, map(float, line.split()), strict=True))
            yield row["Time"], row["pss"] + row["swap"]
        except (ValueError, KeyError):  # the payload's own words, or half a line
            continue


def _read(path: Path) -> bytes:
    try:
        with open_left(path) as file:
            return file.read(_LONGEST)
    except OSError:
        return b""
