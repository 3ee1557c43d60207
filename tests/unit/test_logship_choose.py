"""Where a job's live log goes, and that none begins that nobody asked for."""

import pytest

from pilot.errors import Code, PilotError
from pilot.job import Job
from pilot.livelog import is_debugged, tailed
from pilot.logship.choose import Choice, log_files, wanted
from pilot.queuedata import Queue
from pilot.settings import Settings
from plugins.experiments.sphenix import Sphenix

OPTION, CATCHALL = "--realtime-logging-server=logserver=loki;https://option:1", "logging=loki;https://queue:1"
FROM_OPTION, FROM_QUEUE = [Choice(name="loki", url="https://option:1")], [Choice(name="loki", url="https://queue:1")]
SWITCH = "--use-realtime-logging"


def settings(*flags, environ=None):
    return Settings.load(["-q", "Q", "--pilot-user", "sphenix", *flags], environ or {})


def queue(catchall=""):
    return Queue.from_record({"catchall": catchall}, "Q")


def job(**fields):
    return Job(**({"job_id": 7, "task_id": 3, "attempt": 1, "transformation": "sh"} | fields))


@pytest.mark.parametrize(
    ("flags", "catchall", "debug", "found"),
    [
        ([], "", False, []),
        ([OPTION], "", False, []),
        ([SWITCH, OPTION], "", False, FROM_OPTION),
        ([SWITCH, OPTION], CATCHALL, False, FROM_OPTION),
        ([SWITCH], CATCHALL, False, FROM_QUEUE),
        ([], CATCHALL, False, FROM_QUEUE),
        ([], "", True, []),
        ([OPTION], "", True, FROM_OPTION),
        ([], CATCHALL, True, FROM_QUEUE),
    ],
)
def test_who_asks_and_who_says_where(flags, catchall, debug, found):
    assert wanted(settings(*flags), queue(catchall), debug=debug) == found


def test_a_place_is_needed_where_an_option_asks():
    with pytest.raises(PilotError) as caught:
        wanted(settings(SWITCH), queue())
    assert caught.value.code is Code.BADQUEUECONFIGURATION


def test_the_place_of_an_experiment_is_used_when_one_asks_and_the_files_wins():
    place = [Choice(name="logstash", url="https://splogstash.sdcc.bnl.gov:8080")]
    own = settings().with_experiment(Sphenix.settings, "sphenix")
    assert wanted(own, queue()) == []
    assert wanted(own, queue(), debug=True) == place
    asked = settings(SWITCH).with_experiment(Sphenix.settings, "sphenix")
    assert wanted(asked, queue()) == place
    assert wanted(asked, queue(CATCHALL)) == FROM_QUEUE


@pytest.mark.parametrize(
    ("debug", "command", "begins", "file"),
    [
        (True, "", True, ()),
        (True, "debug", True, ()),
        (True, "tail my.log", True, ("my.log",)),
        (True, "tail -n 20 my.log", True, ("my.log",)),
        (True, "ps", False, ()),
        (True, "gdb --pid 3", False, ()),
        (False, "", False, ()),
        (False, "tail my.log", False, ()),
    ],
)
def test_debug_mode_begins_a_log_for_a_tail_and_when_it_stands_alone(debug, command, begins, file):
    debugged = job(debug=debug, debug_command=command)
    assert (is_debugged(debugged), tailed(debugged)) == (begins, file)


def test_the_files_are_the_payloads_and_those_that_somebody_named_below_the_job():
    environ = {"REALTIME_LOGFILES": "payload-log.json:/etc/passwd,sub/b.log"}
    found = log_files(settings(environ=environ), queue("loggingfile=site.log"), "../up", "tailed.log")
    assert found == [
        *("payload.stdout", "payload.stderr"),
        *("payload-log.json", "sub/b.log", "site.log", "tailed.log"),
    ]
