from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.errors import Code, JobDefinitionError
from pilot.job import Access, Job, Kind, Utility
from pilot.jobdef import job_identity, parse_job, pilot_secrets
from pilot.masking import Secret

WIRE = Path(__file__).parents[1] / "contract" / "wire"


def exchanges(name, path):
    lines = [json.loads(line) for line in (WIRE / name).read_text().splitlines()]
    return [line for line in lines if line["path"].endswith(path)]


def from_form(text):
    return dict(parse_qsl(text, keep_blank_values=True))


def from_cut_json(text):
    """The recorder cut long answers in the middle of the last field: leave that one out."""
    head = text[: text.rindex(', "')]
    return json.loads(head + ("}]}" if '"jobs": [' in head else "}"))


def wire_definitions():
    for exchange in exchanges("v1-harvester-push.jsonl", "acquire_jobs"):
        yield from (json.loads(exchange["response_body"])["data"] or {}).get("jobs", [])
    for exchange in exchanges("legacy-one-job-by-pilot3.jsonl", "getJob"):
        yield from_form(exchange["response_body"])
    for exchange in exchanges("legacy-calls.jsonl", "getJob"):
        if exchange["content_type"] == "text/plain":
            found = from_form(exchange["response"])
        else:
            found = from_cut_json(exchange["response"])
        yield from found.get("jobs", [found] if "PandaID" in found else [])


REAL = list(wire_definitions())


def definition(**changes):
    """A real definition of the v1 API with some fields changed; None as a change leaves the field out."""
    raw = next(raw for raw in REAL if raw["PandaID"] == 28) | changes
    return {name: value for name, value in raw.items() if value is not None or name not in changes}


def two_files(**changes):
    """Two inputs, two outputs and a log in the middle."""
    fields = dict(  # noqa: C408
        inFiles="a.root,b.root",
        realDatasetsIn="dsA,dsB",
        GUID="GUID-A,NULL",
        fsize="10,NULL",
        checksum="ad:1,md:" + "AB" * 16,
        scopeIn="sa,sb",
        prodDBlockToken="NULL,local",
        ddmEndPointIn="RSE_A,RSE_B",
        outFiles="x.root,log.tgz,y.root",
        realDatasets="dx,dl,dy",
        scopeOut="sx,sy",
        scopeLog="sl",
        logFile="log.tgz",
        ddmEndPointOut="RX,RL,RY",
    )
    return definition(**fields | changes)


def refusal(raw, **options) -> JobDefinitionError:
    with pytest.raises(JobDefinitionError) as caught:
        parse_job(raw, **options)
    return caught.value


def same(one: Job, other: Job) -> bool:
    """Equal but for the GUIDs made for outputs."""
    return without_guids(one) == without_guids(other)


def without_guids(job: Job) -> Job:
    return replace(
        job,
        outputs=tuple(replace(file, guid="") for file in job.outputs),
        log=job.log and replace(job.log, guid=""),
    )


# --- real definitions


def test_the_wire_holds_definitions_of_both_apis_and_both_encodings():
    assert sorted(int(raw["PandaID"]) for raw in REAL) == [6, 7, 8, 13, 28, 29]
    assert {type(raw["PandaID"]) for raw in REAL} == {int, str}


@pytest.mark.parametrize("raw", REAL, ids=lambda raw: f"job{raw['PandaID']}")
def test_every_real_definition_parses(raw):
    job = parse_job(raw)
    (given,) = job.inputs
    (output,) = job.outputs
    assert job.job_id == int(raw["PandaID"])
    assert (job.attempt, job.task_id, job.jobset_id, job.cores) == (1, None, None, 1)
    assert (job.max_walltime, job.min_ram) == (3600, 1000) or int(raw["PandaID"]) in (6, 8)  # cut by the recorder
    assert (given.scope, given.dataset, given.size, given.endpoint) == ("loop.test", "loop.in", 100000, "LOOP_DATADISK")
    assert given.checksums == {"adler32": raw["checksum"][3:]}
    assert given.guid == raw["GUID"]
    assert given.token == ""
    assert output.lfn.startswith("out.")
    assert output.scope == "loop.test"
    assert output.dataset.startswith("loop.ds.")
    assert job.log.lfn == raw["logFile"]
    assert (job.log.guid, job.log.scope, job.log.kind) == (raw["logGUID"], "loop.test", Kind.LOG)
    assert job.parameters == f"{given.lfn} {output.lfn}"
    assert job.is_analysis  # its transformation is a URL
    assert (job.release, job.platform, job.nucleus) == ("", "", "")
    assert job.user == "/O=Loop/CN=Loop User"


