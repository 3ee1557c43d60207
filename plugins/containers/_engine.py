"""What podman and docker have in common: `run` with an id file, and everything else by that id."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pilot.errors import Code, PilotError
from pilot.payload.container import FORWARDING_INIT, Container, Mount, ask, checked_image, grid_image
from plugins.containers._registry import write_auth_file

#: Seconds for short commands of the runtime, such as removing a container.
_PATIENCE = 20.0

_ID = re.compile(r"[0-9a-f]{12,64}")


class Engine(Container):
    """Base of podman and docker."""

    #: Options of `rm --force` without which it has patience with what is inside.
    at_once: ClassVar[tuple[str, ...]] = ()
    #: The first process of the container.
    init: ClassVar[str] = FORWARDING_INIT

    @property
    def id(self) -> str:
        """The id of the container; empty before there is one."""
        try:
            text = self._id_file.read_text().strip()
        except OSError:
            return ""
        return text if _ID.fullmatch(text) else ""

    async def command(self) -> Sequence[str]:
        """`run`: variables by name alone, their values taken from the environment of the program."""
        order = self.order
        image = self._image()
        self.write_script()
        self._id_file.unlink(missing_ok=True)
        inside = order.inside
        self.environment = {**inside, **order.client} | self.login_environment()
        direct = {name: value for name, value in inside.items() if name in order.client}  # as TMPDIR: it has its own
        variables = (f"{name}={direct[name]}" if name in direct else name for name in inside)
        mounts = [Mount(order.workdir, read_only=False), *order.mounts]
        return [
            *(self.program, "run", "--cidfile", str(self._id_file), "--network=host", "--entrypoint="),
            *("--security-opt", "label=disable", "--workdir", str(order.workdir), "--user", await self.user()),
            *(word for variable in variables for word in ("--env", variable)),
            *(word for mount in mounts for word in ("--mount", _mount(mount))),
            *(await self.own_options()),
            *(order.options or self.default_options),
            *image,
            *self.inner_command(self.init),
        ]

    async def user(self) -> str:
        """Who is inside, whatever user the image has: whom the job directory belongs to."""
        return "0:0"

    async def own_options(self) -> list[str]:
        """Options of this runtime."""
        return []

    def login_environment(self) -> dict[str, str]:
        """Variables that tell the program where the logins are, if there are some."""
        return {}

    def local_image(self, path: str) -> list[str]:
        """The words for an image that is a path; `run` of this runtime has none for one."""
        raise PilotError(Code.IMAGENOTFOUND, f"{self.name} cannot run {path!r}: it is no name of an image")

    async def signal(self, signum: int) -> None:
        """To the first process of our container, and to no other."""
        if self.id:
            await self.ask("kill", "--signal", str(signum), self.id)

    async def close(self) -> None:
        """Remove our container with the volumes that were made for it, and nothing else."""
        if self.id:
            await self.ask("rm", "--force", "--volumes", *self.at_once, self.id)
            self._id_file.unlink(missing_ok=True)

    async def out_of_memory(self) -> bool:
        """What the runtime knows; podman with runc and version 1 of control groups never says so."""
        if not self.id:
            return False
        status, text = await self.ask("inspect", "--type", "container", "--format", "{{.State.OOMKilled}}", self.id)
        return status == 0 and text == "true"

    @property
    def mark(self) -> str:
        """Its id is in the path of its control groups, whoever makes them."""
        return self.id

    async def ask(self, *words: str) -> tuple[int, str]:
        """A short command of the runtime."""
        return await ask([self.program, *words], self.order.client, _PATIENCE)

    @property
    def auth_file(self) -> Path | None:
        """The file with the logins, made anew."""
        return write_auth_file(self.order.private, self.order.logins)

    @property
    def _id_file(self) -> Path:
        return self.order.private / "container.id"

    def _image(self) -> list[str]:
        order = self.order
        image = order.image or grid_image(order.job.platform or order.job.user_platform, order.cvmfs)
        image = checked_image(image.removeprefix("docker://"))
        if image.startswith("/"):
            return self.local_image(image)
        if "://" in image:
            raise PilotError(Code.IMAGENOTFOUND, f"{self.name} cannot run {image!r}")
        return [image]


def _mount(mount: Mount) -> str:
    """The value of `--mount`, in which a comma ends a field."""
    path = os.fspath(mount.path)
    if any(character in path for character in ',"\n'):
        raise PilotError(Code.SINGULARITYBINDPOINTFAILURE, f"{path!r} cannot be mounted: its name")
    words = ["type=bind", f"source={path}", f"destination={path}", *(["readonly"] if mount.read_only else [])]
    return ",".join(words)
