"""Control groups: where we are, what our group counts, and groups of our own for payloads.

Version 2 (Documentation/admin-guide/cgroup-v2.rst of the kernel) has one tree; version 1 (cgroup-v1/memory.rst) a tree
for each controller. A group that we did not make is read, and never changed: to make one below it, it must be ours to
use. That is so when the batch system gave it to our user or marked it as delegated, or when a person names it; and the
memory group of a slot in version 1, where nothing marks groups, if we can write there.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilot.processes import descendants

logger = logging.getLogger(__name__)

#: Controllers that are wanted of version 2.
_WANTED = ("memory", "pids", "cpu", "io")

#: Marks of systemd and container runtimes on a group that was handed over (systemd's CGROUP_DELEGATION.md).
_DELEGATION_MARKS = ("trusted.delegate", "user.delegate")

#: Moves itself into groups and becomes the command: all text is fixed, names are arguments. A group that cannot be
#: joined is left out, since a payload must not fail for its watch.
_JOIN = 'while [ "$1" != -- ]; do { echo 0 > "$1"; } 2> /dev/null; shift; done; shift; exec "$@"'

#: Seconds to wait for a killed group to be empty.
_EMPTY_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Group:
    """A group, ours or not: its folder for each controller (one and the same in version 2), and what it counts.

    All counters are None where the kernel does not tell.
    """

    version: int
    folders: Mapping[str, Path]

    @property
    def memory_current(self) -> int | None:
        """Bytes charged now, page cache included."""
        return self._number("memory", "memory.current", "memory.usage_in_bytes")

    @property
    def memory_peak(self) -> int | None:
        """Bytes charged at most; version 2 tells since Linux 5.19."""
        return self._number("memory", "memory.peak", "memory.max_usage_in_bytes")

    @property
    def memory_limit(self) -> int | None:
        """Bytes that may be charged; None for no limit."""
        limit = self._number("memory", "memory.max", "memory.limit_in_bytes")
        return limit if limit is not None and limit < 1 << 60 else None  # version 1 says 2**63 less a page for none

    @property
    def memory_bound(self) -> int | None:
        """Bytes that may be in memory and swap before the kernel kills, by its limit or by that of a group above it.

        A container sees no group above its own. None for no limit.
        """
        folder = self.folders.get("memory")
        groups = [Group(self.version, {"memory": path}) for path in ((folder, *folder.parents) if folder else ())]
        return min((limit + group._swap for group in groups if (limit := group.memory_limit) is not None), default=None)

    @property
    def memory_needed(self) -> int | None:
        """Bytes that the kernel cannot take back, here and below: of processes, of files on a tmpfs, swapped out."""
        found = self._table("memory", "memory.stat")
        names = ("anon", "shmem") if self.version == 2 else ("total_rss", "total_shmem", "total_swap")
        swapped = self._number("memory", "memory.swap.current", "") or 0
        return sum(found.get(name, 0) for name in names) + swapped if names[0] in found else None

    @property
    def is_ours_alone(self) -> bool:
        """Whether no process of others is in it or below: only ours, those who started us, and what runs beside us."""
        groups = os.walk(self.folders["memory"]) if "memory" in self.folders else ()
        return _only_ours([pid for path, _, _ in groups for pid in _read(Path(path, "cgroup.procs")).split()])

    @property
    def oom_kills(self) -> int | None:
        """Processes of the group that the kernel killed for want of memory, whosever limit it was."""
        found = self._table("memory", "memory.events" if self.version == 2 else "memory.oom_control")
        return found.get("oom_kill")

    @property
    def forks_refused(self) -> int | None:
        """How often a process could not be made because there were as many as may be."""
        return self._table("pids", "pids.events").get("max")

    @property
    def cpu_seconds(self) -> float | None:
        """CPU seconds of all that ever ran in it."""
        if self.version == 2:
            used = self._table("cpu", "cpu.stat").get("usage_usec")
            return None if used is None else used / 1e6
        nanoseconds = self._number("cpuacct", "", "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds / 1e9

    @property
    def io_bytes(self) -> tuple[int, int] | None:
        """Bytes read from and written to block devices, by all that ever ran in it; version 2 only."""
        if self.version != 2 or "io" not in self.folders:
            return None
        words = _read(self.folders["io"] / "io.stat").split()
        pairs = [word.partition("=") for word in words if "=" in word]
        totals = {key: sum(int(value) for name, _, value in pairs if name == key) for key in ("rbytes", "wbytes")}
        return totals["rbytes"], totals["wbytes"]

    def pids(self) -> list[int]:
        """Processes in it, not in groups below."""
        folder = next(iter(self.folders.values()), None)
        return [int(pid) for pid in _read(folder / "cgroup.procs").split()] if folder else []

    def path_in(self, controller: str) -> str:
        """The name of its folder, as the kernel writes it at the end of a line of its log."""
        return self.folders[controller].name if controller in self.folders else ""

    @property
    def _swap(self) -> int:
        """Bytes of the node's swap that it may use: version 1 limits the sum of both."""
        swap = _swap_total()
        if self.version == 2:
            limit = self._number("memory", "memory.swap.max", "")
        else:
            limit = self._number("memory", "", "memory.memsw.limit_in_bytes")
            limit = limit - (self.memory_limit or 0) if limit is not None else None
        return swap if limit is None else max(0, min(swap, limit))

    def _number(self, controller: str, second: str, first: str) -> int | None:
        name = second if self.version == 2 else first
        folder = self.folders.get(controller)
        text = _read(folder / name).strip() if folder and name else ""
        return int(text) if text.isdecimal() else None

    def _table(self, controller: str, name: str) -> dict[str, int]:
        folder = self.folders.get(controller)
        pairs = (line.split() for line in (_read(folder / name) if folder else "").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


@dataclass(frozen=True, slots=True)
class OwnGroup(Group):
    """A group that we made, for one payload."""

    prefix: tuple[str, ...] = field(default=(), kw_only=True)

    def limit(self, high_kb: int, most_kb: int, processes: int = 0, *, swap: bool = True) -> None:
        """Have the kernel hold the payload to its limits; 0 for none.

        The kernel then kills a process of it, whatever `memory.oom.group` says of the slot: that counts where the limit
        was met. The payload's own stays 0, since one may live on without the process that was killed.

        Args:
            high_kb: from there on version 2 slows it down, so that it is seen in time.
            most_kb: at that it kills.
            processes: most of them.
            swap: it may have what the slot has.
        """
        if most_kb:
            most = str(most_kb << 10)
            self._write("memory", "memory.high", str(high_kb << 10))
            self._write("memory", "memory.max" if self.version == 2 else "memory.limit_in_bytes", most)
            if not swap:  # else what is over the limit would be there, and not be seen
                self._write("memory", "memory.swap.max", "0")
                self._write("memory", "memory.memsw.limit_in_bytes", most)
        if processes:
            self._write("pids", "pids.max", str(processes))

    def remove(self) -> None:
        """End what is left in it, and take it away. Blocks for up to 2 s when there is something left."""
        end = time.monotonic() + _EMPTY_PATIENCE
        while not self._removed():
            if time.monotonic() > end:
                logger.warning("control group %s is not empty: %s", next(iter(self.folders.values())), self.pids())
                return
            self._kill()
            time.sleep(0.02)

    def _removed(self) -> bool:
        left = False
        for folder in self._all(topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                left = True
        return not left

    def _kill(self) -> None:
        """All of it at once where the kernel can (Linux 5.14), else one by one: nobody else is in a group we made."""
        if self.version == 2 and self._write("memory", "cgroup.kill", "1"):
            return
        for folder in self._all():
            for pid in _read(Path(folder, "cgroup.procs")).split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue

    def _all(self, topdown: bool = True) -> Iterator[str]:
        """Its folders, and those below: a payload may have made groups itself, such as for a container."""
        for folder in dict.fromkeys(self.folders.values()):
            yield from (path for path, _, _ in os.walk(folder, topdown))

    def _write(self, controller: str, name: str, text: str) -> bool:
        folder = self.folders.get(controller)
        return folder is not None and (folder / name).exists() and _write(folder / name, text)


class Nest:
    """Makes groups for payloads below our own, where that is possible.

    Args:
        place: `auto` for our own group if it is ours to use, `off`, or the path of a group that was made for us.
        root: where /proc and /sys are.
    """

    def __init__(self, place: str = "auto", root: Path = Path("/")) -> None:
        self.slot = own_group(root)
        self._parents = self._usable(place)
        self._pilots: Path | None = None

    @property
    def is_usable(self) -> bool:
        """Whether there is a place where groups may be made."""
        return bool(self._parents.folders)

    def make(self, name: str) -> OwnGroup | None:
        """A new group for one payload; None where there can be none, which is no reason to fail."""
        made: dict[Path, Path] = {}
        for parent in dict.fromkeys(self._parents.folders.values()):
            try:
                if self._parents.version == 2:
                    self._hand_down(parent)
                (parent / name).mkdir()
            except OSError as error:
                logger.info("no control group %s: %s", parent / name, error.strerror)
            else:
                made[parent] = parent / name
        if not made:
            return None
        logger.info("control group of the payload: %s", ", ".join(map(str, made.values())))
        procs = [str(folder / "cgroup.procs") for folder in made.values()]
        folders = {key: made[parent] for key, parent in self._parents.folders.items() if parent in made}
        return OwnGroup(self._parents.version, folders, prefix=("/bin/sh", "-c", _JOIN, "sh", *procs, "--"))

    def close(self) -> None:
        """Put the pilot back where it was, and take its group away."""
        if self._pilots is None:
            return
        own = self._pilots.parent
        beside = [path for path in own.iterdir() if path != self._pilots]
        if any("populated 1" in _read(path / "cgroup.events") for path in beside):  # they need their controllers
            logger.info("control group %s stays: another pilot has groups beside it", self._pilots)
            return
        enabled = _read(own / "cgroup.subtree_control").split()
        _write(own / "cgroup.subtree_control", " ".join(f"-{name}" for name in enabled))
        _move(self._pilots, own)
        try:
            self._pilots.rmdir()
        except OSError as error:
            logger.info("control group %s stays: %s", self._pilots, error.strerror)
        self._pilots = None

    def _usable(self, place: str) -> Group:
        if place == "off":
            return Group(2, {})
        if place != "auto":
            return _named(Path(place))
        delegated = {key: top for key, folder in self.slot.folders.items() if (top := _handed_over(folder))}
        memory = self.slot.folders.get("memory") if self.slot.version == 1 else None
        if memory and _is_writable(memory) and _is_writable(memory.parent):  # a slot's, not that of the whole node
            delegated.setdefault("memory", memory)
        return Group(self.slot.version, delegated)

    def _hand_down(self, own: Path) -> None:
        """Let groups below have controllers: no process may be beside them then, so ours move to a group of their own.

        Raises:
            OSError: it is not possible.
        """
        control = own / "cgroup.subtree_control"
        missing = [name for name in _WANTED if name in _read(own / "cgroup.controllers").split()]
        missing = [name for name in missing if name not in _read(control).split()]
        text = " ".join(f"+{name}" for name in missing)
        if not text or _write(control, text):
            return
        if not _only_ours(_read(own / "cgroup.procs").split()):
            raise OSError(errno.EBUSY, "processes of others are in our group")
        pilots = own / f"pilot-{os.getpid()}"
        pilots.mkdir(exist_ok=True)
        self._pilots = pilots
        _move(own, pilots)
        control.write_text(text)


def _swap_total() -> int:
    """Bytes of swap that the node has."""
    found = re.search(r"^SwapTotal:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def own_group(root: Path = Path("/")) -> Group:
    """The group that this process is in, of the version that counts memory; nothing but empty where none does."""
    second: dict[str, Path] = {}
    first: dict[str, Path] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        mount = next((mount for mount in _mounts(root) if mount.controllers == _key(number, names)), None)
        folder = mount.folder_of(path) if mount else None
        if folder is None or not folder.is_dir():
            continue
        if number == "0":
            second = dict.fromkeys(_WANTED, folder)
        else:
            first |= dict.fromkeys([name for name in names.split(",") if name in ("memory", "cpuacct", "pids")], folder)
    return Group(1, first) if "memory" in first else Group(2, second)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A tree of groups that is mounted: its controllers (`v2` for version 2), and which part of it is where."""

    controllers: str
    top: str
    place: Path

    def folder_of(self, path: str) -> Path | None:
        """Where group `path` is; a container may see only its own part, which is then the top of what is mounted."""
        if path.startswith("/.."):
            return None
        if self.top == "/" or path == self.top:
            return self.place / path.removeprefix(self.top).lstrip("/")
        inside = path.startswith(f"{self.top}/")
        return self.place / path.removeprefix(f"{self.top}/") if inside else self.place


def _mounts(root: Path) -> Iterator[_Mount]:
    """The lines of /proc/self/mountinfo (proc(5)) that are control groups."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or not kind[0].startswith("cgroup"):
            continue
        place = root / fields[4].lstrip("/")
        names = "v2" if kind[0] == "cgroup2" else _key("1", kind[2])
        yield _Mount(names, fields[3], place)


def _key(number: str, names: str) -> str:
    """Controllers of a tree in a fixed order, without the options of its mount."""
    if number == "0":
        return "v2"
    return ",".join(sorted(name for name in names.split(",") if name not in ("rw", "ro", "xattr", "clone_children")))


def _named(place: Path) -> Group:
    """The group that a person names; not there, or not ours to write: none, with a line in the log."""
    if not os.access(place / "cgroup.procs", os.W_OK):
        logger.warning("%s is no control group that we may use: payloads run without one", place)
        return Group(2, {})
    if (place / "cgroup.controllers").exists():
        return Group(2, dict.fromkeys(_WANTED, place))
    names = {"memory": "memory.limit_in_bytes", "cpuacct": "cpuacct.usage", "pids": "pids.max"}
    return Group(1, {name: place for name, mark in names.items() if (place / mark).exists()})


def _handed_over(folder: Path) -> Path | None:
    """The group to make others in: our own, or the one above if another pilot has moved who started us, too."""
    above = [folder.parent] if re.fullmatch(r"pilot-\d+", folder.name) else []
    return next((place for place in (*above, folder) if _is_delegated(place)), None)


def _is_writable(folder: Path) -> bool:
    """Whether groups can be made below one."""
    return os.access(folder / "cgroup.procs", os.W_OK) and os.access(folder, os.W_OK)


def _is_delegated(folder: Path) -> bool:
    """Whether a group was handed to us: it belongs to our user, and for root, to whom all belong, it is marked."""
    try:
        if not _is_writable(folder):
            return False
        if os.geteuid():
            return folder.stat().st_uid == os.geteuid()
        marks = set(os.listxattr(folder)).intersection(_DELEGATION_MARKS)
        return any(os.getxattr(folder, mark) == b"1" for mark in marks)
    except OSError:
        return False


def _only_ours(pids: list[str]) -> bool:
    """True if processes may be moved with us: who started us, who was started by us, and what runs beside us.

    The last is what a wrapper starts for the pilot, such as one that sends the log away: in our process group.
    """
    known = set(descendants([os.getpid()]))
    pid = os.getpid()
    while pid:
        known.add(pid)
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    return str(os.getpid()) in pids and all(pid in known or _is_beside_us(pid) for pid in map(int, pids))


def _is_beside_us(pid: int) -> bool:
    try:
        return pid != 0 and os.getpgid(pid) == os.getpgrp()  # 0 is one outside of our pid namespace
    except ProcessLookupError:  # it has just ended
        return True


def _move(source: Path, target: Path) -> None:
    """Move all processes; those that come meanwhile too, those that may not be moved stay."""
    for _ in range(3):
        for pid in _read(source / "cgroup.procs").split():
            _write(target / "cgroup.procs", pid)


def _write(path: Path, text: str) -> bool:
    try:
        path.write_text(text)
    except OSError as error:
        logger.debug("%s <- %s: %s", path, text, error.strerror)
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