def test_both_encodings_say_the_same():
    raw = two_files(
        coreCount=4,
        loopingCheck=False,
        debug="True",
        preprocess={"command": "echo", "args": 'it\'s "quoted"'},
        containerOptions={"containerImage": "img", "execArgs": "-B /x"},
        pilotSecrets={"logstash_login": "l'ogin"},
        secrets='{"a": 1}',
    )
    as_form = from_form(urlencode(raw))
    assert all(isinstance(value, str) for value in as_form.values())
    assert same(parse_job(raw), parse_job(as_form))


names = st.text("abcXYZ019._-", min_size=1, max_size=12).filter(lambda name: name not in (".", "..", "NULL"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    inputs=st.lists(st.tuples(names, st.integers(1, 2**40)), max_size=5, unique_by=lambda pair: pair[0]),
    outputs=st.lists(names, max_size=5, unique=True),
    log_at=st.integers(0, 5),
    numbers=st.tuples(st.integers(1, 2**62), st.integers(0, 9), st.integers(0, 2**31)),
)
def test_definitions_built_as_the_server_does_parse_from_both_encodings(inputs, outputs, log_at, numbers):
    out_files = [*outputs[:log_at], "the log.tgz", *outputs[log_at:]]
    raw = {
        "PandaID": numbers[0],
        "attemptNr": numbers[1],
        "maxWalltime": numbers[2],
        "inFiles": ",".join(name for name, _ in inputs),
        "fsize": ",".join(str(size) for _, size in inputs),
        "GUID": ",".join("NULL" for _ in inputs),
        "scopeIn": ",".join("s" for _ in inputs),
        "ddmEndPointIn": ",".join("" for _ in inputs),
        "outFiles": ",".join(out_files),
        "realDatasets": ",".join("d" for _ in out_files),
        "scopeOut": ",".join(f"s{n}" for n, _ in enumerate(outputs)),
        "scopeLog": "sl",
        "logFile": "the log.tgz",
        "ddmEndPointOut": ",".join("R" for _ in out_files),
    }
    job = parse_job(raw)
    assert same(job, parse_job(from_form(urlencode(raw))))
    assert job_identity(raw) == (job.job_id, job.attempt) == numbers[:2]
    assert job.max_walltime == numbers[2]
    assert [(file.lfn, file.size) for file in job.inputs] == inputs
    assert [(file.lfn, file.scope) for file in job.outputs] == [(name, f"s{n}") for n, name in enumerate(outputs)]
    assert (job.log.lfn, job.log.scope) == ("the log.tgz", "sl")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["NULL", "a,b", ","]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted({*REAL[0], "secrets", "pilotSecrets", "preprocess", "writeToFile",
       "containerOptions", "loopingCheck", "debug", "allowNoOutput", "container_name"} - {"PandaID"})), json_values,
       max_size=4))  # fmt: skip
def test_whatever_stands_in_a_field_gives_a_job_or_one_message(changes):
    raw = REAL[0] | changes
    assert job_identity(raw)[0] == 28
    try:
        assert isinstance(parse_job(raw), Job)
    except JobDefinitionError as error:
        assert error.field
        assert len(error.diag) <= 500


# --- who it is


