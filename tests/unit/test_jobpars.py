from __future__ import annotations

import shlex
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pilot.errors import JobDefinitionError
from pilot.experiment import Experiment
from pilot.jobpars import JobFilters, clean, split_write_to_file

PROTECTED = "--athenaopts"


class Atlas:
    """Hides `--athenaopts ".."` in a word that quoting leaves alone, as an experiment would."""

    def before_clean_up(self, parameters: str) -> str:
        head, option, tail = parameters.partition(f' {PROTECTED} "')
        kept, _, rest = tail.partition('"')
        return f"{head} KEPT{kept.encode().hex()} {rest}" if option else parameters

    def after_clean_up(self, parameters: str) -> str:
        words = (self._back(word) for word in parameters.split(" "))
        return " ".join(words)

    def _back(self, word: str) -> str:
        return f'{PROTECTED} "{bytes.fromhex(word[4:]).decode()}"' if word.startswith("KEPT") else word


def refusal(text: str) -> JobDefinitionError:
    with pytest.raises(JobDefinitionError) as caught:
        clean(text)
    return caught.value


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_text_without_anything_for_the_pilot_comes_through_byte_for_byte(text):
    assume(not any(word in text for word in ("--overwrite", "ZIP_MAP", "--containerImage")))
    pars = clean(text)
    assert pars.parameters == text
    assert (pars.queue_overrides, pars.storage_overrides, pars.zip_map, pars.container_image) == ({}, {}, "", "")


@pytest.mark.parametrize(
    "text",
    [
        "  -j ''   --x=\"$HOME/*\" ; echo 'a  b' > c\n",
        "don't",
        '-p "echo --overwriteQueueData is an option"',
        "see --overwriteQueueDatabase and --my--overwriteStorageData",
        "run --containerImages x --containerImage",
        '-p "run --containerImage foo"',
        "<ZIP_MAP>a:b",
        "</ZIP_MAP> <ZIP_MAP>",
        "--overwriteQueuedata={a=1",
        "@name --in=@other",
    ],
)
def test_what_only_looks_like_something_for_the_pilot_is_left_alone(text):
    assert clean(text).parameters == text


words = st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=10), max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
overrides = st.dictionaries(st.text(min_size=1, max_size=8), plain | st.lists(plain, max_size=3), max_size=4)


@settings(deadline=None, derandomize=True)
@given(words, st.integers(0, 8), overrides, st.sampled_from(["--overwriteQueueData", "--overwriteStorageData"]))
def test_overrides_are_taken_out_and_the_other_words_keep_their_meaning(others, place, values, option):
    assume(not any("--" in word or "ZIP_MAP" in word for word in others))
    line = [*others[:place], option, repr(values), *others[place:]]
    pars = clean(" ".join(shlex.quote(word) for word in line))
    assert shlex.split(pars.parameters) == others
    found = {"--overwriteQueueData": pars.queue_overrides, "--overwriteStorageData": pars.storage_overrides}
    assert found.pop(option) == values
    assert list(found.values()) == [{}]


@pytest.mark.parametrize(
    ("text", "left", "queue", "storage"),
    [
        ("""a "b c" --overwriteQueueData "{'x': 1}" d""", "a 'b c' d", {"x": 1}, {}),
        ("""--overwriteQueueData='{"x": true}' $HOME""", "'$HOME'", {"x": True}, {}),
        ("""--overwriteStorageData "{'R': {'a': [1]}}" """, "", {}, {"R": {"a": [1]}}),
        ("--overwriteQueueData {} --overwriteStorageData {} x", "x", {}, {}),
        ("--overwriteQueueData {'a':1} x", None, None, None),  # the shell's rules eat the quotes
        ("""--overwriteQueueData "{'a': 1}" --overwriteQueueData "{'b': 2}" """, "", {"b": 2}, {}),
        ("x --overwriteQueuedata={allow_lan=False,a=b} y", "x  y", {}, {}),
    ],
)
def test_overrides(text, left, queue, storage):
    if left is None:
        assert refusal(text).field == "jobPars --overwriteQueueData"
        return
    pars = clean(text)
    assert (pars.parameters, pars.queue_overrides, pars.storage_overrides) == (left, queue, storage)


