"""Payloads in containers: what every runtime is told, and what a runtime must be able to answer.

A plug-in (kind `pilot.containers`) turns an order into the command that runs it. What runs inside is a script in the
job directory; nothing of a job is ever part of a command line but as one whole argument, and no secret is at all.

The script leaves a mark before anything else. So a payload that failed and a container that never came up are told
apart by a fact, whatever exit status a runtime chooses for its own troubles.
"""

from __future__ import annotations

import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from pilot.errors import DIAG_LIMIT, Code, PilotError
from pilot.job import Job
from pilot.masking import Secret
from pilot.processes import Spent
from pilot.queuedata import Queue
from pilot.stop import in_thread

#: What runs in the container, a script in the job directory.
SCRIPT = "container_script.sh"
#: Left in the job directory by a script that runs.
STARTED = ".container_started"

#: First process of ours in a container. When the first process of a PID namespace ends the kernel kills all others, and
#: a shell ends at TERM while its children still use their grace: so after a TERM this one stays until it is alone.
_INIT = """trap 'heard=x$heard' HUP INT QUIT ALRM USR1 USR2 XCPU; trap 'heard=x$heard; told=1; FORWARD' TERM
PAYLOAD
alone() { for place in /proc/[0-9]*; do case ${place#/proc/} in 1|$$|$watch|"[0-9]*") ;; *) return 1;; esac; done; }
while [ "$told" ] && ! alone; do sleep 0.1; done
exit $status"""
#: The pilot reaches what is inside itself.
INIT = _INIT.replace("FORWARD", ":").replace("PAYLOAD", '"$@"; status=$?')
#: Whoever runs the container tells its first process alone, which passes TERM on: to all that are inside, if it is the
#: first of a PID namespace. A shell has what it waits for so in the background, where INT and QUIT are ignored; `wait`
#: ends at a signal, too, and is to be repeated then. Nobody else is left to end a container whose pilot was killed, or
#: what runs it: so the end of its input is its own.
FORWARDING_INIT = _INIT.replace("FORWARD", "if [ $$ = 1 ]; then kill -TERM -1; else kill -TERM $child; fi").replace(
    "PAYLOAD",
    """"$@" & child=$!
{ trap '' HUP ALRM TERM USR1 USR2 XCPU; while read -r line; do :; done; [ $$ = 1 ] && kill -KILL -1; } <&0 & watch=$!
while before=$heard; wait $child; status=$?; [ "$heard" != "$before" ]; do :; done""",
)

#: Where ATLAS keeps images of platforms, below CVMFS (PILOT3 5.2, raw mode).
_GRID_IMAGES = [f"atlas.cern.ch/repo/containers/images/{name}" for name in ("apptainer", "singularity")]
#: The architecture and the system in front of a platform: `x86_64-slc6` of `x86_64-slc6-gcc48-opt`.
_PLATFORM = re.compile(r"([A-Za-z0-9_-]+)-.+-.+")

#: An image in a registry: `[scheme://]host[:port]/path[:tag][@digest]`.
REFERENCE = re.compile(r"([a-z0-9-]+://)?[A-Za-z0-9][\w./:@+-]*", re.ASCII)


def _table(*rows: tuple[Code, str]) -> Sequence[tuple[Code, re.Pattern[str]]]:
    return [(code, re.compile(pattern)) for code, pattern in rows]


