"""Keys that storages name: which for a URL, asked once, and a server that does not answer."""

from __future__ import annotations

import pytest

from pilot.errors import Code, Trait, TransferError
from pilot.masking import Secret
from pilot.queuedata import QueueInfo
from pilot.queuedata.queue import Queue
from pilot.server.faults import RefusedError, UnavailableError
from pilot.staging.copytool import StorageKeys
from pilot.staging.keys import KeyRing


def record(path: str, **settings: object) -> dict[str, object]:
    protocol = {"endpoint": "s3://host:9000/", "path": path, "id": 7}
    return {"arprotocols": {"w": [protocol], "r": [protocol]}, "rprotocols": {"7": {"settings": settings}}}


INFO = QueueInfo(
    queue=Queue.from_record({"name": "Q"}, "Q"),
    storage_records={
        "ALL": record("/bucket", access_key="all.pub", secret_key="all.priv", is_secure="False"),
        "LOGS": record("/bucket/logs/", access_key="logs.pub", secret_key="logs.priv"),
        "NONE": record("/other", access_key="", secret_key=""),
        "WRONG": {"arprotocols": "access_key"},
    },
)


class Server:
    def __init__(self, *errors: Exception) -> None:
        self.asked: list[tuple[str, str]] = []
        self.told: list[Secret] = []
        self._errors = list(errors)

    def ask(self, public: str, private: str) -> tuple[str, Secret]:
        self.asked.append((public, private))
        if self._errors:
            raise self._errors.pop(0)
        return public.upper(), Secret(private.upper())

    @property
    def ring(self) -> KeyRing:
        return KeyRing(self.ask, self.told.append)


def test_the_storage_with_the_longest_path_counts_and_each_is_asked_for_once() -> None:
    server = Server()
    ring = server.ring
    for find in (ring.of(INFO), ring.of(INFO)):
        assert find("s3://host:9000//bucket//rucio/f") == StorageKeys("ALL.PUB", Secret("ALL.PRIV"), secure=False)
        assert find("s3://host:9000/bucket/logs/f") == StorageKeys("LOGS.PUB", Secret("LOGS.PRIV"))
        assert find("s3://host:9000/other/f") is None
        assert find("s3://elsewhere/bucket/f") is None
        assert find("s3://host:9000/bucket2/f") is None
    assert server.asked == [("all.pub", "all.priv"), ("logs.pub", "logs.priv")]
    assert server.told == [Secret("ALL.PRIV"), Secret("LOGS.PRIV")]


def test_a_refusal_is_final_and_a_server_that_is_away_is_asked_again() -> None:
    url = "s3://host:9000/bucket/f"
    refusing = Server(RefusedError("not authorized with 'k'"))
    find = refusing.ring.of(INFO)
    assert (find(url), find(url), len(refusing.asked)) == (None, None, 1)

    find = Server(UnavailableError("away")).ring.of(INFO)
    with pytest.raises(TransferError) as failure:
        find(url)
    assert (failure.value.code, failure.value.trait) == (Code.MISSINGCREDENTIALS, Trait.RETRY)
    assert find(url) is not None
