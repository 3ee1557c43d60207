from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.download import DownloadError
from pilot.errors import Code, PilotError
from pilot.queuedata import (
    Queue,
    QueuedataLoader,
    QueueInfo,
    Sources,
    Storage,
    StorageProtocol,
    check_active,
    hash_path,
)
from pilot.queuedata.documents import StorageRecords, UnusableError, members, queue_record
from pilot.queuedata.info import merged
from pilot.queuedata.loader import CACHE_TIME, CRIC_CACHE, QUEUE_CACHE, STORAGE_CACHE
from pilot.stop import Stop

DATA = Path(__file__).parent / "data"
RECORD: dict[str, Any] = json.loads((DATA / "queue.json").read_text())["TEST_QUEUE"]
STORAGES: dict[str, Any] = json.loads((DATA / "storages.json").read_text())
REAL = sorted((Path(__file__).resolve().parents[3] / "shared" / "data" / "cric").glob("*.json"))


@pytest.fixture
def queue() -> Queue:
    return Queue.from_record(RECORD)


# --- a queue's record ---


def test_fields_are_read_under_crics_names_with_their_units(queue: Queue) -> None:
    assert (queue.name, queue.resource, queue.site) == ("TEST_QUEUE", "TEST_SITE", "TESTLAB")
    assert (queue.platform, queue.type, queue.resource_type) == ("x86_64-el9-gcc13-opt", "unified", "GRID")
    assert (queue.maxwdir, queue.maxrss, queue.maxinputsize) == (16336, 3200, -1)
    assert (queue.timefloor, queue.maxtime, queue.corecount) == (3600, 172800, 8)
    assert (queue.allow_lan, queue.allow_wan, queue.direct_access_lan, queue.is_cvmfs) == (True, True, True, False)
    assert queue.container_type == {"pilot": "apptainer", "wrapper": "docker"}
    assert queue.es_stageout_gap == 600  # opportunistic
    assert queue.memkillgrace == 100


def test_params_become_fields_and_stay_readable(queue: Queue) -> None:
    assert queue.internet_protocol_version == "IPv4"
    assert queue.allow_altstageout is False
    assert queue.job_maxwalltime is True
    assert (queue.walltime_grace, queue.rss_grace, queue.maxwdir_grace) == (1.0, 1.5, 1.2)
    assert queue.params["pilot_heartbeat"] == 600


def test_defaults_of_an_empty_record_are_those_of_the_class() -> None:
    assert Queue.from_record({}, "Q") == Queue(name="Q", resource="Q")
    assert Queue().rss_grace == 2.0
    assert Queue().allow_altstageout is None


@pytest.mark.parametrize(("gap", "pledged", "expected"), [(0, -1, 600), (0, 5, 7200), (3600, -1, 3600), (601, 0, 601)])
def test_stageout_gap_is_the_queues_own_or_follows_the_pledge(gap: int, pledged: int, expected: int) -> None:
    assert Queue.from_record({"zip_time_gap": gap, "pledgedcpu": pledged}).es_stageout_gap == expected


@pytest.mark.parametrize("empty", ["", None, "apptainer", ";;"])
def test_a_queue_without_containers_is_legal(empty: str | None) -> None:
    assert Queue.from_record({"container_type": empty}).container_type == {}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("maxrss", "lots", "a number"),
        ("maxrss", True, "a number"),
        ("maxrss", [1], "a number"),
        ("maxrss", float("nan"), "a number"),
        ("maxtime", 10**400, "a number"),
        ("timefloor", {}, "a number"),
        ("allow_lan", "perhaps", "true or false"),
        ("allow_lan", 2, "true or false"),
        ("nickname", ["x"], "a text"),
        ("status", False, "a text"),
        ("copytools", ["mv"], "a table"),
        ("copytools", {"mv": "setup"}, "a table of tables"),
        ("copytools", "mv", "a table"),
        ("acopytools", {"pr": {"mv": 1}}, "lists of names"),
        ("astorages", {"pr": [1]}, "lists of names"),
        ("acopytools_schemas", {"pr": {"mv": 7}}, "lists of names"),
        ("params", [1], "a table"),
    ],
)
def test_a_wrong_type_is_told_by_field(field: str, value: object, expected: str) -> None:
    with pytest.raises(PilotError) as caught:
        Queue.from_record({field: value})
    assert caught.value.code is Code.QUEUEDATANOTOK
    assert caught.value.detail.startswith(f"queuedata field {field!r}: expected {expected}, got ")
    assert caught.value.detail.partition(", got ")[2][:20] in repr(value)


