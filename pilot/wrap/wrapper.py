"""One wrapper, from the command line to the exit status that factories know (PILOT3 9.1).

node told -> work directory -> queue: a container around us? -> set-up files -> doctor -> pilot under supervision
"""

from __future__ import annotations

import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.batch import BATCH_SYSTEMS
from pilot.doctor.check import Level, Patient
from pilot.doctor.examine import examine, worst
from pilot.errors import Code
from pilot.masking import Masker
from pilot.queuedata import Queue
from pilot.settings import Settings, SettingsError
from pilot.slotend import slurm_end
from pilot.version import __version__
from pilot.wrap.factory import Factory
from pilot.wrap.options import WrapOptions
from pilot.wrap.setup import (
    SetupError,
    after_sourcing,
    atlas_variables,
    queue_variables,
    shown,
    site_files,
    with_whole_paths,
)
from pilot.wrap.supervise import StoppedError, Supervisor, put

#: What Harvester makes of our exit status: a fault of the wrapper, a stuck pilot, missing software.
FAULT, STUCK, SOFTWARE = 1, 2, 64
#: Seconds that a bad node waits, drawn at random, before it ends and the batch system may send the next pilot to it.
BACK_OFF = (300.0, 900.0)
#: Variables that a container around us keeps; all others are the image's.
_KEPT = (
    *("APFCID", "APFFID", "APFMON_UDP", "GRID_GLOBAL_JOBHOST", "SCHEDD_NAME", "HARVESTER_ID", "HARVESTER_WORKER_ID"),
    *("OIDC_AUTH_ORIGIN", "OIDC_AUTH_TOKEN", "PANDA_AUTH_DIR"),
    *("PANDA_AUTH_ORIGIN", "PANDA_AUTH_TOKEN", "PANDA_AUTH_TOKEN_KEY", "X509_USER_PROXY", "ATLAS_LOCAL_AREA", "TMPDIR"),
    *("RECOVERY_DIR", "GTAG", "PANDA_JSID", "PILOT_WRAPPER", "HARVESTER_PILOT_CONFIG", "PANDA_HOSTNAME"),
    *("_CONDOR_JOB_AD", "_CONDOR_MACHINE_AD", "CONDOR_MACHINE_AD", "_CONDOR_SCRATCH_DIR", "_CONDOR_SLOT"),
    *("_CONDOR_CHIRP_CONFIG", "_CONDOR_LIBEXEC", "SLURM_CONF", "SLURM_JOB_END_TIME", "SLURM_NODEID"),
    *("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_ACCTG_FREQ"),
    *("MACHINEFEATURES", "JOBFEATURES", *BATCH_SYSTEMS),
)
#: Those of them that name a file which the pilot reads.
_KEPT_FILES = ("_CONDOR_JOB_AD", "_CONDOR_MACHINE_AD", "CONDOR_MACHINE_AD", "_CONDOR_CHIRP_CONFIG", "SLURM_CONF")
#: Pandaids that are told at the end.
_IDS = 30


def remove_scratch(scratch: Path, launch_dir: Path) -> None:
    """Remove what the script made for us by `mktemp`; not where we were started, nor what a person calls scratch."""
    if re.fullmatch(r"pilot_\w{8}", scratch.name) and scratch.resolve() != launch_dir:
        shutil.rmtree(scratch, ignore_errors=True)