@pytest.mark.parametrize("bad", [None, "", "NULL", 0, -5, "abc", True, 3.5, [28], "9" * 5000, 2**63, math.nan])
def test_without_a_usable_pandaid_there_is_no_identity(bad):
    with pytest.raises(JobDefinitionError) as caught:
        job_identity({"PandaID": bad, "attemptNr": 1})
    assert caught.value.field == "PandaID"
    assert len(str(caught.value)) < 300
    assert refusal({"PandaID": bad}).field == "PandaID"


@pytest.mark.parametrize("raw", [None, [], "PandaID=1", 5])
def test_what_is_no_definition_at_all_is_refused(raw):
    assert refusal(raw).field == "PandaID"


def test_a_bad_definition_still_says_whose_it_is():
    raw = definition(attemptNr=3, inFiles=["a"], coreCount="many")
    refusal(raw)
    assert job_identity(raw) == (28, 3)
    assert job_identity(raw | {"attemptNr": "x" * 10**7}) == (28, 0)


# --- single values


@pytest.mark.parametrize("value", [3600, "3600", " 3600 ", "3600.0", 3600.0])
def test_whole_numbers_come_in_many_spellings(value):
    assert parse_job(definition(maxWalltime=value)).max_walltime == 3600


@pytest.mark.parametrize("value", ["NULL", "None", "null", "", None])
def test_no_number_is_zero_or_none(value):
    job = parse_job(definition() | {"maxWalltime": value, "taskID": value, "jobsetID": value, "coreCount": value})
    assert (job.max_walltime, job.task_id, job.jobset_id, job.cores) == (0, None, None, 1)


@pytest.mark.parametrize(
    "value",
    [
        "many",
        "12 h",
        "3600.5",
        3600.5,
        "1_000",
        "٣",
        True,
        [1],
        {},
        -2,
        "-2",
        2**63,
        "1e400",
        math.inf,
        pytest.param(10**5000, id="huge"),
    ],
)
@pytest.mark.parametrize("field", ["maxWalltime", "taskID", "attemptNr", "minRamCount"])
def test_a_number_that_is_none_names_its_field(field, value):
    error = refusal(definition() | {field: value})
    assert error.field == field
    assert error.code is Code.CONVERSIONFAILURE
    assert "expected a" in error.diag
    assert len(error.diag) < 300


@pytest.mark.parametrize("value", [-1, "-1", -1.0])
def test_minus_one_is_no_limit(value):
    job = parse_job(definition() | {"maxWalltime": value, "minRamCount": value, "coreCount": value})
    assert (job.max_walltime, job.min_ram, job.cores) == (0, 0, 1)


@pytest.mark.parametrize("value", ["NULL", "None", None, "null", "  "])
def test_null_texts_are_empty(value):
    job = parse_job(
        definition() | {"homepackage": value, "transformation": value, "jobPars": value, "cmtConfig": value}
    )
    assert (job.homepackage, job.transformation, job.parameters, job.platform) == ("", "", "", "")


def test_numbers_are_taken_where_text_is_wanted():
    job = parse_job(definition(jobDefinitionID=65, reqID=7, swRelease=21.2))
    assert (job.definition_id, job.request_id, job.release) == ("65", "7", "21.2")


@pytest.mark.parametrize("field", ["jobPars", "inFiles", "transformation", "fsize", "logFile", "scopeOut"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, True])
def test_the_wrong_json_type_for_text_is_refused(field, value):
    error = refusal(definition() | {field: value})
    assert error.field == field
    assert "expected text" in error.diag


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
@pytest.mark.parametrize("field", ["jobPars", "transformation", "inFiles"])
def test_text_that_no_file_or_command_can_hold_is_refused(field, value):
    assert refusal(definition() | {field: value}).field == field


def test_jobpars_may_have_lines_but_names_may_not():
    assert parse_job(definition(jobPars=" a\n\tb ")).parameters == " a\n\tb "
    assert refusal(definition(transformation="http://x/a\nb")).field == "transformation"
    assert refusal(definition(scopeIn="a\nb")).field == "scopeIn"


