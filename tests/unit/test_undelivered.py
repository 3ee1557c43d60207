"""What is delivered later: a place that hangs holds up no stop."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from pilot import undelivered
from pilot.errors import Code, PilotError
from pilot.stop import Stop


def test_a_stop_does_not_wait_for_a_place_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def find(places: object) -> list[Path]:
        gate.wait(10)
        return []

    monkeypatch.setattr(undelivered, "find", find)

    async def scenario() -> int:
        stop = Stop()
        asyncio.get_running_loop().call_later(0.05, stop.request, PilotError(Code.SIGTERM, "a stop"))
        return await undelivered.deliver_all(None, [tmp_path], stop)  # type: ignore[arg-type]

    started = time.monotonic()
    assert asyncio.run(scenario()) == 0
    gate.set()
    assert time.monotonic() - started < 2