class Wrapper:
    """Runs a pilot.

    Args:
        options: what it was told.
        environ: the node's environment.
        program: the command that starts the pilot.
    """

    def __init__(self, options: WrapOptions, environ: Mapping[str, str], program: Sequence[str]) -> None:
        self._options = options
        self._environ = {**environ, "ATLAS_SW_BASE": options.cvmfs}
        self._program = list(program)
        self._launch_dir = Path.cwd()
        self._started = time.monotonic()
        self._factory = Factory(environ, options.queue, f"pilot-{__version__}", options.mute)
        self._supervisor = Supervisor(self._say)

    def run(self) -> int:
        """Do all of it; the exit status."""
        try:
            self._supervisor.listen()
            self._factory.running()
            status = self._run()
        except StoppedError as signal_name:
            self._say(f"stopped by {signal_name} before the pilot began")
            status = FAULT
        except (SetupError, SettingsError, OSError) as error:
            self._say(f"FATAL: {error}")
            status = FAULT
        finally:
            self._supervisor.rest()
            if self._options.scratch:
                remove_scratch(self._options.scratch, self._launch_dir)
        self._factory.ended(status, time.monotonic() - self._started)
        self._say(f"wrapper ends with status {status}")
        return status

    def _run(self) -> int:
        self._tell_node()
        settings = Settings.load(list(self._options.pilot), self._environ, prog="pilot wrap")
        workdir = self._enter_workdir()
        queue = self._queue(settings)
        if queue and queue.container_type.get("wrapper") and not self._in_container():
            return self._again_in_container(queue, workdir)
        self._set_up(queue, settings.pilot_user)
        if (status := self._examine(settings, workdir)) is not None:
            return status
        return self._verdict(self._run_pilot(settings, workdir), queue, workdir)

    # ------------------------------------------------------------------------------------------------------------ node

    def _tell_node(self) -> None:
        self._say(f"pilot wrapper {__version__}, Python {platform.python_version()} at {sys.executable}")
        self._say(f"node {platform.node()}, {platform.platform()}, user {os.getuid()}, in {self._launch_dir}")
        self._say(f"called with {Masker().mask(shlex.join(self._options.words))}")
        self._print("---- environment ----", *shown(self._environ), "---------------------")

    def _enter_workdir(self) -> Path:
        """The directory of the pilot, with what it needs from the one we were started in."""
        options = self._options
        workdir = options.scratch or self._launch_dir
        if options.workflow == "OneToMany" and self._environ.get(options.harvester):
            workdir = self._launch_dir / f"atlas_{Path(self._environ[options.harvester]).name}"
            (workdir / "pilot3").mkdir(parents=True, exist_ok=True)  # for `pandaIDs.out`
        if workdir != self._launch_dir and (self._launch_dir / "pandaJobData.out").is_file():
            shutil.copy2(self._launch_dir / "pandaJobData.out", workdir)
        self._environ = with_whole_paths(self._environ, self._launch_dir)
        if options.harvester or options.workflow:
            self._environ["HARVESTER_PILOT_WORKDIR"] = str(workdir)
            self._link_inputs(workdir)
        return workdir

    def _link_inputs(self, workdir: Path) -> None:
        """Inputs that Harvester has brought are links in its work directory."""
        folder = self._environ.get("HARVESTER_WORKDIR", "")
        links = [path for path in Path(folder).iterdir() if path.is_symlink()] if folder else []
        for link in links:
            if not (workdir / link.name).exists():
                (workdir / link.name).symlink_to(link.resolve())

    # ---------------------------------------------------------------------------------------------------- queue, set-up

    def _queue(self, settings: Settings) -> Queue | None:
        info = Patient(settings=settings, environ=self._environ).known_queue()
        if info is None:
            self._say(f"queue {self._options.queue} cannot be read now; the pilot will say why")
        return info.queue if info else None

    def _in_container(self) -> bool:
        names = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "SINGULARITY_ENVIRONMENT")
        return self._options.container or any(self._environ.get(name) for name in names)

    def _again_in_container(self, queue: Queue, workdir: Path) -> int:
        """The queue wants the whole wrapper in a container (`singularity:wrapper`): start there again."""
        cvmfs = self._options.cvmfs
        software = f"{cvmfs}/atlas.cern.ch/repo/containers"
        machine = platform.machine()
        image = self._options.image or f"{software}/fs/singularity/{machine}-almalinux9"
        carried = f"{software}/sw/apptainer/{machine}-el9/current/bin/apptainer"
        runtime = shutil.which("apptainer") or shutil.which("singularity") or carried
        files = (self._environ.get(name, "") for name in _KEPT_FILES)
        places = dict.fromkeys((str(self._launch_dir), str(workdir), *filter(os.path.isfile, files)))
        binds = [f"--bind={cvmfs}:/cvmfs"] if os.path.isdir(cvmfs) else []
        binds += [f"--bind={path}" for path in places]
        command = [runtime, "exec", *shlex.split(queue.container_options), *binds, "--cleanenv", f"--pwd={workdir}"]
        inner = [*self._options.words, "--mute", f"--scratch={workdir}", "--cvmfsbase", "/cvmfs"]
        if script := self._environ.get("PILOT_WRAPPER"):  # finds a Python of the image
            program = ["/bin/bash", script, *inner, "--piloturl", "local", "--pilotsha256", ""]
        else:
            program = ["python3", *self._program[1:], "wrap", *inner]
        for end in slurm_end(self._environ):  # there is no `squeue` inside
            self._environ["SLURM_JOB_END_TIME"] = f"{end.time:.0f}"
        kept = {f"APPTAINERENV_{name}": self._environ[name] for name in _KEPT if name in self._environ}
        self._say(f"the queue wants a container around the pilot: {image}")
        return self._supervisor.run([*command, image, *program], {**self._environ, **kept}, workdir)

    def _set_up(self, queue: Queue | None, experiment: str) -> None:
        if queue:
            self._environ |= queue_variables(queue.environ, self._environ)
        if experiment == "atlas" and not self._options.container:
            options = self._options
            self._environ |= atlas_variables(self._environ, options.cvmfs, options.version_tag)
            for path, arguments in site_files(self._environ, options.queue, options.version_tag):
                self._source(path, arguments, needed=False, before=self._alrb() if arguments else "")
        for path in self._options.setup:
            self._source(path, [], needed=True)
        if self._options.shoal:
            self._ask_shoal()

    def _alrb(self) -> str:
        """The file that makes ALRB's functions, empty if they are not wanted or not there."""
        path = f"{self._environ.get('ATLAS_LOCAL_ROOT_BASE')}/user/atlasLocalSetup.sh"
        unwanted = self._options.localpy or self._environ.get("ATLAS_LOCAL_PYTHON") == "true"
        return path if not unwanted and os.path.isfile(path) else ""

    def _source(self, path: str, arguments: list[str], *, needed: bool, before: str = "") -> None:
        self._say(f"sourcing {shlex.join([path, *arguments])}")
        try:
            self._environ = after_sourcing(path, arguments, self._environ, strict=needed, before=before)
        except SetupError as error:
            if needed:
                raise
            self._say(f"WARNING: {error}")

    def _ask_shoal(self) -> None:
        try:
            done = subprocess.run(["shoal-client", "-f"], capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            self._say(f"WARNING: shoal-client: {error}")
        else:
            self._environ["FRONTIER_SERVER"] = done.stdout.strip() or self._environ.get("FRONTIER_SERVER", "")

    # ----------------------------------------------------------------------------------------------------------- pilot

    def _examine(self, settings: Settings, workdir: Path) -> int | None:
        """None for a node that is fit. A bad one waits, so that it does not take one pilot after the other."""
        if not self._options.doctor:
            return None
        lines = examine(Patient(settings=settings, environ=self._environ, launch_dir=workdir))
        self._print(*map(str, lines))
        if worst(lines) is not Level.FAILURE:
            return None
        seconds = random.uniform(*BACK_OFF)
        self._say(f"this node is not fit for jobs: waiting {seconds:.0f} s, so that others take them")
        self._supervisor.check()
        threading.Event().wait(seconds)  # a signal ends it: `StoppedError`
        bad = {line.name for line in lines if line.level is Level.FAILURE}
        return SOFTWARE if "cvmfs" in bad else FAULT

    def _run_pilot(self, settings: Settings, workdir: Path) -> int:
        words = list(self._options.pilot)
        top = workdir / settings.workdir if settings.workdir else None

        def log(pid: int) -> Path:
            """Where the pilot writes by now: with a work directory it makes one of its own there."""
            made = sorted(top.glob(f"PanDA_Pilot3_{pid}_*/pilotlog.txt")) if top else []
            return made[0] if made else workdir / "pilotlog.txt"

        copy = workdir / "worker.log" if self._options.ship_log else None
        self._say("==== pilot begins ====")
        status = self._supervisor.run(
            [*self._program, *words],
            self._environ,
            workdir,
            log=log,
            stuck_after=0.0 if settings.nopilotlog else self._options.stuck_after,
            copy=copy,
            beside=(lambda pid: self._ship(copy, pid)) if copy else None,
        )
        self._say(f"==== pilot ended with status {status} ====")
        return status

    def _ship(self, log: Path, pid: int) -> subprocess.Popen[bytes]:
        """Send the whole worker's log to its readers while the pilot runs (docs/live-logs.md)."""
        options = self._options
        command = [*self._program, "logship", str(log), f"--pid={pid}", f"--queue={options.queue}"]
        command += [f"--server={options.ship_log}"]
        command += [f"--upload={options.ship_upload}"] if options.ship_upload else []
        return subprocess.Popen(command, env=self._environ, stdin=subprocess.DEVNULL)

    def _verdict(self, status: int, queue: Queue | None, workdir: Path) -> int:
        self._tell_jobs(workdir)
        if self._supervisor.was_stuck or status == Code.SIGINT.exit_code:
            return STUCK
        if status in (Code.SIGTERM.exit_code, Code.KILLSIGNAL.exit_code):
            return FAULT  # the batch system ended it
        if status == Code.NOJOBSINPANDA.exit_code:
            return status if queue and queue.resource_type == "hpc_special" else 0
        return status

    def _tell_jobs(self, workdir: Path) -> None:
        try:
            ids = (workdir / "pilot3" / "pandaIDs.out").read_text().split()
        except OSError:
            ids = []
        self._say(f"pandaids: {' '.join(ids[:_IDS])}" if ids else "no payload")

    def _say(self, text: str) -> None:
        self._print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} [wrapper] {text}")

    def _print(self, *lines: str) -> None:
        put("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
