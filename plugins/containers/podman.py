"""Podman, as root or as a user.

`podman run` starts a monitor, conmon, which leaves its parent; since the pilot is a subreaper, it comes back as a child
of the pilot, and all of the container is below it. The monitor kills the container at TERM, so it gets none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pilot.payload.container import ask
from plugins.containers._engine import Engine


class Podman(Engine):
    """Podman >= 4: a reference in a registry, or a directory with a root file system."""

    name = "podman"
    programs = ("podman",)
    own_group = True
    at_term = ":"  # the payload has had it from the pilot

    async def command(self) -> Sequence[str]:
        """`podman run`; the payload writes its output files itself, and podman keeps no copy."""
        self._monitor.unlink(missing_ok=True)
        return await super().command()

    async def own_options(self) -> list[str]:
        """Output, monitor, login, GPUs, memory."""
        order = self.order
        file = self.auth_file
        return [
            *("--log-driver=passthrough", "--sig-proxy=false", "--conmon-pidfile", str(self._monitor)),
            *(["--authfile", str(file)] if file else []),
            *(["--device", "nvidia.com/gpu=all"] if order.gpu else []),
            *(["--memory", f"{order.memory_kb}k"] if order.memory_kb and await self._can_limit() else []),
        ]

    def local_image(self, path: str) -> list[str]:
        """A root file system; what is written to it goes to a layer of the container."""
        return ["--rootfs", f"{path}:O"]

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """`podman run` and the monitor."""
        return {pid, self._monitor_pid()}

    async def signal(self, signum: int) -> None:
        """Not needed: the processes inside are below the pilot."""

    async def _can_limit(self) -> bool:
        """Rootless and with version 1 of control groups it cannot, and says so with each run."""
        if os.geteuid() == 0:
            return True
        words = [self.program, "info", "--format", "{{.Host.CgroupsVersion}}"]
        return await ask(words, self.order.client) == (0, "v2")

    @property
    def _monitor(self) -> Path:
        return self.order.private / "conmon.pid"

    def _monitor_pid(self) -> int:
        try:
            return int(self._monitor.read_text())
        except (OSError, ValueError):
            return 0
