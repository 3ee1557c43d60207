"""The release archives run jobs with nothing but a Python, and are the same bytes each time they are built."""

import hashlib
import os
import subprocess
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest

from tests.grid import until
from tests.parts.release import build


@pytest.fixture(scope="module")
def dist(release):
    return release


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python without any package."""
    top = tmp_path_factory.mktemp("bare")
    venv.create(top, with_pip=False, symlinks=True)
    return top / "bin" / "python"


def run(argv, cwd):
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(argv, cwd=cwd, env=clean, capture_output=True, text=True, timeout=60, check=False)


def unpacked(dist, where):
    with tarfile.open(dist / "pilot3.tar.gz") as archive:
        archive.extractall(where, filter="data")
    return where / "pilot3" / "pilot.py"


def test_checksums_are_those_of_the_files(dist):
    rows = [line.split() for line in (dist / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in rows} == {"pilot3.tar.gz", "pilot.pyz", "pilot-wrapper.sh"}
    for digest, name in rows:
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest


def test_the_first_name_in_the_archive_is_its_folder(dist):
    """Rubin's wrapper starts `pilot.py` in what stands first in the archive."""
    with tarfile.open(dist / "pilot3.tar.gz") as archive:
        assert next((member.name, member.isdir()) for member in archive) == ("pilot3", True)


def test_a_second_build_gives_the_same_bytes(dist, tmp_path):
    build(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == (dist / "SHA256SUMS").read_text()


def test_pilot_py_of_the_archive_is_pilot_run(dist, bare_python, tmp_path):
    done = run([bare_python, unpacked(dist, tmp_path), "-q", "Q", "--pilot-user=generic", "--show-settings"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "flag --queue" in done.stdout


def test_an_old_python_makes_way_for_a_newer_one_of_the_node(dist, bare_python, tmp_path):
    """As `python3` of EL 9, which wrappers take though `python3.11` is beside it."""
    program = unpacked(dist, tmp_path)
    old = f"import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); sys.argv = [{str(program)!r}, '--version']; "
    old += "runpy.run_path(sys.argv[0], run_name='__main__')"
    for name, source in (("python3.12", "/bin/false"), ("python3.11", bare_python)):
        (tmp_path / name).symlink_to(source)
    done = [
        subprocess.run([bare_python, "-c", old], env={"PATH": str(path)}, capture_output=True, text=True, check=False)
        for path in (tmp_path, "/nonexistent")
    ]
    assert (done[0].returncode, done[0].stdout.split()[:1]) == (0, ["pilot"]), done[0].stderr
    assert done[1].returncode == 1
    assert "Python >= 3.11 is needed" in done[1].stderr


@pytest.mark.parametrize("kind", ["archive", "single file"])
def test_it_runs_a_job_and_the_demo_without_any_package(dist, bare_python, tmp_path, kind):
    program = unpacked(dist, tmp_path) if kind == "archive" else dist / "pilot.pyz"
    for scripts in tmp_path.glob("pilot3/pilot/demo/transformations"):
        scripts.chmod(0o555)  # as all of it is on CVMFS
    example = run([bare_python, program, "local", "--example"], tmp_path)
    (tmp_path / "job.yaml").write_text(example.stdout)
    done = run([bare_python, program, "local", "job.yaml", "--result", "result.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"state": "finished"' in (tmp_path / "result.json").read_text()
    demo = run([bare_python, program, "demo"], tmp_path)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert (tmp_path / "demo-run" / "files").stat().st_mode & 0o200


def test_the_archive_runs_through_a_link_and_where_python_keeps_its_path_safe(dist, bare_python, tmp_path):
    (tmp_path / "link.py").symlink_to(unpacked(dist, tmp_path))
    for command in ([bare_python, "link.py"], [bare_python, "-P", "pilot3/pilot.py"]):
        done = run([*command, "plugins"], tmp_path)
        assert done.returncode == 0, done.stderr


def test_an_installed_pilot_has_all_files_that_are_no_python():
    """`pilot demo` needs its scripts, and the devserver its page."""
    root = Path(__file__).resolve().parents[2]
    listed = subprocess.run(["git", "ls-files", "pilot"], cwd=root, capture_output=True, text=True, check=True).stdout
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pilot"]
    installed = {path for pattern in patterns for path in (root / "pilot").glob(pattern)}
    assert {root / name for name in listed.split() if not name.endswith(".py")} <= installed


def test_the_single_file_leaves_no_directory(dist, bare_python, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [bare_python, dist / "pilot.pyz", "plugins"],
        env={"PILOT_PYZ_DIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mv" in done.stdout
    assert list(scratch.iterdir()) == []


def test_nor_does_a_single_file_that_is_stopped_while_it_unpacks(dist, bare_python, tmp_path):
    pilot = subprocess.Popen([bare_python, dist / "pilot.pyz", "plugins"], env={"PILOT_PYZ_DIR": str(tmp_path)})
    until(lambda: list(tmp_path.iterdir()))
    pilot.terminate()
    assert pilot.wait(20) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_single_file_without_a_place_says_what_to_do(dist, bare_python):
    environ = {"PILOT_PYZ_DIR": "/nonexistent"}
    done = subprocess.run([bare_python, dist / "pilot.pyz"], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "PILOT_PYZ_DIR names another directory" in done.stderr
