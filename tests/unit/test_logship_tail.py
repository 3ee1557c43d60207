"""A log file is followed through all that happens to log files, and no line is lost, doubled or harmful."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.logship.tail import CUT_MARK, LINE_LIMIT, Tail
from pilot.masking import Masker


@pytest.fixture
def path(tmp_path):
    return tmp_path / "payload.stdout"


def tail(path, *secrets):
    return Tail(path, Masker(secrets).stream())


def texts(lines):
    return [line.text for line in lines]


def add(path, data):
    with open(path, "ab") as file:
        file.write(data)


def test_a_file_that_is_not_there_yet_is_awaited(path):
    follow = tail(path)
    assert follow.read() == []
    add(path, b"one\ntwo\n")
    assert [tuple(line) for line in follow.read()] == [(1, "one"), (2, "two")]


def test_a_partial_line_is_joined(path):
    follow = tail(path)
    add(path, b"one\ntw")
    assert texts(follow.read()) == ["one"]
    add(path, b"o\n")
    assert texts(follow.read()) == ["two"]


def test_the_last_line_needs_no_end(path):
    follow = tail(path)
    add(path, b"one\nlast")
    assert texts(follow.finish()) == ["one", "last"]


def test_a_truncated_file_begins_anew(path):
    follow = tail(path)
    add(path, b"a long first line\n")
    assert texts(follow.read()) == ["a long first line"]
    path.write_bytes(b"new\n")
    assert texts(follow.read()) == ["new"]


def test_a_rotated_file_is_read_to_its_end_and_the_new_one_follows(path):
    follow = tail(path)
    add(path, b"one\n")
    assert texts(follow.read()) == ["one"]
    add(path, b"two\nthree without end")
    path.rename(path.with_suffix(".1"))
    add(path, b"four\n")
    assert texts(follow.read() + follow.read()) == ["two", "three without end", "four"]


def test_a_removed_file_gives_its_last_lines(path):
    follow = tail(path)
    add(path, b"one\n")
    follow.read()
    add(path, b"two\n")
    path.unlink()
    assert texts(follow.finish()) == ["two"]


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_a_line_over_64_kib_is_cut_and_marked_once(path, pieces):
    follow = tail(path)
    line = b"x" * (3 * LINE_LIMIT) + b"\nnext\n"
    found = []
    for start in range(0, len(line), len(line) // pieces + 1):
        add(path, line[start : start + len(line) // pieces + 1])
        found += follow.read()
    found += follow.finish()
    assert len(found) == 2
    assert found[0].text == "x" * LINE_LIMIT + CUT_MARK
    assert found[1].text == "next"


def test_binary_is_made_printable(path):
    add(path, b"\x1b[31mred\x00\xff\ttab\r\n")
    assert texts(tail(path).finish()) == ["\\x1b[31mred\\x00\\xff\ttab"]


def test_no_link_leads_out_and_no_pipe_hangs(path, tmp_path):
    (tmp_path / "proxy").write_text("secret\n")
    path.symlink_to(tmp_path / "proxy")
    assert tail(path).finish() == []
    path.unlink()
    os.mkfifo(path)
    assert tail(path).finish() == []


def test_a_secret_is_masked_wherever_the_pieces_end(path):
    secret = "S3cr3t-Tok3n-0123456789"
    for cut in range(1, len(secret)):
        path.write_bytes(b"")
        follow = tail(path, secret)
        add(path, b"token " + secret[:cut].encode())
        found = follow.read()
        add(path, secret[cut:].encode() + b" end\n")
        found += follow.finish()
        assert texts(found) == ["token *** end"], cut


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=200), max_size=12))
def test_nothing_is_lost_or_doubled_however_it_is_written(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("tail") / "log"
    follow = tail(path)
    found = []
    for piece in pieces:
        add(path, piece)
        found += follow.read()
    found += follow.finish()
    whole = b"".join(pieces)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert len(found) == len(expected)
    assert [line.number for line in found] == list(range(1, len(found) + 1))


def test_no_link_on_the_way_to_a_file_of_a_job_is_followed(tmp_path):
    job, host = tmp_path / "job", tmp_path / "host"
    for place in (job / "inside", host):
        place.mkdir(parents=True)
        (place / "log").write_text("a line\n")
    (job / "sub").symlink_to(host)
    (tmp_path / "linked").symlink_to(job)
    assert Tail(job / "sub" / "log", Masker().stream(), top=job).read() == []
    assert texts(Tail(tmp_path / "linked" / "inside" / "log", Masker().stream(), top=tmp_path / "linked").read()) == [
        "a line"
    ]
