from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot.errors import Code, JobDefinitionError
from pilot.job import Access, Kind, Limits
from pilot.jobfile import EXAMPLE, LocalJob, load_job_file

ISSUE = """\
payload: wc -w words.txt > count.txt        # or: transformation: URL-or-path, parameters: text
inputs:  [{url: data/words.txt, checksum: "adler32:0a1b2c3d"}]      # lfn defaults to the name; checksum optional
outputs: [{lfn: count.txt, destination: out/}]
log:     {lfn: log.tgz, destination: out/}  # optional
cores: 1
limits:  {memory: 2 GB, walltime: 1 h, disk: 10 GB}
environment: {LANG: C}
"""


@pytest.fixture
def load(tmp_path):
    """Load a job from text, or from a mapping as JSON."""

    def load(content, name="job.yaml") -> LocalJob:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else text(content).encode())
        return load_job_file(path)

    return load


@pytest.fixture
def refusal(load):
    def refusal(content, name="job.yaml") -> JobDefinitionError:
        with pytest.raises(JobDefinitionError) as caught:
            load(content, name)
        assert len(caught.value.diag) <= 500
        return caught.value

    return refusal


def text(content) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def job(**changes):
    return {"payload": "true"} | changes


def local(url: str) -> Path:
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc) == ("file", "")
    return Path(unquote(parts.path))


def test_the_job_file_of_the_manual(load, tmp_path):
    found = load(ISSUE)
    assert found.limits == Limits(memory_mb=2000, walltime_s=3600, disk_mb=10000)
    assert found.job.transformation == "wc -w words.txt > count.txt"
    assert (found.job.parameters, found.job.cores, found.job.environment) == ("", 1, {"LANG": "C"})
    assert (found.job.job_id, found.job.attempt, found.job.name) == (1, 0, "job")
    assert not found.job.is_analysis
    (words,) = found.job.inputs
    assert (words.lfn, words.kind, words.access, words.size) == ("words.txt", Kind.INPUT, Access.COPY, None)
    assert words.checksums == {"adler32": "0a1b2c3d"}
    assert local(words.url) == tmp_path / "data" / "words.txt"
    (count,) = found.job.outputs
    assert (count.lfn, count.kind, local(count.url)) == ("count.txt", Kind.OUTPUT, tmp_path / "out" / "count.txt")
    assert (found.job.log.kind, local(found.job.log.url)) == (Kind.LOG, tmp_path / "out" / "log.tgz")
    assert UUID(count.guid) != UUID(found.job.log.guid)


@pytest.mark.parametrize("name", ["job.yaml", "job.json", "job", "my job.txt"])
def test_the_same_as_json_under_any_name(load, name):
    assert load(yaml.safe_load(ISSUE), name).job.inputs == load(ISSUE, "other.yaml").job.inputs


def test_the_least_job_file(load):
    found = load("payload: 'true'")
    assert (found.job.inputs, found.job.outputs, found.job.log, found.job.environment) == ((), (), None, {})
    assert found.limits == Limits()


def test_a_key_without_a_value_is_not_there(load):
    found = load("payload: date\ninputs:\noutputs:\nlog:\ncores:\nlimits:\n  memory:\nenvironment:\nparameters:\n")
    assert (found.job.inputs, found.job.log, found.job.cores, found.limits) == ((), None, 1, Limits())


def test_a_relative_name_of_the_file_does_not_make_relative_urls(tmp_path, monkeypatch):
    (tmp_path / "job.yaml").write_text(ISSUE)
    monkeypatch.chdir(tmp_path)
    (words,) = load_job_file("job.yaml").job.inputs
    assert local(words.url) == tmp_path / "data" / "words.txt"


@pytest.mark.parametrize(
    ("url", "lfn", "expected"),
    [
        ("../a b#1?.txt", "a b#1?.txt", "../a b#1?.txt"),
        ("/abs/x.txt", "x.txt", "/abs/x.txt"),
        ("./~x", "~x", "~x"),
        ("50%25.txt", "50%25.txt", "50%25.txt"),
    ],
)
def test_paths_become_file_urls_that_lead_back_to_them(load, tmp_path, url, lfn, expected):
    (file,) = load(job(inputs=[{"url": url}])).job.inputs
    assert file.lfn == lfn
    assert local(file.url) == (tmp_path / expected).resolve()


