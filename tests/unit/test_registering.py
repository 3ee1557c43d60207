"""When the pilot registers outputs, how often it tries, and what the journal then says."""

from __future__ import annotations

import asyncio
import time

import pytest

from pilot import registering
from pilot.errors import Code, PilotError
from pilot.job import File, Kind
from pilot.outcome import FileOutcome
from pilot.queuedata import Queue
from pilot.registering import TRIES, Registrar, wants_registration
from pilot.settings import Settings
from pilot.staging.catalogue import Catalogue, CatalogueContext, RegistrationError
from pilot.stop import Stop
from pilot.testing.copytool import Programs

DOWN = PilotError(Code.RUCIOSERVICEUNAVAILABLE, "nobody there")


class Book(Catalogue):
    """Fails with the errors it is given, one a call, then works."""

    name = "book"

    def __init__(self, *errors: PilotError, seconds: float = 0.0) -> None:
        super().__init__(CatalogueContext())
        self.errors, self.seconds, self.calls = list(errors), seconds, 0

    def replicas(self, files, handle, schemes=(), site=""):
        return {}

    def register(self, files, handle):
        self.calls += 1
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            handle.check()
            time.sleep(0.01)
        if self.errors:
            raise self.errors.pop(0)


def outcome(lfn: str) -> FileOutcome:
    return FileOutcome(file=File(lfn=lfn, kind=Kind.OUTPUT), url=f"root://x//{lfn}", size=1, checksums={})


def register(catalogue: Catalogue | None, stop: Stop | None = None) -> tuple[PilotError | None, list]:
    notes = []

    async def run():
        registrar = Registrar(catalogue, Programs(), lambda step, **facts: notes.append((step, facts["lfns"])), 0.001)
        await registrar.register([outcome("a"), outcome("b")], stop or Stop())

    try:
        asyncio.run(run())
    except PilotError as error:
        return error, notes
    return None, notes


def test_what_is_registered_is_noted():
    assert register(Book()) == (None, [("registered", ["a", "b"])])


def test_a_server_that_comes_back_is_found():
    book = Book(DOWN, DOWN)
    assert register(book) == (None, [("registered", ["a", "b"])])
    assert book.calls == 3


def test_a_server_that_stays_away_is_given_up_and_the_remainder_noted():
    book = Book(*[DOWN] * 9)
    assert register(book) == (DOWN, [("unregistered", ["a", "b"])])
    assert book.calls == TRIES


def test_what_never_works_is_tried_once():
    wrong = RegistrationError(Code.PUTADMISMATCH, "other content", ["b"])
    book = Book(wrong)
    assert register(book) == (wrong, [("unregistered", ["b"])])
    assert book.calls == 1


def test_one_try_has_its_time(monkeypatch):
    monkeypatch.setattr(registering, "TIMEOUT", 0.05)
    error, notes = register(Book(seconds=30))
    assert error.code is Code.STAGEOUTTIMEOUT
    assert notes == [("unregistered", ["a", "b"])]


def test_a_stop_ends_it_with_the_reason_of_the_stop():
    stop = Stop()
    reason = PilotError(Code.SIGTERM, "stopped")

    async def run():
        asyncio.get_running_loop().call_later(0.05, stop.request, reason)
        await Registrar(Book(seconds=30), Programs(), lambda *_, **__: None).register([outcome("a")], stop)

    started = time.monotonic()
    with pytest.raises(PilotError) as caught:
        asyncio.run(run())
    assert caught.value is reason
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("flags", "catchall", "wanted"),
    [
        ([], "", False),
        (["--catalogue", "rucio"], "", False),
        (["--catalogue", "rucio", "--register"], "", True),
        (["--catalogue", "rucio"], "other register", True),
        (["--catalogue", "rucio", "--register", "--output-dir", "/x"], "", False),
        (["--register"], "", None),
        ([], "register", None),
    ],
)
def test_who_registers(flags, catchall, wanted):
    settings = Settings.load(["-q", "Q", "--pilot-user", "generic", *flags], {})
    queue = Queue(name="Q", catchall=catchall)
    if wanted is None:
        with pytest.raises(PilotError) as caught:
            wants_registration(settings, queue)
        assert caught.value.code is Code.BADQUEUECONFIGURATION
    else:
        assert wants_registration(settings, queue) is wanted
