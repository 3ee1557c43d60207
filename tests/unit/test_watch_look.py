"""The watch: every look has its own rhythm, the first that finds its limit passed ends the job, no other is blinded."""

import asyncio
import logging
import math
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import Code, PilotError
from pilot.stop import Stop
from pilot.watch import look as room
from pilot.watch.look import nearness, watch

FULL = PilotError(Code.NOLOCALSPACE, "nothing left")


class Scripted:
    """A look that returns or raises what it is given, then never wants to look again."""

    def __init__(self, *answers, slow=False):
        self.slow = slow
        self.answers = list(answers)
        self.times = []
        self.threads = set()

    def look(self):
        self.times.append(time.monotonic())
        self.threads.add(threading.current_thread())
        answer = self.answers.pop(0) if self.answers else math.inf
        if isinstance(answer, BaseException):
            raise answer
        return answer


def run(looks, seconds=0.3, stop_after=None, grace=7.0):
    """Watch for at most so long. Returns the stop, and whether the watch ended by itself."""

    async def main():
        stop = Stop()
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.request, PilotError(Code.SIGTERM), 25)
        watching = asyncio.ensure_future(watch(looks, stop, grace))
        done, _ = await asyncio.wait({watching}, timeout=seconds)
        watching.cancel()
        await asyncio.wait({watching})
        if done:
            await watching
        return stop, bool(done)

    return asyncio.run(main())


def test_each_look_has_its_own_rhythm():
    often, seldom = Scripted(*[0.02] * 100), Scripted(60)
    stop, ended = run([often, seldom])
    assert 4 <= len(often.times) <= 20
    assert len(seldom.times) == 1
    assert (stop.requested, ended) == (False, False)


def test_the_first_look_that_finds_its_limit_passed_stops_the_job_with_its_error():
    stop, ended = run([Scripted(0.02, 0.02, FULL), Scripted(*[0.01] * 100), Scripted(60)])
    assert stop.reason is FULL
    assert stop.deadline.remaining == math.inf  # only the payload hurries: the log takes the time it takes
    assert ended


def test_the_end_of_the_slot_leaves_its_grace_for_all_that_follows():
    stop, _ = run([Scripted(PilotError(Code.REACHEDMAXTIME))])
    assert stop.deadline.remaining <= 7


def test_the_second_look_that_finds_its_limit_passed_changes_no_reason():
    stop, _ = run([Scripted(FULL), Scripted(PilotError(Code.LOOPINGJOB))])
    assert stop.reason is FULL


def test_a_watch_ends_with_the_stop_even_if_all_looks_sleep():
    began = time.monotonic()
    _, ended = run([Scripted(3600), Scripted(math.inf)], seconds=5, stop_after=0.05)
    assert ended
    assert time.monotonic() - began < 2


def test_a_watch_that_is_cancelled_is_over_at_once_also_while_a_slow_look_looks():
    blocked = threading.Event()

    class Hanging:
        slow = True

        def look(self):
            blocked.wait(5)
            return 1.0

    began = time.monotonic()
    try:
        run([Hanging(), Scripted(*[0.01] * 100)], seconds=0.1)
        assert time.monotonic() - began < 2
    finally:
        blocked.set()


def test_slow_looks_are_in_threads_and_quick_ones_are_not():
    slow, quick = Scripted(slow=True), Scripted()
    run([slow, quick], 0.1)
    assert slow.threads and threading.main_thread() not in slow.threads
    assert quick.threads == {threading.main_thread()}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "gone"), ValueError("a bug"), ExceptionGroup("two", [OSError()])]
)
def test_a_look_that_breaks_is_logged_and_tried_again_and_disturbs_no_other(monkeypatch, caplog, error, slow):
    monkeypatch.setattr(room, "_BLIND", 0.05)
    broken, other = Scripted(error, 0.01, FULL, slow=slow), Scripted(*[0.01] * 100)
    with caplog.at_level(logging.WARNING):
        stop, _ = run([broken, other], 2)
    assert stop.reason is FULL
    assert len(broken.times) == 3
    assert len(other.times) > 3
    assert "Scripted" in caplog.text and str(error) in caplog.text


def test_a_look_at_what_the_payload_removed_says_so_without_a_traceback(caplog, tmp_path):
    class Lister:
        slow = False

        def look(self):
            return float(len(os.listdir(tmp_path / "gone")))

    run([Lister()], 0.05)
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None


@given(st.floats(0, 1e15), st.floats(-1, 1e15), st.floats(0.1, 10), st.floats(10, 100))
def test_a_period_is_between_the_shortest_and_the_longest(value, limit, shortest, longest):
    assert shortest <= nearness(value, limit, shortest, longest) <= longest


@given(st.lists(st.floats(0, 2), min_size=2, max_size=10))
def test_the_nearer_to_the_limit_the_shorter_the_period(shares):
    periods = [nearness(share, 1.0, 1.0, 60.0) for share in sorted(shares)]
    assert periods == sorted(periods, reverse=True)
