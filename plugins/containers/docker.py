"""Docker. What runs in it belongs to the daemon, so the pilot ends it by the container's id alone.

It sees the processes where the daemon is on this node, and they are measured and told of the end of the slot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pilot.payload.container import namespace_ids
from pilot.processes import descendants
from plugins.containers._engine import Engine


class Docker(Engine):
    """Docker: a reference in a registry."""

    name = "docker"
    programs = ("docker",)
    own_group = True

    _first = 0
    _pipe: tuple[int, ...] = ()

    async def user(self) -> str:
        """The pilot's, unless the daemon is rootless: there it is root inside, as with podman."""
        if os.geteuid() and "name=rootless" not in (await self.ask("info", "--format", "{{.SecurityOptions}}"))[1]:
            return f"{os.geteuid()}:{os.getegid()}"
        return "0:0"

    async def own_options(self) -> list[str]:
        """No copy of the output, an input that ends, GPUs, memory, home."""
        order = self.order
        return [
            *("--log-driver=none", "--interactive"),
            *(["--gpus", "all"] if order.gpu else []),
            *(["--memory", f"{order.memory_kb}k"] if order.memory_kb else []),
            # Who is not in the image's list of users has `/` as home, and may not write there.
            *(["--env", f"HOME={order.workdir}"] if os.geteuid() and "HOME" not in order.inside else []),
        ]

    def login_environment(self) -> dict[str, str]:
        """Docker reads logins from a directory."""
        file = self.auth_file
        return {"DOCKER_CONFIG": str(file.parent)} if file else {}

    def stdin(self) -> int:
        """A pipe that ends when the pilot does: the container goes with it, see `FORWARDING_INIT`."""
        self._pipe = self._pipe or os.pipe()
        return self._pipe[0]

    async def close(self) -> None:
        """Remove our container, and nothing else; the end of its input ends it if the daemon does not answer."""
        pipe, self._pipe = self._pipe, ()
        for end in pipe:
            os.close(end)
        await super().close()

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """All: the daemon passes the signal on, see `signal`."""
        return {pid, *members}

    def inside(self) -> list[int]:
        """All below the first process of the container, which is looked for until it is found."""
        mark = self.id
        if mark and not _is_first(self._first, mark):
            self._first = next((int(name) for name in os.listdir("/proc") if _is_first(name, mark)), 0)
        return descendants([self._first])[1:] if mark and self._first else []


def _is_first(pid: int | str, mark: str) -> bool:
    """Whether it is in a control group of the container, and the first of a PID namespace below ours."""
    try:
        return mark in Path(f"/proc/{pid}/cgroup").read_text() and namespace_ids(pid)[1:][-1:] == ["1"]
    except OSError:  # it has ended, or is none
        return False
