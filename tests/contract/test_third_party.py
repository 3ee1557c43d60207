"""Plug-ins that are not ours: found by entry point, loaded, listed, and used, without a word about them in our tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pilot import plugins
from pilot.experiment import Experiment
from pilot.job import File, Job, Kind
from pilot.queuedata import Queue, QueueInfo
from pilot.staging.copytool import CopyTool, ToolContext
from pilot.staging.plan import Planner
from pilot.staging.toolbox import ToolBox
from pilot.testing.copytool import CopyToolConformance

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "tests" / "third_party" / "pilot-example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What pip leaves of an installation: the package on the path, and its entry points in a `.dist-info`.

    `make test` installs the example with pip too; this makes the tests work in any checkout, with no network.
    """
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"pilot_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in of.items()) for group, of in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.syspath_prepend(EXAMPLE / "src")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(EXAMPLE / "src"), str(REPOSITORY)]))
        yield


@pytest.fixture
def vault(installed):
    return plugins.load("pilot.copytools", "vault", CopyTool)


@pytest.fixture
def example(installed):
    return plugins.load("pilot.experiments", "example", Experiment)


def test_the_example_stays_small():
    """DESIGN: a new experiment is under 100 lines and copies nothing."""
    for source in (EXAMPLE / "src").rglob("*.py"):
        assert len(source.read_text().splitlines()) < 100, source


@pytest.mark.parametrize("name", ["vault", "VAULT"])
def test_it_is_found_by_name(vault, name):
    assert plugins.load("pilot.copytools", name, CopyTool) is vault


def test_pilot_plugins_lists_both_with_their_package(installed):
    done = subprocess.run(
        [sys.executable, "-m", "pilot.cli.main", "plugins", "--json"], capture_output=True, text=True, check=True
    )
    found = {(row["kind"], row["name"]): row for row in json.loads(done.stdout)}
    for kind, name in (("pilot.copytools", "vault"), ("pilot.experiments", "example")):
        row = found[kind, name]
        assert (row["package"], row["problem"]) == ("pilot-example", "")
        assert row["summary"]


def test_it_says_what_it_needs_from_the_queue(vault, tmp_path):
    box = ToolBox(launch_dir=tmp_path, settings={})
    assert box.schemes("vault") == frozenset()
    box = ToolBox(options={"vault": {"directory": str(tmp_path)}}.get, launch_dir=tmp_path, settings={})
    assert box.schemes("vault") == {"vault"}


def test_a_queue_can_use_both(vault, example, tmp_path):
    record = {
        "name": "Q",
        "copytools": {"vault": {"directory": str(tmp_path)}},
        "astorages": {"write_lan": ["VAULT"]},
    }
    storages = {"VAULT": {"arprotocols": {"write_lan": [{"endpoint": "vault://", "path": "data"}]}}}
    info = QueueInfo(queue=Queue.from_record(record, "Q"), record=record, storage_records=storages)
    tools = ToolBox(options=info.queue.options, launch_dir=tmp_path, settings={})
    plan = Planner(info=info, tools=tools, experiment=example(), launch_dir=tmp_path)
    (found,) = plan.destinations(File(lfn="hits.root", kind=Kind.OUTPUT, scope="mc"))
    assert (found.tool, found.url, found.endpoint) == ("vault", "vault://data/mc/h/hits.root", "VAULT")


def test_an_experiment_changes_only_what_it_says(example):
    job = Job(job_id=1, task_id=7, transformation="run.sh", parameters="-n 3")
    experiment, generic = example(), Experiment()
    assert experiment.environment(job) == {"EXAMPLE_TASK": "7"}
    assert list(experiment.metrics(job, {"nEvents": "5"})) == ["example", "nEvents"]
    assert experiment.command(job, "./run.sh") == generic.command(job, "./run.sh")


class TestVault(CopyToolConformance):
    """A third party's test of its own tool would look like this."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path):
        self.root = tmp_path / "vault"
        self.root.mkdir()

    @pytest.fixture
    def tool(self, vault):
        return vault(ToolContext(options={"directory": str(self.root)}))

    def remote_url(self, name):
        from urllib.parse import quote

        return f"vault://{quote(name)}"

    def store(self, name, data):
        (self.root / name).write_bytes(data)

    def fetch(self, name):
        path = self.root / name
        return path.read_bytes() if path.exists() else None
