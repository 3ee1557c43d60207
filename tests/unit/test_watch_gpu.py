"""What a payload uses of GPUs, as a stand-in for `nvidia-smi` tells it: there is no GPU here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pilot.gpus import GpuUse, parse_use
from pilot.watch.gpu import GpuLook
from pilot.watch.meter import Sample, Tally
from pilot.watch.timeline import SUMMARY, TABLE, Timeline

#: Drivers up to 530 or so, and later ones.
OLD = """\
# gpu        pid  type    sm   mem   enc   dec    fb   command
# Idx          #   C/G     %     %     %     %    MB   name
    0         11     C    40    10     -     -   500   python
    1         11     C    20     5     -     -   300   python
    1         12     C     7     1     -     -   100   python
    1         99     C    50    60     -     -   900   stranger
    2          -     -     -     -     -     -     -   -
"""
NEW = """\
# gpu         pid   type     sm    mem    enc    dec    jpg    ofa     fb   ccpm    command
# Idx           #    C/G      %      %      %      %      %      %     MB     MB    name
    0         11     C     40     10      -      -      -      -    500      0    python
    1         11     C     20      5      -      -      -      -    300      0    python
    1         12   C+G      -      -      -      -      -      -    100      0    python
    1         99     C     50     60      -      -      -      -    900      0    stranger
"""
XML = """<nvidia_smi_log><driver_version>535</driver_version><gpu><product_name>Tesla T4</product_name>
<fb_memory_usage><total>15360 MiB</total></fb_memory_usage></gpu></nvidia_smi_log>"""


def smi(folder: Path, table: str) -> dict[str, str]:
    """Put an `nvidia-smi` into a folder; the environment that finds it."""
    (folder / "table").write_text(table)
    (folder / "xml").write_text(XML)
    path = folder / "nvidia-smi"
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/said\n[ "$1" = pmon ] && cat {folder}/table || cat {folder}/xml\n'
    )
    path.chmod(0o755)
    return {"PATH": f"{folder}:/bin"}


def test_what_processes_use_is_summed_and_others_are_left_out() -> None:
    assert parse_use(OLD, {11, 12}) == GpuUse(gpus=2, sm=67, memory=16, framebuffer=900 << 10)
    assert parse_use(NEW, {11, 12}) == GpuUse(gpus=2, sm=60, memory=15, framebuffer=900 << 10)
    assert parse_use(NEW, {12}) == GpuUse(gpus=1, framebuffer=100 << 10)
    assert parse_use(OLD, {13}) == GpuUse()


@pytest.mark.parametrize("text", ["", "No devices were found", "# gpu pid\n 0 11\n"])
def test_a_table_without_its_columns_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="columns"):
        parse_use(text, {11})


def test_it_is_in_the_time_line_by_prmons_names(tmp_path: Path) -> None:
    look = GpuLook(lambda: [11, 12], smi(tmp_path, OLD))
    line, tally = Timeline(tmp_path, look), Tally()
    for second, table in enumerate((OLD, NEW, NEW.replace(" 11 ", " 77 "))):
        (tmp_path / "table").write_text(table)
        assert 0 < look.look() <= 60
        sample = Sample(seconds=second, processes=2)
        tally.add(sample)
        line.add(sample)
    line.close(tally)
    header, *rows = [row.split("\t") for row in (tmp_path / TABLE).read_text().splitlines()]
    told = [{name: dict(zip(header, row, strict=True))[name] for name in NAMES} for row in rows]
    assert [[one[name] for name in NAMES] for one in told] == [
        ["2", "67", "16", "921600"],
        ["2", "60", "15", "921600"],
        ["1", "0", "0", "102400"],
    ]
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert [summary["Max"][name] for name in NAMES] == [2, 67, 16, 921600]
    assert [summary["Avg"][name] for name in NAMES] == [1, 42, 10, 648533]
    assert summary["HW"]["gpu"] == {"nGPU": 1, "gpu_0": {"name": "Tesla T4", "total_mem": 15360 << 10}}
    assert (tmp_path / "said").read_text().splitlines() == ["-q -x", *["pmon -s um -c 1"] * 3]


NAMES = ("ngpus", "gpusmpct", "gpumempct", "gpufbmem")


def test_looks_are_the_rarer_the_longer_a_payload_runs(tmp_path: Path) -> None:
    look = GpuLook(lambda: [11], smi(tmp_path, OLD))
    assert [look.look() for _ in range(8)] == [2, 4, 8, 16, 32, 60, 60, 60]


def test_one_that_fails_three_times_in_a_row_is_not_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    look = GpuLook(lambda: [11], smi(tmp_path, "no driver"))
    assert [look.look() for _ in range(2)] == [60, 60]
    (tmp_path / "table").write_text(OLD)
    assert look.look() == 2
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert [look.look() for _ in range(3)] == [60, 60, math.inf]
    assert caplog.text.count("not asked again") == 1
    assert (look.now(), look.most()["ngpus"]) == (dict.fromkeys(NAMES, 0), 2)


def test_a_node_without_the_program_has_no_such_columns(tmp_path: Path) -> None:
    look = GpuLook(lambda: [11], {"PATH": str(tmp_path)})
    line = Timeline(tmp_path, look)
    line.add(Sample(seconds=1, processes=1))
    line.close(Tally())
    assert (look.works, look.look()) == (False, math.inf)
    assert "gpu" not in (tmp_path / TABLE).read_text()
