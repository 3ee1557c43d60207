"""The experiments: what each does differently, as the engine asks it."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pilot import plugins
from pilot.errors import Code, PilotError
from pilot.experiment import JOB_REPORT_LIMIT, OWN_NAMES, Experiment
from pilot.job import File, Job, Kind
from pilot.jobdef import parse_job
from pilot.jobpars import clean
from pilot.logarchive import make_log_archive
from pilot.masking import Masker
from pilot.payload.command import prepare_command
from pilot.payload.environment import payload_environment
from pilot.queuedata import Queue
from pilot.settings import TABLE, Settings

NAMES = ("atlas", "darkside", "eic", "epic", "generic", "rubin", "ska", "sphenix")
URL = "http://pandaserver.cern.ch:25080/trf/user/runGen-00-00-02"


def experiment(name: str) -> Experiment:
    return plugins.load("pilot.experiments", name, Experiment)()


def job(**fields) -> Job:
    return Job(**({"job_id": 7, "task_id": 3, "attempt": 1, "transformation": URL, "is_analysis": True} | fields))


def given(lfn: str, **fields) -> File:
    return File(lfn=lfn, kind=Kind.INPUT, **fields)


def made(lfn: str, **fields) -> File:
    return File(lfn=lfn, kind=Kind.OUTPUT, **fields)


def sh(text: str, **environment: str) -> list[str]:
    """The arguments that a payload of this text gets."""
    text = text.replace("./trf", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def refusal(name: str, **fields) -> PilotError:
    with pytest.raises(PilotError) as caught:
        experiment(name).verify(job(**fields))
    return caught.value


class TestAll:
    def test_each_is_found_by_its_name_and_announced(self):
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        points = project["entry-points"]["pilot.experiments"]
        assert tuple(points) == NAMES
        for name in NAMES:
            found = type(experiment(name.upper()))
            assert (found.name, f"{found.__module__}:{found.__qualname__}") == (name, points[name])

    @pytest.mark.parametrize("name", NAMES)
    def test_its_settings_are_settings(self, name):
        values = experiment(name).settings
        assert set(values) <= set(TABLE)
        settings = Settings(pilot_user=name).with_experiment(values, name)
        assert {key: getattr(settings, key) for key in values} == values
        assert settings.later() == [], "what nobody asked for is not warned of"

    @pytest.mark.parametrize("name", NAMES)
    def test_a_plain_job_is_taken_and_runs_as_with_pilot_3(self, name):
        own, plain = experiment(name), job(parameters="-j '' --sourceURL https://x", outputs=(made("out.tgz"),))
        own.verify(plain)
        assert not own.needs_container(plain, Queue(container_type={"pilot": "singularity"}))
        assert sh(own.command(plain, "./trf")) == ["-j", "", "--sourceURL", "https://x"]
        assert own.outputs(plain, Path("/nonexistent")) == plain.outputs

    @pytest.mark.parametrize("name", NAMES)
    def test_transformations_come_from_elsewhere_by_https_only(self, name):
        assert all(url.startswith("https://") for url in experiment(name).base_urls)

    @pytest.mark.parametrize(
        ("fields", "container_type", "wanted"),
        [
            ({"container_image": "docker://x"}, {}, True),
            ({"platform": "x86_64-el9-gcc13-opt"}, {"pilot": "singularity"}, True),
            ({"user_platform": "el9"}, {"pilot": "apptainer"}, True),
            ({"platform": "x86_64-el9-gcc13-opt"}, {"middleware": "bash"}, False),
            ({}, {"pilot": "singularity"}, False),
        ],
    )
    def test_containers(self, fields, container_type, wanted):
        """PILOT3 5.2: image, else platform on a queue with containers; Rubin and sPHENIX have none."""
        queue = Queue(container_type=container_type)
        for name in ("atlas", "generic", "eic", "ska", "darkside"):
            assert experiment(name).needs_container(job(**fields), queue) is wanted
        for name in ("rubin", "sphenix"):
            assert not experiment(name).needs_container(job(**fields), queue)

    def test_time_floor_is_off_for_pushed_rubin_only(self):
        floors = {(name, mode): experiment(name).uses_time_floor(mode) for name in NAMES for mode in ("PULL", "PUSH")}
        assert [key for key, used in floors.items() if not used] == [("rubin", "PUSH")]

    def test_who_differs_where_pilot_3_has_a_switch(self):
        def those(what):
            return [name for name in NAMES if what(experiment(name))]

        assert those(lambda own: own.mv_to_final_destination) == ["sphenix"]
        assert those(lambda own: own.storages_prefer_cache) == ["rubin"]
        assert those(lambda own: own.sends_node_map()) == ["atlas"]
        assert those(lambda own: own.storage_path("user.x", "f") is not None) == []


class TestBaseUrls:
    """Where a transformation is looked for when its own URL does not give it."""

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url == self.good:
            return b"#!/bin/sh\n"
        raise PilotError(Code.COMMUNICATIONFAILURE, "not here")

    async def places(self, tmp_path, own: Experiment, url: str, *base_urls: str, good: str = "") -> list[str]:
        self.asked, self.good = [], good
        try:
            await prepare_command(job(transformation=url), tmp_path, own, self.fetch, base_urls)
        except PilotError as error:
            assert error.code is Code.TRFDOWNLOADFAILURE
        return self.asked

    def run(self, *args, **kwargs) -> list[str]:
        import asyncio

        return asyncio.run(self.places(*args, **kwargs))

    def test_the_three_of_darkside_are_three(self, tmp_path):
        """PILOT3 10.5, 44: two of them run together there."""
        hosts = ("pandaserver.cern.ch", "pandaserver-doma.cern.ch", "pandaserver-tb.cern.ch")
        expected = [URL, *(f"https://{host}/trf/user/runGen-00-00-02" for host in hosts)]
        assert self.run(tmp_path, experiment("darkside"), URL) == expected

    def test_the_first_that_has_it_is_the_last_that_is_asked(self, tmp_path):
        good = "https://storage.googleapis.com/drp-us-central1-containers/runGen-00-00-02"
        assert self.run(tmp_path, experiment("rubin"), URL, good=good) == [URL, good]
        assert (tmp_path / "runGen-00-00-02").stat().st_mode & 0o777 == 0o755

    def test_flags_come_before_the_experiment(self, tmp_path):
        asked = self.run(tmp_path, experiment("ska"), URL, "https://mine/trf/")
        assert asked[1] == "https://mine/trf/runGen-00-00-02"
        assert len(asked) == 2 + len(experiment("ska").base_urls)

    def test_a_file_keeps_its_path_below_another_base(self, tmp_path):
        """Pilot 3 exchanges the base that a URL begins with."""
        url = "https://a.org/cache/trf/user/x.py"
        asked = self.run(tmp_path, Experiment(), url, "https://a.org", "https://a.org/cache", "https://b.org/c")
        assert asked == [url, "https://a.org/trf/user/x.py", "https://b.org/c/trf/user/x.py"]

    def test_a_base_may_be_a_host_alone(self, tmp_path):
        assert self.run(tmp_path, Experiment(), URL, "b.org/trf")[1:] == ["https://b.org/trf/runGen-00-00-02"]


class TestJobReport:
    """`jobReport.json` of the payload is `metaData` of the final report, with every experiment (PILOT3 2.6, 8.1)."""

    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_sent_as_it_is(self, name, tmp_path):
        assert experiment(name).payload_metadata(tmp_path) == ""
        text = '{ "exitCode": 0,\n "executor": []}\n'
        (tmp_path / "jobReport.json").write_text(text)
        assert experiment(name).payload_metadata(tmp_path) == text

    def test_what_is_no_text_does_no_harm(self, tmp_path):
        (tmp_path / "jobReport.json").write_bytes(b"\xff{")
        assert experiment("atlas").payload_metadata(tmp_path) == "\ufffd{"

    @pytest.mark.parametrize("kind", ["pipe", "link", "directory", "large"])
    def test_a_trap_is_left_alone(self, kind, tmp_path, caplog):
        path = tmp_path / "jobReport.json"
        secret = tmp_path / "token"
        secret.write_text("secret")
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(secret)
        elif kind == "directory":
            path.mkdir()
        else:
            path.touch()
            os.truncate(path, JOB_REPORT_LIMIT + 1)
        assert experiment("atlas").payload_metadata(tmp_path) == ""
        assert "jobReport.json is not sent" in caplog.text

    def test_atlas_sends_25_warnings_and_all_the_rest(self, tmp_path):
        details = {"WARNING": [{"count": n} for n in range(100)], "ERROR": [{"message": "é"}] * 30}
        report = {"executor": [{"logfileReport": {"details": details}}, {"n": 2}], "exitCode": 65}
        (tmp_path / "jobReport.json").write_text(json.dumps(report))
        sent = json.loads(experiment("atlas").payload_metadata(tmp_path))
        assert sent["executor"][0]["logfileReport"]["details"].pop("WARNING") == [{"count": n} for n in range(25)]
        del details["WARNING"]
        assert sent == report
        assert len(json.loads(experiment("generic").payload_metadata(tmp_path))["executor"]) == 2


class TestAtlas:
    atlas = experiment("atlas")

    def words(self, text: str, **environment: str) -> list[str]:
        pars = clean(text, self.atlas)
        return sh(self.atlas.command(job(parameters=pars.parameters), "./trf"), **environment)

    @pytest.mark.parametrize("rest", ["", """ --overwriteQueueData "{'a': 1}\""""])
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ('--athenaopts "A:--nprocs=$N"', ["--athenaopts", "A:--nprocs=8"]),
            ('--athenaopts="A:--nprocs=$N" -x', ["--athenaopts=A:--nprocs=8", "-x"]),
            ('--athenaopts "A:$N" "B C:$N" --x', ["--athenaopts", "A:8", "B C:8", "--x"]),
            ("--athenaopts=A:$N", ["--athenaopts=A:8"]),
            ("--athenaopts 'A:$N'", ["--athenaopts", "A:$N"]),
            ('-x --athenaopts "A $N" --b --athenaopts=C:$N', ["-x", "--athenaopts", "A 8", "--b", "--athenaopts=C:8"]),
        ],
    )  # fmt: skip
    def test_athenaopts_mean_the_same_with_overrides_in_the_text(self, options, expected, rest):
        assert self.words(options + rest, N="8") == expected

    @pytest.mark.parametrize(
        "text",
        ['--athenaopts "never ends', "--athenaopts", "--athenaopts ''", 'x--athenaopts "a"', "athenaopts-hidden-zz",
         """-c "run --athenaopts \\"a b\\"" """, "é --athenaopts \"ü\""],
    )  # fmt: skip
    def test_other_text_comes_through_byte_for_byte(self, text):
        assert clean(text, self.atlas).parameters == text

    def test_forged_hidden_text_is_no_way_to_a_crash(self):
        assert clean("athenaopts-hidden-ff0", self.atlas).parameters == "\ufffd0"

    def test_overrides_are_still_found_behind_athenaopts(self):
        pars = clean("""--athenaopts "A:$N" --overwriteQueueData "{'maxrss': 5}" -x""", self.atlas)
        assert (pars.queue_overrides, pars.parameters) == ({"maxrss": 5}, '--athenaopts "A:$N" -x')

    def test_a_user_job_reads_by_guid(self):
        """PILOT3 5.1: GUIDs of the inputs in -i, in its order; unknown names and unfit GUIDs are passed over."""
        inputs = (given("b.root", guid="GB-1"), given("a.root", guid="GA-1"), given("c.root", guid='"; rm'))
        pars = """-o "{'x': 'y'}" -i "['a.root', 'b.root', 'c.root', 'd']" """.strip()
        words = sh(self.atlas.command(job(parameters=pars, inputs=inputs), "./trf"))
        assert words[-2:] == ["--inputGUIDs", "['GA-1', 'GB-1']"]
        build = job(parameters=pars, inputs=inputs, is_build=True)
        assert self.atlas.command(build, "./trf") == f"./trf {pars}"

    @pytest.mark.parametrize(
        ("fields", "call", "text"),
        [
            ({}, "bash", "bash -c 'x'"),
            ({}, "./job.sh", "./job.sh -c 'x'"),
            ({}, "Gen_tf.py", "python3 Gen_tf.py -c 'x'"),
            ({"homepackage": "pkg/1"}, "Gen_tf.py", "python3 pkg/1/Gen_tf.py -c 'x'"),
            ({"homepackage": "pkg/1"}, "./job.sh", "./job.sh -c 'x'"),
        ],
    )
    def test_a_production_job(self, fields, call, text):
        assert self.atlas.command(job(is_analysis=False, parameters="-c 'x'", **fields), call) == text

    def test_parameters_may_be_the_whole_command(self):
        """`noExecStrCnv` (PILOT3 5.1)."""
        text = "source /x/asetup.sh 1.2; ./run"
        assert self.atlas.command(job(no_exec_str_conv=True, parameters=text), "./trf") == text
        assert self.atlas.command(job(no_exec_str_conv=True, parameters="-x"), "./trf") == "./trf -x"

    @pytest.mark.parametrize(
        ("release", "package", "asked"),
        [
            ("Atlas-25.0.1", "Athena/25.0.1", "Athena,25.0.1,notest"),
            ("Atlas-25.0.1", "Athena", "Athena,25.0.1,notest"),
            ("Atlas-21.0.15", "AtlasOffline/21.0.15.7", "AtlasOffline,21.0.15.7,notest"),
            ("Atlas-25.0.1", "AnalysisTransforms-AthAnalysis_25.2.1", "AthAnalysis,25.2.1,notest"),
            ("Atlas-rel_3", "AnalysisTransforms-Athena_main", "rel_3,Athena,main,notest"),
            ("Atlas-25.0.1", "AnalysisTransforms", "25.0.1,notest"),
            ("Atlas-25.0.1", "x;rm -rf /", "'x;rm -rf ,25.0.1,notest'"),
        ],
    )
    def test_a_release_is_set_up_by_asetup(self, release, package, asked):
        text = self.setup(release=release, homepackage=package, platform="x86_64-el9-gcc13-opt")
        assert text.splitlines()[-1] == (
            f"source $AtlasSetup/scripts/asetup.sh {asked} --platform x86_64-el9-gcc13-opt --makeflags='$MAKEFLAGS'"
        )

    def test_who_needs_no_release_gets_none(self):
        assert self.setup(release="") == ""
        assert self.setup(release="Atlas-1.2.3", container_image="/an/image") == ""
        for text in ("NULL", "", None):
            assert parse_job({"PandaID": 1, "transformation": URL, "swRelease": text}).release == ""

    def test_parameters_that_call_asetup_are_given_alrb_alone(self):
        text = self.setup(release="Atlas-1.2.3", no_exec_str_conv=True, parameters="source x/asetup.sh 1; run")
        assert text.endswith("atlasLocalSetup.sh --quiet")

    def test_inside_the_container_of_alrb_there_is_asetup_alone(self):
        text = self.setup(contained=True, release="Atlas-1.2.3", homepackage="Athena")
        assert text.startswith("source $AtlasSetup/scripts/asetup.sh Athena,1.2.3,notest")

    def setup(self, contained=False, **fields):
        queue = Queue.from_record({"is_cvmfs": True}, "Q")
        return self.atlas.release_setup(job(**fields), queue, contained=contained)

    def test_names_that_are_not_ascii_are_refused_odd_ones_warned_of(self, caplog):
        assert refusal("atlas", outputs=(made("naïve.root"),)).code is Code.BADOUTPUTFILENAME
        self.atlas.verify(job(outputs=(made("AOD.29466419._001462.pool.root.1"),)))
        assert caplog.text == ""
        self.atlas.verify(job(outputs=(made("_x y.root"),)))
        assert "_x y.root does not follow the naming convention" in caplog.text

    def test_a_name_of_256_characters_is_refused_with_1190(self):
        with pytest.raises(PilotError) as caught:
            parse_job({"PandaID": 1, "outFiles": "x" * 256, "scopeOut": "s"}, filters=self.atlas)
        assert caught.value.code is Code.LFNTOOLONG

    def environment(self, **fields) -> dict[str, str]:
        subject = job(**fields)
        return payload_environment(
            {"RUCIO_ACCOUNT": "pilot", "RUCIO_HOME": "/rucio", "ATHENA_CORE_NUMBER": "64"},
            subject,
            queue_name="CERN-PROD",
            queue_environ="TZ=CET SITE=x",
            prefixes=self.atlas.environment_prefixes,
            experiment=self.atlas.environment(subject),
        )

    def test_exports_of_a_user_job(self):
        """PILOT3 1.3."""
        inputs = (
            given("l", dataset="user.lib.x.lib.1"),
            given("d", dataset="DBRelease-1"),
            given("a", dataset="data:x"),
        )
        assert self.environment(cores=4, inputs=inputs, processing_type="panda-client", scheduler_ip="10.0.0.1") == {
            "PANDA_RESOURCE": "CERN-PROD", "PandaID": "7", "PanDA_TaskID": "3", "PanDA_AttemptNr": "1",
            "FRONTIER_ID": "[3_7]", "CMSSW_VERSION": "[3_7]", "INDS": "data:x", "RUCIO_APPID": "panda-client",
            "RUCIO_HOME": "/rucio", "TZ": "UTC", "SITE": "x", "ATHENA_PROC_NUMBER": "4", "ATHENA_CORE_NUMBER": "4",
            "ROOT_TTREECACHE_SIZE": "1", "ROOTCORE_NCPUS": "4", "MAKEFLAGS": "-j4 QUICK=1 -l1",
            "DASK_SCHEDULER_IP": "10.0.0.1",
        }  # fmt: skip

    def test_one_core_is_not_told_to_athena_nor_make_to_production(self):
        environment = self.environment(is_analysis=False)
        assert not environment.keys() & {"ATHENA_PROC_NUMBER", "MAKEFLAGS", "ROOTCORE_NCPUS", "RUCIO_ACCOUNT"}
        assert environment["INDS"] == "unknown"

    def test_metrics_have_their_order_and_lose_none(self):
        measured = {"lsetup_time": "3", "leak": "1", "nEvents": "5", "actualCoreCount": "1.2"}
        expected = ["actualCoreCount", "nEvents", "leak", "lsetup_time"]
        assert list(self.atlas.metrics(job(), measured)) == expected
        with_dask = self.atlas.metrics(job(scheduler_ip="a", session_ip="b"), measured)
        assert list(with_dask) == [*expected[:3], "schedulerIP", "sessionIP", "lsetup_time"]
        assert dict(with_dask) == {**measured, "schedulerIP": "a", "sessionIP": "b"}

    def archived(self, tmp_path: Path, error: PilotError | None) -> set[str]:
        import tarfile

        target = tmp_path / "log.tgz"
        make_log_archive(
            tmp_path / "job", target, folder="f", masker=Masker(),
            redundant=self.atlas.redundant(error), keep=self.atlas.kept_files,
        )  # fmt: skip
        with tarfile.open(target) as archive:
            return {member.name.removeprefix("f/") for member in archive if member.isfile()}

    def test_the_log_has_what_explains_a_job_and_not_what_fills_the_disk(self, tmp_path):
        keep = {
            "payload.stdout", "log.HITtoRDO", "runargs.HITtoRDO.py", "runwrapper.HITtoRDO.sh", "jobReport.json",
            "PoolFileCatalog.xml", "prmon.full.x", "eventLoopHeartBeat.txt", "athenaMP-workers-x/w0/AthenaMP.log",
        }  # fmt: skip
        leave = {
            "AOD.root.1", "tmp.data", "x509up_u1", "user.proxy", "runAthena-00-00-12", "job.py", "README.md", "lib/a.a",
            "sqlite200/x", "athenaMP-workers-x/w0/HITS.pool.root", "athenaMP-workers-x/w0/tmp.x", "src/main.cxx", "%1",
        }  # fmt: skip
        user = {"workDir/mine.txt"}
        for name in keep | leave | user:
            path = tmp_path / "job" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        assert self.archived(tmp_path, None) == keep
        assert self.archived(tmp_path, PilotError(Code.PAYLOADEXECUTIONFAILURE)) == keep
        for code in (Code.LOOPINGJOB, Code.PAYLOADEXCEEDMAXMEM):
            assert self.archived(tmp_path, PilotError(code)) == keep | user

    def test_defaults_lose_against_everybody(self):
        settings = Settings.load(["-q", "Q", "--pilot-user", "atlas", "--queuedata-url", "/q.json"], {})
        settings = settings.with_experiment(self.atlas.settings, "atlas")
        assert settings.queuedata_url == "/q.json"
        assert settings.queues_url == "https://atlas-cric.cern.ch/cache/schedconfig/{pandaqueue}.json"
        assert settings.server == "https://pandaserver.cern.ch:25443"


