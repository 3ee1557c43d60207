"""Podman, as root or as a user.

`podman run` starts a monitor, conmon, which leaves its parent; since the pilot is a subreaper, it comes back as a child
of the pilot, and all of the container is below it. The monitor kills the container at TERM, and what it starts to clean
up must end in peace, or `podman run` waits for ever: so only what is inside, in a PID namespace of its own, gets TERM.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pilot.payload.container import INIT, ask, namespace_ids
from plugins.containers._engine import Engine


class Podman(Engine):
    """Podman >= 4: a reference in a registry, or a directory with a root file system."""

    name = "podman"
    programs = ("podman",)
    own_group = True
    at_once = ("--time=0",)
    init = INIT

    async def user(self) -> str:
        """Root, who is the pilot's user outside; with `--userns=keep-id` of a queue that one has its own number."""
        kept = any("keep-id" in word for word in self.order.options)
        return f"{os.geteuid()}:{os.getegid()}" if kept else "0:0"

    async def own_options(self) -> list[str]:
        """The payload writes its output files itself, and podman keeps no copy; login, GPUs, memory."""
        order = self.order
        file = self.auth_file
        return [
            *("--log-driver=passthrough", "--sig-proxy=false"),
            *(["--authfile", str(file)] if file else []),
            *(["--device", "nvidia.com/gpu=all"] if order.gpu else []),
            *(["--memory", f"{order.memory_kb}k"] if order.memory_kb and await self._can_limit() else []),
        ]

    def local_image(self, path: str) -> list[str]:
        """A root file system; what is written to it goes to a layer of the container."""
        return ["--rootfs", f"{path}:O"]

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """`podman run`, the monitor, and what that starts to clean up: all that is not inside."""
        return {pid, *(member for member in members if len(namespace_ids(member)) < 2)}

    async def signal(self, signum: int) -> None:
        """Not needed: the processes inside are below the pilot."""

    async def _can_limit(self) -> bool:
        """Rootless and with version 1 of control groups it cannot, and says so with each run."""
        if os.geteuid() == 0:
            return True
        words = [self.program, "info", "--format", "{{.Host.CgroupsVersion}}"]
        return await ask(words, self.order.client) == (0, "v2")