@pytest.mark.parametrize("field", ["jobPars", "inFiles", "secrets", "whatEver", "transformation"])
def test_a_field_of_10_mb_is_refused_by_name(field):
    error = refusal(definition() | {field: "x" * 10_000_000})
    assert error.field == field
    assert "1 MB" in error.diag
    assert "xxxxx" not in error.diag


def test_a_list_of_10_mb_and_a_total_over_4_mb_are_refused():
    assert refusal(definition(extra=[["y" * 1000] * 2000])).field == "extra"
    assert refusal(definition() | {f"f{n}": "z" * 900_000 for n in range(5)}).field == "f4"
    assert parse_job(definition(jobPars="x" * 900_000)).parameters == "x" * 900_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [("True", True), ("true", True), (True, True), (1, True), ("1", True), ("yes", True), ("False", False), (0, False),
     ("no", False), ("", False), (None, False), ("NULL", False)],
)  # fmt: skip
def test_flags_in_every_spelling(value, expected):
    job = parse_job(definition() | {"debug": value, "isHPO": value, "useVP": value, "eventService": value})
    assert (job.debug, job.is_hpo, job.use_vp, job.event_service) == (expected,) * 4


@pytest.mark.parametrize("value", ["maybe", 2, 0.5, [], "11"])
def test_a_flag_that_is_none_is_refused(value):
    assert refusal(definition() | {"eventServiceMerge": value}).field == "eventServiceMerge"


def test_looping_check_is_on_unless_switched_off():
    assert parse_job(definition()).looping_check
    assert not parse_job(definition(loopingCheck=False)).looping_check
    assert not parse_job(definition(loopingCheck="False")).looping_check


@pytest.mark.parametrize(("text", "cores"), [("8", 8), ("", 4), ("zero", 4), ("-2", 4), ("0", 4), ("²", 4)])
def test_athena_proc_number_of_the_site_wins_if_it_is_a_number(text, cores):
    assert parse_job(definition(coreCount=4), environ={"ATHENA_PROC_NUMBER": text}).cores == cores


def test_platform_may_carry_the_users_one():
    job = parse_job(definition(cmtConfig="x86_64-centos7@el9"))
    assert (job.platform, job.user_platform) == ("x86_64-centos7", "el9")


@pytest.mark.parametrize(("text", "expected"), [("on", True), ("off", False), ("", None), ("perhaps", None)])
def test_alternative_stage_out(text, expected):
    assert parse_job(definition(altStageOut=text)).alt_stageout is expected


def test_analysis_and_build_jobs_are_told_by_their_transformation_and_outputs():
    assert not parse_job(definition(transformation="Reco_tf.py")).is_analysis
    assert not parse_job(definition()).is_build
    built = definition(outFiles="u.lib.tgz,log.tgz", logFile="log.tgz")
    assert parse_job(built).is_build
    assert not parse_job(definition(outFiles="u.lib.log.tgz,log.tgz", logFile="log.tgz")).is_build


def test_outputs_that_may_be_missing():
    assert parse_job(definition(allowNoOutput="a.*, b.root,NULL")).allow_no_output == ("a.*", "b.root")


# --- containers, utilities, secrets


