"""ATLASLocalRootBase: the script of ATLAS that finds the image of a platform and starts Apptainer (PILOT3 5.2).

It makes the job directory /srv, sources the set-up of the release there, and runs the script of the payload.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from pilot.payload.container import SCRIPT, Container, write_file

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

#: Where the payload may write temporary files (PILOT3 5.2).
_TEMPORARY = ("export TMPDIR=/srv", "export GFORTRAN_TMPDIR=/srv")


class Alrb(Container):
    """ATLAS' own wrapper: an image as Apptainer has it, or a platform."""

    name = "alrb"
    default_options = ("-c", "-i")

    async def command(self) -> Sequence[str]:
        """Shell text that sources ALRB; what comes from outside is a quoted word of it."""
        order = self.order
        self.write_script(*_TEMPORARY, text=self._payload())
        write_file(order.workdir / SETUP, f"{_HEAD}{order.setup}\n{_TAIL}" if order.setup else _HEAD + _TAIL, 0o755)
        self.environment = {**order.environment, **self._environment()}
        return ["/bin/bash", "-c", self._text()]

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """The shell that sources ALRB."""
        return {pid}

    def _payload(self) -> str:
        """After a preprocess a container job runs what its options name (PILOT3 5.2)."""
        job = self.order.job
        return (job.container_options.get("containerExec", "") if job.preprocess else "") or self.order.text

    def _text(self) -> str:
        order, job = self.order, self.order.job
        options = shlex.join(order.options or self.default_options)
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
        return job.user_platform or inner or order.image or job.platform

    def _environment(self) -> dict[str, str]:
        """Unpacked images and registry logins, where ALRB and the Apptainer that it starts look for them."""
        order = self.order
        base = order.environ.get("IMAGE_BASE") or order.queue.catchall_value("IMAGE_BASE")
        found = {"ALRB_CONT_UNPACKEDDIR": base} if base else {}
        for login in order.logins[:1]:
            for prefix in ("APPTAINER", "SINGULARITY"):
                found |= {
                    f"{prefix}_DOCKER_USERNAME": login.user,
                    f"{prefix}_DOCKER_PASSWORD": login.token.reveal(),
                }
        inside = {name: value for name, value in order.inside.items() if name != "TMPDIR"}
        return found | {f"APPTAINERENV_{name}": value for name, value in inside.items()}