#: What a runtime or ALRB says when it cannot run a container, the most telling first: the table's texts (PILOT3 3),
#: then what newer runtimes say instead.
_TEXTS = _table(
    (Code.SINGULARITYNOTINSTALLED, r"Singularity is not installed"),
    (Code.APPTAINERNOTINSTALLED, r"Apptainer is not installed"),
    (
        Code.SINGULARITYFAILEDUSERNAMESPACE,
        r"(?i)failed to create user namespace|user namespaces? (is|are) disabled",
    ),
    (Code.SINGULARITYNEWUSERNAMESPACE, r"Failed invoking the NEWUSER namespace runtime"),
    (Code.SINGULARITYNOLOOPDEVICES, r"No more available loop devices"),
    (Code.SINGULARITYBINDPOINTFAILURE, r"Not mounting requested bind point"),
)
#: The same where only the runtime's own words count, since a payload may say this of something else.
_OWN_TEXTS = _table(
    (
        Code.SINGULARITYBINDPOINTFAILURE,
        r"mount source \S+ doesn't exist|statfs .*: no such file|bind source path does not exist",
    ),
    (Code.IMAGENOTFOUND, r"(?i)could not open image|image format not recognized|manifest unknown|image not known"),
    (
        Code.IMAGENOTFOUND,
        r"(?i)unable to handle \S+ uri|initializing source|pull access denied|failed to resolve reference"
        r"|from daemon: (get|head) \"https?://",
    ),
    (Code.SINGULARITYIMAGEMOUNTFAILURE, r"Failed to mount image|error: while mounting"),
    (Code.SINGULARITYRESOURCEUNAVAILABLE, r"Resource temporarily unavailable"),
    (Code.SINGULARITYGENERALFAILURE, r"Operation not permitted"),
)
#: Beginning of a line that a runtime wrote itself.
_OWN_LINE = re.compile(r"\s*(FATAL|ERROR|Error|docker|runc|crun)\s*:")
#: That of a line which docker writes behind an error of its options.
_HINT = re.compile(r"See '|Run '|Usage:")

#: kB that a runtime may need itself: those in Go have up to 40 MB.
_RUNTIME_PEAK = 64 << 10

