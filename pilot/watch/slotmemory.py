"""How much memory a payload may use before the batch system kills all that is in the slot, the pilot too.

Only what is enforced counts: the limit of a control group, which the kernel keeps, and that of Slurm where it polls its
steps. What is only promised ends no payload, since many sites let jobs use more than they asked for: `Memory` of an
HTCondor slot, Slurm's where nobody looks. Nor does RLIMIT_AS, by which a single process is refused memory, not killed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

from pilot.cgroup import Group
from pilot.slurm import slurm_memory, slurm_setting
from pilot.watch.memorylimit import MemoryLimit
from pilot.watch.meter import Sample

logger = logging.getLogger(__name__)

#: kB kept back for what runs beside pilot and payload, such as one that ships a log, and for what a payload takes
#: between a look and its end: a twentieth of the limit, within these.
_RESERVE = (16 << 10, 64 << 10)

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024

#: Processes above the pilot that belong to the batch system.
_STARTERS = ("slurmstepd", "condor_starter")


def slot_limits(environ: Mapping[str, str], slot: Group) -> list[MemoryLimit]:
    """What a payload that starts now may use of each limit: less what the pilot and who started it use, and a reserve.

    Args:
        environ: of the pilot.
        slot: the control group that it came into.
    """
    rss, private = _own_use()
    found = (_of_group(slot, private), _of_slurm(environ, rss))
    return [limit for limit in found if limit]


def _of_group(slot: Group, own: int) -> MemoryLimit | None:
    bound = (slot.memory_bound or 0) >> 10
    used = partial(_charged, slot, own) if bound and slot.is_ours_alone else attrgetter("held")
    return _left(MemoryLimit(kb=bound, origin="control group of the slot", counts="memory", used=used), own)


def _of_slurm(environ: Mapping[str, str], own: int) -> MemoryLimit | None:
    params = slurm_setting(environ, "JobAcctGatherParams").lower()
    # Else it does not look, or counts as we cannot: each process without what it shares, or as a control group does.
    looks = slurm_setting(environ, "JobAcctGatherType").lower().endswith("linux") and "noshare" not in params
    often = environ.get("SLURM_ACCTG_FREQ") or slurm_setting(environ, "JobAcctGatherFrequency")
    looks = looks and not re.search(r"(^|,)(task=)?0+(,|$)", often.lower())  # 0: once, at the end
    megabytes = slurm_memory(environ) if looks and "overmemorykill" in params else 0
    counts = "PSS" if "usepss" in params else "RSS"
    used = attrgetter(counts.lower())
    return _left(MemoryLimit(kb=megabytes << 10, origin=f"{megabytes} MB of Slurm", counts=counts, used=used), own)


def _charged(slot: Group, own: int, sample: Sample) -> int:
    """What the kernel itself goes by: with files on a tmpfs, which are no process' memory."""
    needed = slot.memory_needed
    return sample.held if needed is None else max(0, (needed >> 10) - own)


def _left(whole: MemoryLimit, own: int) -> MemoryLimit | None:
    if not whole.kb:
        return None
    reserve = max(_RESERVE[0], min(whole.kb // 20, _RESERVE[1]))
    left = whole.kb - own - reserve
    if left <= 0:
        logger.warning("%s: %d kB are less than the pilot needs (%d kB)", whole.origin, whole.kb, own + reserve)
        return None
    origin = f"{whole.origin}: {whole.kb} kB, less {own} kB of the pilot and {reserve} kB in reserve"
    return replace(whole, kb=left, origin=origin, of_slot=True, slack=reserve // 2)


def _own_use() -> tuple[int, int]:
    """RSS, also without files, of the pilot and of those that started it as far as they are in the same slot; kB."""
    pid, rss, files, place = os.getpid(), 0, 0, _read("self", "cgroup")
    while pid and _read(pid, "cgroup") == place and _read(pid, "comm").strip() not in _STARTERS:
        pages, stat = _read(pid, "statm").split(), _read(pid, "stat").rpartition(")")[2].split()
        if not pages or not stat:  # it has just ended
            break
        rss, files, pid = rss + int(pages[1]), files + int(pages[2]), int(stat[1])
    return rss * _PAGE_KB, (rss - files) * _PAGE_KB


def _read(pid: int | str, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
