"""Live logs that pilots send to the devserver, kept for its page: the last lines of each job, in memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

#: Lines kept of a job, characters of one, and jobs whose lines are kept. 10,000 lines of 100 bytes are 5 MB.
LINES, LINE_SIZE, JOBS = 10_000, 8192, 50
#: Lines given at once.
PAGE = 1000


class LogBook:
    """Takes events in the form of the sink `logstash`, and gives them to who waits for them."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._jobs: dict[str, deque[dict[str, Any]]] = {}
        self._count = 0

    def add(self, value: Any) -> int:
        """Take an event or a list of them; how many had a right form."""
        events = [event for event in (value if isinstance(value, list) else [value]) if isinstance(event, Mapping)]
        with self._news:
            for event in events:
                self._keep(event)
            self._news.notify_all()
        return len(events)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """What the last line of each job says: its phase, file and time."""
        with self._news:
            return {
                job: {key: lines[-1][key] for key in ("phase", "file", "time")} | {"lines": len(lines)}
                for job, lines in self._jobs.items()
            }

    def after(self, job: str, number: int, wait: float = 0.0) -> dict[str, Any]:
        """Lines of a job after the one with this number.

        Args:
            job: its id as text.
            number: of the last line that is known, 0 for none.
            wait: seconds to wait for the first such line.
        """
        deadline = time.monotonic() + wait
        with self._news:
            while not (found := self._newer(job, number)) and (left := deadline - time.monotonic()) > 0:
                self._news.wait(left)
        return {"lines": found, "next": found[-1]["n"] if found else number}

    def _newer(self, job: str, number: int) -> list[dict[str, Any]]:
        lines = self._jobs.get(job, ())
        if not lines or lines[-1]["n"] <= number:
            return []
        return [line for line in lines if line["n"] > number][:PAGE]

    def _keep(self, event: Mapping[str, Any]) -> None:
        job = str(event.get("PandaJobID", ""))[:20]
        if job not in self._jobs:
            while len(self._jobs) >= JOBS:
                del self._jobs[next(iter(self._jobs))]
            self._jobs[job] = deque(maxlen=LINES)
        self._count += 1
        texts = {key: str(event.get(key, ""))[:200] for key in ("severity", "phase", "file")}
        message = str(event.get("message", event))[:LINE_SIZE]
        numbers = {"n": self._count, "time": event.get("PilotTimeStamp"), "seq": event.get("seq")}
        self._jobs[job].append({**numbers, **texts, "message": message})