@pytest.mark.parametrize("form", [dict, json.dumps, repr])
def test_objects_come_as_such_as_json_text_or_as_repr(form):
    job = parse_job(
        definition(
            preprocess=form({"command": "http://x/pre.sh", "args": "--a 'b'"}),
            postprocess=form({"command": "post"}),
            containerOptions=form({"containerImage": "img", "containerExec": "run", "execArgs": None, "n": 3}),
            pilotSecrets=form({"logstash_login": "me", "logstash_password": "s3cret"}),
        )
    )
    assert job.preprocess == Utility(command="http://x/pre.sh", args="--a 'b'")
    assert job.postprocess == Utility(command="post")
    assert job.coprocess is None
    assert job.container_options == {"containerImage": "img", "containerExec": "run", "n": "3"}
    assert job.pilot_secrets == {"logstash_login": Secret("me"), "logstash_password": Secret("s3cret")}


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("preprocess", {"args": "x"}, "preprocess.command"),
        ("preprocess", {"command": ["x"]}, "preprocess.command"),
        ("coprocess", "{'command': 'x'", "coprocess"),
        ("postprocess", [1], "postprocess"),
        ("containerOptions", {"a": {"b": 1}}, "containerOptions.a"),
        ("containerOptions", "__import__('os').abort()", "containerOptions"),
        ("containerOptions", "[" * 5000, "containerOptions"),
        ("containerOptions", "{1: 2}", "containerOptions"),
    ],
)
def test_a_bad_object_names_its_field(field, value, named):
    assert refusal(definition() | {field: value}).field == named


@pytest.mark.parametrize("secrets", ['{"DOCKER_TOKENS": "[]"}', {"DOCKER_TOKENS": "[]"}, "{'DOCKER_TOKENS': '[]'}"])
def test_secrets_are_json_text_that_does_not_print(secrets):
    job = parse_job(definition(secrets=secrets))
    assert json.loads(job.secrets.reveal()) == {"DOCKER_TOKENS": "[]"}
    assert "DOCKER" not in repr(job)
    assert parse_job(definition(secrets="NULL")).secrets is None


def test_secrets_that_are_plain_text_stay_as_they_are():
    assert parse_job(definition(secrets=" not\nJSON ")).secrets.reveal() == " not\nJSON "
    assert parse_job(definition(secrets='{"a":1,\n"b":2}')).secrets.reveal() == '{"a":1,\n"b":2}'


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pilotSecrets", "hunter2"),
        ("pilotSecrets", ["hunter2"]),
        ("pilotSecrets", "{'a': hunter2}"),
        ("secrets", 42.5),
        ("pilotSecrets", "{'a': {'hunter2'}}"),
        ("secrets", ["\0", {"hunter2"}]),
    ],
)
def test_a_bad_secret_is_not_shown(field, value):
    error = refusal(definition() | {field: value})
    assert error.field == field
    assert "hunter2" not in str(error)
    assert "42.5" not in str(error)
    assert error.__cause__ is None


def test_secrets_that_come_with_an_answer_are_read_alike():
    assert pilot_secrets('{"a": "b", "c": null, "n": 5}') == {"a": Secret("b"), "n": Secret("5")}
    assert pilot_secrets(None) == {}
    assert pilot_secrets("NULL") == {}


def test_the_image_of_jobpars_wins_and_lies_below_the_image_base_if_it_is_there(tmp_path):
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "img:1").touch()
    (tmp_path / "other:2").touch()
    raw = definition(container_name="team/img:1")
    unpacked = {"IMAGE_BASE": str(tmp_path)}
    assert parse_job(raw).container_image == "team/img:1"
    assert parse_job(raw, environ=unpacked).container_image == f"{tmp_path}/team/img:1"
    assert parse_job(raw, image_base=str(tmp_path)).container_image == f"{tmp_path}/team/img:1"
    assert parse_job(raw, environ={"IMAGE_BASE": "/nowhere"}, image_base=str(tmp_path)).container_image == "team/img:1"
    raw["jobPars"] = "run --containerImage docker://hub/other:2 now"
    job = parse_job(raw, environ=unpacked)
    assert (job.container_image, job.parameters) == (f"{tmp_path}/other:2", "run now")


# --- inputs


def test_inputs_are_zipped_from_their_lists():
    one, two = parse_job(two_files()).inputs
    assert (one.lfn, one.dataset, one.guid, one.size, one.scope) == ("a.root", "dsA", "GUID-A", 10, "sa")
    assert (one.endpoint, one.token, one.kind) == ("RSE_A", "", Kind.INPUT)
    assert one.checksums == {"adler32": "00000001"}
    assert (two.lfn, two.guid, two.size, two.token, two.endpoint) == ("b.root", "", None, "local", "RSE_B")
    assert two.checksums == {"md5": "ab" * 16}


