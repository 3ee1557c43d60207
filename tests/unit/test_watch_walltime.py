"""A job ends when its time is up: not earlier, and hardly later."""

import asyncio
import math
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import Code, PilotError
from pilot.stop import Deadline, Stop
from pilot.watch.look import watch
from pilot.watch.walltime import Walltime


def test_an_end_that_never_comes_is_looked_at_once():
    assert Walltime(Deadline(), "nobody's").look() == float("inf")


@given(st.floats(1, 1e7))
def test_the_next_look_is_not_after_the_end(seconds):
    assert Walltime(Deadline(seconds), "").look() <= seconds


def test_time_that_is_up_is_said_with_whose_limit_it_was():
    with pytest.raises(PilotError) as caught:
        Walltime(Deadline(0), "the job may run 3600 s").look()
    assert caught.value.code is Code.REACHEDMAXTIME
    assert caught.value.diag == "Reached batch system time limit: the job may run 3600 s"


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.0, 3600.0, 4 * 86400.0])
def test_a_watch_sees_the_end_within_a_tenth_of_a_second(monkeypatch, seconds):
    """On a clock of its own that jumps from look to look: the waits of four days add up to four days."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pilot.stop.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Jumping(Stop):
        async def wait(self, seconds=math.inf):
            clock.now += seconds
            return self.requested

    async def main():
        stop = Jumping()
        await watch([Walltime(Deadline(seconds), "the slot ends")], stop, 25)
        return stop.reason.code

    assert asyncio.run(main()) is Code.REACHEDMAXTIME
    assert seconds <= clock.now <= seconds + 0.1


def test_a_watch_sees_the_end_on_the_real_clock_too():
    async def main():
        stop = Stop()
        began = time.monotonic()
        await asyncio.wait_for(watch([Walltime(Deadline(0.3), "the slot ends")], stop, 25), 10)
        return time.monotonic() - began

    assert 0.3 <= asyncio.run(main()) <= 0.8
