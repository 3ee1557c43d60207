"""Command lines written for Pilot 3 mean the same here (PILOT3 1.1, 9.1, 9.2)."""

from __future__ import annotations

import argparse
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.settings import TABLE, Settings

REQUIRED = "-q Q --pilot-user generic"


def str2bool(text: str) -> bool:
    if text.lower() in {"yes", "true", "t", "y", "1"}:
        return True
    if text.lower() in {"no", "false", "f", "n", "0"}:
        return False
    raise argparse.ArgumentTypeError(text)


# Flags, dest, default, then a text and its value; a bool in place of the text is what a flag without a value sets.
# Where Pilot 3 has None for "not given", ours is the empty text.
OPTIONS = [
    ("--pilot-user", "pilot_user", "generic", "rubin", "rubin"),
    ("-a --workdir", "workdir", "", "/scratch/x", "/scratch/x"),
    ("--cleanup", "cleanup", True, "False", False),
    ("-i --versiontag", "version_tag", "PR", "RC", "RC"),
    ("-z --noserverupdate", "update_server", True, False, False),
    ("--no-pilot-log", "nopilotlog", False, True, True),
    ("-d --debug", "debug", False, True, True),
    ("--redirect-stdout", "redirectstdout", "", "/dev/null", "/dev/null"),
    ("-j --joblabel", "job_label", "ptest", "managed", "managed"),
    ("-v --getjobrequests", "getjob_requests", 2, "150", 150),
    ("-x --getjobfailures", "getjob_failures", 5, "50", 50),
    ("--country-group", "country_group", "", "de", "de"),
    ("--working-group", "working_group", "", "higgs", "higgs"),
    ("--allow-other-country", "allow_other_country", False, "yes", True),
    ("--allow-same-user", "allow_same_user", True, "false", False),
    ("--job-type", "jobtype", "", "unified", "unified"),
    ("-w --workflow", "workflow", "generic", "generic_hpc", "generic_hpc"),
    ("-l --lifetime", "lifetime", 324000, "345600", 345600),
    ("-L --leasetime", "leasetime", 3600, "7200", 7200),
    ("-q --queue", "queue", "Q", "AGLT2_TEST-condor", "AGLT2_TEST-condor"),
    ("-r --resource", "resource", "", "AGLT2_TEST", "AGLT2_TEST"),
    ("-s --site", "site", "", "AGLT2", "AGLT2"),
    ("--resource-type", "resource_type", "", "MCORE_HIMEM", "MCORE_HIMEM"),
    ("-b --nocvmfs", "cvmfs", True, False, False),
    ("--stageout-attempts", "stageout_attempts", 1, "3", 3),
    ("--harvester-workdir", "harvester_workdir", "", "/hv/work", "/hv/work"),
    ("--harvester-datadir", "harvester_datadir", "", "/hv/data", "/hv/data"),
    ("--harvester-eventstatusdump", "harvester_eventstatusdump", "", "dump.json", "dump.json"),
    ("--harvester-workerattributes", "harvester_workerattributes", "", "attr.json", "attr.json"),
    ("--harvester-submit-mode", "harvester_submitmode", "PULL", "PUSH", "PUSH"),
    ("--input-dir", "input_dir", "", "/in", "/in"),
    ("--input-destination-dir", "input_destination_dir", "", "/dest", "/dest"),
    ("--output-dir", "output_dir", "", "/out", "/out"),
    ("--hpc-resource", "hpc_resource", "", "titan", "titan"),
    ("--hpc-mode", "hpc_mode", "manytoone", "jumbojobs", "jumbojobs"),
    ("--es-executor-type", "executor_type", "generic", "fineGrainedProc", "fineGrainedProc"),
    ("--pod", "pod", False, True, True),
    ("-t --noproxyverification", "verify_proxy", True, False, False),
    ("-y --notokenrenewal", "token_renewal", True, False, False),
    ("--cacert", "cacert", "", "/tmp/x509up", "/tmp/x509up"),
    ("--capath", "capath", "", "/etc/grid-security/certificates", "/etc/grid-security/certificates"),
    ("--url", "url", "", "https://pandaserver.cern.ch", "https://pandaserver.cern.ch"),
    ("-p --port", "port", 25443, "443", 443),
    ("--queuedata-url", "queuedata_url", "", "https://h:8443/{pandaqueue}.json", "https://h:8443/{pandaqueue}.json"),
    ("--storagedata-url", "storagedata_url", "", "/cric/ddm.json", "/cric/ddm.json"),
    ("-k --noworkerpilotstatusupdate", "workerpilotstatusupdate", True, False, False),
    ("--subscribe-to-msgsvc", "subscribe_to_msgsvc", False, True, True),
    ("--use-https", "use_https", True, "n", False),
    ("-g --baseurls", "baseurls", "", "https://a/trf,https://b/trf", "https://a/trf,https://b/trf"),
    ("--use-realtime-logging", "use_realtime_logging", False, True, True),
    ("--realtime-logging-server", "realtime_logging_server", "", "google-cloud-logging", "google-cloud-logging"),
    ("--realtime-logname", "realtime_logname", "pilot-log", "Panda-RubinLog", "Panda-RubinLog"),
    ("--use-rucio-traces", "use_rucio_traces", True, "0", False),
    ("--rucio-host", "rucio_host", "", "https://rucio:443", "https://rucio:443"),
]
# The one that means the opposite here: `-u` verifies. Pilot 3 switched the check off.
TURNED = ("-u --verifypayloadproxy", "verify_payload_proxy", True, True, True)


