"""One line that says how far transfers are: `stage-in: 3 of 8 files, 1.2 of 4.0 GB, 85.3 MB/s, 33 s left`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pilot.staging.result import Progress

#: Seconds over which the speed is that of now.
RECENT = 10.0

_UNITS = ("B", "kB", "MB", "GB", "TB")


class ProgressLine:
    """The line about one call; each who shows it has one of these, since the speed is that between his looks.

    Args:
        progress: of the call.
        clock: seconds.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._seen = deque([(clock(), progress.moved)])

    def text(self) -> str:
        """The line as it is now."""
        progress, moved = self._progress, self._progress.moved
        speed = self._speed(moved)
        parts = [f"{progress.direction.value}: {progress.done} of {progress.files} files", _of(moved, progress.bytes)]
        if speed:
            parts.append(f"{size(int(speed))}/s")
        if speed and progress.bytes > moved:
            parts.append(f"{duration((progress.bytes - moved) / speed)} left")
        return ", ".join(parts)

    def _speed(self, moved: int) -> float:
        now = self._clock()
        while len(self._seen) > 1 and self._seen[1][0] <= now - RECENT:
            self._seen.popleft()
        since, before = self._seen[0]
        self._seen.append((now, moved))
        return max(0.0, (moved - before) / (now - since)) if now > since else 0.0


def _of(moved: int, total: int) -> str:
    if total < moved or not total:
        return size(moved)
    part, unit = size(moved).split()
    whole = size(total)
    return f"{part} of {whole}" if whole.endswith(" " + unit) else f"{part} {unit} of {whole}"


def size(count: int) -> str:
    """Bytes for a person: `999 B`, `1.2 kB`, `3.4 MB`."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {_UNITS[-1]}"


def duration(seconds: float) -> str:
    """Seconds for a person: `33 s`, `4 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
