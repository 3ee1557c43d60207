"""What is around the pilot on its node, in one line for the log: machine, container, limits, batch system, features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pilot.batch import BatchFacts
from pilot.cgroup import Group
from pilot.classad import ClassAd
from pilot.nodechecks import space_limit
from pilot.slurm import slurm_memory

#: Files by which container runtimes mark a container.
_MARKS = {"run/.containerenv": "podman", ".dockerenv": "docker", ".singularity.d": "apptainer"}

#: What HTCondor gave to the slot; `Memory` is in MB.
_SLOT = ("Cpus", "Memory", "Disk", "GPUs")

_HYPERVISOR = "hypervisor"


def virtualisation(root: Path, environ: Mapping[str, str]) -> str:
    """`podman`, `kubernetes`, `virtual machine`, ... with the container first; empty on bare metal."""
    container = "kubernetes" if environ.get("KUBERNETES_SERVICE_HOST") else ""
    container = container or next((name for mark, name in _MARKS.items() if (root / mark).exists()), "")
    return ", ".join(filter(None, (container, _machine(root))))


def describe(environ: Mapping[str, str], batch: BatchFacts, group: Group, root: Path = Path("/")) -> str:
    """The line; `group` is the control group that the slot has."""
    return "; ".join(f"{name} {value}" for name, value in _facts(environ, batch, group, root) if value)


def _facts(environ: Mapping[str, str], batch: BatchFacts, group: Group, root: Path) -> Iterator[tuple[str, str]]:
    yield "virtualisation", virtualisation(root, environ) or "none"
    limit = group.memory_bound
    yield f"control groups version {group.version}", f"with a limit of {limit >> 20} MB" if limit else "without a limit"
    yield batch.system, batch.job_id
    ad = ClassAd.of_machine(environ)
    given = ((name, ad.number(name)) for name in _SLOT)
    told = [f"{name}={value:g}" for name, value in given if value is not None]
    megabytes = slurm_memory(environ)
    yield "slot", " ".join(told or ([f"Memory={megabytes}"] if megabytes else []))
    yield "site", batch.glidein_site
    yield "submitted by", batch.schedd
    space = space_limit(environ)
    yield "pod storage", f"{space} MB" if space else ""


def _machine(root: Path) -> str:
    """The hypervisor, as its firmware calls itself."""
    name = _read(root / "sys/class/dmi/id/product_name") or _read(root / "sys/class/dmi/id/sys_vendor")
    try:
        with (root / "proc/cpuinfo").open(errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        flags = ""
    if _HYPERVISOR in flags.split():
        return f"virtual machine{f' ({name})' if name else ''}"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