def test_repeated_and_null_inputs_are_passed_over():
    raw = two_files(inFiles="a.root,NULL,a.root,,b.root", fsize="1,2,3,4,5", scopeIn="s,s,s,s,s", GUID="NULL")
    raw |= dict.fromkeys(["realDatasetsIn", "checksum", "prodDBlockToken", "ddmEndPointIn"], "")
    assert [(file.lfn, file.size) for file in parse_job(raw).inputs] == [("a.root", 1), ("b.root", 5)]


@pytest.mark.parametrize("nothing", ["", "NULL", None])
def test_a_job_may_have_no_inputs(nothing):
    fields = ["inFiles", "realDatasetsIn", "GUID", "fsize", "checksum", "scopeIn", "prodDBlockToken", "ddmEndPointIn"]
    assert parse_job(definition() | dict.fromkeys(fields, nothing)).inputs == ()
    assert parse_job(definition() | dict.fromkeys(fields, "NULL") | {"inFiles": nothing}).inputs == ()


@pytest.mark.parametrize("nothing", ["", "NULL", None, ",", "NULL,NULL"])
def test_a_list_that_says_nothing_fits_any_number_of_files(nothing):
    fields = ["realDatasetsIn", "GUID", "fsize", "checksum", "scopeIn", "prodDBlockToken", "ddmEndPointIn"]
    for file in parse_job(two_files() | dict.fromkeys(fields, nothing)).inputs:
        assert (file.dataset, file.guid, file.size, file.checksums, file.scope, file.token) == (
            "",
            "",
            None,
            {},
            "",
            "",
        )


@pytest.mark.parametrize(
    "field", ["realDatasetsIn", "GUID", "fsize", "checksum", "scopeIn", "prodDBlockToken", "ddmEndPointIn"]
)
@pytest.mark.parametrize("value", ["1", "1,1,1", "NULL,1,NULL"])
def test_a_list_of_the_wrong_length_names_itself_and_both_lengths(field, value):
    error = refusal(two_files() | {field: value})
    assert error.field == field
    assert f"has {value.count(',') + 1} entries where inFiles has 2" in error.diag


def test_a_trailing_comma_is_not_an_entry():
    assert [file.size for file in parse_job(two_files(fsize="1,2,")).inputs] == [1, 2]


@pytest.mark.parametrize("size", ["-1", "big", "1.5", str(2**63), "0x10"])
def test_a_bad_size_is_refused(size):
    assert refusal(two_files(fsize=f"1,{size}")).field == "fsize"


def test_a_size_of_0_is_one_the_server_does_not_know():
    assert [file.size for file in parse_job(two_files(fsize="0,5")).inputs] == [None, 5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ad:3F1D9964", {"adler32": "3f1d9964"}),
        ("3f1d", {"adler32": "00003f1d"}),
        ("md:" + "0" * 32, {"md5": "0" * 32}),
        ("AD:3f1d", {"adler32": "00003f1d"}),
        ("crc32c:C99465AA", {"crc32c": "c99465aa"}),
        ("F" * 32, {"md5": "f" * 32}),
        ("ad:NULL", {}),
        ("None", {}),
    ],
)
def test_checksums_of_every_form(text, expected):
    assert parse_job(definition(checksum=text)).inputs[0].checksums == expected


@pytest.mark.parametrize(
    "text", ["ad:xyz", "ad:123456789", "md:1234", "md:" + "g" * 32, "sha9:12", "ad:12 34", "ad:0x1f", "crc32c:1f"]
)
def test_a_bad_checksum_is_refused(text):
    error = refusal(definition(checksum=text))
    assert error.field == "checksum"
    assert "expected" in error.diag


