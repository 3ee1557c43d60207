"""A client that no one here wrote: Pilot 3 takes a job from our embedded server and finishes it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pilot.staging.checksum import file_checksums
from tests.benchmarks.field import ENDPOINT, QUEUE, SCRIPT, Field
from tests.benchmarks.peer import VERSION, pilot3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # it takes 40 s, most of them asleep


@dataclass(frozen=True, slots=True)
class Done:
    """What is left after its run; `job` is what the server knows."""

    place: Field
    exit_code: int | None
    job: dict[str, Any]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    pilot = pilot3()
    with Field(tmp_path_factory.mktemp("pilot3") / "field", api=pilot.api) as place:
        (job_id,) = place.submit()
        with pilot.start(place) as run:
            run.finish()
        yield Done(place, run.exit_code, place.server.job(job_id))


def test_it_ends_well(done: Done) -> None:
    assert done.exit_code == 0, (done.place.top / "pilot.out").read_text()[-4000:]


def test_its_job_finishes_in_the_states_of_a_job(done: Done) -> None:
    assert (done.job["state"], done.job["archived"], done.job["ddm_error_code"]) == ("finished", True, 0)
    states = [update["state"] for update in done.job["updates"]]
    assert states[0] == "starting"
    assert states[-1] == "finished"
    assert set(states[1:-1]) == {"running"}
    assert {update["api"] for update in done.job["updates"]} == {"legacy"}


def test_the_adder_has_every_file_with_its_true_size_and_checksum(done: Done) -> None:
    output, log = done.place.output_of(done.job["id"]), done.place.log_of(done.job["id"])
    assert sorted(done.job["files"]) == sorted([output.name, log.name])
    assert output.read_text() == "an output\n"
    for path in (output, log):
        entry = done.job["files"][path.name]
        assert entry["fsize"] == path.stat().st_size
        assert entry["adler32"] == file_checksums(path, ["adler32"])["adler32"]
        assert entry["surl"] == f"file://localhost{path}"
    assert done.job["files"][log.name]["guid"] == done.job["definition"]["logGUID"]


def test_its_log_is_of_a_payload_that_had_its_input(done: Done) -> None:
    with tarfile.open(done.place.log_of(done.job["id"])) as log:
        stdout = next(name for name in log.getnames() if name.endswith("/payload.stdout"))
        extracted = log.extractfile(stdout)
        assert extracted is not None
        assert extracted.read() == b"a line on stdout\n"
    assert done.job["definition"]["inFiles"] == SCRIPT
    assert done.job["definition"]["ddmEndPointOut"] == f"{ENDPOINT},{ENDPOINT}"


def test_it_says_who_it_is(done: Done) -> None:
    assert done.job["fields"]["pilot_id"].endswith(f"|PR|{VERSION}")
    told = [notice["arguments"] for notice in done.place.server.notices("update_worker_status")]
    assert [notice["status"] for notice in told] == ["started", "finished"]
    assert {notice["site"] for notice in told} == {QUEUE}