def test_a_wrong_parameter_is_told_by_name() -> None:
    with pytest.raises(PilotError, match="queuedata params field 'pilot_rss_grace': expected a number, got 'x'"):
        Queue.from_record({"params": {"pilot_rss_grace": "x"}})


@pytest.mark.parametrize("unset", [None, "", "NULL", "none", " null "])
def test_what_is_not_set_is_no_wrong_number(unset: str | None) -> None:
    assert Queue.from_record({"maxrss": unset, "corecount": unset, "copytools": unset}).corecount == 1


def test_a_table_may_be_written_as_text() -> None:
    for text in ('{"mv": {"setup": null}}', "{'mv': {'setup': None}}"):
        assert Queue.from_record({"copytools": text}).options("mv") == {"setup": None}
    assert Queue.from_record({"copytools": []}).copytools == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(RECORD)), json_values))
def test_no_record_makes_anything_but_a_queue_or_that_one_error(changes: dict[str, Any]) -> None:
    try:
        Queue.from_record({**RECORD, **changes})
    except PilotError as error:
        assert error.code is Code.QUEUEDATANOTOK


# --- copy tools, storages, schemes by activity ---


@pytest.mark.parametrize(
    ("activities", "tools"),
    [
        (["read_lan"], ["mv", "xrdcp"]),
        ("read_lan", ["mv", "xrdcp"]),
        (["write_lan_analysis", "write_lan", "w"], ["mv"]),
        (["pl", "write_lan"], ["rucio"]),
        (["pw", "write_lan"], ["mv"]),
        (["es_events"], ["rucio"]),
        ([], ["rucio"]),
    ],
)
def test_tools_are_those_of_the_first_activity_that_has_any(
    queue: Queue, activities: str | list[str], tools: list[str]
) -> None:
    assert queue.tools(activities) == tools


def test_tools_of_the_default_activity_come_before_rucio(queue: Queue) -> None:
    queue = replace(queue, acopytools={**queue.acopytools, "default": ("gfal",)})
    assert queue.tools(["es_events"]) == ["gfal"]
    assert queue.tools(["pl"]) == ["rucio"]


def test_without_acopytools_all_copytools_are_tried(queue: Queue) -> None:
    assert replace(queue, acopytools={}).tools(["read_lan"]) == ["xrdcp", "mv", "rucio"]
    assert Queue().tools(["read_lan"]) == ["rucio"]


def test_storages_of_an_activity_that_has_none_are_none(queue: Queue) -> None:
    assert queue.storages(["write_lan_analysis", "write_lan"]) == ("TEST_DATADISK", "TEST_SCRATCH")
    assert queue.storages("pl") == ("TEST_LOGS",)
    assert queue.storages(["es_events"]) == ()


def test_schemas_are_those_of_the_tool_then_of_any_tool(queue: Queue) -> None:
    assert queue.schemas(["read_lan"], "xrdcp") == ("root", "https")
    assert queue.schemas("write_lan", "xrdcp") == ("root",)
    assert queue.schemas(["write_lan"], "gfal") == ("davs",)
    assert queue.schemas(["pl"], "rucio") == ()


def test_options_of_a_tool_without_any_are_empty(queue: Queue) -> None:
    assert queue.options("xrdcp") == {"setup": "/cvmfs/setup.sh"}
    assert queue.options("rucio") == queue.options("gs") == {}


# --- catchall, containers ---


def test_catchall_words_are_found_between_blanks_and_commas(queue: Queue) -> None:
    assert queue.catchall_flag("allow_wan_for_lib")
    assert queue.catchall_value("nopenfiles") == "5"
    assert queue.catchall_value("IMAGE_BASE") == "/cvmfs/images"
    assert queue.catchall_value("logging") == "logstash;https://log.example.org:8443"
    assert queue.catchall_value("remoteio_test") == "false"
    assert not queue.catchall_flag("remoteio_test")
    assert queue.catchall_value("allow_wan_for_lib") is None
    assert not queue.catchall_flag("allow_wan")
    assert queue.catchall_value("contain") is None