@pytest.mark.parametrize(
    ("entry", "lfn", "url", "is_tar"),
    [
        ("zip://arch.zip", "arch.zip", "", True),
        ("gs://bucket/a/b?c#d.root", "b?c#d.root", "gs://bucket/a/b?c#d.root", False),
        ("s3://bucket/k.root", "k.root", "s3://bucket/k.root", False),
        ("https://h/p/f%20g.root?token=1", "f g.root", "https://h/p/f%20g.root?token=1", False),
        ("root://h:1094//eos/x.root?a=b", "x.root", "root://h:1094//eos/x.root?a=b", False),
        ("file:///data/y.root", "y.root", "file:///data/y.root", False),
    ],
)
def test_an_input_may_be_an_archive_or_a_full_url(entry, lfn, url, is_tar):
    (file,) = parse_job(definition(inFiles=entry)).inputs
    assert (file.lfn, file.url, file.is_tar) == (lfn, url, is_tar)


BAD_NAMES = [
    "dir/a",
    "..",
    ".",
    "a\nb",
    "a\x7fb",
    "\x01",
    "https://h/a%2Fb",
    "gs://bucket/dir/",
    "zip://a/b",
    "https://[h/a",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_file_name_is_refused(name):
    error = refusal(definition(inFiles=name))
    assert (error.field, error.code) == ("inFiles", Code.CONVERSIONFAILURE)
    error = refusal(definition(outFiles=f"{name},log.tgz", logFile="log.tgz"))
    assert (error.field, error.code) == ("outFiles", Code.BADOUTPUTFILENAME)


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128])
def test_names_are_limited_to_255_bytes(name):
    assert refusal(definition(inFiles=name)).code is Code.LFNTOOLONG
    assert refusal(definition(outFiles=f"{name},l", logFile="l")).code is Code.LFNTOOLONG
    assert parse_job(definition(inFiles=name[:127])).inputs[0].lfn == name[:127]


def test_two_different_inputs_cannot_have_the_same_name():
    assert refusal(two_files(inFiles="gs://one/a,gs://two/a")).field == "inFiles"


@pytest.mark.parametrize(
    ("changes", "modes"),
    [
        ({"transformation": "Reco_tf.py"}, "copy copy"),
        ({"transformation": "Reco_tf.py", "transferType": "direct"}, "direct copy"),
        ({}, "direct copy"),  # analysis, the second has token local
        ({"jobPars": "--accessmode=direct"}, "direct direct"),
        ({"jobPars": "--accessmode=copy"}, "copy copy"),
        ({"jobPars": "x --useLocalIO"}, "copy copy"),
        ({"jobPars": "--accessmode=direct --useLocalIO"}, "copy copy"),
        ({"inFiles": "a.tar.gz,u.LIB.tgz", "jobPars": "--accessmode=direct"}, "copy copy"),
        ({"inFiles": "RAW.1.root,x.raw.root", "jobPars": "--accessmode=direct"}, "copy copy"),
    ],
)
def test_access_modes(changes, modes):
    assert [file.access for file in parse_job(two_files(**changes)).inputs] == [Access(mode) for mode in modes.split()]


# --- outputs and log


def test_outputs_and_log_are_zipped_with_the_logs_scope_put_in_at_its_place():
    job = parse_job(two_files(logGUID="LOG-GUID"))
    assert [(f.lfn, f.dataset, f.scope, f.endpoint, f.kind) for f in job.outputs] == [
        ("x.root", "dx", "sx", "RX", Kind.OUTPUT),
        ("y.root", "dy", "sy", "RY", Kind.OUTPUT),
    ]
    log = job.log
    assert (log.lfn, log.dataset, log.scope, log.endpoint, log.guid) == ("log.tgz", "dl", "sl", "RL", "LOG-GUID")


def test_outputs_get_a_guid_and_so_does_a_log_without_one():
    job = parse_job(two_files(logGUID="NULL", outFiles="x.lib.tgz,log.tgz,y.root"))
    guids = {UUID(file.guid) for file in (*job.outputs, job.log)}
    assert len(guids) == 3