class TestRubin:
    rubin = experiment("rubin")

    @pytest.mark.parametrize(
        ("gtag", "expected"),
        [
            ("https://logs/PandaJob_123/PandaJob_123.out", "https://logs/PandaJob_7/PandaJob_7.out"),
            ("https://logs/123_PandaJob_123x", "https://logs/123_PandaJob_7x"),
            ("https://logs/h_1.out", "https://logs/h_1.out"),
            ("", "unknown"),
        ],
    )
    def test_the_batch_log_names_the_job(self, gtag, expected):
        assert self.rubin.pilot_id(gtag, 7) == expected

    def test_the_clock_rate_is_the_first_metric(self, tmp_path):
        own = experiment("rubin")
        own.cpuinfo = tmp_path / "cpuinfo"
        own.cpuinfo.write_text("".join(f"processor: {n}\ncpu MHz\t\t: {1000 + n}.5\n\n" for n in range(1000)))
        assert list(own.metrics(job(), {"nEvents": "1"}).items()) == [("cpuFrequency", "1004"), ("nEvents", "1")]

    @pytest.mark.parametrize("text", ["processor: 0\nBogoMIPS: 1\n", "cpu MHz : ...\n", None])
    def test_a_node_that_does_not_tell_has_none(self, text, tmp_path):
        own = experiment("rubin")
        own.cpuinfo = tmp_path / "cpuinfo"
        if text:
            own.cpuinfo.write_text(text)
        assert own.metrics(job(), {"nEvents": "1"}) == {"nEvents": "1"}