def test_container_options_come_from_catchall_and_show_the_job_directory(queue: Queue) -> None:
    assert queue.container_options == "-B /cvmfs,/etc/grid-security,${workdir} --contain"
    own = Queue.from_record({**RECORD, "container_options": "-B /data,${workdir} --contain"})
    assert own.container_options == "-B /data,${workdir} --contain"
    assert Queue.from_record({"catchall": "apptainer_options=--cleanenv"}).container_options == "--cleanenv"
    assert Queue.from_record({"container_options": "none"}).container_options == ""


# --- may pilots run here ---


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("ACTIVE", "online", None),
        ("ACTIVE", "brokeroff", None),
        ("ACTIVE", "test", None),
        ("", "", None),
        ("INACTIVE", "online", Code.PANDAQUEUENOTACTIVE),
        ("DISABLED", "offline", Code.PANDAQUEUENOTACTIVE),
        ("ACTIVE", "offline", Code.PANDAQUEUENOTONLINE),
    ],
)
def test_only_an_active_queue_that_is_not_offline_takes_pilots(state: str, status: str, code: Code | None) -> None:
    queue = Queue(name="Q", state=state, status=status)
    try:
        check_active(queue)
    except PilotError as error:
        assert (error.code, error.detail.startswith("Q ")) == (code, True)
    else:
        assert code is None


# --- storages ---


@pytest.fixture
def info() -> QueueInfo:
    return QueueInfo(queue=Queue.from_record(RECORD), record=RECORD, storage_records=STORAGES, storage_origin="USER f")


def test_a_storage_has_its_fields(info: QueueInfo) -> None:
    disk, logs = info.storage("TEST_DATADISK"), info.storage("TEST_LOGS")
    assert (disk.name, disk.pk, disk.type, disk.token, disk.site) == (
        "TEST_DATADISK",
        17,
        "DATADISK",
        "ATLASDATADISK",
        "TESTLAB",
    )
    assert disk.is_deterministic and not logs.is_deterministic
    assert (logs.name, logs.bucket_id, logs.type) == ("TEST_LOGS", "77", "OS_LOGS")
    assert logs.rprotocols["104"]["settings"]["access_key"] == "LogsPub.key"


def test_protocols_are_those_of_the_first_activity_that_has_any(info: QueueInfo) -> None:
    disk = info.storage("TEST_DATADISK")
    assert [protocol.id for protocol in disk.protocols(["write_lan", "write_wan"])] == ["101", "102"]
    assert [protocol.id for protocol in disk.protocols(["read_wan", "write_wan"])] == ["103"]
    assert [protocol.id for protocol in disk.protocols("write_lan", ["davs", "root"])] == ["102", "101"]
    assert disk.protocols("write_lan")[0].scheme == "root"


@pytest.mark.parametrize(("activities", "schemas"), [(["read_wan"], ()), ([], ()), (["write_lan"], ("gs",))])
def test_no_protocol_has_its_code(info: QueueInfo, activities: list[str], schemas: tuple[str, ...]) -> None:
    with pytest.raises(PilotError, match="TEST_DATADISK") as caught:
        info.storage("TEST_DATADISK").protocols(activities, schemas)
    assert caught.value.code is Code.NOSTORAGEPROTOCOL


@pytest.mark.parametrize("endpoint", ["NOWHERE", "", "PREFERRED"])
def test_an_endpoint_that_is_not_there_has_its_code(info: QueueInfo, endpoint: str) -> None:
    with pytest.raises(PilotError) as caught:
        info.storage(endpoint)
    assert caught.value.code is Code.NOSTORAGE
    assert (endpoint or "TEST_QUEUE") in caught.value.detail


