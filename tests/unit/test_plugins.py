"""Plug-ins are found by name without being imported, and a broken one is told in one line, not in a traceback."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pilot import plugins
from pilot.errors import PilotError
from pilot.experiment import Experiment
from pilot.plugins import KINDS, PluginError, listing, load, names
from pilot.staging.copytool import CopyTool
from pilot.watch.meter import Meter

ENTRY_POINTS = """[pilot.copytools]
Tape_Robot = lab_plugins.good:Robot
mv = lab_plugins.good:Robot
broken = lab_plugins.broken:Robot
typo = lab_plugins.good:Robbot
nowhere = lab_plugins.not_there:Robot
wrong = lab_plugins.good:Other
thing = lab_plugins.good:THING
half = lab_plugins.good:Half

[pilot.experiments]
lab = lab_plugins.good:Lab
"""

GOOD = '''
from pilot.experiment import Experiment
from pilot.staging.copytool import CopyTool

THING = 3

class Other:
    """Not a copy tool."""

class Half(CopyTool):
    """A copy tool that cannot put."""
    name = "half"
    schemes = frozenset({"half"})
    def get(self, transfer, handle): return None
    def stat(self, url, handle): return None

class Robot(CopyTool):
    """Fetches tapes.

    By hand.
    """
    name = "tape-robot"
    schemes = frozenset({"tape"})
    needs = {"json": "part of Python", "no_such_library.tapes": "pip install tapes", "not a name": "never"}
    def get(self, transfer, handle): return None
    def put(self, transfer, handle): return None
    def stat(self, url, handle): return None
    def remove(self, url, handle): return None

class Lab(Experiment):
    name = "lab"
'''


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """A distribution as pip leaves it, on the path."""
    package, info = tmp_path / "lab_plugins", tmp_path / "lab_plugins-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(GOOD)
    (package / "broken.py").write_text("raise ValueError('set LAB_HOME first')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("lab_plugins")]:
        del sys.modules[name]


def problem(kind, name, base):
    with pytest.raises(PluginError) as caught:
        load(kind, name, base)
    return caught.value.detail


@pytest.mark.parametrize(
    ("kind", "name", "base"),
    [
        ("pilot.copytools", "mv", CopyTool),
        ("pilot.experiments", "generic", Experiment),
        ("pilot.meters", "procfs", Meter),
    ],
)
def test_our_own_are_found_by_the_place_of_their_module(kind, name, base):
    found = load(kind, name, base)
    assert issubclass(found, base)
    assert found.name == name
    assert load(kind, name.upper(), base) is found


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_ours_that_have_a_module_can_be_loaded_and_say_what_they_are(kind):
    ours = [plugin for plugin in listing(kind, object) if plugin.package == "pilot-toolkit"]
    assert {plugin.name for plugin in ours} == plugins._own(kind)
    assert [plugin for plugin in ours if not plugin.summary] == []
    assert [plugin for plugin in ours if plugin.problem and not plugin.problem.startswith("needs ")] == []


def test_names_are_told_without_importing_anything():
    program = """
import sys
import tomllib
from pathlib import Path
from pilot.plugins import KINDS, names
found = {kind: names(kind) for kind in KINDS}
assert "mv" in found["pilot.copytools"] and "generic" in found["pilot.experiments"], found
print([name for name in sys.modules if name.startswith(("copytools.", "plugins.")) and name not in KINDS.values()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


def test_a_name_that_nobody_has_is_answered_with_those_there_are():
    detail = problem("pilot.copytools", "carrier-pigeon", CopyTool)
    assert "'carrier-pigeon'" in detail and "mv" in detail and "there are" in detail


def test_what_is_of_another_kind_is_refused_when_it_is_loaded():
    assert "is no pilot.staging.copytool.CopyTool" in problem("pilot.experiments", "generic", CopyTool)


@pytest.mark.parametrize("name", ["tape-robot", "Tape_Robot", "TAPE_ROBOT"])
def test_a_third_party_is_found_by_its_entry_point_however_it_is_written(third_party, name):
    assert load("pilot.copytools", name, CopyTool).__module__ == "lab_plugins.good"
    assert "tape-robot" in names("pilot.copytools")


def test_nobody_takes_the_place_of_one_of_ours(third_party):
    assert load("pilot.copytools", "mv", CopyTool).__module__ == "copytools.mv"
    assert {plugin.package for plugin in listing("pilot.copytools", CopyTool) if plugin.name == "mv"} == {
        "pilot-toolkit"
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["cannot be imported", "ValueError: set LAB_HOME first"]),
        ("typo", ["cannot be imported", "Robbot"]),
        ("nowhere", ["cannot be imported", "lab_plugins.not_there"]),
        ("wrong", ["is no pilot.staging.copytool.CopyTool"]),
        ("thing", ["is no pilot.staging.copytool.CopyTool"]),
        ("half", ["lacks put, remove"]),
    ],
)
def test_a_broken_one_is_told_in_one_line(third_party, name, words):
    detail = problem("pilot.copytools", name, CopyTool)
    assert [word for word in [repr(name), *words] if word not in detail] == []
    assert "\n" not in detail


def test_the_listing_goes_on_after_a_broken_one_and_says_what_is_missing(third_party):
    found = {plugin.name: plugin for plugin in listing("pilot.copytools", CopyTool)}
    assert {"mv", "tape-robot", "broken", "typo", "nowhere", "wrong", "thing", "half"} <= set(found)
    assert all(found[name].problem for name in ("broken", "typo", "nowhere", "wrong", "thing", "half"))
    robot = found["tape-robot"]
    assert (robot.package, robot.summary) == ("lab-plugins", "Fetches tapes.")
    assert robot.problem == "needs no_such_library.tapes (pip install tapes), not a name (never)"


def test_an_error_of_a_plugin_is_one_of_the_table():
    with pytest.raises(PilotError):
        load("pilot.meters", "hourglass", Meter)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_each_of_ours_is_announced_in_pyproject_under_its_own_name(kind):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    announced = project["entry-points"].get(kind, {})
    assert set(announced) == plugins._own(kind)
    for name, place in announced.items():
        module, _, attribute = place.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name
