"""Jobs whose inputs a real Rucio server knows, and whose outputs and log the pilot makes known to it."""

from __future__ import annotations

import itertools
import json
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from pilot.errors import Code
from pilot.queuedata import hash_path
from tests.grid import _ACTIVITIES as ACTIVITIES
from tests.grid import Grid, Job, Pilot, Scenarios
from tests.parts.xrootd import server as xrootd_server

#: Dots in scopes of users are directories in Rucio's layout as in Pilot 3's.
SCOPE, RSE = "user.jobs", "JOBS_DISK"

_NUMBERS = itertools.count()

scenario = Scenarios(workers=3, given="place")


@pytest.fixture(scope="module")
def place(rucio, tmp_path_factory):
    """A grid whose storage is an RSE of the server."""
    rucio.make_scope(SCOPE)
    with xrootd_server() as storage, Grid(tmp_path_factory.mktemp("grid")) as grid:
        rucio.make_rse(RSE, storage.url, "//rucio/")
        protocol = {"endpoint": f"{storage.url}/", "path": "/rucio/", "flavour": "XROOT", "id": 1}
        record = {"name": RSE, "type": "DATADISK", "state": "ACTIVE", "is_deterministic": True}
        record["arprotocols"] = {activity: [protocol] for activity in ACTIVITIES}
        (grid.files / "storages.json").write_text(json.dumps({RSE: record}))
        grid.rucio, grid.xrootd = rucio, storage
        yield grid


def queue(
    grid: Grid, tool: str = "xrdcp", options: dict[str, Any] | None = None, catchall: str = "register", **more: Any
) -> str:
    """A queue of its own that uses the tool for everything."""
    return grid.queue(
        f"QUEUE{next(_NUMBERS)}", catchall=catchall, copytools={tool: options or {}},
        acopytools={activity: [tool] for activity in ACTIVITIES},
        astorages={activity: [RSE] for activity in ACTIVITIES}, **more,
    )  # fmt: skip


def job(grid: Grid, where: str, **fields: Any) -> dict[str, Any]:
    """A job with an input that only the catalogue knows, an output, a log, and a dataset for each."""
    number = next(_NUMBERS)
    source, output, log = f"in.{number}", f"out.{number}", f"job.{number}.log.tgz"
    data = b"an input\n"
    grid.xrootd.write(f"rucio/{hash_path(SCOPE, source)}", data)
    grid.rucio.add_replica(RSE, SCOPE, source, size=len(data), adler32=f"{zlib.adler32(data):08x}")
    definition = grid.job(f"cat {source} > {output}", outputs=[output], log=log, queue=where)
    return definition | {
        "inFiles": source, "fsize": str(len(data)), "checksum": "", "GUID": "", "scopeIn": SCOPE, "ddmEndPointIn": "",
        "scopeOut": SCOPE, "scopeLog": SCOPE, "ddmEndPointOut": f"{RSE},{RSE}",
        "realDatasets": f"data.{number},logs.{number}", "destinationDblock": f"data.{number},logs.{number}",
    } | fields  # fmt: skip


def start(grid: Grid, definition: dict[str, Any], *more: str, **config: str) -> Pilot:
    """Begin to run it in a pilot that knows the catalogue."""
    grid.submit(definition)
    environ = {"RUCIO_CONFIG": str(grid.rucio.client_config(**config))}
    return grid.pilot("--catalogue", "rucio", *more, queue=definition["computingSite"], env=environ)


def run(grid: Grid, definition: dict[str, Any], *more: str, **config: str) -> tuple[Job, str]:
    """Run it in a pilot that knows the catalogue; the job, and what the pilot said."""
    pilot = start(grid, definition, *more, **config)
    pilot.wait(60)
    return grid.job_of(definition["PandaID"]), pilot.text


@pytest.fixture(scope="module", autouse=True)
def forsaken(place: Grid, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Pilot]:
    """A job whose pilot finds no server to register with: that takes 12 s, while the other tests run."""
    kept = tmp_path_factory.mktemp("kept")
    definition = job(place, queue(place)) | {"ddmEndPointIn": RSE}
    nowhere = dict.fromkeys(("rucio_host", "auth_host"), "http://127.0.0.1:1")
    return definition, kept, start(place, definition, "--keep-undelivered", str(kept), **nowhere)


@scenario.for_each(xrdcp=("xrdcp",), rucio=("rucio",))
def output_and_log_are_registered_with_their_datasets(place: Grid, tool: str) -> None:
    definition = job(place, queue(place, tool))
    done, said = run(place, definition)
    assert done.state == "finished", said
    rucio = place.rucio
    for lfn, dataset in zip(definition["outFiles"].split(","), definition["realDatasets"].split(","), strict=True):
        stored = (place.xrootd.data / "rucio" / hash_path(SCOPE, lfn)).read_bytes()
        meta = rucio.meta(SCOPE, lfn)
        assert (meta["bytes"], meta["adler32"]) == (len(stored), f"{zlib.adler32(stored):08x}")
        assert meta["guid"] == done.files[lfn]["guid"].replace("-", "").lower()
        assert rucio.files(SCOPE, dataset) == [lfn]
        assert rucio.did(SCOPE, dataset)["open"]
        assert rucio.replicas(SCOPE, lfn) == {RSE: [done.files[lfn]["surl"]]}
    assert (
        place.xrootd.data / "rucio" / hash_path(SCOPE, definition["outFiles"].split(",")[0])
    ).read_bytes() == b"an input\n"


