from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from pilot.node import free_disk, read_node

V2 = "fpu lm cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
CPU = "sys/devices/system/cpu"


def cpuinfo(model: str, flags: str = V3, cache: str = "107520 KB", more: str = "") -> str:
    return (
        f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: {model}\ncpu MHz\t\t: 2000.000\n"
        f"cache size\t: {cache}\nflags\t\t: {flags}\n{more}power management:\n\n"
        "processor\t: 1\nmodel name\t: another\ncpu MHz\t\t: 1.0\n\n"
    )


def node_root(tmp_path: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def layout(online: str, package: str, core: str, first: int = 0) -> dict[str, str]:
    topology = f"{CPU}/cpu{first}/topology"
    return {
        f"{CPU}/online": f"{online}\n",
        f"{topology}/core_siblings_list": f"{package}\n",
        f"{topology}/thread_siblings_list": f"{core}\n",
    }


@pytest.mark.parametrize(
    ("model", "machine", "expected"),
    [
        (  # as a real server stored it from Pilot 3
            cpuinfo("Intel(R) Xeon(R) Processor"),
            layout("0-1", "0-1", "0"),
            "s+Intel(R) Xeon(R) 2-Core Processor 107520 KB 1-Socket+AVX2",
        ),
        (
            cpuinfo("AMD EPYC 7742 64-Core Processor", cache="512 KB"),
            layout("0-255", "0-63,128-191", "0,128"),
            "s+AMD EPYC 7742 128-Core Processor 512 KB HT 2-Sockets+AVX2",
        ),
        (
            cpuinfo("Intel Core Processor (Broadwell, IBRS)", flags=V2, cache="16384 KB"),
            layout("0-9", "0", "0"),
            "s+Intel 10-Core Processor (Broadwell, IBRS) 16384 KB 10-Sockets",
        ),
        (
            cpuinfo("Intel(R) Xeon(R) CPU E5-2650 v4 @ 2.20GHz", cache="30720 KB"),
            layout("0-47", "0-11,24-35", "0,24"),
            "s+Intel(R) Xeon(R) CPU E5-2650 v4 @ 2.20GHz 30720 KB 24-Core Processor HT 2-Sockets+AVX2",
        ),
        (
            "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU architecture: 8\n\n",
            layout("0-79", "0-79", "0"),
            "s+ARM 80-Core Processor 1-Socket",
        ),
        ("", layout("0-3", "0-3", "0-1"), "s+UNKNOWN 2-Core Processor HT 1-Socket"),
    ],
    ids=["intel", "amd", "qemu", "without the word", "arm", "unknown"],
)
def test_consumption_unit_has_pilot_3s_shape(
    tmp_path: Path, model: str, machine: Mapping[str, str], expected: str
) -> None:
    assert read_node(node_root(tmp_path, {"proc/cpuinfo": model, **machine})).cpu_consumption_unit == expected


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu lm sse2", "x86_64-v1"),
        (V2, "x86_64-v2"),
        (V3, "x86_64-v3"),
        (V4, "x86_64-v4"),
        (V4.replace(" fma", ""), "x86_64-v2"),
        (V3.replace("lm ", "", 1), ""),
    ],
)
def test_architecture_level_is_the_highest_without_a_gap(tmp_path: Path, flags: str, level: str) -> None:
    facts = read_node(node_root(tmp_path, {"proc/cpuinfo": cpuinfo("X Processor", flags)}))
    assert facts.architecture_level == level
    assert facts.avx2 is ("avx2" in flags)


