"""The code table is an interface to the server: it must be the published one, word for word."""

import json
from pathlib import Path

import pytest

from pilot.errors import DIAG_LIMIT, Code, PilotError, diagnostic

TABLE = json.loads((Path(__file__).parent / "errorcodes.json").read_text())


def test_every_code_has_the_published_number_name_and_text():
    ours = {str(int(code)): (code.name, code.text) for code in Code}
    theirs = {number: (row["name"], row["message"]) for number, row in TABLE["codes"].items()}
    assert ours == theirs


def test_exit_codes_are_the_published_ones():
    exits = {k: v for k, v in TABLE["shell_exit_map"].items() if k.isdigit() and int(k)}
    for number, exit_code in exits.items():
        assert Code(int(number)).exit_code == exit_code, number
    assert Code.PAYLOADEXECUTIONFAILURE.exit_code == TABLE["shell_exit_map"]["any_other"]


def test_recoverable_codes_are_the_published_ones():
    known = {int(n) for n in TABLE["recoverable_codes"]} & {int(code) for code in Code}
    assert {int(code) for code in Code if code.recoverable} == known


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGSEGV", "SIGXCPU", "SIGBUS", "SIGUSR1", "SIGINT"])
def test_signals_have_their_codes(name):
    import signal

    assert Code.of_signal(getattr(signal, name)) == TABLE["signal_to_code"][name]
    assert Code.of_signal(signal.SIGHUP) == TABLE["signal_to_code"]["other"]


def test_a_diagnostic_starts_with_the_fixed_text_and_keeps_within_the_limit():
    assert diagnostic(Code.LOOPINGJOB) == "Looping job killed by pilot"
    assert str(PilotError(Code.LOOPINGJOB, "no output\n for 2 h")).endswith("pilot: no output for 2 h")
    assert len(diagnostic(Code.LOOPINGJOB, "x" * 1000)) == DIAG_LIMIT