@pytest.mark.parametrize("option", ["--overwriteQueueData", "--overwriteStorageData"])
@pytest.mark.parametrize(
    "value",
    ["", "{", "[1]", "'a'", "1", '"{1: 2}"', '"__import__(\'os\').abort()"', "'{\"a\": x}'", '"{[]: 1}"', "(" * 9000,
     '"{' + "'a': 1," * 20000 + '}"', "-x", "'unclosed"],
)  # fmt: skip
def test_bad_overrides_are_refused_by_name(option, value):
    error = refusal(f"a {option} {value}")
    assert error.field == f"jobPars {option}"
    assert len(error.diag) < 350


@pytest.mark.parametrize(
    ("text", "left", "zip_map"),
    [
        ("a <ZIP_MAP>z:b,c y:d</ZIP_MAP>", "a", "z:b,c y:d"),
        ("a '<ZIP_MAP>z:b</ZIP_MAP>' e", "a e", "z:b"),
        ("<ZIP_MAP>z:b</ZIP_MAP> e", " e", "z:b"),
        ("""a <ZIP_MAP>z:b c:d</ZIP_MAP> --overwriteQueueData "{'x': 1}" 'e f'""", "a 'e f'", "z:b c:d"),
    ],
)
def test_zip_map(text, left, zip_map):
    pars = clean(text)
    assert (pars.parameters, pars.zip_map) == (left, zip_map)


@pytest.mark.parametrize(
    ("text", "left", "image"),
    [
        ("a --containerImage docker://x/y:1 b", "a b", "docker://x/y:1"),
        ("a --containerImage=docker://x/y:1", "a", "docker://x/y:1"),
        ("--containerImage /cvmfs/img b", " b", "/cvmfs/img"),
        ("a --containerImage 'my img' b", "a b", "my img"),
        ('a --containerImage="my img" b', "a b", "my img"),
        ("a --containerImage one --containerImage two", "a", "one"),
        ("""--containerImage=x?y --overwriteQueueData "{'x': 1}" b""", " b", "x?y"),
        ("""--containerImage "x y" --overwriteQueueData "{'x': 1}" b""", " b", "x y"),
    ],
)
def test_container_image(text, left, image):
    pars = clean(text)
    assert (pars.parameters, pars.container_image) == (left, image)


def test_an_experiment_may_keep_its_own_words_from_being_quoted_anew():
    text = """x --athenaopts "a:--n=$CORES b" --overwriteQueueData "{'x': 1}" 'c d'"""
    assert clean(text).parameters == "x --athenaopts 'a:--n=$CORES b' 'c d'"
    assert clean(text, Atlas()).parameters == "x --athenaopts \"a:--n=$CORES b\" 'c d'"


def test_every_experiment_can_be_a_filter():
    filters: JobFilters = Experiment()
    assert clean("a  b", filters).parameters == "a  b"


@pytest.mark.parametrize(
    "text", ["-" * 900_000, "<ZIP_MAP>" * 90_000, "--overwriteQueuedata={" * 10_000, " --containerImage " * 50_000]
)
def test_a_megabyte_of_nonsense_is_read_in_no_time(text):
    started = time.monotonic()
    clean(text)
    split_write_to_file("name:a", text)
    assert time.monotonic() - started < 10


def test_write_to_file_names_the_option_and_the_files():
    files, parameters = split_write_to_file(
        "inputFor_o:a,b^inputFor_o.root:c^tmpin_ds:d",
        "'--inHits=@inputFor_o' --inRoot=@inputFor_o.root x@tmpin_ds --autoConfiguration=everything --keep=1",
    )
    assert files == {
        "inputFor_o.txt": ("--inHits", "a", "b"),
        "inputFor_o.root.txt": ("--inRoot", "c"),
        "tmpin_ds.txt": ("d",),
    }
    assert parameters == "'@inputFor_o.txt' @inputFor_o.root.txt x@tmpin_ds.txt  --keep=1"


def test_without_lists_to_write_nothing_changes():
    assert split_write_to_file("", "--autoConfiguration=everything") == ({}, "--autoConfiguration=everything")


@pytest.mark.parametrize("text", ["nocolon", "a:b^", "../x:a", "a/b:c", "x\n:a", "n" * 260 + ":a"])
def test_a_bad_list_to_write_is_refused(text):
    with pytest.raises(JobDefinitionError) as caught:
        split_write_to_file(text, "")
    assert caught.value.field == "writeToFile"
