"""Checksums of files: right for every size, in one pass, and endable."""

from __future__ import annotations

import hashlib
import sys
import zlib

import pytest

from pilot.errors import Code, TransferError
from pilot.staging import checksum
from pilot.staging.checksum import BLOCK, PARALLEL_FROM, WINDOW, Hasher, differing, file_checksums, normal

SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, PARALLEL_FROM - 1, PARALLEL_FROM, PARALLEL_FROM + WINDOW + 3]


@pytest.fixture(scope="module")
def noise():
    import random

    return random.Random(7).randbytes(PARALLEL_FROM + WINDOW + 3)


@pytest.mark.parametrize("size", SIZES)
def test_adler32_and_md5_are_those_of_the_standard_library(tmp_path, noise, size):
    (tmp_path / "f").write_bytes(noise[:size])
    expected = {"adler32": f"{zlib.adler32(noise[:size]):08x}", "md5": hashlib.md5(noise[:size]).hexdigest()}
    assert file_checksums(tmp_path / "f", ["adler32", "md5"]) == expected
    assert file_checksums(tmp_path / "f", ["adler32"]) == {"adler32": expected["adler32"]}  # by two threads if big


def test_adler32_has_eight_lower_case_digits(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    assert file_checksums(tmp_path / "f", ["adler32"]) == {"adler32": "00000001"}


def test_it_is_the_same_without_zlib_ng(tmp_path, noise, monkeypatch):
    (tmp_path / "f").write_bytes(noise)
    fast = file_checksums(tmp_path / "f", ["adler32"])
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    assert file_checksums(tmp_path / "f", ["adler32"]) == fast


def test_no_types_ask_for_no_file(tmp_path):
    assert file_checksums(tmp_path / "not there", []) == {}


def test_bytes_that_pass_by_give_the_same(tmp_path, noise):
    (tmp_path / "f").write_bytes(noise[:100_000])
    hasher = Hasher(["md5", "adler32"])
    for start in range(0, 100_000, 777):
        hasher.update(memoryview(noise)[start : min(start + 777, 100_000)])
    assert hasher.digests() == file_checksums(tmp_path / "f", ["md5", "adler32"])


@pytest.mark.parametrize("size", [3 * BLOCK, PARALLEL_FROM])
def test_check_ends_it_between_blocks(tmp_path, noise, size):
    (tmp_path / "f").write_bytes(noise[:size])
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        file_checksums(tmp_path / "f", ["adler32"], check)
    assert len(calls) < size // BLOCK + (size == 3 * BLOCK)


def test_a_file_that_becomes_shorter_meanwhile_does_not_hang(tmp_path, noise):
    path = tmp_path / "f"
    path.write_bytes(noise)

    def check():
        with open(path, "r+b") as file:
            file.truncate(10)

    assert len(file_checksums(path, ["adler32"], check)["adler32"]) == 8


@pytest.mark.parametrize("size", [1000, PARALLEL_FROM])
def test_a_file_that_grows_meanwhile_is_summed_as_long_as_it_was(tmp_path, noise, size):
    path = tmp_path / "f"
    path.write_bytes(noise[:size])

    def check():
        with open(path, "ab") as file:
            file.write(noise[:BLOCK])

    assert file_checksums(path, ["adler32"], check) == {"adler32": f"{zlib.adler32(noise[:size]):08x}"}


def test_unknown_type_is_1314():
    with pytest.raises(TransferError) as caught:
        Hasher(["sha0"])
    assert caught.value.code is Code.UNKNOWNCHECKSUMTYPE


def test_crc32c_without_a_library_is_1314_and_says_what_to_install(monkeypatch):
    for module in ("google_crc32c", "crc32c"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TransferError, match="pip install") as caught:
        Hasher(["crc32c"])
    assert caught.value.code is Code.UNKNOWNCHECKSUMTYPE
    assert not checksum.computable("crc32c")


@pytest.mark.parametrize(("module", "swap"), [("google_crc32c", False), ("crc32c", True)])
def test_crc32c_uses_the_library_that_is_there(monkeypatch, module, swap):
    import types

    for name in ("google_crc32c", "crc32c"):
        monkeypatch.setitem(sys.modules, name, None)
    library = types.ModuleType(module)
    # both libraries with zlib's crc32 inside: the order of arguments is what differs between them
    library.extend = lambda crc, data: zlib.crc32(data, crc)
    library.crc32c = lambda data, crc: zlib.crc32(data, crc)
    monkeypatch.setitem(sys.modules, module, library)
    hasher = Hasher(["crc32c"])
    hasher.update(memoryview(b"123"))
    hasher.update(memoryview(b"456789"))
    assert hasher.digests() == {"crc32c": "cbf43926"}


def test_catalogues_may_write_upper_case_and_leave_out_zeros():
    assert normal("adler32", "A1B2C3") == "00a1b2c3"
    assert normal("md5", " ABC ") == "abc"
    assert differing({"adler32": "1"}, {"adler32": "00000001", "md5": "x"}) is None
    assert differing({"adler32": "1", "md5": "y"}, {"adler32": "00000001", "md5": "x"}) == "md5"