def test_a_broken_endpoint_fails_only_who_asks_for_it(info: QueueInfo) -> None:
    with pytest.raises(
        PilotError, match="storagedata field 'is_deterministic' of TEST_BROKEN: expected true"
    ) as caught:
        info.storage("TEST_BROKEN")
    assert caught.value.code is Code.QUEUEDATANOTOK


@pytest.mark.parametrize("entries", [{"endpoint": "x"}, ["root://x"], "root://x"])
def test_protocols_of_another_shape_are_told_by_field(entries: object) -> None:
    with pytest.raises(PilotError, match="storagedata field 'arprotocols' of S: expected lists of tables"):
        Storage.from_record({"arprotocols": {"write_lan": entries}}, "S")


def test_a_surl_is_laid_out_as_rucio_does_it(info: QueueInfo) -> None:
    lfn = "user.jwebb2.66999._000001.top1outDS.tar"
    assert hash_path("user.jwebb2", lfn) == f"user/jwebb2/01/9f/{lfn}"  # an example that Pilot 3 gives
    disk = info.storage("TEST_DATADISK")
    root, davs = disk.protocols("write_lan")
    assert disk.surl(root, "user.jwebb2", lfn) == f"root://door.example.org:1094//data/rucio/user/jwebb2/01/9f/{lfn}"
    assert disk.surl(davs, "user.jwebb2", lfn) == f"davs://door.example.org:2880/data/rucio/user/jwebb2/01/9f/{lfn}"


def test_scopes_with_empty_parts_make_no_double_slash() -> None:
    digest = md5(b"a..b:f").hexdigest()
    assert hash_path("a..b", "f") == f"a/b/{digest[:2]}/{digest[2:4]}/f"
    assert hash_path("", "f").endswith("/f") and not hash_path("", "f").startswith("/")


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=20))
def test_no_scope_leads_upwards(scope: str) -> None:
    assert ".." not in hash_path(scope, "f").split("/")


def test_a_storage_without_a_layout_needs_a_path(info: QueueInfo) -> None:
    logs = info.storage("TEST_LOGS")
    protocol = logs.protocols("write_lan")[0]
    with pytest.raises(PilotError) as caught:
        logs.surl(protocol, "user.x", "f.tgz")
    assert caught.value.code is Code.NONDETERMINISTICDDM
    assert logs.surl(protocol, "user.x", "f.tgz", "day/f.tgz") == "s3://s3.example.org:443//logs/day/f.tgz"
    bare = StorageProtocol(endpoint="file:///data/")
    assert logs.surl(bare, "user.x", "f", "f") == "file:///data/f"


# --- overrides ---


def test_overrides_of_a_job_go_over_the_record_at_every_depth(info: QueueInfo) -> None:
    over = info.overlaid(
        {"maxrss": 999, "copytools": {"mv": {"setup": "new"}}, "acopytools": {"read_lan": ["gfal"]}},
        {"TEST_LOGS": {"is_deterministic": True}, "NEW": {"is_deterministic": True}},
    )
    assert over.queue.maxrss == 999
    assert over.queue.options("mv") == {"setup": "new"} and over.queue.options("xrdcp")
    assert over.queue.tools("read_lan") == ["gfal"] and over.queue.tools("write_lan") == ["mv"]
    assert over.storage("TEST_LOGS").is_deterministic and over.storage("TEST_LOGS").bucket_id == "77"
    assert over.storage("NEW").name == "NEW"
    assert info.queue.maxrss == 3200 and not info.storage("TEST_LOGS").is_deterministic


def test_a_wrong_override_is_told_by_field(info: QueueInfo) -> None:
    with pytest.raises(PilotError, match="queuedata field 'maxrss': expected a number, got 'much'"):
        info.overlaid({"maxrss": "much"}, {})
    with pytest.raises(PilotError, match="overwriteStorageData field 'TEST_LOGS': expected a table"):
        info.overlaid({}, {"TEST_LOGS": 7}).storage("TEST_LOGS")


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 1}}
    assert merged(base, over) == {"a": {"b": 1, "c": [2]}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1}


