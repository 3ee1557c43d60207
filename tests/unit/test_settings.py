"""Settings: every place they come from, who wins, and what is said when one is wrong."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.cli.options import add_run_options, build_parser
from pilot.flags import RunParser
from pilot.option import Group, parse_size, readable_size
from pilot.settings import TABLE, Rank, Settings, SettingsError
from pilot.settingsdoc import page

ROOT = Path(__file__).parents[2]
REQUIRED = ["-q", "Q", "--pilot-user", "generic"]


@pytest.fixture
def load(tmp_path):
    """Settings of flags, an environment and the text of a file."""

    def load(*flags: str, ini: str = "", **environ: str) -> Settings:
        if ini:
            path = tmp_path / "pilot.cfg"
            path.write_text(ini)
            environ["HARVESTER_PILOT_CONFIG"] = str(path)
        return Settings.load([*REQUIRED, *flags], environ)

    return load


def row(settings: Settings, name: str):
    return next(row for row in settings.explain() if row.name == name)


class TestPrecedence:
    """Each place is asked in turn; `grace` and `rucio_host` stand for all, the code knows no names."""

    def test_default_when_nobody_says_anything(self, load):
        assert load().grace == 25.0
        assert row(load(), "grace") == ("grace", "25", "default")

    def test_experiment_beats_default(self, load):
        settings = load().with_experiment({"rucio_host": "https://rucio"}, "atlas")

        assert row(settings, "rucio_host") == ("rucio_host", "https://rucio", "experiment atlas")

    def test_file_beats_experiment(self, load, tmp_path):
        settings = load(ini="[Rucio]\nhost: https://site").with_experiment({"rucio_host": "https://rucio"}, "atlas")

        assert row(settings, "rucio_host").value == "https://site"
        assert row(settings, "rucio_host").source == f"file {tmp_path / 'pilot.cfg'}, Rucio.host"

    def test_queue_beats_file(self, load):
        settings = load(ini="[Pilot]\ngrace = 10").with_queue({"pilot_grace": 15})

        assert row(settings, "grace") == ("grace", "15", "queue parameter pilot_grace")

    def test_flag_beats_queue(self, load):
        settings = load("--grace", "20", ini="[Pilot]\ngrace = 10").with_queue({"pilot_grace": 15})

        assert row(settings, "grace") == ("grace", "20", "flag --grace")

    def test_flag_that_repeats_the_default_beats_queue(self, load):
        assert load("--grace", "25").with_queue({"pilot_grace": 15}).grace == 25.0

    def test_environment_beats_file(self, load):
        settings = load(ini="[Pilot]\nload_factor = 2.5", PILOT_LOAD_FACTOR="3.5")

        assert row(settings, "load_factor") == ("load_factor", "3.5", "environment PILOT_LOAD_FACTOR")

    def test_flag_beats_environment(self, load):
        settings = load("-l", "600", PANDAPILOT_LIFETIME="7200")

        assert row(settings, "lifetime") == ("lifetime", "600", "flag --lifetime")

    def test_environment_beats_default(self, load):
        assert load(PANDAPILOT_LIFETIME="7200").lifetime == 7200

    def test_next_queue_replaces_the_one_before(self, load):
        settings = load().with_queue({"pilot_grace": 15}).with_queue({"pilot_grace": 12})

        assert settings.grace == 12.0

    def test_settings_do_not_change_in_place(self, load):
        settings = load()
        settings.with_queue({"pilot_grace": 15})

        assert settings.grace == 25.0
        with pytest.raises(AttributeError):
            settings.grace = 1.0


class TestEnvironment:
    def test_empty_variable_is_not_set(self, load):
        assert load(PANDAPILOT_LIFETIME="").lifetime == 324_000
        assert load(REALTIME_LOGFILES=" ", REALTIME_LOGFILE="log.json").realtime_logfiles == "log.json"

    def test_first_of_two_variables_wins(self, load):
        settings = load(REALTIME_LOGFILE="one.json", REALTIME_LOGFILES="a.json:b.json")

        assert row(settings, "realtime_logfiles").value == "a.json:b.json"
        assert row(settings, "realtime_logfiles").source == "environment REALTIME_LOGFILES"

    def test_bad_value_names_variable_and_what_is_expected(self, load):
        with pytest.raises(SettingsError) as error:
            load(PANDAPILOT_LIFETIME="2 days")

        assert str(error.value) == "environment PANDAPILOT_LIFETIME: expected whole seconds, 0 or more, got '2 days'"
        assert error.value.exit_code == 2

    def test_password_in_a_url_is_not_shown(self, load):
        settings = load("--url", "https://me:hunter2@host", PANDA_BASE_URLS="https://a:hunter2@x/,https://b:hunter2@y/")

        assert settings.server == "https://me:hunter2@host:25443"
        assert row(settings, "baseurls").value == "https://***@x/,https://***@y/"
        assert "hunter2" not in repr(settings) + str(settings.explain())

    def test_password_in_a_bad_url_is_not_shown(self, load, capsys):
        with pytest.raises(SystemExit):
            load("--url", "ftp://me:hunter2@host")

        assert "got 'ftp://***@host'" in capsys.readouterr().err


class TestFile:
    def test_values_are_read_by_section_and_key(self, load):
        settings = load(
            ini="[Pilot]\nheartbeat: 600\nfree_space_limit: 5 GB\nlocal_size_limit_stdout: 1024\nallow_http: yes\n"
            "[File]\nchecksum_type: MD5\n[Information]\nqueues_url: https://cric/{pandaqueue}.json\n"
        )

        assert settings.heartbeat == 600.0
        assert settings.free_space_limit == 5 << 30
        assert settings.local_size_limit_stdout == 1024 << 10
        assert settings.allow_http is True
        assert settings.checksum_type == "md5"
        assert settings.queues_url == "https://cric/{pandaqueue}.json"

    @pytest.mark.parametrize("text", ["$SITE_SERVER", "${SITE_SERVER}"])
    def test_dollar_name_reads_the_environment(self, load, text):
        assert load(ini=f"[Pilot]\npandaserver: {text}", SITE_SERVER="https://site:8443").server == "https://site:8443"

    def test_dollar_name_that_is_not_set_is_an_error(self, load):
        with pytest.raises(SettingsError, match=r"pilot.cfg, Pilot.pandaserver: the environment has no variable NONE"):
            load(ini="[Pilot]\npandaserver: $NONE")

    @pytest.mark.parametrize("text", ["", "None", "none"])
    def test_nothing_and_none_are_not_set(self, load, text):
        assert load(ini=f"[Pilot]\nheartbeat: {text}").heartbeat == 1800.0

    def test_unknown_keys_are_passed_over_and_named(self, load, tmp_path):
        settings = load(ini="[Pilot]\nfuture: $NOT_THERE\nheartbeat: 5\n[Other]\nkey: x\n[Pilot3]\n")

        assert set(settings.origins) == {"queue", "pilot_user", "config", "heartbeat"}
        assert settings.warnings() == [
            f"keys in {tmp_path / 'pilot.cfg'} that no setting reads: Pilot.future, Other.key"
        ]

    def test_percent_sign_is_no_interpolation(self, load):
        assert load(ini="[Information]\nqueues_url: https://h/%(q)s").queues_url == "https://h/%(q)s"

    def test_bad_value_names_file_key_and_what_is_expected(self, load, tmp_path):
        with pytest.raises(SettingsError) as error:
            load(ini="[Pilot]\nfree_space_limit: plenty")

        place = f"file {tmp_path / 'pilot.cfg'}, Pilot.free_space_limit"
        assert str(error.value) == f"{place}: expected a size such as 2 GB, 500 MB or a number of bytes, got 'plenty'"

    @pytest.mark.parametrize("text", ["heartbeat: 600", "[Pilot]\ngrace: 1\ngrace: 2", "[Pilot\n"])
    def test_file_that_is_no_ini_is_an_error_of_one_line(self, load, text):
        with pytest.raises(SettingsError, match=r"cannot read settings from .*pilot.cfg: ") as error:
            load(ini=text)

        assert "\n" not in str(error.value)

    def test_missing_file_is_noted_and_the_pilot_goes_on(self, load):
        settings = load(HARVESTER_PILOT_CONFIG="/not/there.cfg")

        assert settings.heartbeat == 1800.0
        assert settings.warnings() == ["there is no file /not/there.cfg: its settings are the defaults"]

    def test_directory_in_place_of_a_file_is_an_error(self, load, tmp_path):
        with pytest.raises(SettingsError, match="cannot read settings"):
            load("--config", str(tmp_path))

    def test_flag_names_another_file_than_the_environment(self, load, tmp_path):
        other = tmp_path / "other.cfg"
        other.write_text("[Pilot]\ngrace = 5")

        assert load("--config", str(other), ini="[Pilot]\ngrace = 10").grace == 5.0


class TestQueue:
    def test_a_list_among_the_parameters_of_a_queue_is_json(self, load):
        rows = [{"regex": "run (\\d+)", "fault": "site"}]
        assert json.loads(load().with_queue({"pilot_problem_matchers": rows}).problem_matchers) == rows

    def test_other_parameters_of_a_queue_are_passed_over(self, load):
        settings = load().with_queue({"allow_altstageout": True, "grace": 3, "url": "http://evil", "allow_http": True})

        assert set(settings.origins) == {"queue", "pilot_user"}

    def test_values_may_be_json_types_or_text(self, load):
        settings = load().with_queue(
            {"pilot_mv_stagein": "copy", "pilot_heartbeat": 300, "pilot_free_space_limit": "10 GB", "pilot_grace": None}
        )

        assert (settings.mv_stagein, settings.heartbeat, settings.free_space_limit) == ("copy", 300.0, 10 << 30)
        assert settings.grace == 25.0

    @pytest.mark.parametrize("value", ["hardlink", 3, ["copy"], {}, True])
    def test_bad_value_names_the_parameter(self, load, value):
        with pytest.raises(SettingsError, match="queue parameter pilot_mv_stagein: expected one of link, copy, move"):
            load().with_queue({"pilot_mv_stagein": value})

    def test_waits_that_cross_are_refused(self, load):
        with pytest.raises(SettingsError, match=r"no_job_wait_min is above no_job_wait_max .*pilot_no_job_wait_min"):
            load().with_queue({"pilot_no_job_wait_min": 200})


class TestServer:
    """As Pilot 3 builds its base URL."""

    @pytest.mark.parametrize(
        ("flags", "server"),
        [
            ("", "https://pandaserver.cern.ch:25443"),
            ("-p 1234", "https://pandaserver.cern.ch:25443"),
            ("--url https://host", "https://host:25443"),
            ("--url host", "https://host:25443"),
            ("--url host:8443", "https://host:8443"),
            ("--url https://host:8443 -p 443", "https://host:8443"),
            ("--url http://128.55.144.151 -p 25080", "http://128.55.144.151:25080"),
            ("--url host -p 25080 --use-https False", "http://host:25080"),
            ("--url https://host -p 0", "https://host"),
            ("--url https://host/", "https://host:25443"),
            ("--url https://host/panda/ -p 443", "https://host:443/panda"),
            ("--url https://[::1]", "https://[::1]:25443"),
            ("--url https://[::1]:8443", "https://[::1]:8443"),
        ],
    )
    def test_base_url(self, load, flags, server):
        assert load(*flags.split()).server == server

    def test_file_names_the_server_with_its_port(self, load):
        assert load("-p", "1", ini="[Pilot]\npandaserver: panda.example.org:8443").server == (
            "https://panda.example.org:8443"
        )


class TestLater:
    def test_nothing_to_say_about_a_plain_line(self, load):
        assert load("-w", "generic", "--harvester-submit-mode", "PULL", "-r", "R", "-s", "S").warnings() == []

    def test_one_warning_names_all_that_waits(self, load):
        settings = load("--subscribe-to-msgsvc", "--pod", "-w", "stager", "--hpc-resource", "titan")

        assert len(settings.warnings()) == 1
        assert settings.warnings()[0].startswith("accepted, but not used yet: ")
        assert set(settings.later()) == {
            "--subscribe-to-msgsvc (message broker)",
            "--workflow (other workflows)",
            "--hpc-resource (other workflows)",
        }

    def test_switching_off_what_is_not_there_is_no_reason_to_warn(self, load):
        assert load("-t", "-b", "-y", "--use-rucio-traces", "False").later() == []

    def test_value_that_is_the_default_is_not(self, load):
        assert load("--es-executor-type", "generic").later() == []
        assert load("--es-executor-type", "raythena").later() == ["--es-executor-type (event service)"]


class TestTable:
    def test_default_has_the_type_of_its_field(self):
        types = typing.get_type_hints(Settings)

        assert {name: type(option.default) for name, option in TABLE.items()} == {name: types[name] for name in TABLE}

    def test_no_flag_variable_or_key_is_given_twice(self):
        flags = [flag for option in TABLE.values() for flag in option.flags]
        keys = [option.ini.lower() for option in TABLE.values() if option.ini]
        queue = [option.queue for option in TABLE.values() if option.queue]

        assert len(flags) == len(set(flags))
        assert len(keys) == len(set(keys))
        assert len(queue) == len(set(queue))

    @pytest.mark.parametrize("name", TABLE)
    def test_setting_can_be_set_somewhere_and_is_explained(self, name):
        option = TABLE[name]

        assert option.flags or option.env or option.ini
        assert option.what
        assert option.sets is None or (isinstance(option.default, bool) and option.flags)

    @pytest.mark.parametrize("name", [name for name, option in TABLE.items() if option.default])
    def test_default_as_shown_is_read_back(self, name):
        option = TABLE[name]
        if option.kind.metavar != "KB":
            assert option.parse(option.show(option.default), name) == option.default

    def test_explain_has_every_setting(self, load):
        assert [row.name for row in load().explain()] == list(TABLE)

    def test_repr_is_what_was_said(self):
        assert repr(Settings(queue="Q")) == "Settings()"
        assert repr(Settings.load(REQUIRED, {})) == "Settings(queue=Q, pilot_user=generic)"


class TestHelp:
    def test_what_matters_first_comes_first(self):
        text = build_parser().format_help()
        headings = [group.value for group in Group if f"\n{group.value}:\n" in text]

        assert text.startswith("usage: pilot run -q QUEUE --pilot-user NAME [options]\n")
        assert headings[:4] == ["What to run", "Server", "Where", "Limits"]
        assert [text.index(f"\n{heading}:") for heading in headings] == sorted(
            text.index(f"\n{heading}:") for heading in headings
        )

    def test_every_flag_is_in_it(self):
        text = build_parser().format_help()

        assert [flag for option in TABLE.values() for flag in option.flags if flag not in text] == []

    def test_help_ends_with_0(self, capsys):
        with pytest.raises(SystemExit) as stop:
            Settings.load(["--help"], {})

        assert stop.value.code == 0
        assert "--server-api {auto,v1,legacy}" in capsys.readouterr().out


class TestSubcommand:
    """The same options below a `pilot` with several commands."""

    @pytest.fixture
    def parser(self):
        top = argparse.ArgumentParser(prog="pilot")
        top.add_argument("--version", action="version", version="1")
        commands = top.add_subparsers(dest="command", parser_class=RunParser)
        add_run_options(commands.add_parser("run"))
        return top

    def test_namespace_has_only_what_was_given(self, parser):
        given = vars(parser.parse_args(["run", *REQUIRED, "--joblab", "managed", "--vers", "RC", "-z"]))

        assert given == {
            "command": "run",
            "queue": "Q",
            "pilot_user": "generic",
            "job_label": "managed",
            "version_tag": "RC",
            "update_server": False,
        }

    def test_other_names_of_the_namespace_are_passed_over(self, parser):
        settings = Settings.from_flags(vars(parser.parse_args(["run", *REQUIRED])), {"PANDAPILOT_LIFETIME": "60"})

        assert (settings.queue, settings.lifetime) == ("Q", 60)
        assert settings.origins["lifetime"].rank is Rank.ENVIRONMENT

    def test_unknown_option_gets_a_hint_there_too(self, parser, capsys):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["run", *REQUIRED, "--heartbeet", "5"])

        assert stop.value.code == 2
        assert capsys.readouterr().err == (
            "pilot run: error: unknown option '--heartbeet', did you mean --heartbeat?\nTry 'pilot run --help'.\n"
        )

    def test_options_fit_on_any_parser(self):
        parser = argparse.ArgumentParser()
        add_run_options(parser)

        assert vars(parser.parse_args([*REQUIRED, "--grace", "5"]))["grace"] == 5.0


@given(st.integers(min_value=0, max_value=1 << 60))
def test_size_is_read_back_as_it_is_shown(size):
    assert parse_size(readable_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2 GB", 2 << 30),
        ("14336 MB", 14 << 30),
        ("1.5g", 3 << 29),
        ("1 KiB", 1024),
        ("7", 7),
        ("7B", 7),
        ("1TB", 1 << 40),
    ],
)
def test_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 XB", "-1", "2 GB free", "1e3", "٣", "2 GBB"])
def test_size_that_is_none(text):
    with pytest.raises(ValueError, match=r"^"):
        parse_size(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "", "1 h"])
def test_seconds_that_are_none(load, text):
    with pytest.raises(SettingsError, match="expected seconds, 0 or more"):
        load().with_queue({"pilot_grace": text})


def test_page_of_the_docs_is_current():
    assert (ROOT / "docs" / "settings.md").read_text() == page(), "run: python -m pilot.settingsdoc > docs/settings.md"


def test_page_is_printed_by_the_module():
    done = subprocess.run(
        [sys.executable, "-m", "pilot.settingsdoc"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == page()
    assert done.stderr == ""


def test_page_shows_no_raw_bar_in_a_cell():
    rows = [line for line in page().splitlines() if line.startswith("| `") and line.count(" | ") > 1]

    assert len(rows) == len(TABLE)
    assert {row.replace("\\|", "").count("|") for row in rows} == {8}


def test_settings_need_no_parser_and_no_ini_reader_before_they_are_used():
    code = "import sys, pilot.settings; print({'argparse', 'configparser', 'difflib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