def load(line: str | list[str]) -> Settings:
    return Settings.load(shlex.split(line) if isinstance(line, str) else line, {})


def required(*without: str) -> list[str]:
    """What no line can do without, except for a dest that the line itself sets."""
    given = {"queue": ["-q", "Q"], "pilot_user": ["--pilot-user", "generic"]}
    return [word for dest, words in given.items() if dest not in without for word in words]


def spelled(flag: str, text: str | bool) -> list[list[str]]:
    if isinstance(text, bool):
        return [[flag]]
    joined = f"{flag}={text}" if flag.startswith("--") else f"{flag}{text}"
    return [[flag, text], [joined]]


CASES = [
    pytest.param(words, dest, value, id=" ".join(words))
    for flags, dest, _, text, value in [*OPTIONS, TURNED]
    for flag in flags.split()
    for words in spelled(flag, text)
]


@pytest.mark.parametrize(("words", "dest", "value"), CASES)
def test_option_sets_what_pilot3_would_set(words, dest, value):
    found = getattr(load([*required(dest), *words]), dest)

    assert found == value
    assert type(found) is type(value)


def test_defaults_are_those_of_pilot3():
    parsed = load(REQUIRED)

    assert {dest: getattr(parsed, dest) for _, dest, *_ in [*OPTIONS, TURNED]} == {
        dest: default for _, dest, default, *_ in [*OPTIONS, TURNED]
    }


def test_each_flag_is_pilot3s_or_says_that_it_is_new():
    ours = {flag for option in TABLE.values() if not option.new for flag in option.flags}

    assert ours == {flag for flags, *_ in [*OPTIONS, TURNED] for flag in flags.split()}


# --- Lines that are in use