# --- documents ---


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5), st.sampled_from([None, 1, "\t"]))
def test_members_are_those_that_json_reads(document: dict[str, Any], indent: str | int | None) -> None:
    text = f" \n{json.dumps(document, indent=indent)}\n"
    found = {name: (value, place) for name, value, place in members(text)}
    assert json.dumps({name: value for name, (value, _) in found.items()}) == json.dumps(document)
    for value, place in found.values():
        assert text[place:].startswith(json.dumps(value, indent=indent)[0])


@pytest.mark.parametrize(
    "text",
    ["", "  ", "[]", "null", "{", '{"a"}', '{"a": 1', '{"a": 1,}', '{"a": 1} x', "{1: 2}", '{"a" 1}', '{"a": }', "{,}"],
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        list(members(text))


@pytest.mark.parametrize("name", ["TEST_QUEUE", ""])
@pytest.mark.parametrize("document", [RECORD, {"TEST_QUEUE": RECORD}], ids=["bare", "wrapped"])
def test_a_queue_is_found_alone_or_under_its_name(document: dict[str, Any], name: str) -> None:
    assert queue_record(json.dumps(document), name) == RECORD


def test_a_queue_is_found_among_others() -> None:
    text = json.dumps({"OTHER": {"nickname": "OTHER"}, "Q": {"nickname": "q"}, "EMPTY": {}})
    assert queue_record(text, "Q") == {"nickname": "q"}
    for name, problem in (("NONE", "no record of queue NONE"), ("EMPTY", "no record"), ("", "not one queue")):
        with pytest.raises(UnusableError, match=problem):
            queue_record(text, name)


@pytest.mark.parametrize("text", ["{}", '{"error": "no such queue"}', '{"x": 1}', '{"arprotocols": {}, "id": 1}'])
def test_a_document_without_a_queue_is_refused(text: str) -> None:
    with pytest.raises(UnusableError):
        queue_record(text, "Q")
    with pytest.raises(UnusableError):
        StorageRecords(text)


def test_a_record_alone_in_our_cache_must_be_of_this_queue() -> None:
    text = json.dumps({"nickname": "OTHER", "state": "ACTIVE"})
    assert queue_record(text, "Q")["nickname"] == "OTHER"
    with pytest.raises(UnusableError, match="is of queue OTHER"):
        queue_record(text, "Q", own=True)
    with pytest.raises(UnusableError, match="is of queue unknown"):
        queue_record('{"state": "ACTIVE"}', "Q", own=True)


def test_storages_are_a_mapping_over_their_text() -> None:
    records = StorageRecords(json.dumps({**STORAGES, "version": 7}, indent=2))
    assert dict(records) == STORAGES
    assert len(records) == 3
    assert records.get("version") is None
    assert dict(StorageRecords(f"\n{json.dumps(STORAGES['TEST_DATADISK'])}")) == {
        "TEST_DATADISK": STORAGES["TEST_DATADISK"]
    }


# --- loading ---


class Web:
    """A `fetch` that answers from a table; an exception in it is raised, and every call is written down."""

    def __init__(self, **pages: object) -> None:
        self.pages = {f"https://{host}/": page for host, page in pages.items()}
        self.calls: list[str] = []

    def __call__(self, url: str) -> bytes:
        self.calls.append(url)
        page = self.pages.get(url, DownloadError(f"{url}: HTTP status 404", retry=False))
        page = page.pop(0) if isinstance(page, list) else page
        if isinstance(page, Exception):
            raise page
        return page if isinstance(page, bytes) else json.dumps(page).encode()


def record(**changes: object) -> dict[str, Any]:
    return {"nickname": "Q", "state": "ACTIVE", **changes}


def loaded(
    tmp_path: Path, web: Callable[[str], bytes], sources: Sources, name: str = "Q", pause: float = 0.001
) -> QueueInfo:
    async def run() -> QueueInfo:
        return await QueuedataLoader(name, tmp_path / "cache", web, sources, pause=pause).load(Stop())

    return asyncio.run(run())


def cached(tmp_path: Path, name: str, content: object, age: float = 60.0) -> None:
    path = tmp_path / "cache" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)


BOTH = Sources(queuedata_url="https://panda/", queues_url="https://cric/")


