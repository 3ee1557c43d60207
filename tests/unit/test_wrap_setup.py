"""What set-up files and a queue's `environ` make of the environment of a pilot."""

import pytest

from pilot.wrap.setup import SetupError, after_sourcing, queue_variables

PATH = {"PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("A=1 B=2", {"A": "1", "B": "2"}),
        ("A=1,B=2", {"A": "1", "B": "2"}),
        ("A=one,two B=2", {"A": "one,two", "B": "2"}),
        ("export A=1; export B=2;", {"A": "1", "B": "2"}),
        ("A=\"x y\" B='$(id)'", {"A": "x y", "B": "$(id)"}),
        ("PATH=/opt/bin:$PATH A=${PATH}", {"PATH": "/opt/bin:/usr/bin:/bin", "A": "/usr/bin:/bin"}),
        ("A=it's B=2", {"A": "it's", "B": "2"}),
        ("no words of ours, 1A=x", {}),
    ],
)
def test_the_environ_of_a_queue_is_variables_and_no_program(text, expected):
    assert queue_variables(text, PATH) == expected


def test_a_set_up_file_that_ends_with_a_test_has_set_up_all_the_same(tmp_path):
    file = tmp_path / "setup.sh"
    file.write_text("export SITE=$1\n[ -f /nonexistent ] && . /nonexistent\n")
    assert after_sourcing(str(file), ["HERE"], PATH, strict=False)["SITE"] == "HERE"
    with pytest.raises(SetupError, match="status 1"):
        after_sourcing(str(file), ["HERE"], PATH)


def test_a_set_up_file_that_leaves_the_shell_has_failed(tmp_path):
    (tmp_path / "setup.sh").write_text("export A=1\nexit 0\n")
    assert "A" not in after_sourcing("/dev/null", [], PATH, strict=False)
    with pytest.raises(SetupError):
        after_sourcing(str(tmp_path / "setup.sh"), [], PATH, strict=False)