#: Variables of the node that mean nothing inside: its search paths and directories. The image has its own.
_OUTSIDE = re.compile(
    r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|MANPATH|MODULEPATH|LOADEDMODULES|HOME|SHELL|HOSTNAME|TMPDIR|TMP|TEMP"
    r"|(LMOD|MODULES|CONDA|SPACK|APPTAINER|SINGULARITY)_.*"
)
#: Variables of the node that a runtime itself needs.
_CLIENT = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|TMPDIR|XDG_RUNTIME_DIR|DBUS_SESSION_BUS_ADDRESS|REGISTRY_AUTH_FILE"
    r"|(?i:https?_proxy|no_proxy)|SSL_CERT_(FILE|DIR)|(CONTAINERS?|STORAGE|DOCKER|APPTAINER|SINGULARITY)_.*"
)
#: Variables whose files and directories must be there inside, too.
_FILE_VARIABLES = (
    *("X509_USER_PROXY", "X509_CERT_DIR", "X509_VOMS_DIR", "BEARER_TOKEN_FILE"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory that is inside what it is outside, at the same path."""

    path: Path
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How to enter a registry; `registry` as `docker login` has it, such as `registry.cern.ch`."""

    registry: str
    user: str
    token: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to run in a container, and all that a runtime may want to know.

    Attributes:
        job, queue: whose it is. `platform` of the job counts where it names no image.
        image: path, directory or reference; empty if the job names a platform only.
        text: the shell text to run.
        workdir: the job directory; there and here at the same path, and where the text starts.
        private: a directory of the pilot that only its user may read, for what must not be in the job's.
        environment: of the text.
        environ: of the pilot.
        mounts: beside the job directory.
        options: of the queue for this runtime.
        gpu: whether it gets the GPUs of the node.
        memory_kb: the most it may use, 0 for no limit.
        cvmfs: where CVMFS is.
        logins: for the registries of images.
        setup: shell text that sets up the job's release inside, for a runtime that has a place for it.
    """

    job: Job
    queue: Queue
    image: str
    text: str
    workdir: Path
    private: Path
    environment: Mapping[str, str]
    environ: Mapping[str, str]
    mounts: tuple[Mount, ...] = ()
    options: tuple[str, ...] = ()
    gpu: bool = False
    memory_kb: int = 0
    cvmfs: Path = Path("/cvmfs")
    logins: tuple[Login, ...] = field(default=(), repr=False)
    setup: str = ""

    @property
    def inside(self) -> dict[str, str]:
        """The variables inside: without those that describe the node, unless the job itself asks for them."""
        built = {name: value for name, value in self.environment.items() if not _OUTSIDE.fullmatch(name)}
        return built | {"TMPDIR": str(self.workdir)} | dict(self.job.environment)

    @property
    def client(self) -> dict[str, str]:
        """The variables of the runtime itself."""
        return {name: value for name, value in self.environ.items() if _CLIENT.fullmatch(name)}


def without_runtime(spent: Spent) -> Spent:
    """What was used to run a container, where the largest process is not the runtime itself."""
    return spent if spent.max_rss > _RUNTIME_PEAK else replace(spent, max_rss=0)


class Container(ABC):
    """One container. The plug-in's class; made anew for each time that a payload is started.

    Attributes:
        name: of the plug-in, as `container_type` of a queue has it.
        programs: any of these can do it, the best first; empty if it needs none.
        missing: the error where none of them is.
        default_options: where the queue gives none.
        own_group: True if what runs in it is in control groups of the runtime, not in the pilot's for the payload.
        argv, environment: of the command that runs it, after `prepare`.
    """

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    missing: ClassVar[Code] = Code.SINGULARITYGENERALFAILURE
    default_options: ClassVar[tuple[str, ...]] = ()
    own_group: ClassVar[bool] = False

    def __init__(self, order: Order, program: str) -> None:
        self.order = order
        self.program = program
        self.argv: Sequence[str] = ()
        self.environment: dict[str, str] = {}

    async def prepare(self) -> None:
        """Make it ready to be started: `argv` and `environment` are those of the command then.

        Raises:
            PilotError: why it cannot run.
        """
        self.argv = await self.command()

    @abstractmethod
    async def command(self) -> Sequence[str]:
        """Make everything ready, and return the command that runs it; sets `environment`, too.

        Raises:
            PilotError: why it cannot run.
        """

    # The seven below are answers that most need not give another of.

    def stdin(self) -> int:
        """What its command reads."""
        return subprocess.DEVNULL

    def spared(self, pid: int, members: Iterable[int]) -> set[int]:
        """Which of the processes get no TERM: the runtime's own, which must outlive the payload to see its end.

        Args:
            pid: the process of the command.
            members: it, and all that belong to it.
        """
        return set()

    def inside(self) -> list[int]:
        """Processes of the payload that do not descend from the pilot, as far as they can be seen."""
        return []

    async def signal(self, signum: int) -> None:  # noqa: B027
        """Send a signal to processes inside that the pilot cannot reach itself."""

    async def close(self) -> None:  # noqa: B027
        """Leave nothing of it; the processes that can be reached have ended. May be called again."""

    async def out_of_memory(self) -> bool:
        """Whether the runtime says that the kernel killed it for want of memory; asked before `close`."""
        return False

    @property
    def mark(self) -> str:
        """What the kernel's names of its control groups contain; empty if it has none of its own."""
        return ""

    @property
    def started(self) -> bool:
        """Whether the text has begun to run."""
        return os.path.lexists(self.order.workdir / STARTED)

    def failure(self, status: int, stderr: str) -> PilotError:
        """Why a container ended whose text never began."""
        return runtime_failure(self.name, status, stderr)

    @staticmethod
    def inner_command(init: str = INIT) -> list[str]:
        """What a container with a PID namespace runs; see `INIT`."""
        return ["/bin/bash", "-c", init, "init", "/bin/bash", f"./{SCRIPT}"]

    def write_script(self, *before: str, text: str = "") -> None:
        """Write the script: the mark, lines `before`, the order's text or another.

        Raises:
            PilotError: SETUPFAILURE.
        """
        (self.order.workdir / STARTED).unlink(missing_ok=True)
        # A soft stop tells all that are inside. This shell, which the payload knows nothing of, is not to die of it.
        lines = ["#!/bin/bash", f": > {STARTED}", "trap : USR1 USR2", *before, text or self.order.text]
        write_file(self.order.workdir / SCRIPT, "\n".join(lines) + "\n", 0o755)


def write_file(path: Path, text: str, mode: int) -> None:
    """A new file in place of whatever has its name: what a link leads to is not touched.

    Raises:
        PilotError: SETUPFAILURE.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(os.fsencode(text))
        new.chmod(mode)
        new.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        raise PilotError(Code.SETUPFAILURE, f"{path.name}: {error}") from error


def runtime_failure(name: str, status: int, stderr: str) -> PilotError:
    """The error for what a runtime says on stderr: its code, and its telling line."""
    lines = [line for line in stderr.splitlines() if line.strip() and not _HINT.match(line)]
    own = [line for line in lines if _OWN_LINE.match(line)]
    for texts, places in ((_TEXTS, lines), (_OWN_TEXTS, own)):
        for code, pattern in texts:
            if found := next((line for line in places if pattern.search(line)), ""):
                return _failure(code, name, status, found)
    return _failure(Code.SINGULARITYGENERALFAILURE, name, status, next(iter(own[::-1] or lines[::-1]), ""))


def _failure(code: Code, name: str, status: int, line: str) -> PilotError:
    text = " ".join(line.split())[:DIAG_LIMIT] or f"exit status {status}"
    return PilotError(code, f"{name}: {text}")


def swallowed_failure(name: str, stderr: str) -> PilotError | None:
    """The error in what a container said that ended well, for all that: ALRB hides its status (PILOT3 3)."""
    for line in stderr.splitlines():
        code = next((code for code, pattern in _TEXTS if pattern.search(line)), None)
        if code is None and _OWN_LINE.match(line):
            code = next((code for code, pattern in _OWN_TEXTS if pattern.search(line)), None)
        if code is not None:
            return _failure(code, name, 0, line)
    return None


def namespace_ids(pid: int | str) -> list[str]:
    """The ids of a process in our PID namespace and in each below it that it is in (`NSpid` of proc(5)); or none."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:  # it has just ended
        return []
    found = re.search(r"^NSpid:(.*)$", text, re.MULTILINE)
    return found[1].split() if found else []


async def ask(argv: Sequence[str], environment: Mapping[str, str], timeout: float = 20.0) -> tuple[int, str]:
    """Exit status and stdout of a short command of a runtime; -1 and what is wrong if it does not answer."""
    run = partial(subprocess.run, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    try:
        done = await in_thread(partial(run, text=True, errors="replace", check=False), list(argv))
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout.strip() if done.returncode == 0 else done.stderr.strip()


def grid_image(platform: str, cvmfs: Path) -> str:
    """The image of a platform on CVMFS.

    Raises:
        PilotError: IMAGENOTFOUND.
    """
    found = _PLATFORM.match(platform)
    system = found[1] if found else platform
    places = [cvmfs / folder / f"{system}.img" for folder in _GRID_IMAGES] if "/" not in system else []
    for place in places:
        if place.exists():
            return str(place)
    raise PilotError(Code.IMAGENOTFOUND, f"the job names no image, and there is none for platform {platform!r}")


def checked_image(image: str) -> str:
    """An image that is a path that is there, or the well-formed name of one in a registry.

    Raises:
        PilotError: IMAGENOTFOUND.
    """
    if image.startswith("/"):
        if not os.path.exists(image):
            raise PilotError(Code.IMAGENOTFOUND, f"{image!r} is not there")
    elif not REFERENCE.fullmatch(image):
        raise PilotError(Code.IMAGENOTFOUND, f"{image!r} is no name of an image")
    return image


def mounts_of(paths: Iterable[str | Path], workdir: Path) -> tuple[Mount, ...]:
    """Mounts for files and directories, each once, those that are there and not in the job directory anyway."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_absolute() and os.path.exists(path) and not path.is_relative_to(workdir):
            found[path] = None
    return tuple(Mount(path) for path in found if not any(other in path.parents for other in found))


def linked_directories(workdir: Path, names: Iterable[str]) -> list[Path]:
    """Directories of the real files behind links in the job directory, and those that the links name on their way."""
    found: list[Path] = []
    for name in names:
        link = workdir / name
        if link.is_symlink():
            target = Path(os.path.normpath(link.parent / os.readlink(link)))
            found += [target.parent, Path(os.path.realpath(link)).parent]
    return found


def named_files(environment: Mapping[str, str]) -> list[str]:
    """What variables of the environment name that must be readable inside."""
    return [environment[name] for name in _FILE_VARIABLES if environment.get(name)]
