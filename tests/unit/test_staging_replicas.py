"""Replicas: which are read, in which order, by which tool, and what a payload reads itself (PILOT3 4.2, 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pilot.errors import Code, PilotError
from pilot.experiment import Experiment
from pilot.job import Access, File, Job, Kind
from pilot.queuedata import Queue, QueueInfo
from pilot.staging.catalogue import Catalogue, CatalogueContext, Replica
from pilot.staging.copytool import CopyTool
from pilot.staging.plan import Planner
from pilot.staging.replicas import in_order
from pilot.staging.toolbox import ToolBox, find_tool


class Known(Catalogue):
    """A catalogue in memory."""

    name = "known"

    def __init__(self, replicas: Mapping[str, Sequence[Replica]], error: PilotError | None = None) -> None:
        super().__init__(CatalogueContext())
        self.all = replicas
        self.error = error
        self.asked: list[tuple[list[str], tuple[str, ...], str]] = []

    def replicas(self, files, handle, schemes=(), site=""):
        self.asked.append(([file.lfn for file in files], tuple(schemes), site))
        if self.error:
            raise self.error
        return {file.lfn: self.all[file.lfn] for file in files if file.lfn in self.all}

    def register(self, files, handle):
        raise AssertionError("nobody registers here")


class Xrdcp(CopyTool):
    name = "xrdcp"
    schemes = frozenset({"root"})
    get = put = stat = remove = None


class Davs(Xrdcp):
    name = "davs"
    schemes = frozenset({"davs", "https"})


class NoStop:
    def check(self) -> None:
        """Never."""


TOOLS = {tool.name: tool for tool in (Xrdcp, Davs)}
QUEUE = {"atlas_site": "HERE", "copytools": {"xrdcp": {}}, "astorages": {"read_lan": ["NEAR2", "NEAR1"]}}


def at(endpoint: str, scheme: str = "root", **facts) -> Replica:
    return Replica(url=f"{scheme}://{endpoint.lower()}//f", endpoint=endpoint, **facts)


def planner(tmp_path, replicas, queue=None, job=None, error=None) -> Planner:
    record = {"name": "Q", **QUEUE, **(queue or {})}
    box = ToolBox(
        launch_dir=tmp_path,
        settings={},
        find=lambda name: TOOLS.get(name) or find_tool(name),
        names=lambda: {"mv", *TOOLS},
    )
    made = Planner(
        info=QueueInfo(queue=Queue.from_record(record, "Q"), record=record),
        tools=box,
        experiment=Experiment(),
        launch_dir=tmp_path,
        catalogue=Known({"f": replicas} if replicas is not None else {}, error),
        job=job,
    )
    made.catalogue = made._replicas._catalogue
    return made


def file(**facts) -> File:
    return File(**{"lfn": "f", "scope": "s", "kind": Kind.INPUT, **facts})


def urls(plan: Planner, **facts) -> list[str]:
    (known,) = plan.look_up([file(**facts)], NoStop())
    return [way.url for way in plan.sources(known)]


NEAR1, NEAR2, FAR = at("NEAR1", priority=1), at("NEAR2", priority=2), at("FAR", priority=0)


# -------------------------------------------------------------------------------------------------------------- order


def test_near_ones_come_first_in_the_order_of_the_queue_then_the_catalogues_order_counts():
    far = at("FAR2", priority=5)
    places = in_order([far, FAR, NEAR1, NEAR2], ["NEAR2", "NEAR1"], lan=True, wan=True)
    assert [(place.replica.endpoint, place.near) for place in places] == [
        ("NEAR2", True),
        ("NEAR1", True),
        ("FAR", False),
        ("FAR2", False),
    ]


@pytest.mark.parametrize(
    ("lan", "wan", "expected"),
    [(True, False, ["NEAR1"]), (False, True, ["FAR"]), (True, True, ["NEAR1", "FAR"]), (False, False, [])],
)
def test_the_queue_says_whether_near_and_far_ones_are_read(lan, wan, expected):
    places = in_order([FAR, NEAR1], ["NEAR1"], lan=lan, wan=wan)
    assert [place.replica.endpoint for place in places] == expected


def test_a_queue_without_endpoints_leaves_it_to_the_catalogue_what_is_near():
    places = in_order([at("A", domain="wan"), at("B", domain="lan")], [], lan=True, wan=True)
    assert [place.replica.endpoint for place in places] == ["B", "A"]


# ------------------------------------------------------------------------------------------------------------ planner


def test_the_catalogue_is_asked_once_for_all_inputs_that_are_neither_here_nor_where_the_job_says(tmp_path):
    plan = planner(tmp_path, [NEAR1])
    (tmp_path / "placed").touch()
    queue = {"copytools": {"xrdcp": {}, "mv": {}}}
    plan = planner(tmp_path, [NEAR1], queue)
    named = file(lfn="named", url="root://x//named")
    files = [file(), file(lfn="g"), named, file(lfn="placed")]
    assert [one.lfn for one in plan.look_up(files, NoStop())] == ["f", "g", "named", "placed"]
    ((lfns, schemes, site),) = plan.catalogue.asked
    assert (lfns, schemes, site) == (["f", "g"], ("root", "file"), "HERE")


def test_a_job_of_virtual_placement_asks_for_xrootd(tmp_path):
    plan = planner(tmp_path, [NEAR1], job=Job(job_id=1, use_vp=True))
    assert urls(plan) == [NEAR1.url]
    assert plan.catalogue.asked == [(["f"], ("root",), "HERE")]


def test_replicas_are_tried_one_after_the_other_and_then_the_next_tool(tmp_path):
    queue = {"acopytools": {"read_lan": ["xrdcp", "davs"]}, "allow_wan": True}
    plan = planner(tmp_path, [FAR, at("NEAR1", "davs"), NEAR1], queue)
    (known,) = plan.look_up([file()], NoStop())
    assert [(way.tool, way.url, way.near) for way in plan.sources(known)] == [
        ("xrdcp", "root://near1//f", True),
        ("xrdcp", "root://far//f", False),
        ("davs", "davs://near1//f", True),
    ]


def test_schemes_of_one_storage_come_in_the_order_of_the_queue(tmp_path):
    schemas = {"read_lan": {"davs": ["https", "davs"]}}
    queue = {"copytools": {"davs": {}}, "acopytools_schemas": schemas, "allow_wan": True}
    plan = planner(tmp_path, [at("NEAR1", "davs"), at("NEAR1", "https"), at("FAR", "https")], queue)
    assert urls(plan) == ["https://near1//f", "davs://near1//f", "https://far//f"]


def test_what_only_the_catalogue_knows_of_a_file_is_filled_in_and_the_job_is_believed(tmp_path, caplog):
    plan = planner(tmp_path, [at("NEAR1", size=5, checksums={"adler32": "00000005"})])
    (known,) = plan.look_up([file()], NoStop())
    assert (known.size, known.checksums) == (5, {"adler32": "00000005"})
    (known,) = plan.look_up([file(size=6, checksums={"adler32": "5"})], NoStop())
    assert (known.size, known.checksums) == (6, {"adler32": "5"})
    assert "the catalogue says 5 bytes, the job 6" in caplog.text
    assert "adler32" not in caplog.text  # the same number


def error(act) -> PilotError:
    with pytest.raises(PilotError) as caught:
        act()
    return caught.value


def test_a_file_without_a_replica_is_1326(tmp_path):
    caught = error(lambda: urls(planner(tmp_path, None)))
    assert (caught.code, caught.detail) == (Code.NOREPLICAS, "s:f: the catalogue has none")


def test_replicas_that_may_not_be_read_are_1326_and_it_says_why(tmp_path):
    caught = error(lambda: urls(planner(tmp_path, [FAR])))
    assert (caught.code, caught.detail) == (Code.NOREPLICAS, "s:f: FAR is far and allow_wan is off")


@pytest.mark.parametrize(("lfn", "catchall", "read"), [
    ("user.lib.tgz", "allow_wan_for_lib", True), ("user.data.root", "allow_wan_for_lib", False),
    ("user.lib.tgz", "", False),
])  # fmt: skip
def test_libraries_of_users_may_come_from_far_where_the_queue_says_so(tmp_path, lfn, catchall, read):
    plan = planner(tmp_path, [FAR], {"catchall": catchall})
    plan.catalogue.all = {lfn: [FAR]}
    if read:
        assert urls(plan, lfn=lfn) == [FAR.url]
    else:
        assert "allow_wan is off" in error(lambda: urls(plan, lfn=lfn)).detail


def test_replicas_that_no_tool_can_read_are_1326_and_it_says_why(tmp_path):
    caught = error(lambda: urls(planner(tmp_path, [at("NEAR1", "srm")])))
    assert (caught.code, caught.detail) == (Code.NOREPLICAS, "s:f has no replica that xrdcp can read, only by srm")


def test_a_file_that_is_here_needs_no_replica(tmp_path):
    (tmp_path / "f").touch()
    plan = planner(tmp_path, None, {"copytools": {"mv": {}, "xrdcp": {}}})
    plan.look_up([file(lfn="other")], NoStop())
    assert [way.url for way in plan.sources(file())] == [str(tmp_path / "f")]


BROKEN = PilotError(Code.RUCIOLISTREPLICASFAILED, "no answer")


def test_when_the_catalogue_fails_the_layout_of_the_storage_is_good_enough(tmp_path):
    plan = planner(tmp_path, [], error=BROKEN)
    protocols = {"read_lan": [{"endpoint": "root://near1/", "path": "/rucio"}]}
    record = {"is_deterministic": True, "arprotocols": protocols}
    plan._info = QueueInfo(queue=plan._info.queue, storage_records={"NEAR1": record})
    assert urls(plan, endpoint="NEAR1") == ["root://near1//rucio/s/af/9d/f"]


def test_when_nothing_else_is_left_the_catalogues_failure_is_the_reason(tmp_path):
    assert error(lambda: urls(planner(tmp_path, [], error=BROKEN), endpoint="NEAR1")) is BROKEN


# -------------------------------------------------------------------------------------------------------------- direct


DIRECT = {"access": Access.DIRECT}
BOTH = {"direct_access_lan": True, "direct_access_wan": True, "allow_wan": True}


def direct(tmp_path, queue, job=None, replicas=(NEAR1, FAR), **facts) -> list[tuple[str, bool]]:
    plan = planner(tmp_path, list(replicas), queue, job)
    (known,) = plan.look_up([file(**facts)], NoStop())
    return [(way.endpoint, way.direct) for way in plan.sources(known)]


def test_payloads_read_directly_what_queue_and_job_let_them_and_copies_are_the_last_resort(tmp_path):
    assert direct(tmp_path, BOTH, **DIRECT) == [("NEAR1", True), ("FAR", True), ("NEAR1", False), ("FAR", False)]
    only_near = {**BOTH, "direct_access_wan": False}
    assert direct(tmp_path, only_near, **DIRECT) == [("NEAR1", True), ("NEAR1", False), ("FAR", False)]
    only_far = {**BOTH, "direct_access_lan": False}
    assert direct(tmp_path, only_far, **DIRECT) == [("FAR", True), ("NEAR1", False), ("FAR", False)]


@pytest.mark.parametrize(
    ("job", "facts"),
    [
        (None, {"access": Access.COPY}),
        (Job(job_id=1, is_build=True), DIRECT),
        (None, {**DIRECT, "is_tar": True}),
        (None, {**DIRECT, "lfn": "user.x.lib.tgz"}),
    ],
    ids=["copy wanted", "build job", "archive", "library"],
)
def test_some_inputs_are_never_read_directly(tmp_path, job, facts):
    plan = planner(tmp_path, [NEAR1], BOTH, job)
    plan.catalogue.all = {file(**facts).lfn: [NEAR1]}
    (known,) = plan.look_up([file(**facts)], NoStop())
    assert [way.direct for way in plan.sources(known)] == [False]


def test_schemes_that_payloads_do_not_read_are_copied(tmp_path):
    queue = {**BOTH, "copytools": {"davs": {}}}
    replicas = [at("NEAR1", "davs"), at("FAR", "https")]
    assert direct(tmp_path, queue, replicas=replicas, **DIRECT) == [("FAR", True), ("NEAR1", False), ("FAR", False)]


def test_a_payload_may_read_directly_from_the_storage_of_the_queue_without_a_catalogue(tmp_path):
    protocols = {"read_lan": [{"endpoint": "root://near1/", "path": "/rucio"}]}
    record = {"is_deterministic": True, "arprotocols": protocols}
    queue = Queue.from_record({"name": "Q", **QUEUE, **BOTH}, "Q")
    info = QueueInfo(queue=queue, storage_records={"NEAR1": record})
    box = ToolBox(launch_dir=tmp_path, settings={}, find=TOOLS.__getitem__, names=lambda: set(TOOLS))
    plan = Planner(info=info, tools=box, experiment=Experiment(), launch_dir=tmp_path)
    ways = plan.sources(file(endpoint="NEAR1", **DIRECT))
    assert [(way.url, way.direct) for way in ways] == [
        ("root://near1//rucio/s/af/9d/f", True),
        ("root://near1//rucio/s/af/9d/f", False),
    ]