def test_pandas_record_goes_over_crics(tmp_path: Path) -> None:
    web = Web(
        cric={"Q": record(maxrss=1, maxwdir=7, copytools={"mv": {}})},
        panda=record(maxrss=2, copytools={"gs": {}}),
    )
    info = loaded(tmp_path, web, BOTH)
    assert (info.queue.maxrss, info.queue.maxwdir, set(info.queue.copytools)) == (2, 7, {"mv", "gs"})
    assert info.origin == "CRIC https://cric/ + PANDA https://panda/"


@pytest.mark.parametrize("gone", ["cric", "panda"])
def test_one_of_the_two_is_enough(tmp_path: Path, gone: str) -> None:
    web = Web(**{host: record(site=host) for host in ("cric", "panda") if host != gone})
    assert loaded(tmp_path, web, BOTH).queue.name == "Q"


def test_no_source_with_the_queue_is_an_error_that_says_why(tmp_path: Path) -> None:
    web = Web(cric={"OTHER": record()}, panda=b"<html>")
    sources = replace(BOTH, queues_cvmfs="CVMFS_PATH/none.json", cvmfs_base=str(tmp_path))
    with pytest.raises(PilotError) as caught:
        loaded(tmp_path, web, sources)
    assert caught.value.code is Code.QUEUEDATA
    assert f"CVMFS {tmp_path}/none.json: No such file or directory" in caught.value.detail
    assert "CRIC https://cric/: holds no record of queue Q" in caught.value.detail
    assert "PANDA https://panda/: expected { at character 0" in caught.value.detail
    with pytest.raises(PilotError, match="no source is set: --queuedata-url"):
        loaded(tmp_path, web, Sources())


def test_crics_sources_are_asked_in_order(tmp_path: Path) -> None:
    web = Web(cric=record(maxrss=3))
    cvmfs, local = tmp_path / "repo/queues.json", tmp_path / "local.json"
    cvmfs.parent.mkdir()
    cvmfs.write_text(json.dumps({"A": {}, "Q": record(maxrss=2)}))
    sources = Sources(
        schedconf_file=str(local), queues_cvmfs="CVMFS_PATH/queues.json", queues_url="https://cric/",
        cvmfs_base=str(cvmfs.parent),
    )  # fmt: skip
    cached(tmp_path, CRIC_CACHE, {"Q": record(maxrss=1)})
    local.write_text(json.dumps(record(maxrss=0)))
    assert loaded(tmp_path, web, sources).queue.maxrss == 0
    local.unlink()
    assert loaded(tmp_path, web, sources).queue.maxrss == 1
    cached(tmp_path, CRIC_CACHE, {"Q": record(maxrss=1)}, age=CACHE_TIME + 60)
    assert loaded(tmp_path, web, sources).queue.maxrss == 2
    cvmfs.unlink()
    assert web.calls == []
    assert loaded(tmp_path, web, sources).queue.maxrss == 3


def test_a_young_cache_spares_asking_and_an_old_one_helps_out(tmp_path: Path) -> None:
    web = Web(panda=[record(maxrss=1), *[ConnectionError("down")] * 3])
    sources = Sources(queuedata_url="https://panda/")
    assert loaded(tmp_path, web, sources).queue.maxrss == 1
    assert json.loads((tmp_path / "cache" / QUEUE_CACHE).read_text()) == {"Q": record(maxrss=1)}
    assert os.listdir(tmp_path / "cache") == [QUEUE_CACHE]
    assert loaded(tmp_path, web, sources).queue.maxrss == 1
    assert len(web.calls) == 1
    cached(tmp_path, QUEUE_CACHE, {"Q": record(maxrss=5)}, age=10 * CACHE_TIME)
    assert loaded(tmp_path, web, sources).queue.maxrss == 5
    assert len(web.calls) == 4


@pytest.mark.parametrize("cache", [{"OTHER": record()}, record(nickname="OTHER"), {"state": "ACTIVE"}, "{", ""])
def test_a_cache_that_is_not_of_this_queue_is_not_used(tmp_path: Path, cache: object) -> None:
    cached(tmp_path, QUEUE_CACHE, cache)
    assert loaded(tmp_path, Web(panda=record(maxrss=9)), Sources(queuedata_url="https://panda/")).queue.maxrss == 9
    cached(tmp_path, QUEUE_CACHE, cache)
    with pytest.raises(PilotError, match="HTTP status 404"):
        loaded(tmp_path, Web(), Sources(queuedata_url="https://panda/"))


