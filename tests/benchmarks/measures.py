"""What is measured, each with the runs it takes."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pilot.devserver.client import DevServerError
from tests.benchmarks.field import Field
from tests.benchmarks.pilots import BrokenRunError, Pilot, Run

#: From a payload's start to what is measured while it runs, s: the pilot has come to rest.
_SETTLE = 2.0
#: How long a payload sleeps that is to be stopped, s.
_LONG = 600.0

Samples = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        runs: of one empty job. slots: of many empty jobs. sleeps, stops: of the others.
        jobs: in a slot of many.
        sleep: how long CPU is counted while a payload sleeps, s.
    """

    runs: int
    slots: int
    sleeps: int
    stops: int
    jobs: int
    sleep: float


@dataclass
class Bench:
    """Measures one pilot.

    Args:
        pilot: which.
        plan: how much.
        top: where; each run has a directory of its own, which stays only if the run broke.
    """

    pilot: Pilot
    plan: Plan
    top: Path
    samples: Samples = field(default_factory=dict)
    _number: int = 0

    def measure(self) -> Samples:
        """Measure all of it."""
        plan = self.plan
        self._repeat("one empty job", plan.runs, self._one_job)
        self._repeat(f"{plan.jobs} empty jobs in one slot", plan.slots, self._many_jobs)
        self._repeat(f"a payload that sleeps {plan.sleep:g} s", plan.sleeps, self._sleep)
        self._repeat("SIGTERM, the payload obeys", plan.stops, lambda: self._stop("sleep"))
        self._repeat("SIGTERM, the payload ignores it", plan.stops, lambda: self._stop("ignore"))
        return self.samples

    def _repeat(self, what: str, count: int, once: Callable[[], None]) -> None:
        for number in range(count):
            print(f"{self.pilot.name}: {what}, run {number + 1} of {count}", file=sys.stderr)
            once()

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self.samples.setdefault(name, []).append(value)

    @contextmanager
    def _field(self, timefloor: int = 0) -> Iterator[Field]:
        self._number += 1
        top = self.top / f"{self.pilot.api}-{self._number}"
        shutil.rmtree(top, ignore_errors=True)
        try:
            with Field(top, api=self.pilot.api, timefloor=timefloor) as place:
                yield place
        except (OSError, DevServerError) as error:
            raise BrokenRunError(f"{self.pilot.name} in {top}: {error}") from error
        shutil.rmtree(top)

    def _one_job(self) -> None:
        with self._field() as place:
            (job_id,) = place.submit()
            with self.pilot.start(place) as run:
                run.finish()
            _expect(place, run, {job_id: "finished"})
            own = place.reported()[job_id] - place.acquired()[job_id]
            self._add(own=own, whole=run.seconds, peak_one=run.peak)

    def _many_jobs(self) -> None:
        with self._field(timefloor=60) as place:
            ids = place.submit(self.plan.jobs)
            with self.pilot.start(place) as run:
                run.finish()
            _expect(place, run, dict.fromkeys(ids, "finished"))
            seconds = max(place.reported().values()) - min(place.acquired().values())
            self._add(rate=len(ids) / seconds, peak_many=run.peak)

    def _sleep(self) -> None:
        with self._field() as place:
            length = self.plan.sleep + 2 * _SETTLE
            (job_id,) = place.submit(mode="sleep", seconds=length)
            with self.pilot.start(place) as run:
                place.wait_running(job_id)
                time.sleep(_SETTLE)
                before, started = run.cpu_seconds(), time.monotonic()
                threads = run.threads()
                time.sleep(self.plan.sleep)
                share = (run.cpu_seconds() - before) / (time.monotonic() - started)
                run.finish(length)
            _expect(place, run, {job_id: "finished"})
            self._add(cpu=100 * share, threads=threads)

    def _stop(self, mode: str) -> None:
        with self._field() as place:
            (job_id,) = place.submit(mode=mode, seconds=_LONG)
            with self.pilot.start(place) as run:
                place.wait_running(job_id)
                time.sleep(_SETTLE)
                sent = run.signal(signal.SIGTERM)
                run.finish()
            _expect(place, run, {job_id: "failed"})
            log = place.log_of(job_id)
            kept = log.exists() and log.name in place.server.job(job_id)["files"]
            self._add(**{f"stop_{mode}": place.reported()[job_id] - sent, f"log_{mode}": float(kept)})


def _expect(place: Field, run: Run, states: dict[int, str]) -> None:
    found = place.server.states()
    if found != states:
        raise BrokenRunError(f"jobs are {found}, exit code {run.exit_code}; see {place.top}/pilot.out")
