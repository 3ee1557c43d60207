"""Heartbeats: in order, frequent when they matter, never lost to one bug, and over when they are cancelled."""

import asyncio
import logging
import time

import pytest

from pilot.errors import Code, ServerError
from pilot.server.report import Reply, State
from pilot.stop import Stop
from pilot.watch import heartbeat as room
from pilot.watch.heartbeat import Heartbeat


class Server:
    """Takes updates; answers them by a script, the rest well."""

    def __init__(self, *answers, delay=0.0):
        self.answers = list(answers)
        self.delay = delay
        self.states = []
        self.times = []
        self.heard = []

    async def send(self, state, deadline):
        assert deadline.remaining > 0
        await asyncio.sleep(self.delay)
        self.states.append(state)
        self.times.append(time.monotonic())
        answer = self.answers.pop(0) if self.answers else Reply()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def hear(self, reply):
        self.heard.append(reply)


async def beat(server, act, *, interval=1800.0, lost=1e9, heard=None):
    """Run a heartbeat while `act(heartbeat)` does something. Returns the stop."""
    stop = Stop()
    heartbeat = Heartbeat(server.send, heard or server.hear, stop, interval=interval, lost=lost)
    beating = asyncio.create_task(heartbeat.run())
    try:
        await act(heartbeat)
    finally:
        assert not beating.done()
        beating.cancel()
        await asyncio.wait({beating}, timeout=5)
    assert beating.cancelled()
    return stop


def run(server, act, **options):
    return asyncio.run(beat(server, act, **options))


def pause(seconds):
    return lambda _: asyncio.sleep(seconds)


TROUBLE = ServerError("connection refused")


def test_nothing_is_said_before_something_is_announced():
    server = Server()
    run(server, pause(0.1))
    assert server.states == []


def test_what_is_announced_is_sent_at_once_in_order_and_each_answer_is_heard():
    answer = Reply(command="debug")
    server = Server(answer)

    async def act(heartbeat):
        heartbeat.announce(State.STARTING)
        heartbeat.announce(State.RUNNING)
        await heartbeat.settle(5)

    run(server, act)
    assert server.states == [State.STARTING, State.RUNNING]
    assert server.heard == [answer, Reply()]


def test_a_slow_server_delays_neither_the_job_nor_the_order():
    server = Server(delay=0.5)

    async def act(heartbeat):
        began = time.monotonic()
        heartbeat.announce(State.STARTING)
        await asyncio.sleep(0.02)
        heartbeat.announce(State.RUNNING)
        assert time.monotonic() - began < 0.4
        await heartbeat.settle(5)
        heartbeat.announce(State.TRANSFERRING)
        await heartbeat.settle(5)

    run(server, act)
    assert server.states == [State.STARTING, State.RUNNING, State.TRANSFERRING]


def test_the_last_state_is_repeated_at_the_interval_and_not_in_step():
    server = Server()

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.6)

    run(server, act, interval=0.05)
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert set(server.states) == {State.RUNNING}
    assert 4 <= len(gaps) <= 14
    assert min(gaps) >= 0.04


def test_beats_are_frequent_while_the_job_is_young(monkeypatch):
    """With 40 ms for the first period and 10 s as interval: after about 40, 120, 280 and 600 ms."""
    monkeypatch.setattr(room, "_YOUNG", 0.04)
    server = Server()

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.45)

    run(server, act, interval=10)
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert 2 <= len(gaps) <= 3
    assert gaps == sorted(gaps)


def test_a_failed_beat_is_repeated_soon_and_as_soon_again(monkeypatch):
    monkeypatch.setattr(room, "_YOUNG", 0.05)
    server = Server(*[TROUBLE] * 100)

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.5)

    run(server, act, interval=10)
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) >= 5
    assert server.heard == []


def test_a_state_that_did_not_arrive_is_in_the_next_beat(monkeypatch):
    monkeypatch.setattr(room, "_YOUNG", 0.02)
    server = Server(TROUBLE)

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.1)

    run(server, act)
    assert server.states[:2] == [State.RUNNING, State.RUNNING]
    assert server.heard[0] == Reply()


@pytest.mark.parametrize("where", ["send", "heard"])
def test_a_bug_in_one_update_does_not_end_those_that_follow(monkeypatch, caplog, where):
    monkeypatch.setattr(room, "_YOUNG", 0.02)
    bug = KeyError("no such field")
    server = Server(*[bug] if where == "send" else [])

    def heard(reply):
        server.hear(reply)
        if where == "heard" and len(server.heard) == 1:
            raise bug

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.15)

    with caplog.at_level(logging.ERROR):
        run(server, act, heard=heard)
    assert len(server.states) >= 2
    assert len(server.heard) >= 1 if where == "send" else 2
    assert "no such field" in caplog.text


def test_a_server_that_is_silent_for_too_long_ends_the_job(monkeypatch):
    monkeypatch.setattr(room, "_YOUNG", 0.02)
    server = Server(*[TROUBLE] * 100)

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.3)

    stop = run(server, act, lost=0.1)
    assert stop.reason.code is Code.EXCEEDEDMAXWAITTIME
    assert "lost heartbeat" in stop.reason.detail


def test_a_server_that_answers_now_and_then_ends_nothing(monkeypatch):
    monkeypatch.setattr(room, "_YOUNG", 0.02)
    server = Server(*[TROUBLE, Reply()] * 100)

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0.4)

    assert not run(server, act, lost=0.2).requested


@pytest.mark.parametrize("patience", [0.0, 0.05])
def test_settling_waits_no_longer_than_it_may(caplog, patience):
    server = Server(delay=30)

    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        began = time.monotonic()
        with caplog.at_level(logging.INFO):
            await heartbeat.settle(patience)
        assert time.monotonic() - began < patience + 1

    run(server, act)
    assert "still on its way" in caplog.text


@pytest.mark.parametrize("patience", [0.0, 5.0])
def test_settling_is_over_at_once_when_all_was_sent(caplog, patience):
    async def act(heartbeat):
        heartbeat.announce(State.RUNNING)
        await heartbeat.settle(5)
        with caplog.at_level(logging.INFO):
            await heartbeat.settle(patience)

    run(Server(), act)
    assert "still on its way" not in caplog.text


def test_a_cancellation_in_the_moment_of_an_announcement_ends_it():
    """Else it would beat on after the final report. `beat` checks that the task is cancelled."""

    async def act(heartbeat):
        await asyncio.sleep(0.02)
        heartbeat.announce(State.RUNNING)
        await asyncio.sleep(0)

    server = Server(delay=0.01)
    run(server, act)
    assert server.states == []