@pytest.mark.parametrize("form", ["path", "file"])
def test_a_file_given_by_the_operator_is_read_as_it_is_now(tmp_path: Path, form: str) -> None:
    path = tmp_path / "queue data Q.json"
    path.write_text(json.dumps(record(maxrss=4)))
    cached(tmp_path, QUEUE_CACHE, {"Q": record(maxrss=1)})
    place = str(path) if form == "path" else path.as_uri()
    web = Web()
    info = loaded(tmp_path, web, Sources(queuedata_url=place.replace("Q.json", "{pandaqueue}.json")))
    assert (info.queue.maxrss, web.calls) == (4, [])
    assert json.loads((tmp_path / "cache" / QUEUE_CACHE).read_text()) == {"Q": record(maxrss=1)}


def test_the_queues_name_is_quoted_in_urls(tmp_path: Path) -> None:
    web = Web()
    with pytest.raises(PilotError):
        loaded(tmp_path, web, Sources(queuedata_url="https://panda/{pandaqueue}.json?x={pandaqueue}"), "A/B&c")
    assert web.calls == ["https://panda/A%2FB%26c.json?x=A%2FB%26c"]


def test_other_schemes_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(PilotError, match="scheme ftp cannot be read"):
        loaded(tmp_path, Web(), Sources(queuedata_url="ftp://host/x.json"))


@pytest.mark.parametrize(
    "passing", [ConnectionError("x"), DownloadError("x", retry=True), b"{", b"\xff", TimeoutError()]
)
def test_a_remote_source_is_asked_three_times(tmp_path: Path, passing: object) -> None:
    web = Web(panda=[passing, passing, record(maxrss=3)])
    assert loaded(tmp_path, web, Sources(queuedata_url="https://panda/")).queue.maxrss == 3
    (tmp_path / "cache" / QUEUE_CACHE).unlink()
    web = Web(panda=[passing, passing, passing, record()])
    with pytest.raises(PilotError, match="queue Q: PANDA https://panda/: "):
        loaded(tmp_path, web, Sources(queuedata_url="https://panda/"))
    assert len(web.calls) == 3


@pytest.mark.parametrize("final", [DownloadError("x", retry=False), {"OTHER": record()}, {"error": "none"}])
def test_an_answer_that_will_not_change_is_asked_for_once(tmp_path: Path, final: object) -> None:
    web = Web(panda=[final, record()])
    with pytest.raises(PilotError):
        loaded(tmp_path, web, Sources(queuedata_url="https://panda/"))
    assert len(web.calls) == 1


def test_a_cache_that_cannot_be_written_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert loaded(tmp_path, Web(panda=record()), Sources(queuedata_url="https://panda/")).queue.name == "Q"


def test_wrong_fields_are_an_error_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(PilotError) as caught:
        loaded(tmp_path, Web(panda=record(maxrss="x")), Sources(queuedata_url="https://panda/"))
    assert caught.value.code is Code.QUEUEDATANOTOK


def test_the_only_queue_of_a_file_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    for document in (record(), {"Q": record()}):
        path.write_text(json.dumps(document))
        assert loaded(tmp_path, Web(), Sources(queuedata_url=str(path)), name="").queue.name == "Q"


def test_storages_are_looked_for_only_where_they_are_wanted(tmp_path: Path) -> None:
    web = Web(panda=record(), ddm=STORAGES)
    sources = Sources(queuedata_url="https://panda/", storages_url="https://ddm/")
    loaded(tmp_path, web, sources)
    assert web.calls == ["https://panda/"]
    info = loaded(tmp_path, web, replace(sources, storagedata_url="https://ddm/"))
    assert info.storage("TEST_DATADISK").pk == 17
    assert info.storage_origin == "USER https://ddm/"


def with_storages(**places: Any) -> Sources:
    return Sources(queuedata_url="https://panda/", **places)


