"""Apptainer, or Singularity where only that is installed.

The payload has a PID namespace of its own (`--pid`): when Apptainer's process is killed, the kernel ends all that is
inside. Without it they live on (measured with 1.4.5). Apptainer makes no control groups, so the payload stays in ours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.payload.container import Container, Mount, checked_image, grid_image, namespace_ids
from pilot.processes import children
from plugins.containers._registry import write_auth_file


class Apptainer(Container):
    """Apptainer and Singularity: an image file, a directory, or a reference such as docker://host/name:tag."""

    name = "apptainer"
    programs = ("apptainer", "singularity")
    missing = Code.APPTAINERNOTINSTALLED
    # A /tmp, a home and IPC of its own: what ALRB asks for where the queue says nothing (PILOT3 5.2).
    default_options = ("-c", "-i")

    async def command(self) -> Sequence[str]:
        """`apptainer exec`, the environment by variables of its own: no option of a queue takes those away."""
        order = self.order
        image = self._image()
        self.write_script()
        prefix = "APPTAINER" if self._is_apptainer else "SINGULARITY"
        inside = {f"{prefix}ENV_{name}": value for name, value in order.inside.items()}
        self.environment = order.client | inside | {f"{prefix}_NO_EVAL": "1"}  # else a shell reads the values inside
        login = self._login()
        mounts = [Mount(order.workdir, read_only=False), *order.mounts]
        pid = [] if "--no-pid" in order.options else ["--pid"]  # in a pod nobody may mount a /proc for a namespace
        return [
            *(self.program, "exec", *pid, "--cleanenv", *login, *(["--nv"] if order.gpu else [])),
            *(word for mount in mounts for word in ("--mount", _mount(mount))),
            *("--pwd", str(order.workdir), *(order.options or self.default_options)),
            *(image, *self.inner_command()),
        ]

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """Apptainer's process and its init, the first in the namespace: both pass TERM on, to a payload that had it."""
        return {pid, *(member for member in members if _is_init_below(member, pid))}

    @property
    def _is_apptainer(self) -> bool:
        return Path(self.program).name != "singularity"

    def _image(self) -> str:
        order = self.order
        image = checked_image(order.image or grid_image(order.job.platform or order.job.user_platform, order.cvmfs))
        return image if image.startswith("/") or "://" in image else f"docker://{image}"

    def _login(self) -> list[str]:
        """An option for the file with logins (Apptainer since 1.3); older programs know variables only, for one."""
        if self._is_apptainer:
            file = write_auth_file(self.order.private, self.order.logins)
            return ["--authfile", str(file)] if file else []
        for login in self.order.logins[:1]:
            self.environment |= {
                "SINGULARITY_DOCKER_USERNAME": login.user,
                "SINGULARITY_DOCKER_PASSWORD": login.token.reveal(),
            }
        return []


def _mount(mount: Mount) -> str:
    """The value of `--mount`: fields of CSV, so that a path may have any character."""
    if '"' in str(mount.path) or "\n" in str(mount.path):
        raise PilotError(Code.SINGULARITYBINDPOINTFAILURE, f"{str(mount.path)!r} cannot be mounted: its name")
    line = io.StringIO()
    fields = ["type=bind", f"source={mount.path}", f"destination={mount.path}", *(["ro"] if mount.read_only else [])]
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def _is_init_below(pid: int, parent: int) -> bool:
    """Whether a process is a child of another, and the first of a PID namespace."""
    ids = namespace_ids(pid)
    return len(ids) > 1 and ids[-1] == "1" and pid in children(parent)