class TestSphenix:
    sphenix = experiment("sphenix")

    def outputs(self, tmp_path: Path, *patterns: str, names: str, **fields) -> list[File]:
        for name in names.split():
            (tmp_path / name).touch()
        files = tuple(made(lfn, guid=f"G{n}", scope="s", dataset="d", endpoint="E") for n, lfn in enumerate(patterns))
        return list(self.sphenix.outputs(job(outputs=files, **fields), tmp_path))

    def test_one_match_takes_all_of_the_pattern(self, tmp_path):
        (found,) = self.outputs(tmp_path, r"regex|DST_.*\.root", names="DST_1.root other.root DST_1xroot")
        assert found.guid != "G0"  # which is the pattern's, and others may match later
        assert replace(found, guid="G") == made("DST_1.root", guid="G", scope="s", dataset="d", endpoint="E")

    def test_several_matches_have_guids_of_their_own_which_last(self, tmp_path):
        found = self.outputs(tmp_path, r"regex|^DST_", "hist.root", names="DST_2 DST_1 hist.root xDST_")
        assert [file.lfn for file in found] == ["DST_1", "DST_2", "hist.root"]
        assert len({file.guid for file in found}) == 3
        assert {(file.scope, file.dataset, file.endpoint) for file in found} == {("s", "d", "E")}
        assert self.outputs(tmp_path, r"regex|^DST_", "hist.root", names="") == found

    def test_no_match_stays_to_be_missed(self, tmp_path):
        assert [file.lfn for file in self.outputs(tmp_path, "regex|a", names="b")] == ["regex|a"]
        assert [file.lfn for file in self.outputs(tmp_path / "gone", "regex|a", names="")] == ["regex|a"]

    def test_everything_is_not_the_pilots_own_nor_input_nor_log(self, tmp_path):
        (tmp_path / "folder").mkdir()
        log = File(lfn="x.log.tgz", kind=Kind.LOG)
        names = " ".join((*OWN_NAMES, "in.root", "x.log.tgz", "named", "new"))
        found = self.outputs(tmp_path, "regex|.*", "named", names=names, inputs=(given("in.root"),), log=log)
        assert [file.lfn for file in found] == ["new", "named"]

    def test_a_file_is_one_output_however_many_patterns_it_matches(self, tmp_path):
        assert [file.lfn for file in self.outputs(tmp_path, "regex|a", "regex|b", names="ab")] == ["ab"]

    def test_a_match_with_a_name_that_no_storage_takes_fails_the_job(self, tmp_path):
        (tmp_path / "DST_\n").touch()
        with pytest.raises(PilotError) as caught:
            self.outputs(tmp_path, "regex|DST", names="")
        assert caught.value.code is Code.BADOUTPUTFILENAME

    def test_a_pattern_that_is_none_is_refused_before_the_payload_runs(self):
        error = refusal("sphenix", outputs=(made("plain(.root"), made("regex|DST_(")))
        assert (error.code, "'regex|DST_('" in error.diag) == (Code.BADOUTPUTFILENAME, True)

    def test_a_definition_with_a_pattern_is_taken(self):
        raw = {"PandaID": 1, "outFiles": r"regex|DST_.*\.root,a.log.tgz", "scopeOut": "s", "logFile": "a.log.tgz"}
        self.sphenix.verify(parse_job(raw, filters=self.sphenix))


class TestEic:
    def test_the_platform_of_the_node_is_the_last_argument(self):
        text = experiment("eic").command(job(parameters="-x 'a b'"), "./trf")
        assert sh(text) == ["-x", "a b"]
        assert sh(text, ALRB_USER_PLATFORM="el9 $(x)") == ["-x", "a b", "el9 $(x)"]
        assert "ALRB_USER_PLATFORM" in payload_environment({"ALRB_USER_PLATFORM": "el9"}, job())

    def test_a_here_document_keeps_its_end(self):
        subject = job(transformation="cat", parameters="<<EOF\nx\nEOF")
        assert sh(experiment("eic").command(subject, "cat")) == ["x"]


def test_an_experiment_may_take_a_variable_away():
    subject = replace(job(), environment={"KEEP": "1"})
    found = payload_environment({"LANG": "C"}, subject, experiment={"LANG": None, "KEEP": None, "NEW": "2"})
    assert ("LANG" in found, found["KEEP"], found["NEW"]) == (False, "1", "2")