def test_storages_are_read_in_order_and_kept(tmp_path: Path) -> None:
    web = Web(panda=record(astorages={"pw": ["A"]}), ddm={"A": {"id": 4}})
    user, cvmfs = tmp_path / "user.json", tmp_path / "ddm.json"
    sources = with_storages(storagedata_url=str(user), storages_cvmfs=str(cvmfs), storages_url="https://ddm/")
    user.write_text('{"A": {"id": 1}}')
    cached(tmp_path, STORAGE_CACHE, {"A": {"id": 2}})
    cvmfs.write_text('{"A": {"id": 3}}')
    assert loaded(tmp_path, web, sources).storage("A").pk == 1
    assert loaded(tmp_path, web, replace(sources, storages_prefer_cache=True)).storage("A").pk == 2
    user.unlink()
    assert loaded(tmp_path, web, sources).storage("A").pk == 2
    (tmp_path / "cache" / STORAGE_CACHE).unlink()
    assert loaded(tmp_path, web, sources).storage("A").pk == 3
    cvmfs.unlink()
    assert loaded(tmp_path, web, sources).storage("A").pk == 4
    assert json.loads((tmp_path / "cache" / STORAGE_CACHE).read_text()) == {"A": {"id": 4}}


def test_missing_storages_fail_only_who_needs_one(tmp_path: Path) -> None:
    web = Web(panda=record(astorages={"pw": ["A"]}))
    info = loaded(tmp_path, web, with_storages(storages_url="https://ddm/"))
    assert info.queue.storages("pw") == ("A",)
    with pytest.raises(PilotError, match=r"no storagedata was read: CRIC https://ddm/: .*404") as caught:
        info.storage("A")
    assert caught.value.code is Code.NOSTORAGE


# --- stops and time-outs ---


def stopped(tmp_path: Path, web: Callable[[str], bytes]) -> float:
    """Seconds until loading ends with the reason of a stop that is requested after 0.1 s."""

    async def run() -> None:
        stop = Stop()
        loader = QueuedataLoader("Q", tmp_path, web, Sources(queuedata_url="https://panda/"), pause=60.0)
        asyncio.get_running_loop().call_later(0.1, stop.request, PilotError(Code.SIGTERM))
        with pytest.raises(PilotError) as caught:
            await loader.load(stop)
        assert caught.value.code is Code.SIGTERM

    begin = time.monotonic()
    asyncio.run(run())
    return time.monotonic() - begin


def test_a_stop_ends_the_wait_between_tries(tmp_path: Path) -> None:
    web = Web(panda=[ConnectionError("x")] * 3)
    assert stopped(tmp_path, web) < 2
    assert len(web.calls) == 1


def test_a_stop_ends_a_fetch_that_hangs(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(url: str) -> bytes:
        release.wait(30)
        return b"{}"

    try:
        assert stopped(tmp_path, hang) < 2
    finally:
        release.set()


def test_a_source_that_hangs_gives_way_to_the_next(tmp_path: Path) -> None:
    release = threading.Event()

    def web(url: str) -> bytes:
        if "cric" in url:
            release.wait(30)
        return json.dumps(record(maxrss=8)).encode()

    async def run() -> QueueInfo:
        return await QueuedataLoader("Q", tmp_path, web, BOTH, pause=0.001, timeout=0.1).load(Stop())

    try:
        assert asyncio.run(run()).queue.maxrss == 8
    finally:
        release.set()


# --- real records, where they are at hand ---


@pytest.mark.skipif(not REAL, reason="no real CRIC records at hand")
def test_real_cric_records_are_understood(tmp_path: Path) -> None:
    for path in REAL:
        queue = loaded(tmp_path, Web(), Sources(queuedata_url=str(path.parent / "{pandaqueue}.json")), path.stem).queue
        assert queue.name == queue.resource == path.stem
        assert (queue.site, queue.container_type, queue.options("gs")) == ("LSST", {}, {"setup": ""})
        assert queue.tools(["write_lan_analysis", "write_lan", "w"]) == ["gs"]
        assert queue.storages("pw") == ("GKE-LSST_LOGS",)
        assert (queue.timefloor % 3600, queue.maxwdir, queue.maxinputsize) == (0, 16336, 14336)
        check_active(queue)
