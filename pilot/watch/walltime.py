"""Look at the clock: the job's own limit, and the end of the slot."""

from __future__ import annotations

from pilot.errors import Code, PilotError
from pilot.job import Job
from pilot.queuedata import Queue
from pilot.stop import Deadline

#: Longest time after the end that it is seen, s.
_LATEST = 0.1


class Walltime:
    """REACHEDMAXTIME (1213) when time is up.

    Args:
        deadline: when it is.
        what: whose limit it is, for the text: `queue maxtime 3600 s`.
    """

    slow = False

    def __init__(self, deadline: Deadline, what: str) -> None:
        self._deadline = deadline
        self._what = what

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self._deadline.remaining

    def look(self) -> float:
        """One look now, and some at the end: waits are a little shorter than they should be."""
        if self._deadline.expired:
            raise PilotError(Code.REACHEDMAXTIME, self._what)
        return max(_LATEST, self._deadline.remaining)


def slot_seconds(queue: Queue, lifetime: float) -> tuple[float, str]:
    """How long a pilot may live in this queue, s, and what says so: `maxtime` of the queue, else its own lifetime."""
    if queue.maxtime:
        return queue.maxtime, f"maxtime of the queue is {queue.maxtime} s"
    return lifetime, f"the pilot's lifetime is {lifetime:.0f} s"


def job_seconds(job: Job, queue: Queue, lifetime: float) -> tuple[float, str]:
    """How long a job may run, s since its start, and what says so (PILOT3 5.4).

    That is what the slot may live, or the job's own `maxWalltime` where the queue says `job_maxwalltime`; then
    `pilot_walltime_grace` of the queue comes on top.
    """
    seconds, what = slot_seconds(queue, lifetime)
    if queue.job_maxwalltime and job.max_walltime:
        seconds, what = job.max_walltime, f"maxWalltime of the job is {job.max_walltime} s"
    if queue.walltime_grace != 1:
        what = f"{what}, times {queue.walltime_grace:g} of the queue"
    return seconds * queue.walltime_grace, what
