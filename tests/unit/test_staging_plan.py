"""Which tools and URLs are tried for a file, in which order (PILOT3 4.2, 4.4, 4.6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.errors import Code, PilotError
from pilot.experiment import Experiment
from pilot.job import File, Job, Kind
from pilot.queuedata import Queue, QueueInfo
from pilot.settings import Settings
from pilot.staging.copytool import CopyTool
from pilot.staging.limits import input_limit
from pilot.staging.plan import Candidate, Planner
from pilot.staging.toolbox import ToolBox, find_tool

HASHED = "user/jwebb2/01/9f/user.jwebb2.66999._000001.top1outDS.tar"  # sPHENIX's own example
FILE = {"lfn": "user.jwebb2.66999._000001.top1outDS.tar", "scope": "user.jwebb2"}


class Xrdcp(CopyTool):
    name = "xrdcp"
    schemes = frozenset({"root"})
    get = put = stat = remove = None


class Gone(Xrdcp):
    name = "gone"

    def unavailable(self):
        return "no program `gone`"


class Vault(Xrdcp):
    name = "vault"
    schemes = frozenset({"vault"})


TOOLS = {tool.name: tool for tool in (Xrdcp, Gone, Vault)}


class Final(Experiment):
    name = "final"
    mv_to_final_destination = True


class OwnLayout(Experiment):
    name = "own"

    def storage_path(self, scope, lfn):
        return f"own/{scope}/{lfn}"


def storage(*protocols: tuple[str, str], deterministic=True, activities=("read_lan", "write_lan")):
    entries = [{"endpoint": endpoint, "path": path} for endpoint, path in protocols]
    return {"is_deterministic": deterministic, "arprotocols": dict.fromkeys(activities, entries)}


POSIX = storage(("file://localhost", "/sphenix/rucio"))
ROOT = storage(("root://eos.cern.ch:1094", "//eos/atlas/rucio/"))
BOTH = storage(("davs://eos", "/eos"), ("root://eos", "//eos"), ("file://", "/mnt/eos"))


def planner(tmp_path, queue, storages=None, experiment=None, **more) -> Planner:
    record = {"name": "Q", **queue}
    info = QueueInfo(queue=Queue.from_record(record, "Q"), record=record, storage_records=storages or {})
    box = ToolBox(
        launch_dir=tmp_path,
        settings={},
        find=lambda name: TOOLS.get(name) or find_tool(name),
        names=lambda: {"mv", *TOOLS},
    )
    return Planner(info=info, tools=box, experiment=experiment or Experiment(), launch_dir=tmp_path, **more)


def input_(**facts) -> File:
    return File(kind=Kind.INPUT, **{**FILE, **facts})


def output(**facts) -> File:
    return File(kind=Kind.OUTPUT, **{**FILE, **facts})


def error(act) -> PilotError:
    with pytest.raises(PilotError) as caught:
        act()
    return caught.value


MV = {"copytools": {"mv": {}}}

# ------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("url", ["/data/a.root", "file:///data/a.root", "relative/a.root"])
def test_an_input_with_a_local_url_is_only_there(tmp_path, url):
    (tmp_path / FILE["lfn"]).touch()
    assert planner(tmp_path, MV).sources(input_(url=url)) == [Candidate(tool="mv", url=url)]


def test_an_input_with_another_url_gets_the_tool_of_the_queue_for_it(tmp_path):
    queue = {"copytools": {"mv": {}, "xrdcp": {}}}
    assert [c.tool for c in planner(tmp_path, queue).sources(input_(url="root://h//f"))] == ["xrdcp"]


@pytest.mark.parametrize(
    ("schemes", "tool"),
    [
        ("root roots xroot xroots", "xrdcp"),
        ("https davs http dav", "https"),
        ("s3 s3+rucio", "s3"),
        ("gs", "gs"),
        ("rucio", "rucio"),
        ("file", "mv"),
    ],
)
def test_a_url_that_nobody_names_a_tool_for_goes_by_the_one_made_for_it(tmp_path, schemes, tool):
    box = ToolBox(launch_dir=tmp_path, settings={})
    assert [box.for_scheme(scheme) for scheme in schemes.split()] == [[tool]] * len(schemes.split())


def test_a_url_that_no_tool_of_the_queue_moves_gets_one_that_is_installed(tmp_path):
    assert [c.tool for c in planner(tmp_path, MV).sources(input_(url="vault://a/b"))] == ["vault"]


def test_a_url_that_nothing_moves_is_1323_without_its_secrets(tmp_path):
    caught = error(lambda: planner(tmp_path, MV).sources(input_(url="ftp://me:word@h/f?sig=abc")))
    assert caught.code is Code.UNKNOWNCOPYTOOL
    assert "ftp://h/f" in caught.detail
    assert "word" not in caught.detail
    assert "abc" not in caught.detail


def test_arc_has_placed_inputs_in_the_launch_directory(tmp_path):
    (tmp_path / FILE["lfn"]).touch()
    assert planner(tmp_path, MV).sources(input_()) == [Candidate(tool="mv", url=str(tmp_path / FILE["lfn"]))]


def test_an_input_that_is_nowhere_is_looked_for_where_mv_would_have_it(tmp_path):
    found = planner(tmp_path, MV, input_dir=tmp_path / "in").sources(input_())
    assert [c.url for c in found] == [str(tmp_path / "in" / FILE["lfn"])]
    assert [c.url for c in planner(tmp_path, MV).sources(input_())] == [str(tmp_path / FILE["lfn"])]


def test_input_dir_comes_before_launch_dir_and_storage(tmp_path):
    queue = {"copytools": {"mv": {}, "xrdcp": {}}}
    for place in (tmp_path / "in", tmp_path):
        place.mkdir(exist_ok=True)
        (place / FILE["lfn"]).touch()
    found = planner(tmp_path, queue, {"EOS": ROOT}, input_dir=tmp_path / "in").sources(input_(endpoint="EOS"))
    assert [(c.tool, c.url) for c in found] == [
        ("mv", str(tmp_path / "in" / FILE["lfn"])),
        ("mv", str(tmp_path / FILE["lfn"])),
        ("xrdcp", f"root://eos.cern.ch:1094//eos/atlas/rucio/{HASHED}"),
    ]


def test_input_dir_has_the_storage_layout_where_files_are_there_for_good(tmp_path):
    (tmp_path / HASHED).parent.mkdir(parents=True)
    (tmp_path / HASHED).touch()
    found = planner(tmp_path, MV, experiment=Final(), input_dir=tmp_path).sources(input_())
    assert [c.url for c in found] == [str(tmp_path / HASHED)]


def test_a_tool_gets_the_protocols_of_its_schemes_only(tmp_path):
    queue = {"acopytools": {"read_lan": ["xrdcp", "mv"]}}
    mounted = storage(("davs://eos", "/eos"), ("root://eos", "//eos"), ("file://", str(tmp_path)))
    found = planner(tmp_path, queue, {"EOS": mounted}).sources(input_(endpoint="EOS"))
    assert [(c.tool, c.url, c.endpoint) for c in found] == [
        ("xrdcp", f"root://eos//eos/{HASHED}", "EOS"),
        ("mv", f"file://{tmp_path}/{HASHED}", "EOS"),
    ]


def test_schemas_of_the_queue_restrict_a_tool(tmp_path):
    queue = {"acopytools": {"read_lan": ["xrdcp"]}, "acopytools_schemas": {"read_lan": {"xrdcp": ["davs"]}}}
    caught = error(lambda: planner(tmp_path, queue, {"EOS": BOTH}).sources(input_(endpoint="EOS")))
    assert caught.code is Code.NOSTORAGEPROTOCOL


def test_protocols_of_the_near_network_come_before_those_of_the_far_one(tmp_path):
    record = storage()
    record["arprotocols"] = {
        "read_wan": [{"endpoint": "root://far", "path": "/"}],
        "read_lan": [{"endpoint": "root://near", "path": "/"}],
    }
    found = planner(tmp_path, {"copytools": {"xrdcp": {}}}, {"EOS": record}).sources(input_(endpoint="EOS"))
    assert [c.url for c in found] == [f"root://near/{HASHED}", f"root://far/{HASHED}"]


def test_a_unified_queue_reads_analysis_inputs_from_their_own_storage(tmp_path):
    queue = {
        "type": "unified",
        "copytools": {"xrdcp": {}},
        "astorages": {"read_lan": ["P"], "read_lan_analysis": ["A"]},
    }
    storages = {"A": ROOT, "P": ROOT}
    assert planner(tmp_path, queue, storages, job=Job(job_id=1, is_analysis=True)).sources(input_())[0].endpoint == "A"
    assert planner(tmp_path, queue, storages).sources(input_())[0].endpoint == "P"


def test_an_input_without_endpoint_or_place_is_1133(tmp_path):
    caught = error(lambda: planner(tmp_path, {"copytools": {"xrdcp": {}}}).sources(input_()))
    assert caught.code is Code.NOSTORAGE


def test_a_tool_that_is_not_there_is_1323_and_says_why(tmp_path):
    for name, why in (("gone", "no program `gone`"), ("nonsense", "there are:")):
        caught = error(
            lambda name=name: planner(tmp_path, {"copytools": {name: {}}}, {"EOS": ROOT}).sources(
                input_(endpoint="EOS")
            )
        )
        assert caught.code is Code.UNKNOWNCOPYTOOL
        assert why in caught.detail


def test_a_tool_that_is_not_there_does_not_keep_others_from_working(tmp_path):
    queue = {"acopytools": {"read_lan": ["gone", "xrdcp"]}}
    assert [c.tool for c in planner(tmp_path, queue, {"EOS": ROOT}).sources(input_(endpoint="EOS"))] == ["xrdcp"]


# ------------------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize(("url", "there"), [("/out/f", "/out/f"), ("/out/", f"/out/{FILE['lfn']}")])
def test_an_output_with_a_url_goes_there(tmp_path, url, there):
    assert [c.url for c in planner(tmp_path, MV).destinations(output(url=url))] == [there]


def test_output_dir_is_where_outputs_end(tmp_path):
    found = planner(tmp_path, MV, {"EOS": ROOT}, output_dir=Path("/out")).destinations(output(endpoint="EOS"))
    assert found == [Candidate(tool="mv", url=f"/out/{FILE['lfn']}")]


def test_output_dir_has_the_storage_layout_where_files_stay_for_good(tmp_path):
    found = planner(tmp_path, MV, experiment=Final(), output_dir=Path("/out")).destinations(output())
    assert [c.url for c in found] == [f"/out/{HASHED}"]


@pytest.mark.parametrize("catchall", ["", "mv_final_destination"])
def test_a_mounted_storage_is_written_to_in_its_layout(tmp_path, catchall):
    queue = {**MV, "astorages": {"write_lan": ["SPHENIX"]}, "catchall": catchall}
    found = planner(tmp_path, queue, {"SPHENIX": POSIX}).destinations(output())
    assert found == [Candidate(tool="mv", url=f"file://localhost/sphenix/rucio/{HASHED}", endpoint="SPHENIX")]


def test_a_storage_that_is_not_mounted_is_served_by_the_batch_system(tmp_path):
    queue = {**MV, "astorages": {"write_lan": ["EOS"]}}
    (found,) = planner(tmp_path, queue, {"EOS": ROOT}).destinations(output())
    assert (found.tool, found.url, found.onward) == ("mv", str(tmp_path / FILE["lfn"]), True)
    assert found.surl == f"root://eos.cern.ch:1094//eos/atlas/rucio/{HASHED}"
    assert found.endpoint == "EOS"


def test_without_any_storage_mv_leaves_outputs_in_the_launch_directory(tmp_path):
    assert planner(tmp_path, MV).destinations(output()) == [Candidate(tool="mv", url=str(tmp_path / FILE["lfn"]))]


def test_final_destination_without_a_mounted_storage_is_1313(tmp_path):
    queue = {**MV, "astorages": {"write_lan": ["EOS"]}, "catchall": "mv_final_destination"}
    assert error(lambda: planner(tmp_path, queue, {"EOS": ROOT}).destinations(output())).code is Code.NOSTORAGEPROTOCOL


def test_an_experiment_may_have_its_own_layout(tmp_path):
    queue = {**MV, "astorages": {"write_lan": ["S"]}}
    storages = {"S": storage(("file://", "/s"), deterministic=False)}
    found = planner(tmp_path, queue, storages, experiment=OwnLayout()).destinations(output(scope="a.b"))
    assert [c.url for c in found] == [f"file:///s/own/a.b/{FILE['lfn']}"]


def test_a_percent_sign_in_a_name_is_no_escape(tmp_path):
    queue = {**MV, "astorages": {"write_lan": ["S"]}}
    storages = {"S": storage(("file://", "/s"))}
    (found,) = planner(tmp_path, queue, storages, experiment=OwnLayout()).destinations(output(lfn="a%41", scope="s"))
    assert (found.url, found.surl) == ("file:///s/own/s/a%2541", "file:///s/own/s/a%41")


def test_logs_have_their_own_storage_and_tool(tmp_path):
    queue = {
        "acopytools": {"pl": ["mv"], "write_lan": ["xrdcp"]},
        "astorages": {"pl": ["LOGS"], "write_lan": ["EOS"]},
    }
    plan = planner(tmp_path, queue, {"LOGS": POSIX, "EOS": ROOT})
    assert [(c.tool, c.endpoint) for c in plan.destinations(output())] == [("xrdcp", "EOS")]
    log = File(kind=Kind.LOG, endpoint="EOS", **FILE)
    assert [(c.tool, c.endpoint) for c in plan.destinations(log)] == [("mv", "LOGS")]


def test_the_files_own_endpoint_counts_if_the_queue_may_write_there(tmp_path):
    queue = {"copytools": {"xrdcp": {}}, "astorages": {"write_lan": ["A", "B"]}}
    plan = planner(tmp_path, queue, {"A": ROOT, "B": ROOT, "C": ROOT})
    assert plan.destinations(output(endpoint="B"))[0].endpoint == "B"
    assert plan.destinations(output(endpoint="C"))[0].endpoint == "A"


def test_an_output_without_storage_is_1133(tmp_path):
    plan = planner(tmp_path, {"copytools": {"xrdcp": {}}})
    assert error(lambda: plan.destinations(output())).code is Code.NOSTORAGE
    assert error(lambda: plan.destinations(output(endpoint="X"))).code is Code.NOSTORAGE


def test_an_output_for_a_storage_without_layout_is_1329(tmp_path):
    plan = planner(tmp_path, {"copytools": {"xrdcp": {}}}, {"S": storage(("root://h", "/"), deterministic=False)})
    assert error(lambda: plan.destinations(output(endpoint="S"))).code is Code.NONDETERMINISTICDDM


@pytest.mark.parametrize(("tool", "kind"), [("s3", "OS_LOGS"), ("s3", "OS_ES"), ("gs", "")])
def test_object_stores_without_layout_have_that_of_pilot_3(tmp_path, tool, kind):
    there = storage((f"{tool}://h.x:443", "/logs"), deterministic=False) | {"type": kind}
    plan = planner(tmp_path, {"copytools": {tool: {}}}, {"S": there}, job=Job(job_id=77))
    (way,) = plan.destinations(output(endpoint="S", lfn="a.log.tgz", dataset="user.x/log.#{pandaid}"))
    assert way.url == f"{tool}://h.x:443/logs/Q/user.x/log.77/a.log.tgz"


def test_s3_has_no_layout_for_other_storages(tmp_path):
    there = storage(("s3://h.x:443", "/data"), deterministic=False) | {"type": "DATADISK"}
    plan = planner(tmp_path, {"copytools": {"s3": {}}}, {"S": there})
    assert error(lambda: plan.destinations(output(endpoint="S"))).code is Code.NONDETERMINISTICDDM


@pytest.mark.parametrize(
    ("record", "limit"),
    [({"maxinputsize": -1, "maxwdir": 10}, None), ({"maxwdir": 10}, 10 << 20), ({}, 14336 << 20)],
)
def test_the_limit_of_inputs_is_that_of_the_queue(record, limit):
    assert input_limit(Settings(), Queue.from_record(record, "Q")) == limit


# ------------------------------------------------------------------------------------------------------- which, and why


def mounts(tmp_path, *, there: bool) -> dict:
    """sPHENIX: the endpoint is a file system, and an XRootD server in front of it."""
    where = tmp_path if there else tmp_path / "absent"
    return {"S": storage(("file://localhost", str(where)), ("root://s", "//s"))}


@pytest.mark.parametrize(("there", "tools"), [(True, ["mv", "xrdcp"]), (False, ["xrdcp"])])
@pytest.mark.parametrize("direction", ["sources", "destinations"])
def test_mv_is_used_where_the_file_system_is_mounted_and_else_the_next_tool(tmp_path, direction, there, tools):
    queue = {"acopytools": {"read_lan": ["mv", "xrdcp"], "write_lan": ["mv", "xrdcp"]}}
    plan = planner(tmp_path, {**queue, "astorages": {"write_lan": ["S"]}}, mounts(tmp_path, there=there), Final())
    made = input_(endpoint="S") if direction == "sources" else output(endpoint="S")
    assert [way.tool for way in getattr(plan, direction)(made)] == tools


def test_one_line_says_what_was_chosen_and_why_not_the_others(tmp_path, caplog):
    caplog.set_level("INFO")
    queue = {"acopytools": {"write_lan": ["gone", "mv", "xrdcp"]}, "astorages": {"write_lan": ["S"]}}
    plan = planner(tmp_path, queue, mounts(tmp_path, there=False), Final())
    for number in range(3):
        plan.destinations(output(lfn=f"f{number}"))
    lines = [record.getMessage() for record in caplog.records if record.name == "pilot.staging.plan"]
    absent = tmp_path / "absent"
    assert lines == [
        "outputs: xrdcp is used for S; passed over: gone: gone cannot be used on this node: no program `gone`; "
        f"mv: the file system of S is not mounted here: there is no {absent}"
    ]


def test_a_file_system_that_seems_not_mounted_is_tried_if_there_is_nothing_else(tmp_path):
    plan = planner(tmp_path, {**MV, "astorages": {"write_lan": ["S"]}}, mounts(tmp_path, there=False), Final())
    assert [way.tool for way in plan.destinations(output())] == ["mv"]


# ---------------------------------------------------------------------------------------------------------- alternative


STORAGES = {name: storage((f"root://{name.lower()}", "//")) for name in "ABCD"}
WRITES = {"copytools": {"xrdcp": {}}, "astorages": {"write_lan": ["A", "B", "C"], "pl": ["D"]}}


def ends(tmp_path, file_, queue=None, **job) -> list[str]:
    plan = planner(tmp_path, {**WRITES, **(queue or {})}, STORAGES, job=Job(job_id=1, **job))
    return [way.endpoint for way in plan.destinations(file_)]


ON, OFF = {"params": {"allow_altstageout": True}}, {"params": {"allow_altstageout": False}}


@pytest.mark.parametrize(
    ("queue", "job", "expected"),
    [
        ({}, {}, ["A"]),
        (ON, {}, ["A", "B"]),
        ({}, {"alt_stageout": True}, ["A", "B"]),
        (OFF, {"alt_stageout": True}, ["A"]),
        (ON, {"alt_stageout": False}, ["A", "B"]),
    ],
)
def test_queue_or_job_allow_another_storage_and_the_queue_has_the_last_word(tmp_path, queue, job, expected):
    assert ends(tmp_path, output(), queue, **job) == expected


def test_the_other_storage_is_the_next_of_the_queue_but_never_the_nucleus(tmp_path):
    assert ends(tmp_path, output(endpoint="B"), ON) == ["B", "C"]
    assert ends(tmp_path, output(endpoint="C"), ON) == ["C", "A"]
    assert ends(tmp_path, output(endpoint="A"), ON, nucleus="B") == ["A", "C"]


def test_the_jobs_own_storage_is_the_other_one_if_the_queue_does_not_write_there_first(tmp_path):
    assert ends(tmp_path, output(endpoint="D"), ON) == ["A", "D"]


def test_a_log_may_go_where_data_go(tmp_path):
    log = File(kind=Kind.LOG, **FILE)
    assert ends(tmp_path, log, {}) == ["D"]
    assert ends(tmp_path, log, ON) == ["D", "A"]


def test_an_output_whose_storage_nobody_can_write_to_goes_to_the_other_one(tmp_path):
    plan = planner(tmp_path, {**WRITES, **ON}, {**STORAGES, "A": storage(("srm://a", "/"))})
    assert [way.endpoint for way in plan.destinations(output())] == ["B"]


def test_a_storage_that_nobody_can_write_to_is_no_other_one(tmp_path):
    storages = {**STORAGES, "B": storage(("srm://b", "/"))}
    plan = planner(tmp_path, {**WRITES, **ON}, storages)
    assert [way.endpoint for way in plan.destinations(output())] == ["A", "C"]
