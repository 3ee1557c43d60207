"""What Slurm tells a pilot: variables of a job or step (sbatch(1), srun(1)) and its configuration (slurm.conf(5))."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Where the configuration is: `scontrol show config` would ask the controller, which has better things to do when ten
#: thousand pilots start.
_FILES = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")


def slurm_setting(environ: Mapping[str, str], name: str) -> str:
    """A value of the configuration; empty outside of Slurm, and where it cannot be read or does not say."""
    if not environ.get("SLURM_JOB_ID"):
        return ""
    for path in filter(None, (environ.get("SLURM_CONF"), *_FILES)):
        try:
            with open(path, errors="replace") as stream:
                found = re.search(rf"^[ \t]*{name}[ \t]*=[ \t]*(\S+)", stream.read(), re.MULTILINE | re.IGNORECASE)
        except OSError:
            continue
        return found[1] if found else ""
    return ""


def slurm_memory(environ: Mapping[str, str]) -> int:
    """MB that the pilot has of its step, or of its job where it is in none; 0 if Slurm does not tell.

    The tasks of a step share its memory: each has its part of it.
    """
    whole = _number(environ, "SLURM_MEM_PER_NODE")
    by_cpu = _number(environ, "SLURM_MEM_PER_CPU") * _number(environ, "SLURM_CPUS_ON_NODE")
    return min(filter(None, (whole, by_cpu)), default=0) // _tasks(environ)


def _tasks(environ: Mapping[str, str]) -> int:
    """Tasks of our step on this node, from a list such as `2(x3),1`."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [int(count) for count, times in parts for _ in range(int(times or 1))]
    node = _number(environ, "SLURM_NODEID")
    return max(1, counts[node]) if node < len(counts) else 1


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else 0
