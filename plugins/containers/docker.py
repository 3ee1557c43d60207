"""Docker. What runs in it belongs to the daemon, so the pilot reaches it by the container's id alone."""

from __future__ import annotations

from collections.abc import Iterable

from plugins.containers._engine import Engine


class Docker(Engine):
    """Docker: a reference in a registry."""

    name = "docker"
    programs = ("docker",)
    own_group = True

    async def own_options(self) -> list[str]:
        """No copy of the output, GPUs, memory."""
        order = self.order
        return [
            "--log-driver=none",
            *(["--gpus", "all"] if order.gpu else []),
            *(["--memory", f"{order.memory_kb}k"] if order.memory_kb else []),
        ]

    def login_environment(self) -> dict[str, str]:
        """Docker reads logins from a directory."""
        file = self.auth_file
        return {"DOCKER_CONFIG": str(file.parent)} if file else {}

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """All: the daemon passes the signal on, see `signal`."""
        return {pid, *members}