RUBIN = "https://usdf-panda-server.slac.stanford.edu:8443"
LINES = {
    "the wrapper with its fixed arguments": (
        "-q DOMA_LSST_GOOGLE_TEST -i PR -j managed --pilot-user=rubin -x 3 -v 5 "
        "--url=https://pandaserver-doma.cern.ch -d --harvester-submit-mode PULL --allow-same-user=False -t",
        {
            "queue": "DOMA_LSST_GOOGLE_TEST",
            "version_tag": "PR",
            "job_label": "managed",
            "pilot_user": "rubin",
            "getjob_failures": 3,
            "getjob_requests": 5,
            "url": "https://pandaserver-doma.cern.ch",
            "debug": True,
            "harvester_submitmode": "PULL",
            "allow_same_user": False,
            "verify_proxy": False,
        },
    ),
    "the Rubin starter with live logs": (
        "-s DOMA_LSST -r DOMA_LSST -q DOMA_LSST --resource-type SCORE -j managed --use-realtime-logging "
        "--realtime-logging-server google-cloud-logging --realtime-logname Panda-RubinLog -i PR -w generic "
        "--pilot-user rubin --url=https://pandaserver-doma.cern.ch -d --harvester-submit-mode PUSH "
        "--harvester-datadir /data/atlpan --allow-same-user=False -t",
        {
            "site": "DOMA_LSST",
            "resource": "DOMA_LSST",
            "queue": "DOMA_LSST",
            "resource_type": "SCORE",
            "job_label": "managed",
            "use_realtime_logging": True,
            "realtime_logging_server": "google-cloud-logging",
            "realtime_logname": "Panda-RubinLog",
            "version_tag": "PR",
            "pilot_user": "rubin",
            "url": "https://pandaserver-doma.cern.ch",
            "debug": True,
            "harvester_submitmode": "PUSH",
            "harvester_datadir": "/data/atlpan",
            "allow_same_user": False,
            "verify_proxy": False,
        },
    ),
    "Rubin on Slurm": (
        "-s SLAC -r SLAC -q SLAC_Rubin -i PR -w generic --allow-same-user false --pilot-user rubin "
        f"--es-executor-type fineGrainedProc --noproxyverification --url {RUBIN} --harvester-submit-mode PUSH "
        f"--queuedata-url {RUBIN}/cache/schedconfig/SLAC.all.json --storagedata-url /cric/cric_ddmendpoints.json "
        "--use-realtime-logging --realtime-logging-server \"logserver='google-cloud-logging;https://google:80'\" "
        "--realtime-logname Panda-RubinLog",
        {
            "site": "SLAC",
            "resource": "SLAC",
            "queue": "SLAC_Rubin",
            "allow_same_user": False,
            "pilot_user": "rubin",
            "executor_type": "fineGrainedProc",
            "verify_proxy": False,
            "url": RUBIN,
            "harvester_submitmode": "PUSH",
            "queuedata_url": f"{RUBIN}/cache/schedconfig/SLAC.all.json",
            "storagedata_url": "/cric/cric_ddmendpoints.json",
            "use_realtime_logging": True,
            "realtime_logging_server": "logserver='google-cloud-logging;https://google:80'",
            "realtime_logname": "Panda-RubinLog",
        },
    ),
    "an HPC with Harvester's files": (
        "-s NERSC -r NERSC -q NERSC -j managed -i PR -t -w generic --pilot-user=ATLAS --url=http://128.55.144.151 "
        "-p 25080 -d --harvester-submit-mode=PUSH --harvester-workdir=/hv --allow-same-user=False "
        "--resource-type MCORE -z",
        {
            "site": "NERSC",
            "resource": "NERSC",
            "queue": "NERSC",
            "job_label": "managed",
            "verify_proxy": False,
            "pilot_user": "atlas",
            "url": "http://128.55.144.151",
            "port": 25080,
            "debug": True,
            "harvester_submitmode": "PUSH",
            "harvester_workdir": "/hv",
            "allow_same_user": False,
            "resource_type": "MCORE",
            "update_server": False,
        },
    ),
    "an HPC that pulls": (
        "-q PERLMUTTER -i PR -j managed -w generic --url https://pandaserver.cern.ch --pilot-user ATLAS "
        "--allow-same-user=False --getjobrequests=150 --notokenrenewal --cleanup True --noworkerpilotstatusupdate "
        "-x 50 --debug",
        {
            "queue": "PERLMUTTER",
            "job_label": "managed",
            "url": "https://pandaserver.cern.ch",
            "pilot_user": "atlas",
            "allow_same_user": False,
            "getjob_requests": 150,
            "token_renewal": False,
            "workerpilotstatusupdate": False,
            "getjob_failures": 50,
            "debug": True,
        },
    ),
    "the grid": (
        "-s INFN-GENOVA -r INFN-GENOVA -q INFN-GENOVA -j unified -i PR -w generic --pilot-user ATLAS "
        "--url https://pandaserver.cern.ch --harvester-submit-mode PULL --allow-same-user=False --job-type=unified "
        "--resource-type MCORE",
        {
            "site": "INFN-GENOVA",
            "resource": "INFN-GENOVA",
            "queue": "INFN-GENOVA",
            "job_label": "unified",
            "pilot_user": "atlas",
            "url": "https://pandaserver.cern.ch",
            "allow_same_user": False,
            "jobtype": "unified",
            "resource_type": "MCORE",
        },
    ),
    "EIC with Rucio of its own": (
        "-s E1_JLAB -r E1_JLAB -q E1_JLAB -j unified -i PR -t -w generic --pilot-user eic "
        "--url https://pandaserver01.example.org -p 25443 -d --harvester-submit-mode PUSH --allow-same-user=False "
        "--job-type=test --resource-type SCORE --use-rucio-traces False --rucio-host https://rucio.example.org:443",
        {
            "site": "E1_JLAB",
            "resource": "E1_JLAB",
            "queue": "E1_JLAB",
            "job_label": "unified",
            "verify_proxy": False,
            "pilot_user": "eic",
            "url": "https://pandaserver01.example.org",
            "debug": True,
            "harvester_submitmode": "PUSH",
            "allow_same_user": False,
            "jobtype": "test",
            "resource_type": "SCORE",
            "use_rucio_traces": False,
            "rucio_host": "https://rucio.example.org:443",
        },
    ),
    "ARC with inputs in place": (
        "-q NDGF -j managed --pilot-user ATLAS -z -d -b -t --harvester-workdir /arc/session --input-dir /arc/in "
        "--output-dir /arc/out --input-destination-dir /arc/dest",
        {
            "queue": "NDGF",
            "job_label": "managed",
            "pilot_user": "atlas",
            "update_server": False,
            "debug": True,
            "cvmfs": False,
            "verify_proxy": False,
            "harvester_workdir": "/arc/session",
            "input_dir": "/arc/in",
            "output_dir": "/arc/out",
            "input_destination_dir": "/arc/dest",
        },
    ),
    "the issue's own": (
        "-q Q -s S -r R -j managed -i PR -a /work --pilot-user generic --url https://host -p 25443 "
        "--queuedata-url /q.json --storagedata-url /s.json -l 3600 -t -b",
        {
            "site": "S",
            "resource": "R",
            "job_label": "managed",
            "workdir": "/work",
            "url": "https://host",
            "queuedata_url": "/q.json",
            "storagedata_url": "/s.json",
            "lifetime": 3600,
            "verify_proxy": False,
            "cvmfs": False,
        },
    ),
    "flags without values in one word": (
        "-q Q --pilot-user generic -dztbky",
        {
            "debug": True,
            "update_server": False,
            "verify_proxy": False,
            "cvmfs": False,
            "workerpilotstatusupdate": False,
            "token_renewal": False,
        },
    ),
}


