"""Copy tool `lsm` with the programs of a site that keeps its files in a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from copytools._site import SitePrograms
from copytools.lsm import Lsm
from pilot.errors import Code, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.staging.faults import Direction
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle, checksums

HOST = "root://storage.site"

COMMON = """#!/bin/sh
set -u
say() { echo "lsm: $2" >&2; exit "$1"; }
place() { echo "$STORAGE/${1#root://storage.site/}"; }
sum() { python3 -c 'import sys, zlib, hashlib
data = open(sys.argv[2], "rb").read()
print(f"{zlib.adler32(data):08x}" if sys.argv[1] == "adler32" else hashlib.md5(data).hexdigest())' "$1" "$2"; }
"""

PROGRAMS = {
    "lsm-get": """
source=$(place "$1")
[ -f "$source" ] || say 201 "$source: No such file or directory"
cp -- "$source" "$2" || say 201 "cp failed"
""",
    "lsm-put": """
echo "$@" >> "$STORAGE.log"
while [ $# -gt 2 ]; do
  case $1 in
    --size) size=$2 ;; --checksum) kind=${2%%:*} value=${2#*:} ;; -t|--guid) ;; *) say 203 "option $1" ;;
  esac
  shift 2
done
[ -f "$1" ] || say 201 "$1: No such file or directory"
[ "$(stat -c %s -- "$1")" = "$size" ] || say 209 "size"
[ "$(sum "$kind" "$1")" = "$value" ] || say 210 "checksum"
target=$(place "$2")
if [ -e "$target" ]; then
  cmp -s -- "$1" "$target" && say 212 "the same is there"
  say 211 "another is there"
fi
mkdir -p -- "$(dirname -- "$target")"
partial=$(dirname -- "$target")/.$$
cp -- "$1" "$partial" && mv -- "$partial" "$target" || say 201 "cp failed"
""",
    "lsm-size": """
[ -f "$(place "$1")" ] || say 200 "$1: No such file or directory"
stat -c %s -- "$(place "$1")"
""",
    "lsm-rm": 'rm -f -- "$(place "$1")" || say 200 "rm failed"\n',
}


@pytest.fixture
def site(tmp_path_factory):
    """The directory of the programs, with `storage` in it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "storage").mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(COMMON + text)
        (folder / name).chmod(0o755)
    return folder


def tool(folder: Path, setup: str = "") -> Lsm:
    (folder / "setup.sh").write_text(setup or f'export STORAGE="{folder}/storage" PATH="{folder}:$PATH"\n')
    return Lsm(ToolContext(options={"setup": str(folder / "setup.sh")}))


def output(path: Path, **facts) -> Transfer:
    path.write_bytes(b"some data")
    file = File(lfn=path.name, kind=Kind.OUTPUT, scope="test", token="ATLASDATADISK", guid="G-1")
    facts = {"size": 9, "checksums": checksums(b"some data"), **facts}
    return Transfer(file=file, url=f"{HOST}/{path.name}", path=path, **facts)


def answering(folder: Path, status: int, words: str = "said so") -> Lsm:
    for name in ("lsm-get", "lsm-put"):
        (folder / name).write_text(f"#!/bin/sh\necho '{words}' >&2\nexit {status}\n")
    return tool(folder)


def failure(act):
    with pytest.raises(TransferError) as caught:
        act()
    return caught.value


class TestLsm(CopyToolConformance):
    @pytest.fixture(autouse=True)
    def place(self, site):
        self.root = site / "storage"

    @pytest.fixture
    def tool(self, site):
        return tool(site)

    def remote_url(self, name: str) -> str:
        return f"{HOST}/{name}"

    def store(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def fetch(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None


def test_the_command_line_is_that_of_pilot_3(site, tmp_path):
    tool(site).put(output(tmp_path / "out"), WatchfulHandle())
    expected = f"--size 9 -t ATLASDATADISK --checksum adler32:{checksums(b'some data')['adler32']} --guid G-1"
    assert (site / "storage.log").read_text().strip() == f"{expected} {tmp_path / 'out'} {HOST}/out"


@pytest.mark.parametrize(
    ("status", "code", "trait"),
    [
        (1, Code.STAGEOUTFAILED, Trait.RETRY),
        (200, Code.STAGEOUTFAILED, Trait.RETRY),
        (203, Code.STAGEOUTFAILED, Trait.NEXT),
        (204, Code.STAGEOUTFAILED, Trait.RETRY),
        (205, Code.PUTADMISMATCH, Trait.RETRY),
        (207, Code.STAGEOUTFAILED, Trait.NEXT),
        (208, Code.STAGEOUTFAILED, Trait.RETRY),
        (209, Code.STAGEOUTFAILED, Trait.FATAL),
        (210, Code.PUTADMISMATCH, Trait.FATAL),
        (211, Code.FILEEXISTS, Trait.NEXT),
        (213, Code.NOREMOTESPACE, Trait.NEXT),
        (220, Code.STAGEOUTFAILED, Trait.RETRY),
    ],
)
def test_what_an_exit_code_means(site, tmp_path, status, code, trait):
    mine, one = answering(site, status), output(tmp_path / "out")
    error = failure(lambda: mine.put(one, WatchfulHandle()))
    assert (error.code, error.trait) == (code, trait)
    assert f"exit code {status} said so" in error.detail


def test_a_file_that_is_there_already_is_success(site, tmp_path):
    assert answering(site, 212).put(output(tmp_path / "out"), WatchfulHandle()).size == 9


def test_a_program_that_brings_nothing_and_says_nothing_is_not_believed(site, tmp_path):
    one = Transfer(file=File(lfn="x", kind=Kind.INPUT), url=f"{HOST}/x", path=tmp_path / "x")
    error = failure(lambda: answering(site, 0).get(one, WatchfulHandle()))
    assert "no file" in error.detail


def test_a_program_that_cannot_work_on_this_node_is_not_tried_again(site):
    answering(site, 127, "no such interpreter")
    error = failure(lambda: SitePrograms({}).run(WatchfulHandle(), Direction.OUT, [str(site / "lsm-put")]))
    assert (error.code, error.trait) == (Code.UNKNOWNCOPYTOOL, Trait.NEXT)
    assert "lsm-put does not work here: no such interpreter" in error.detail


def test_without_programs_it_cannot_work_here():
    assert "lsm-get" in (Lsm(ToolContext()).unavailable() or "")


def test_what_a_site_has_not_is_not_asked_for(site, monkeypatch):
    for name in ("lsm-size", "lsm-rm"):
        (site / name).unlink()
    monkeypatch.setenv("PATH", f"{site}{os.pathsep}{os.environ['PATH']}")
    mine = Lsm(ToolContext())
    assert mine.unavailable() is None
    for act in (mine.stat, mine.remove):
        error = failure(lambda act=act: act(f"{HOST}/x", WatchfulHandle()))
        assert (error.code, error.trait) == (Code.NOTIMPLEMENTED, Trait.NEXT)
