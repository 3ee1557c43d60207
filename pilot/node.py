"""What this node is: the facts a pilot reports about the machine it runs on, read from /proc and /sys alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pilot.job import NOTHING

#: Flags in /proc/cpuinfo that each level of the x86-64 psABI adds to the one before.
_LEVELS = (
    "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "avx512f avx512bw avx512cd avx512dq avx512vl",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Facts that do not change while a pilot runs.

    Attributes:
        host: its name, without domain if the node knows none.
        name: as the server shall know it: `slot@host` below HTCondor.
        cores: that this process may use, by affinity and cgroup quota, at least 1.
        logical_cpus: that the node has.
        sockets, cores_per_socket, threads_per_core: how they are laid out.
        memory: MB of the node.
        cpu_model: empty if /proc/cpuinfo does not tell (ARM).
        cpu_cache: KB, 0 if unknown.
        cpu_mhz: MHz, 0.0 if unknown.
        architecture: as `uname -m` says.
        architecture_level: `x86_64-v1` to `x86_64-v4`, `ARMv8`, or empty.
        avx2: the CPU has AVX2.
    """

    host: str
    name: str
    cores: int
    logical_cpus: int
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory: int
    cpu_model: str
    cpu_cache: int
    cpu_mhz: float
    architecture: str
    architecture_level: str
    avx2: bool

    @property
    def cpu_consumption_unit(self) -> str:
        """`cpuConsumptionUnit` on the wire: `s+Intel(R) Xeon(R) 2-Core Processor 107520 KB 1-Socket+AVX2`."""
        return f"s+{self._model_text()}{'+AVX2' if self.avx2 else ''}"

    def _model_text(self) -> str:
        unknown = "ARM" if self.architecture_level.startswith("ARM") else "UNKNOWN"
        cache = f" {self.cpu_cache} KB" if self.cpu_cache else ""
        text = _with_cores(f"{self.cpu_model}{cache}" if self.cpu_model else unknown, self._cores_text())
        threads = " HT" if self.threads_per_core == 2 else ""
        return f"{text}{threads} {self.sockets}-Socket{'s' if self.sockets > 1 else ''}"

    def _cores_text(self) -> str:
        return f"{self.sockets * self.cores_per_socket}-Core Processor"


def _with_cores(model: str, cores: str) -> str:
    """`model` with `N-Core Processor` in the place of the words it has for that, else behind it."""
    head, word, tail = model.partition("Processor")
    if not word:
        return f"{model} {cores}"
    words = head.split(" ")
    if len(words) > 1 and words[-2].endswith("Core"):  # `64-Core Processor` of AMD, `Core Processor` of QEMU
        del words[-2]
    return f"{' '.join(words)}{cores}{tail}"


def read_node(root: Path = Path("/"), environ: Mapping[str, str] = NOTHING) -> NodeFacts:
    """Look at the node. What cannot be read is left at its default; nothing is raised.

    Args:
        root: where /proc and /sys are.
        environ: `PANDA_HOSTNAME` replaces the host's name, `_CONDOR_SLOT` goes before it.
    """
    uname = os.uname()
    host = environ.get("PANDA_HOSTNAME") or uname.nodename
    slot = environ.get("_CONDOR_SLOT")
    cpu = _first_cpu(root)
    flags = frozenset(cpu.get("flags", "").split())
    logical, sockets, cores, threads = _layout(root, cpu)
    return NodeFacts(
        host=host,
        name=f"{slot}@{host}" if slot else host,
        cores=_usable_cores(root),
        logical_cpus=logical,
        sockets=sockets,
        cores_per_socket=cores,
        threads_per_core=threads,
        memory=_memory(root),
        cpu_model=cpu.get("model name", ""),
        cpu_cache=_leading_int(cpu.get("cache size", "")),
        cpu_mhz=_mhz(root, cpu),
        architecture=uname.machine,
        architecture_level=_level(cpu, flags),
        avx2="avx2" in flags,
    )


def free_disk(path: Path) -> int:
    """MB that may still be written to the file system of `path`.

    Raises:
        OSError: there is no such path.
    """
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize >> 20


def _first_cpu(root: Path) -> Mapping[str, str]:
    """The first CPU in /proc/cpuinfo; the others are alike, and on a large node reading them all takes 20 ms."""
    found: dict[str, str] = {}
    try:
        with (root / "proc/cpuinfo").open(errors="replace") as lines:
            for line in lines:
                name, mark, value = line.partition(":")
                if not mark:
                    break
                found.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return found


def _layout(root: Path, cpu: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Logical CPUs, sockets, cores of a socket, threads of a core: from the first CPU's neighbours in /sys."""
    cpus = root / "sys/devices/system/cpu"
    online = _read(cpus / "online")
    logical = _count(online) or os.cpu_count() or 1
    first = cpus / f"cpu{_leading_int(online)}/topology"
    siblings = _leading_int(cpu.get("siblings", ""))
    package = _count(_read(first / "core_siblings_list")) or siblings or logical
    threads = _count(_read(first / "thread_siblings_list"))
    threads = threads or siblings // max(1, _leading_int(cpu.get("cpu cores", ""))) or 1
    return logical, max(1, round(logical / package)), max(1, package // threads), threads


def _count(cpu_list: str) -> int:
    """How many CPUs a list such as `0-3,8` of /sys names."""
    count = 0
    for part in cpu_list.strip().split(","):
        first, mark, last = part.partition("-")
        if first.isdecimal():
            count += int(last) - int(first) + 1 if mark else 1
    return count


def _level(cpu: Mapping[str, str], flags: frozenset[str]) -> str:
    if "lm" in flags:  # long mode: x86-64
        have = [flags.issuperset(level.split()) for level in _LEVELS]
        return f"x86_64-v{[*have, False].index(False) + 1}"
    version = cpu.get("CPU architecture", "")
    return f"ARMv{version}" if version else ""


def _mhz(root: Path, cpu: Mapping[str, str]) -> float:
    try:
        return float(cpu.get("cpu MHz", ""))
    except ValueError:
        return _leading_int(_read(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")) / 1000


def _memory(root: Path) -> int:
    """`MemTotal` of /proc/meminfo, kB there, MB here."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return _leading_int(line.partition(":")[2]) >> 10
    return 0


def _usable_cores(root: Path) -> int:
    quotas = [math.ceil(quota) for quota in _cpu_quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores that our cgroup and each one above it may use at a time, where that is limited; cgroup v2 and v1.

    A container may see only its own part of the tree, under another path than /proc/self/cgroup says, so places that
    are not there are passed over.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        for folder in _upwards(path):
            quota = _quota(mount / folder)
            if quota:
                yield quota


def _upwards(path: str) -> Iterator[PurePosixPath]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield PurePosixPath(*parts[:count])


def _quota(folder: Path) -> float:
    """CPU time per wall time that a cgroup is limited to, 0.0 if it is not."""
    texts = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(),
        _read(folder / "cpu.cfs_period_us").strip(),
    ]
    if len(texts) != 2 or not all(text.isdecimal() for text in texts):  # `max` or -1: no limit
        return 0.0
    return int(texts[0]) / max(1, int(texts[1]))


def _leading_int(text: str) -> int:
    digits = text.strip()
    end = next((at for at, char in enumerate(digits) if not char.isdecimal()), len(digits))
    return int(digits[:end] or 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