@pytest.mark.parametrize(
    ("url", "lfn"),
    [
        ("s3://bucket/a/b.root", "b.root"),
        ("https://h/x%20y.txt?sig=1", "x y.txt"),
        ("root://h//eos/f.root", "f.root"),
        ("file:///data/w.txt", "w.txt"),
    ],
)
def test_urls_stay_as_they_are(load, url, lfn):
    (file,) = load(job(inputs=[{"url": url}])).job.inputs
    assert (file.url, file.lfn) == (url, lfn)


def test_an_input_may_say_all_that_a_catalogue_knows(load):
    entry = {"url": "a", "lfn": "b.txt", "checksum": "md5:" + "AB" * 16, "size": 0, "guid": "G-1"}
    (file,) = load(job(inputs=[entry])).job.inputs
    assert (file.lfn, file.checksums, file.size, file.guid) == ("b.txt", {"md5": "ab" * 16}, 0, "G-1")


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("s3://bucket/dir/", "s3://bucket/dir/a b.txt"),
        ("gs://bucket", "gs://bucket/a b.txt"),
        ("root://h//eos/d?authz=x", "root://h//eos/d/a b.txt?authz=x"),
        ("https://h/d/", "https://h/d/a%20b.txt"),
        ("file:///d", "file:///d/a%20b.txt"),
        ("/", "file:///a%20b.txt"),
    ],
)
def test_an_output_goes_to_its_name_below_the_destination(load, destination, expected):
    found = load(job(outputs=[{"lfn": "a b.txt", "destination": destination}]))
    assert found.job.outputs[0].url == expected


def test_a_transformation_is_a_url_or_a_path(load, tmp_path):
    found = load(job(transformation="run me.sh", parameters="-n 1", payload=None)).job
    assert (local(found.transformation), found.parameters) == (tmp_path / "run me.sh", "-n 1")
    assert load({"transformation": "http://x/trf.sh"}).job.transformation == "http://x/trf.sh"


def test_a_payload_of_one_path_is_run_where_it_lies(load):
    assert load("payload: /opt/app/run.sh").job.transformation == "exec /opt/app/run.sh"
    assert load("payload: /opt/app/run.sh -x").job.transformation == "/opt/app/run.sh -x"


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("2 GB", 2000), ("2GB", 2000), ("2 g", 2000), ("1.5 GB", 1500), ("512 MiB", 537), ("2 GiB", 2148), ("900 kB", 1),
     ("1 TB", 10**6), ("0.5 Ti", 549756)],
)  # fmt: skip
def test_sizes(load, memory, expected):
    assert load(job(limits={"memory": memory, "disk": memory})).limits == Limits(memory_mb=expected, disk_mb=expected)


@pytest.mark.parametrize(
    ("walltime", "expected"),
    [("1 h", 3600), ("90 min", 5400), ("90m", 5400), ("30 s", 30), ("1.5 hours", 5400), ("1 h 30 min", 5400),
     ("2 days", 172800), ("1d12h", 129600), ("45 seconds", 45), ("0.2 s", 1)],
)  # fmt: skip
def test_times(load, walltime, expected):
    assert load(job(limits={"walltime": walltime})).limits.walltime_s == expected


@pytest.mark.parametrize(
    "value", [2000, "2000", "2 XB", "GB", "-1 GB", "0 GB", "1 GB 2", "9" * 50 + " GB", True, [1], "1e3 GB"]
)
def test_sizes_that_are_none(refusal, value):
    error = refusal(job(limits={"memory": value}))
    assert error.field == "limits.memory"
    assert "expected a size with a unit such as 2 GB" in error.diag


@pytest.mark.parametrize(
    "value", [3600, "3600", "1:30:00", "1 hour and more", "-1 h", "0 s", "1 month", "h", None.__class__]
)
def test_times_that_are_none(refusal, value):
    error = refusal(job(limits={"walltime": value if not isinstance(value, type) else {}}))
    assert error.field == "limits.walltime"
    assert "expected a time with a unit such as 90 min" in error.diag


def test_yaml_s_clock_times_are_not_taken_for_seconds(refusal):
    assert refusal("payload: date\nlimits: {walltime: 1:30:00}").field == "limits.walltime"


