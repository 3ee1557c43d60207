"""What set-up files and a queue's `environ` make of the environment of a pilot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilot.wrap.setup import SetupError, after_sourcing, queue_variables

ROOT = Path(__file__).resolve().parents[2]
PATH = {"PATH": "/usr/bin:/bin"}
WRAPPER = """
import os, sys
from pilot.wrap.options import parse
from pilot.wrap.wrapper import Wrapper
shows = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
sys.exit(Wrapper(parse(sys.argv[1:], os.environ), os.environ, shows).run())
"""


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


@pytest.mark.parametrize("localpy", [False, True])
def test_an_atlas_site_is_set_up_in_the_order_of_the_old_wrapper(tmp_path, localpy):
    """PILOT3 9.1: ALRB's variables and functions, then the site's file with the name of the queue."""
    cvmfs = tmp_path / "cvmfs"
    files = {
        "ATLASLocalRootBase/user/atlasLocalSetup.sh": "lsetup() { export LSETUP=yes; }",
        "ATLASLocalRootBase/etc/ADCPilotTesting.sh": "export TRIAL=$ALRB_rucioVersion",
        "sw/local/setup.sh": 'type lsetup && lsetup; export SITE="$* $TRIAL"',
    }
    for name, text in files.items():
        path = cvmfs / "atlas.cern.ch/repo" / name
        path.parent.mkdir(parents=True)
        path.write_text(text + "\n")
    words = ["-q", "Q", "-s", "ELSEWHERE", "-r", "R", "-i", "RC", "--pilot-user", "ATLAS", "--cvmfsbase", str(cvmfs)]
    words += ["--mute", "--no-doctor", "--queuedata-url", "/nonexistent", "--pandaenvtag", "v1"]
    words += ["--localpy"] if localpy else []
    environ = {**PATH, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "ALRB_noGridMW": "YES"}
    command = [sys.executable, "-c", WRAPPER, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert seen["SITE"] == "-s Q -p python3 testing"
    assert seen.get("LSETUP") == (None if localpy else "yes")
    assert (seen["ATLAS_SW_BASE"], seen["ALRB_noGridMW"]) == (str(cvmfs), "YES")
    assert seen["ATLAS_LOCAL_ROOT_BASE"] == f"{cvmfs}/atlas.cern.ch/repo/ATLASLocalRootBase"
