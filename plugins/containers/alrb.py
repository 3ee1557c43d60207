"""ATLASLocalRootBase: the script of ATLAS that finds the image of a platform and starts Apptainer (PILOT3 5.2).

It makes the job directory /srv, sources the set-up of the release there, and runs the script of the payload. It is
shell script that evaluates its words anew, and that has a shell of its own around apptainer and another inside.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from pilot.errors import Code, PilotError
from pilot.payload.container import SCRIPT, STARTED, Container, Mount, write_file
from pilot.processes import ancestors

#: Set-up of the release, sourced inside before the payload.
SETUP = "my_release_setup.sh"
#: Where ALRB is, below CVMFS.
PLACE = "atlas.cern.ch/repo/ATLASLocalRootBase"

_HEAD = (
    f'echo "INFO: sourcing /srv/{SETUP} inside the container. '
    'This should not run if it is a ATLAS standalone container"\n'
)
_TAIL = """\
retCode=$?
date +"%H:%M:%S %Y/%m/%d"
if [ $? -ne 0 ]; then
    retCode=$?
fi
return $retCode
"""

#: Before the payload: ALRB goes where `--pwd` of a queue says, but the mark is wanted in the job directory; the shell
#: waits for what it runs, since ALRB ends the container with it; where temporary files go (PILOT3 5.2).
_BEFORE = (f"cd /srv && : > {STARTED}", "trap 'exit $?' TERM", "export TMPDIR=/srv", "export GFORTRAN_TMPDIR=/srv")

#: Names of images and platforms that mean the same to a shell that reads them twice.
_NAME = re.compile(r"[\w./:@+=,%^-]*", re.ASCII)
#: What ALRB finds out on a node, which is not so inside; there it does so again, and passes on what it wants to.
_NODE = re.compile(r"TMPDIR|ATLAS_(LOCAL_.*|SW_BASE)|ALRB_(?!XCACHE_).*")
#: Options that bring the GPUs in.
_GPU = {"--nv", "--nvccli", "--rocm"}


class Alrb(Container):
    """ATLAS' own wrapper: an image as Apptainer has it, or a platform."""

    name = "alrb"
    default_options = ("-c", "-i")
    _around: Set[int] = frozenset()

    async def command(self) -> Sequence[str]:
        """Shell text that sources ALRB; what comes from outside is a quoted word of it."""
        order = self.order
        self.write_script(*_BEFORE, text=self._payload())
        write_file(order.workdir / SETUP, f"{_HEAD}{order.setup}\n{_TAIL}" if order.setup else _HEAD + _TAIL, 0o755)
        self.environment = {**order.environment, **self._environment()}
        return ["/bin/bash", "-c", self._text()]

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """All that is around the payload's script: ALRB's shells out here, apptainer, ALRB's shell inside."""
        members = list(members)
        if not self._around and (script := next(filter(_runs_script, members), 0)):
            self._around = {*members} & {*ancestors(script)}
        return {pid, *self._around}

    def _payload(self) -> str:
        """After a preprocess a container job runs what its options name (PILOT3 5.2)."""
        job = self.order.job
        return (job.container_options.get("containerExec", "") if job.preprocess else "") or self.order.text

    def _text(self) -> str:
        order, job = self.order, self.order.job
        words = order.options or self.default_options
        options = shlex.join([*words, *(["--nv"] if order.gpu and _GPU.isdisjoint(words) else [])])
        root = shlex.quote(str(order.cvmfs / PLACE))
        local = "" if order.queue.is_cvmfs else " -d"
        platform = self._platform()
        choice = f' -c "$thePlatform"{local}' if platform else ""
        more = " ".join(shlex.quote(word) for word in shlex.split(job.container_options.get("execArgs", "")))
        return (
            f'if [ -z "$ATLAS_LOCAL_ROOT_BASE" ]; then export ATLAS_LOCAL_ROOT_BASE={root}; fi;'
            f"export thePlatform={shlex.quote(platform)};export PandaID={job.job_id};"
            f'source "${{ATLAS_LOCAL_ROOT_BASE}}/user/atlasLocalSetup.sh"{choice} -s /srv/{SETUP} -r /srv/{SCRIPT}'
            f" -e {shlex.quote(options)} {more}"
        ).rstrip()

    def _platform(self) -> str:
        order, job = self.order, self.order.job
        inner = job.container_options.get("containerImage", "") if job.preprocess else ""
        name = job.user_platform or inner or order.image or job.platform
        if not _NAME.fullmatch(name):
            raise PilotError(Code.IMAGENOTFOUND, f"{name!r} is no name that ALRB can be given")
        return name

    def _environment(self) -> dict[str, str]:
        """Unpacked images, registry logins, binds and variables for what ALRB starts, Apptainer or Singularity."""
        order = self.order
        base = order.environ.get("IMAGE_BASE") or order.queue.catchall_value("IMAGE_BASE")
        found = {"ALRB_CONT_UNPACKEDDIR": base} if base else {}
        inside = {name: value for name, value in order.inside.items() if not _NODE.fullmatch(name)}
        for prefix in ("APPTAINER", "SINGULARITY"):
            for login in order.logins[:1]:
                found |= {
                    f"{prefix}_DOCKER_USERNAME": login.user,
                    f"{prefix}_DOCKER_PASSWORD": login.token.reveal(),
                }
            found[f"{prefix}_NO_EVAL"] = "1"
            found[f"{prefix}_BINDPATH"] = self._binds(order.environment.get(f"{prefix}_BINDPATH", ""))
            found |= {f"{prefix}ENV_{name}": value for name, value in inside.items()}
        return found

    def _binds(self, known: str) -> str:
        """The job directory under its own name, too, and the mounts; ALRB itself mounts CVMFS."""
        order = self.order
        others = (mount for mount in order.mounts if mount.path != order.cvmfs)
        return ",".join(filter(None, [known, *map(_bind, [Mount(order.workdir, read_only=False), *others])]))


def _bind(mount: Mount) -> str:
    """An entry of `APPTAINER_BINDPATH`, where there is no way to quote."""
    path = str(mount.path)
    if re.search("[,:]", path):
        raise PilotError(Code.SINGULARITYBINDPOINTFAILURE, f"{path!r} cannot be mounted: its name")
    return f"{path}:{path}:ro" if mount.read_only else path


def _runs_script(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(f"\0/srv/{SCRIPT}\0".encode())
    except OSError:  # it has just ended
        return False