@scenario
def output_that_leaves_early_is_registered_while_the_payload_runs(place: Grid) -> None:
    early = {"pilot_early_stageout": "closed", "pilot_early_quiet": 0.1}
    definition = job(place, queue(place, params=early))
    output = definition["outFiles"].split(",")[0]
    cat = f"cat {definition['inFiles']} > "
    assert cat + output in definition["jobPars"]
    wait = f"{cat} tmp; mv tmp {output}; while [ ! -e go ]; do sleep 0.02; done"
    definition["jobPars"] = definition["jobPars"].replace(cat + output, wait)
    pilot = start(place, definition)
    pilot.says(f"registered in rucio: {output}", 60)
    assert place.rucio.files(SCOPE, definition["realDatasets"].split(",")[0]) == [output]
    assert place.job_of(definition["PandaID"]).finals == []
    (workdir,) = place.work.glob(f"*/PanDA_Pilot-{definition['PandaID']}")
    (workdir / "go").touch()
    pilot.wait(60)
    done = place.job_of(definition["PandaID"])
    assert done.state == "finished", (done.diag, pilot.text)
    assert place.rucio.meta(SCOPE, output)["guid"] == done.files[output]["guid"].replace("-", "").lower()


@scenario
def nothing_is_registered_by_default(place: Grid) -> None:
    definition = job(place, queue(place, catchall=""))
    done, said = run(place, definition)
    assert done.state == "finished", said
    assert place.rucio.did(SCOPE, definition["logFile"]) is None


@scenario
def a_job_can_bring_the_wish(place: Grid) -> None:
    definition = job(place, queue(place, catchall=""))
    definition["jobPars"] += """ --overwriteQueueData "{'catchall': 'register'}\""""
    done, said = run(place, definition)
    assert done.state == "finished", said
    assert place.rucio.did(SCOPE, definition["logFile"]) is not None


@scenario
def tool_registers_where_its_options_say_so(place: Grid) -> None:
    definition = job(place, queue(place, "rucio", {"no_register": False}, catchall=""))
    done, said = run(place, definition)
    assert done.state == "finished", said
    for lfn, dataset in zip(definition["outFiles"].split(","), definition["realDatasets"].split(","), strict=True):
        assert place.rucio.files(SCOPE, dataset) == [lfn]


@scenario
def setting_without_a_catalogue_fails_the_job_before_its_payload(place: Grid) -> None:
    definition = job(place, queue(place))
    place.submit(definition)
    place.pilot(queue=definition["computingSite"]).wait(60)
    done = place.job_of(definition["PandaID"])
    assert done.code == Code.BADQUEUECONFIGURATION, done.diag
    assert "no catalogue" in done.diag


@scenario
def name_that_the_catalogue_has_with_other_content_fails_the_job(place: Grid) -> None:
    definition = job(place, queue(place))
    output = definition["outFiles"].split(",")[0]
    place.rucio.add_replica(RSE, SCOPE, output, size=9, adler32="ffffffff")
    done, said = run(place, definition)
    assert (done.state, done.code) == ("failed", Code.PUTADMISMATCH), said
    assert "not registered" in done.diag and "ffffffff" in done.diag
    assert place.rucio.did(SCOPE, definition["logFile"]) is not None, "the log is not to blame"


@scenario
def wrong_password_fails_the_job_and_is_not_told(place: Grid) -> None:
    place_queue = queue(place)
    definition = job(place, place_queue) | {"ddmEndPointIn": RSE}
    done, said = run(place, definition, password="wrong-password")
    assert (done.state, done.code) == ("failed", Code.STAGEOUTAUTHENTICATIONFAILURE), said
    assert "wrong-password" not in said + done.diag


running = scenario.fixture()
test_scenario = scenario.test()


@pytest.mark.parametrize("phase", ["stagein", "stageout"])
def test_stop_ends_a_question_to_a_server_that_hangs(place, phase):
    definition = job(place, queue(place))
    if phase == "stageout":
        definition |= dict.fromkeys(("inFiles", "fsize", "checksum", "GUID", "scopeIn", "ddmEndPointIn"), "")
        definition["jobPars"] = definition["jobPars"].replace("cat in", "echo in")
    place.submit(definition)
    environ = {"RUCIO_CONFIG": str(place.rucio.client_config())}
    with place.rucio.hanging():
        pilot = place.pilot("--grace", "3", "--catalogue", "rucio", queue=definition["computingSite"], env=environ)
        pilot.says(f"job {definition['PandaID']}: {phase}")
        time.sleep(1)  # the file is stored, and Rucio's client waits
        sent = pilot.signal(signal.SIGTERM)
        assert pilot.wait(10) != 0
        assert time.monotonic() - sent < 4
    assert place.job_of(definition["PandaID"]).code == Code.SIGTERM, pilot.text


def test_server_that_goes_away_leaves_outputs_for_a_later_pilot(place, forsaken):
    definition, kept, first = forsaken
    first.wait(90)
    assert place.job_of(definition["PandaID"]).state == "holding", first.text
    journal = [json.loads(line) for path in kept.rglob("journal.jsonl") for line in path.read_text().splitlines()]
    (left,) = [fact["lfns"] for fact in journal if fact["step"] == "unregistered" and len(fact["lfns"]) == 1][:1]
    assert left == [definition["outFiles"].split(",")[0]]
    alive = {"RUCIO_CONFIG": str(place.rucio.client_config())}
    options = ("--catalogue", "rucio", "--keep-undelivered", str(kept))
    second = place.pilot(*options, queue=definition["computingSite"], env=alive)
    second.wait(60)
    assert place.job_of(definition["PandaID"]).state == "finished", second.text
    for lfn, dataset in zip(definition["outFiles"].split(","), definition["realDatasets"].split(","), strict=True):
        assert place.rucio.files(SCOPE, dataset) == [lfn]
