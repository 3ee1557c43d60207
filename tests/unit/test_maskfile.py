"""What a payload names in its mask file is hidden from then on, also in what was read before it was shown."""

import os

import pytest

from pilot.maskfile import MASKS, MaskFile
from pilot.masking import Masker


@pytest.fixture
def path(tmp_path):
    return tmp_path / MASKS


@pytest.fixture
def masker():
    return Masker()


@pytest.fixture
def masks(tmp_path, masker):
    return MaskFile(tmp_path, masker)


def test_a_secret_that_is_named_after_the_stream_began_is_hidden(path, masks):
    stream = masks.stream()
    assert stream.feed(b"before\n") == b"before\n"
    path.write_text("S3cr3t-Tok3n\n")
    assert stream.feed(b"the S3cr3t-Tok3n is out\n") == b"the *** is out\n"
    path.write_text("S3cr3t-Tok3n\nother-0ne-9\n")
    assert stream.feed(b"half: other-") == b""
    assert stream.feed(b"0ne-9\n") == b"half: ***\n"


def test_its_base64_is_hidden_and_a_last_line_needs_no_end(path, masks, masker):
    path.write_text("my-own-passphrase")
    masks.read()
    assert "bXktb3duLXBhc3NwaHJhc2" not in masker.mask("x bXktb3duLXBhc3NwaHJhc2U= y")


def test_no_pipe_hangs_no_link_is_followed_and_no_file_is_too_large(tmp_path, path, masks, masker):
    os.mkfifo(path)
    masks.read()
    path.unlink()
    (tmp_path / "other").write_text("not-to-be-read\n")
    path.symlink_to(tmp_path / "other")
    masks.read()
    assert masker.mask("not-to-be-read") == "not-to-be-read"
    path.unlink()
    path.write_text("first-secret\n" + "x" * 100_000)
    masks.read()
    assert masker.mask("a first-secret") == "a ***"


def test_a_file_that_is_written_anew_again_and_again_names_no_more_than_one_file_may(path, masks, masker):
    for number in range(5):
        path.write_text("\n".join(f"secret-{number}-{line:06}" for line in range(3000)))
        masks.read()
    assert masker.mask("secret-0-000000") == "***"
    assert masker.mask("secret-4-000000") == "secret-4-000000"