@pytest.mark.parametrize(("line", "expected"), LINES.values(), ids=LINES.keys())
def test_line_in_use_means_what_it_meant(line, expected):
    parsed = load(line)
    defaults = {dest: default for _, dest, default, *_ in [*OPTIONS, TURNED]}

    assert {dest: getattr(parsed, dest) for dest in defaults} == defaults | expected


# --- Against argparse as Pilot 3 sets it up


def pilot3_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flags, dest, default, text, _ in OPTIONS:
        if isinstance(text, bool):
            parser.add_argument(*flags.split(), dest=dest, default=default, action=f"store_{text}".lower())
        else:
            kind = str2bool if isinstance(default, bool) else type(default)
            parser.add_argument(*flags.split(), dest=dest, default=default, type=kind)
    return parser


def shortest(flag: str) -> list[str]:
    """The flag and what it may be shortened to among the options of Pilot 3."""
    long = ["--help", "--verifypayloadproxy", *(f for flags, *_ in OPTIONS for f in flags.split() if f[:2] == "--")]
    cuts = [flag[:end] for end in range(3, len(flag))] if flag.startswith("--") else []
    return [flag, *(cut for cut in cuts if [f for f in long if f.startswith(cut)] == [flag])]


@st.composite
def command_lines(draw) -> list[str]:
    words = []
    for flags, _, _, text, _ in draw(st.lists(st.sampled_from(OPTIONS), max_size=12)):
        flag = draw(st.sampled_from(flags.split()).flatmap(lambda flag: st.sampled_from(shortest(flag))))
        words += draw(st.sampled_from(spelled(flag, text)))
    return words


@settings(max_examples=300, deadline=None)
@given(command_lines())
def test_any_line_parses_as_with_pilot3(words):
    words = ["-q", "Q", "--pilot-user", "generic", *words]
    expected = vars(pilot3_parser().parse_args(words))

    parsed = load(words)

    assert {dest: getattr(parsed, dest) for dest in expected} == expected