def test_environment_takes_text_and_whole_numbers(load):
    found = load("payload: env\nenvironment: {THREADS: 4, EMPTY: '', NAME: a b, V: '1.10'}")
    assert found.job.environment == {"THREADS": "4", "EMPTY": "", "NAME": "a b", "V": "1.10"}


@pytest.mark.parametrize(
    ("content", "field", "said"),
    [
        (job(ouputs=[]), "ouputs", "did you mean 'outputs'?"),
        (job(memory="2 GB"), "memory", "known: payload"),
        (job(inputs=[{"url": "a"}, {"URL": "b"}]), "inputs[1].URL", "did you mean 'url'?"),
        (job(limits={"mem": "1 GB"}), "limits.mem", "did you mean 'memory'?"),
        (job(log={"lfn": "l", "dest": "o"}), "log.dest", "did you mean 'destination'?"),
        ({}, "payload", "is missing"),
        (job(transformation="x"), "payload", "not both"),
        (job(parameters="x"), "parameters", "transformation"),
        ({"payload": "  "}, "payload", "expected text"),
        ({"payload": ["a"]}, "payload", "expected text, got a list"),
        ({"payload": "a\0b"}, "payload", "expected text"),
        ({"payload": "\ud800"}, "payload", "expected text"),
        (job(inputs="a"), "inputs", "expected a list"),
        (job(inputs=["a"]), "inputs[0]", "expected `key: value` pairs (url, lfn, checksum, size, guid), got 'a'"),
        (job(inputs=[{}]), "inputs[0].url", "is missing"),
        (job(inputs=[{"url": 5}]), "inputs[0].url", "put it in quotes"),
        (job(inputs=[{"url": "a", "checksum": "0a1b2c3d"}]), "inputs[0].checksum",
         "expected one of adler32, md5, crc32c with its hex digits"),
        (job(inputs=[{"url": "a", "checksum": 12345678}]), "inputs[0].checksum", "got 12345678"),
        (job(inputs=[{"url": "a", "checksum": "adler32:xyz"}]), "inputs[0].checksum", "hexadecimal digits"),
        (job(inputs=[{"url": "a", "checksum": "md5:12"}]), "inputs[0].checksum", "expected 32"),
        (job(inputs=[{"url": "a", "size": "5"}]), "inputs[0].size", "expected a whole number, 0 or more"),
        (job(inputs=[{"url": "a", "size": -5}]), "inputs[0].size", "0 or more"),
        (job(inputs=[{"url": "a", "size": True}]), "inputs[0].size", "0 or more"),
        (job(inputs=[{"url": "a", "lfn": "b/c"}]), "inputs[0].lfn", "contains a slash"),
        (job(inputs=[{"url": "https://h/dir/"}]), "inputs[0].url", "is empty"),
        (job(inputs=[{"url": "~/a"}]), "inputs[0].url", "`~` is not expanded"),
        (job(inputs=[{"url": "file://data/a"}]), "inputs[0].url", "expected file:///path"),
        (job(inputs=[{"url": "https://h/a\nb"}]), "inputs[0].url", "expected a path or a URL"),
        (job(inputs=[{"url": "a"}, {"url": "b/a"}]), "inputs", "'a' is named twice"),
        (job(outputs=[{"lfn": "a"}]), "outputs[0].destination", "is missing"),
        (job(outputs=[{"destination": "a"}]), "outputs[0].lfn", "is missing"),
        (job(outputs=[{"lfn": "..", "destination": "o"}]), "outputs[0].lfn", "is a directory"),
        (job(outputs=[{"lfn": "a", "destination": "o"}, {"lfn": "a", "destination": "p"}]), "outputs", "named twice"),
        (job(outputs=[{"lfn": "a", "destination": "o"}], log={"lfn": "a", "destination": "p"}), "outputs",
         "named twice"),
        (job(log=[]), "log", "expected `key: value` pairs (lfn, destination), got a list"),
        (job(log={}), "log.lfn", "is missing"),
        (job(cores=0), "cores", "1 or more"),
        (job(cores="4"), "cores", "expected a whole number"),
        (job(environment=["A=1"]), "environment", "expected `NAME: text` pairs, got a list"),
        (job(environment={"A B": "1"}), "environment", "expected names"),
        (job(environment={"A": True}), "environment.A", "put it in quotes"),
        (job(environment={"A": 1.10}), "environment.A", "put it in quotes"),
        ([], "job file", "see `pilot local --example`"),
        ("just text", "job file", "got 'just text'"),
        ("", "job file", "got None"),
        ("payload: [a", "job file", "line 1, column"),
        ("payload: date\ninputs:\n\t- url: a", "job file", "is not YAML: line 3"),
        ("payload: !!python/object/apply:os.abort []", "job file", "could not determine a constructor"),
        ("payload: date\nwhen: 2024-13-99", "job file", "is not YAML"),
        ("? [a]\n: b", "job file", "is not YAML"),
        ("- " * 5000, "job file", "is not YAML"),
        ("[" * 100_000, "job file", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_place(refusal, content, field, said):
    error = refusal(content)
    assert error.field == field
    assert said in error.diag


def test_names_that_are_too_long_or_illegal_have_their_own_codes(refusal):
    assert refusal(job(inputs=[{"url": "x" * 256}])).code is Code.LFNTOOLONG
    assert refusal(job(outputs=[{"lfn": "a/b", "destination": "o"}])).code is Code.BADOUTPUTFILENAME


def test_files_that_cannot_be_read(tmp_path, refusal):
    with pytest.raises(JobDefinitionError) as caught:
        load_job_file(tmp_path / "missing.yaml")
    assert caught.value.code is Code.NOSUCHFILE
    with pytest.raises(JobDefinitionError, match="Is a directory"):
        load_job_file(tmp_path)
    assert "not UTF-8" in refusal(b"payload: \xff\xfe").diag
    assert "not JSON: " in refusal('{"payload": "a",}', "job.json").diag
    assert "write it as JSON" in refusal("payload: date\n#" + "x" * 300_000).diag
    assert "more than 4000000 bytes" in refusal("payload: date\n#" + "x" * 4_100_000).diag


def test_a_byte_order_mark_is_no_content(load):
    assert load(b"\xef\xbb\xbfpayload: date").job.transformation == "date"


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.sampled_from("payloinuts: -[]{}!&*|>'\"\n\t0123456789#%@\0~"), max_size=60))
def test_any_text_gives_a_job_or_one_message(load, content):
    try:
        load(content)
    except JobDefinitionError as error:
        assert error.field


@pytest.mark.parametrize("tag", ["int", "float", "bool", "timestamp", "null", "binary", "omap", "set", "pairs"])
def test_a_tag_on_what_is_not_its_kind_is_refused(refusal, tag):
    refusal(f"payload: !!{tag} ''")
    refusal(f"payload: !!{tag} x y")


def test_a_server_s_job_definition_is_one(load, tmp_path):
    raw = {"PandaID": 7, "attemptNr": 2, "transformation": "http://x/t.sh", "jobPars": "a", "outFiles": "o,l",
           "logFile": "l", "scopeOut": "s", "coreCount": 2}  # fmt: skip
    found = load(raw, "job.json")
    assert (found.job.job_id, found.job.attempt, found.job.cores, found.limits) == (7, 2, 2, Limits())
    assert [file.lfn for file in found.job.outputs] == ["o"]
    again = load_job_file(tmp_path / "job.json", environ={"PILOT_LOGFILE": "new", "ATHENA_PROC_NUMBER": "8"})
    assert (again.job.log.lfn, again.job.cores) == ("new", 8)


def test_a_bad_server_s_job_definition_names_its_field(refusal):
    assert refusal({"PandaID": 7, "inFiles": "../x"}).field == "inFiles"
    assert refusal({"PandaID": "x"}).field == "PandaID"


@pytest.mark.parametrize("name", ["job.yaml", "example", "a job.txt"])
def test_the_example_runs_as_it_is_under_any_name(load, tmp_path, name):
    found = load(EXAMPLE, name)
    workdir = tmp_path / "work"
    workdir.mkdir()
    done = subprocess.run(
        ["bash", "-c", found.job.transformation], cwd=workdir, check=True, timeout=20, capture_output=True, text=True
    )
    assert done.stdout == "the sum is 500500\n"
    assert all((workdir / file.lfn).stat().st_size for file in found.job.outputs)
    assert {local(file.url).parent for file in (*found.job.outputs, found.job.log)} == {tmp_path / "pilot-example"}
    assert found.limits == Limits(memory_mb=2000, walltime_s=600, disk_mb=1000)
    assert found.job.inputs == ()