def test_a_scope_list_that_has_the_log_too_is_taken_by_position():
    job = parse_job(two_files(scopeOut="sx,other,sy"))
    assert [file.scope for file in job.outputs] == ["sx", "sy"]
    assert job.log.scope == "sl"


@pytest.mark.parametrize(
    ("field", "value", "count"),
    [("scopeOut", "a", 2), ("scopeOut", "a,b,c,d", 2), ("realDatasets", "a,b", 3), ("ddmEndPointOut", "a", 3)],
)
def test_output_lists_of_the_wrong_length_are_refused(field, value, count):
    error = refusal(two_files() | {field: value})
    assert error.field == field
    assert f"has {value.count(',') + 1} entries" in error.diag
    assert f"has {count}" in error.diag


@pytest.mark.parametrize("nothing", ["", "NULL", None])
def test_a_job_may_have_no_outputs_and_no_log(nothing):
    fields = ["outFiles", "realDatasets", "scopeOut", "scopeLog", "ddmEndPointOut", "logFile", "logGUID"]
    job = parse_job(definition() | dict.fromkeys(fields, nothing))
    assert (job.outputs, job.log) == ((), None)


def test_a_job_may_have_only_a_log():
    job = parse_job(definition(outFiles="l.tgz", logFile="l.tgz", realDatasets="d", scopeOut="", ddmEndPointOut="R"))
    assert (job.outputs, job.log.lfn, job.log.scope) == ((), "l.tgz", "loop.test")


def test_a_log_that_is_not_among_the_outputs_is_still_made():
    job = parse_job(definition(outFiles="x", logFile="l.tgz", realDatasets="d", scopeOut="s", ddmEndPointOut="R"))
    assert ([file.lfn for file in job.outputs], job.log.lfn, job.log.scope) == (["x"], "l.tgz", "loop.test")


def test_pilot_logfile_renames_the_log_and_only_the_log():
    job = parse_job(two_files(), environ={"PILOT_LOGFILE": "new.log.tgz"})
    assert (job.log.lfn, job.log.scope, job.log.dataset) == ("new.log.tgz", "sl", "dl")
    assert [file.lfn for file in job.outputs] == ["x.root", "y.root"]
    assert refusal(two_files(), environ={"PILOT_LOGFILE": "../x"}).field == "logFile"
    nothing = dict.fromkeys(["outFiles", "realDatasets", "scopeOut", "ddmEndPointOut", "logFile"], "")
    assert parse_job(definition() | nothing, environ={"PILOT_LOGFILE": "x"}).log is None


@pytest.mark.parametrize("names", ["x,log.tgz,x", "log.tgz,log.tgz,x"])
def test_two_outputs_of_the_same_name_are_refused(names):
    error = refusal(two_files(outFiles=names, scopeOut=""))
    assert (error.field, error.code) == ("outFiles", Code.BADOUTPUTFILENAME)
    assert "twice" in error.diag


# --- jobPars


def test_what_jobpars_holds_for_the_pilot_ends_in_the_job():
    job = parse_job(
        definition(
            jobPars="--in a --overwriteQueueData \"{'maxrss': 5}\" --overwriteStorageData '{\"R\": {}}'"
            " <ZIP_MAP>z.zip:a,b y.zip:c</ZIP_MAP>"
        )
    )
    assert job.parameters == "--in a"
    assert (job.queue_overrides, job.storage_overrides) == ({"maxrss": 5}, {"R": {}})
    assert job.zip_map == "z.zip:a,b y.zip:c"


def test_write_to_file_moves_long_lists_out_of_jobpars():
    job = parse_job(
        definition(
            jobPars="--inputHitsFile=@inputFor_o.root --autoConfiguration=everything --maxEvents=5",
            writeToFile="inputFor_o.root:a,b",
        )
    )
    assert job.write_to_file == {"inputFor_o.root.txt": ("--inputHitsFile", "a", "b")}
    assert job.parameters == "@inputFor_o.root.txt  --maxEvents=5"