def test_arm_is_told_by_its_version(tmp_path: Path) -> None:
    root = node_root(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp\nCPU architecture: 8\n\n"})
    assert read_node(root).architecture_level == "ARMv8"


def test_layout_starts_at_the_first_cpu_that_is_on(tmp_path: Path) -> None:
    facts = read_node(node_root(tmp_path, layout("2-5,8-11", "2-5", "2-3", first=2)))
    assert (facts.logical_cpus, facts.sockets, facts.cores_per_socket, facts.threads_per_core) == (8, 2, 2, 2)


def test_layout_without_sys_follows_cpuinfo(tmp_path: Path) -> None:
    more = f"siblings\t: {2 * os.cpu_count()}\ncpu cores\t: {os.cpu_count()}\n"
    facts = read_node(node_root(tmp_path, {"proc/cpuinfo": cpuinfo("X", more=more)}))
    assert (facts.sockets, facts.cores_per_socket, facts.threads_per_core) == (1, os.cpu_count(), 2)


def test_memory_and_frequency_have_their_units(tmp_path: Path) -> None:
    root = node_root(
        tmp_path, {"proc/cpuinfo": cpuinfo("X"), "proc/meminfo": "MemTotal:       24684084 kB\nMemFree: 1 kB\n"}
    )
    assert (read_node(root).memory, read_node(root).cpu_mhz) == (24105, 2000.0)
    (root / "proc/cpuinfo").write_text("processor\t: 0\n\n")
    assert read_node(root).cpu_mhz == 0.0
    node_root(root, {f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "2600000\n"})
    assert read_node(root).cpu_mhz == 2600.0


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    facts = read_node(tmp_path)
    assert (facts.cpu_model, facts.cpu_cache, facts.memory, facts.cpu_mhz) == ("", 0, 0, 0.0)
    assert (facts.logical_cpus, facts.sockets, facts.threads_per_core) == (os.cpu_count(), 1, 1)
    assert facts.cores == len(os.sched_getaffinity(0))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_bytes(b"model name: \xff\xfe Processor\n\n")
    assert read_node(tmp_path).cpu_model.endswith("Processor")


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/pod/box\n", {"pod/box/cpu.max": "200000 100000\n"}, 2),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "350000 100000\n"}, 4),
        ("0::/pod/box\n", {"pod/box/cpu.max": "600000 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
        ("0::/../../seen/from/inside\n", {"cpu.max": "200000 100000\n"}, 2),
        (
            "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:cpuset:/\n", {"cpuset/cpu.max": "100000 100000\n"}, 8),
        ("", {"cpu.max": "100000 100000\n"}, 8),
    ],
)
def test_cores_are_limited_by_every_cgroup_above_us(
    tmp_path: Path, cgroup: str, files: Mapping[str, str], cores: int
) -> None:
    tree = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert read_node(node_root(tmp_path, {"proc/self/cgroup": cgroup, **tree})).cores == cores


def test_cores_are_limited_by_affinity() -> None:
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}}); from pilot.node import read_node; print(read_node().cores)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, socket.gethostname()),
        ({"PANDA_HOSTNAME": "wn7.example.org"}, "wn7.example.org"),
        ({"_CONDOR_SLOT": "slot1_2", "PANDA_HOSTNAME": "wn7"}, "slot1_2@wn7"),
        ({"_CONDOR_SLOT": "", "PANDA_HOSTNAME": ""}, socket.gethostname()),
    ],
)
def test_the_name_of_the_node_has_the_slot_before_it(tmp_path: Path, environ: Mapping[str, str], name: str) -> None:
    facts = read_node(tmp_path, environ)
    assert facts.name == name
    assert facts.host == name.rpartition("@")[2]


def test_this_node_is_what_psutil_says() -> None:
    facts = read_node()
    assert facts.memory == psutil.virtual_memory().total >> 20
    assert facts.logical_cpus == psutil.cpu_count()
    assert 1 <= facts.cores <= facts.logical_cpus
    assert facts.sockets * facts.cores_per_socket * facts.threads_per_core == facts.logical_cpus
    assert facts.architecture == os.uname().machine
    assert facts.cpu_consumption_unit.startswith("s+")


def test_free_disk_is_in_megabytes(tmp_path: Path) -> None:
    assert abs(free_disk(tmp_path) - (psutil.disk_usage(str(tmp_path)).free >> 20)) < 500
    with pytest.raises(FileNotFoundError):
        free_disk(tmp_path / "none")


def test_looking_at_the_node_takes_no_time() -> None:
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        read_node()
        times.append(time.perf_counter() - begin)
    assert sorted(times)[10] < 0.005
