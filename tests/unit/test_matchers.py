"""Problem matchers: found in the order of their tables, and bounded when they come from outside."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import Code, Fault
from pilot.matchers import COMMON, LONGEST, MOST, Found, MatcherError, find, load_matchers, parse, parse_text, row


def test_the_first_row_that_fits_wins_at_the_first_line_that_it_fits():
    rows = [row("second", Code.BADALLOC), row("first", Code.NFSSQLITE)]
    found = find(rows, {"stderr": ["the first", "the second", "a second"], "stdout": []})
    assert (found.matcher.code, found.text) == (Code.BADALLOC, "the second")


def test_a_row_looks_into_its_streams_only_and_in_their_order():
    streams = {"stderr": ["err x"], "stdout": ["out x"], "report": ["rep x"]}
    assert find([row("x", Code.BADALLOC, "report")], streams).text == "rep x"
    assert find([row("x")], streams).text == "err x"
    assert find([row("x", Code.BADALLOC, "stdout")], {"stderr": ["x"]}) is None


def test_those_from_outside_come_before_ours():
    outside = parse([{"regex": "full", "code": 1110}])
    assert find([*COMMON, row("full"), *outside], {"stderr": ["No space left on device, full"]}).matcher in outside


def test_a_message_may_quote_what_was_found_and_nothing_else_of_us():
    (matcher,) = parse([{"regex": r"E(\d+) (x)?", "message": "{1}|{2}|{3}|{0}|{line}|{matcher.regex}|{}"}])
    assert find([matcher], {"stderr": ["a E42 b"]}).text == "42|||E42 |a E42 b|{matcher.regex}|{}"


def test_a_regular_expression_without_end_is_ended_and_the_next_table_is_looked_at():
    bad = parse([{"regex": "(a+)+b"}])
    started = time.monotonic()
    found = find([*bad, *COMMON], {"stderr": ["a" * 2000, "No space left on device"]})
    assert time.monotonic() - started < 2.5
    assert found.matcher.code is Code.NOLOCALSPACE


def test_where_no_time_can_be_kept_those_of_outside_are_left_out():
    found: list[Found | None] = []
    rows = [*parse([{"regex": "No space"}]), *COMMON]
    thread = threading.Thread(target=lambda: found.append(find(rows, {"stderr": ["No space left on device"]})))
    thread.start()
    thread.join()
    assert found[0] is not None
    assert found[0].matcher in COMMON


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "expected a list"),
        ([{"regex": "x"}] * (MOST + 1), "at most"),
        (["x"], "matcher 1"),
        ([{"regex": 7}], "'regex'"),
        ([{"regex": "x"}, {"regex": "("}], "matcher 2: regex"),
        ([{"regex": "x" * (LONGEST + 1)}], "characters"),
        ([{"regex": "x", "message": "x" * (LONGEST + 1)}], "characters"),
        ([{"regex": "x", "code": 17}], "not in the table"),
        ([{"regex": "x", "code": [1]}], "not in the table"),
        ([{"regex": "x", "stream": "stdin"}], "stream 'stdin'"),
        ([{"regex": "x", "stream": []}], "stream"),
        ([{"regex": "x", "fault": "mine"}], "fault 'mine'"),
        ([{"regex": "x", "pattern": "y"}], "no such key: pattern"),
    ],
)
def test_one_that_cannot_be_used_is_told(value, words):
    with pytest.raises(MatcherError, match=re.escape(words)):
        parse(value)


def test_a_job_may_not_blame_the_storage():
    assert parse([{"regex": "x", "code": 1099}])[0].code is Code.STAGEINFAILED
    with pytest.raises(MatcherError, match="not for a job to say"):
        parse([{"regex": "x", "code": 1099}], of_job=True)


KEYS = st.sampled_from(["regex", "code", "message", "stream", "fault"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=20)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner), max_leaves=12))
def test_any_value_is_matchers_or_an_error(value):
    try:
        assert all(isinstance(matcher.code, Code) for matcher in parse(value))
    except MatcherError:
        pass


@pytest.mark.parametrize(
    "text", ['[{"regex": "x", "fault": "site"}]', "- regex: x\n  fault: site\n"], ids=["JSON", "YAML"]
)
def test_a_file_may_be_json_or_yaml(tmp_path, text):
    path = tmp_path / "matchers"
    path.write_text(text)
    (matcher,) = load_matchers(str(path))
    assert (matcher.regex.pattern, matcher.fault, matcher.trusted) == ("x", Fault.SITE, False)


@pytest.mark.parametrize("text", ["", "[", "{", "- {", "a: b", '[{"regex": 1}]', "[" * 100_000, "\x00"])
def test_a_file_that_cannot_be_used_is_left_out_with_a_warning(tmp_path, text, caplog):
    path = tmp_path / "matchers"
    path.write_text(text)
    assert load_matchers(str(path)) == ()
    assert "no problem matchers from" in caplog.text


def test_the_setting_may_be_the_json_itself():
    assert load_matchers(json.dumps([{"regex": "x"}]))[0].regex.pattern == "x"
    assert load_matchers("") == ()


def test_what_a_job_brings_goes_through_json_alone():
    with pytest.raises(MatcherError, match="no JSON"):
        parse_text("- regex: x", of_job=True)
