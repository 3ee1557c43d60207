"""A stop ends work within a budget of seconds, loses no result, and keeps its first reason."""

import asyncio
import gc
import logging
import math
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import Code, PilotError
from pilot.stop import Deadline, Stop, in_thread

REASON = PilotError(Code.SIGTERM, "the batch system wants the slot back")
OTHER = PilotError(Code.PANDAKILL, "the server wants no more of it")


# ---------------------------------------------------------------------------------------------------------- deadlines


def test_a_deadline_without_seconds_never_comes():
    deadline = Deadline()
    assert (deadline.remaining, deadline.expired, deadline.less(1e9).remaining) == (math.inf, False, math.inf)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_what_is_left_is_never_negative_and_never_more_than_there_was(seconds, kept):
    deadline = Deadline(seconds)
    assert 0 <= deadline.remaining <= max(0, seconds)
    assert deadline.expired == (seconds <= 0) or seconds < 1
    assert 0 <= deadline.less(kept).remaining <= max(0, seconds - kept) + 1e-9


def test_a_deadline_comes_when_its_seconds_are_over():
    deadline = Deadline(0.05)
    assert not deadline.expired
    time.sleep(0.06)
    assert deadline.expired


# -------------------------------------------------------------------------------------------------------------- stops


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=6))
def test_the_first_reason_stays_and_the_time_left_only_shrinks(graces):
    stop = Stop()
    child = Stop(stop)
    for number, grace in enumerate(graces):
        stop.request(PilotError(Code.SIGTERM, str(number)), grace)
        for one in (stop, child):
            assert one.reason.detail == "0"
            assert one.deadline.remaining <= min(graces[: number + 1])
    assert stop.deadline.remaining >= min(graces) - 1


def test_a_stop_reaches_the_children_and_not_the_parent():
    parent = Stop()
    first, second = Stop(parent), Stop(parent)
    first.request(OTHER, 5)
    assert (parent.requested, second.requested) == (False, False)
    parent.request(REASON, 2)
    assert (first.reason, second.reason) == (OTHER, REASON)
    assert first.deadline.remaining <= 2


def test_a_child_that_comes_late_is_stopped_at_once_with_what_is_left():
    parent = Stop()
    parent.request(REASON, 3)
    child = Stop(parent)
    assert child.reason is REASON
    assert child.deadline.remaining <= 3


def test_a_child_that_was_detached_is_left_alone():
    parent = Stop()
    child = Stop(parent)
    parent.detach(child)
    parent.request(REASON)
    assert not child.requested


def test_check_raises_the_reason_and_nothing_before():
    stop = Stop()
    stop.check()
    stop.request(REASON)
    with pytest.raises(PilotError) as caught:
        stop.check()
    assert caught.value is REASON


def test_a_wait_ends_as_soon_as_the_stop_comes():
    async def main():
        stop = Stop()
        asyncio.get_running_loop().call_later(0.05, stop.request, REASON)
        began = time.monotonic()
        return await stop.wait(30), time.monotonic() - began

    came, took = asyncio.run(main())
    assert came
    assert 0.04 < took < 1


@pytest.mark.parametrize("seconds", [-1, 0, 0.02])
def test_a_wait_that_nothing_ends_says_so(seconds):
    assert asyncio.run(Stop().wait(seconds)) is False


@pytest.mark.parametrize("seconds", [-1, 0, 1e-9, 1, math.inf])
def test_a_stop_that_came_before_the_wait_is_seen_however_short_it_is(seconds):
    stop = Stop()
    stop.request(REASON)
    assert asyncio.run(stop.wait(seconds)) is True


def test_a_wait_that_is_cancelled_in_the_moment_of_the_stop_is_cancelled():
    async def main():
        stop = Stop()
        waiting = asyncio.ensure_future(stop.wait(30))
        await asyncio.sleep(0.01)
        stop.request(REASON)
        waiting.cancel()
        await asyncio.wait({waiting})
        return waiting.cancelled()

    assert asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- guard


async def guarded(work, *, stop_after=0.02, stop=None):
    stop = stop or Stop()
    asyncio.get_running_loop().call_later(stop_after, stop.request, REASON)
    return await stop.guard(work)


async def ends_well(log, seconds=60.0):
    try:
        await asyncio.sleep(seconds)
    finally:
        log.append("cleaning")
        await asyncio.sleep(0.02)
        log.append("cleaned")
    return "done"


def test_guard_gives_the_result_of_work_that_no_stop_disturbs():
    assert asyncio.run(guarded(ends_well([], 0.01), stop_after=5)) == "done"


def test_guard_raises_the_error_of_work_that_no_stop_disturbs():
    async def fails():
        raise OTHER

    with pytest.raises(PilotError) as caught:
        asyncio.run(guarded(fails(), stop_after=5))
    assert caught.value is OTHER


def test_guard_raises_the_reason_after_the_work_has_cleaned_up():
    log = []
    with pytest.raises(PilotError) as caught:
        asyncio.run(guarded(ends_well(log)))
    assert caught.value is REASON
    assert log == ["cleaning", "cleaned"]


def test_guard_starts_nothing_after_the_stop():
    async def main():
        stop, log = Stop(), []
        stop.request(REASON)
        with pytest.raises(PilotError):
            await stop.guard(ends_well(log))
        return log

    assert asyncio.run(main()) == []


