"""What error codes mean, on a terminal and in the docs."""

import json

import pytest

from pilot import errordoc
from pilot.causes import CAUSES
from pilot.cli.main import main
from pilot.errors import Code


def test_every_code_has_a_cause_and_a_cure():
    assert list(CAUSES) == list(Code)
    assert all(cause.cause.endswith(".") and cause.cure.endswith(".") for cause in CAUSES.values())


@pytest.mark.parametrize("asked", ["1212", "-1212", "PAYLOADOUTOFMEMORY", "payloadoutofmemory", "ran out of memory"])
def test_a_code_is_found_by_number_name_or_text(asked, capsys):
    assert main(["explain", asked]) == 0

    told = capsys.readouterr().out
    assert told.startswith("1212 PAYLOADOUTOFMEMORY: Payload ran out of memory (exit status 1)\n  whose:  user\n")
    assert told.count("whose:") == 1


def test_codes_are_found_by_the_exit_status_of_the_pilot(capsys):
    assert main(["explain", "--exit", "68", "--json"]) == 0

    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {
        "NOPROXY",
        "NOVOMSPROXY",
        "CERTIFICATEHASEXPIRED",
    }


def test_no_such_code(capsys):
    assert main(["explain", "4711"]) == 1
    assert "no such code" in capsys.readouterr().out


def test_the_page_has_a_row_for_each_code():
    rows = [line for line in errordoc.page().splitlines() if line.startswith("| 1")]

    assert len(rows) == len(Code)
    assert all(row.count("|") == 6 for row in rows)