@pytest.mark.parametrize("flag", [flag for flags, *_ in OPTIONS for flag in flags.split() if flag.startswith("--")])
def test_shortened_name_is_still_clear(flag):
    dest, text, value = next((d, t, v) for flags, d, _, t, v in OPTIONS if flag in flags.split())
    for cut in shortest(flag):
        parsed = load([*required(dest), *spelled(cut, text)[0]])
        assert getattr(parsed, dest) == value, cut


# --- What Pilot 3 refuses

REFUSED = {
    "no queue": ("--pilot-user generic", "-q/--queue"),
    "no experiment": ("-q Q", "--pilot-user"),
    "unknown option": (f"{REQUIRED} --joblable managed", "unknown option '--joblable', did you mean --joblabel?"),
    "unknown option with a value in it": (f"{REQUIRED} --harvester-mode=PUSH", "unknown option '--harvester-mode'"),
    "an option of the wrapper": (f"{REQUIRED} --pythonversion 3", "unknown option '--pythonversion'"),
    "a word too many": (f"{REQUIRED} -d managed", "unexpected argument 'managed'"),
    "unclear abbreviation": (f"{REQUIRED} --allow true", "--allow could match"),
    "number that is none": (
        f"{REQUIRED} -v many",
        "-v/--getjobrequests: expected a whole number, 0 or more, got 'many'",
    ),
    "negative number": (f"{REQUIRED} -l -5", "-l/--lifetime: expected whole seconds, 0 or more, got '-5'"),
    "no truth": (f"{REQUIRED} --cleanup=maybe", "--cleanup: expected true or false, got 'maybe'"),
    "workflow that is none": (f"{REQUIRED} -w prod", "-w/--workflow: expected one of generic, generic_hpc"),
    "resource type that is none": (f"{REQUIRED} --resource-type BIG", "expected SCORE, MCORE, SCORE_* or MCORE_*"),
    "port that is none": (f"{REQUIRED} -p 99999", "-p/--port: expected a port number, 0 to 65535"),
    "submit mode that is none": (f"{REQUIRED} --harvester-submit-mode SHOVE", "expected one of PULL, PUSH"),
    "missing value": (f"{REQUIRED} --url", "--url: expected one argument"),
    "url with another scheme": (f"{REQUIRED} --url ftp://host", "--url: expected an http or https URL"),
    "url with a port that is none": (f"{REQUIRED} --url https://host:port", "--url: expected an http or https URL"),
}


@pytest.mark.parametrize(("line", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_line_ends_with_2_and_names_the_flag(line, text, capsys):
    with pytest.raises(SystemExit) as stop:
        load(line)

    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert text in said
    assert len(said.splitlines()) == 2, "one line of error and one where to look, no usage of 80 options"


@pytest.mark.parametrize("text", ["true", "TRUE", "Yes", "y", "T", "1"])
def test_truth_in_any_case(text):
    assert load(f"{REQUIRED} --allow-other-country {text}").allow_other_country is True


@pytest.mark.parametrize("text", ["false", "FALSE", "No", "n", "F", "0"])
def test_untruth_in_any_case(text):
    assert load(f"{REQUIRED} --cleanup={text}").cleanup is False


def test_flag_for_true_or_false_may_stand_alone():
    parsed = load("--allow-other-country -q Q --cleanup --pilot-user generic")

    assert parsed.allow_other_country is True
    assert parsed.cleanup is True


def test_resource_type_may_be_empty_as_a_wrapper_passes_it():
    assert load([*required(), "--resource-type", ""]).resource_type == ""


def test_pilot_py_hands_its_arguments_to_pilot_run(monkeypatch):
    calls = []
    fake = ModuleType("pilot.cli.main")
    fake.main = lambda argv: calls.append(argv) or 7
    monkeypatch.setitem(sys.modules, "pilot.cli.main", fake)
    monkeypatch.setattr(sys, "argv", ["pilot3/pilot.py", "-q", "Q", "--pilot-user=rubin", "-t"])

    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(__file__).parents[2] / "pilot.py"), run_name="__main__")

    assert calls == [["run", "-q", "Q", "--pilot-user=rubin", "-t"]]
    assert stop.value.code == 7