def test_an_error_that_comes_of_the_cancelling_does_not_hide_the_reason():
    async def breaks():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError("connection closed") from None

    with pytest.raises(PilotError) as caught:
        asyncio.run(guarded(breaks()))
    assert caught.value is REASON


def test_work_that_ends_well_in_spite_of_the_stop_keeps_its_result():
    async def arrives():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "the file is here"

    assert asyncio.run(guarded(arrives())) == "the file is here"


def test_work_that_is_done_in_the_moment_of_the_stop_keeps_its_result():
    async def main():
        stop, event = Stop(), asyncio.Event()
        work = asyncio.ensure_future(stop.guard(awaits(event)))
        await asyncio.sleep(0.01)
        event.set()
        stop.request(REASON)
        return await work

    async def awaits(event):
        await event.wait()
        return "in time"

    assert asyncio.run(main()) == "in time"


@pytest.mark.parametrize("also_stopped", [False, True])
def test_who_cancels_a_guard_has_the_work_cleaned_up_when_it_is_over(also_stopped):
    async def main():
        stop, log = Stop(), []
        work = asyncio.ensure_future(stop.guard(ends_well(log)))
        await asyncio.sleep(0.01)
        if also_stopped:
            stop.request(REASON)
        work.cancel()
        await asyncio.wait({work})
        return work.cancelled(), log, asyncio.all_tasks() - {asyncio.current_task()}

    cancelled, log, left = asyncio.run(main())
    assert (cancelled, log, left) == (True, ["cleaning", "cleaned"], set())


def test_a_second_cancellation_still_waits_for_the_work():
    async def main():
        stop, log = Stop(), []
        work = asyncio.ensure_future(stop.guard(stubborn(log)))
        await asyncio.sleep(0.01)
        for _ in range(2):
            work.cancel()
            await asyncio.sleep(0.01)
        await asyncio.wait({work})
        return work.cancelled(), log

    async def stubborn(log):
        for _ in range(2):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                log.append("told")
        await asyncio.sleep(0.05)
        log.append("gone")

    assert asyncio.run(main()) == (True, ["told", "told", "gone"])


def test_no_error_is_left_that_asyncio_complains_of(caplog):
    async def breaks():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("nobody waits for this") from None

    async def main():
        work = asyncio.ensure_future(Stop().guard(breaks()))
        await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.wait({work})

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        asyncio.run(main())
        gc.collect()
    assert caplog.records == []


# ------------------------------------------------------------------------------------------------------------ threads


def test_blocking_work_runs_in_a_daemon_thread_and_the_loop_goes_on():
    async def main():
        ticks = 0
        work = asyncio.ensure_future(in_thread(blocking, 0.1))
        while not work.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return await work, ticks

    def blocking(seconds):
        time.sleep(seconds)
        return threading.current_thread().daemon, threading.current_thread().name

    (daemon, name), ticks = asyncio.run(main())
    assert (daemon, name) == (True, "blocking")
    assert ticks > 5


def test_an_error_in_a_thread_is_raised_where_it_is_awaited():
    def fails():
        raise OTHER

    with pytest.raises(PilotError) as caught:
        asyncio.run(in_thread(fails))
    assert caught.value is OTHER


@pytest.mark.parametrize(
    "error", [SystemExit(3), StopIteration("at the end"), asyncio.CancelledError(), KeyboardInterrupt()]
)
def test_what_would_end_or_hang_the_loop_comes_out_of_a_thread_as_an_ordinary_error(error):
    def leaks():
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        asyncio.run(asyncio.wait_for(in_thread(leaks), 5))
    assert caught.value.__cause__ is error


def test_a_thread_that_nobody_waits_for_any_more_disturbs_nothing(caplog):
    released, ended = threading.Event(), threading.Event()

    def slow():
        released.wait(5)
        ended.set()
        raise OTHER

    async def main():
        work = asyncio.ensure_future(in_thread(slow))
        await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.wait({work})
        released.set()
        await asyncio.sleep(0.05)
        return work.cancelled()

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        assert asyncio.run(main())
    assert ended.is_set()
    assert caplog.records == []


def test_a_thread_that_ends_after_its_loop_is_silent():
    program = """
import asyncio, threading, time
from pilot.stop import in_thread
ended = threading.Event()
def slow():
    time.sleep(0.2)
    ended.set()
async def main():
    asyncio.ensure_future(in_thread(slow))
    await asyncio.sleep(0.01)
asyncio.run(main())
ended.wait(5)
time.sleep(0.05)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thread_that_hangs_does_not_keep_the_pilot_from_exiting():
    program = """
import asyncio, time
from pilot.stop import in_thread
async def main():
    asyncio.ensure_future(in_thread(time.sleep, 60))
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    assert time.monotonic() - began < 5


def test_a_stop_may_be_looked_at_from_a_thread():
    async def main():
        stop = Stop()
        asyncio.get_running_loop().call_later(0.03, stop.request, REASON)
        await in_thread(until, stop)

    def until(stop):
        while True:
            stop.check()
            time.sleep(0.001)

    with pytest.raises(PilotError) as caught:
        asyncio.run(main())
    assert caught.value is REASON
