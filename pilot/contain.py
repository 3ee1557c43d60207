"""Whether a payload runs in a container, in which kind, and all that it must find there.

The rules are Pilot 3's (PILOT3 5.2): an image makes a container job; a platform does where the queue has containers for
pilots; the queue's `container_type` names the runtime.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pilot import plugins
from pilot.bench import Bench
from pilot.credentials import payload_directory
from pilot.errors import Code, PilotError
from pilot.experiment import Experiment
from pilot.job import Job
from pilot.masking import Secret
from pilot.payload.container import (
    Container,
    Login,
    Order,
    mounts_of,
    named_files,
    swallowed_failure,
)
from pilot.payload.process import Ended, tail
from pilot.queuedata import Queue
from pilot.settings import Settings

logger = logging.getLogger(__name__)

#: What the name of a job directory begins with; the number of the job follows.
JOB_DIRECTORY = "PanDA_Pilot-"
#: Runtimes that ALRB stands before where it is wanted.
_APPTAINERS = ("apptainer", "singularity")
#: The script that makes ALRB, below CVMFS.
_ALRB = "atlas.cern.ch/repo/ATLASLocalRootBase/user/atlasLocalSetup.sh"
#: A transformation that starts the container itself (PILOT3 5.2).
_OWN_CONTAINER = "runcontainer"
#: Bytes of the end of stderr to look for the words of a runtime.
_STDERR = 65_536
#: The secret with logins for registries (PILOT3 2.3).
_TOKENS = "DOCKER_TOKENS"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs the containers of a job."""

    kind: type[Container]
    program: str


def wants_container(job: Job, queue: Queue, experiment: Experiment) -> bool:
    """Whether the pilot starts the payload in a container."""
    starts_it = job.container_image and _OWN_CONTAINER in job.transformation
    return experiment.needs_container(job, queue) and not starts_it


def choose_runtime(job: Job, queue: Queue, bench: Bench) -> Runtime | None:
    """What runs the container of a job; None for a job without one.

    Raises:
        PilotError: QUEUENOTSETUPFORCONTAINERS, or that the runtime is not on this node.
    """
    if not wants_container(job, queue, bench.experiment):
        return None
    wanted = queue.container_type.get("pilot", "").lower()
    if not wanted:
        text = f"the job wants a container; container_type of queue {queue.name} names none for the pilot"
        raise PilotError(Code.QUEUENOTSETUPFORCONTAINERS, text)
    return find_runtime(wanted, bench.settings, bench.environ)


def find_runtime(wanted: str, settings: Settings, environ: Mapping[str, str]) -> Runtime:
    """The runtime that a queue names, as it is started on this node.

    Raises:
        PilotError: QUEUENOTSETUPFORCONTAINERS, or that the runtime is not on this node.
    """
    name = wanted
    if wanted in _APPTAINERS:
        name = "alrb" if wants_alrb(settings, environ) else "apptainer"
    try:
        kind: type[Container] = plugins.load("pilot.containers", name, Container)
    except plugins.PluginError as error:
        raise PilotError(Code.QUEUENOTSETUPFORCONTAINERS, f"container_type {wanted!r}: {error.detail}") from error
    return Runtime(kind, _program(kind, wanted, settings, environ))


def wants_alrb(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Whether ALRB, which brings its own apptainer, starts containers of apptainer; `auto`: where it is."""
    if settings.container_setup != "auto":
        return settings.container_setup == "alrb"
    return bool(environ.get("ATLAS_LOCAL_ROOT_BASE")) or Path(settings.cvmfs_base, _ALRB).exists()


def _program(kind: type[Container], wanted: str, settings: Settings, environ: Mapping[str, str]) -> str:
    if not kind.programs:
        return ""
    path = environ.get("PATH")
    names = (settings.container_program,) if settings.container_program else kind.programs
    found = next((program for program in (shutil.which(name, path=path) for name in names) if program), None)
    if found:
        return found
    code = Code.SINGULARITYNOTINSTALLED if wanted == "singularity" else kind.missing
    raise PilotError(code, f"the queue wants {wanted}; this node has no {' or '.join(names)}")


def make_container(
    runtime: Runtime,
    bench: Bench,
    job: Job,
    queue: Queue,
    workdir: Path,
    text: str,
    environment: Mapping[str, str],
    memory_kb: int = 0,
    linked: Sequence[Path] = (),
) -> Container:
    """The container for a payload that is about to start.

    Args:
        runtime: what runs it.
        bench: what jobs share.
        job: whose payload it is.
        queue: as the job sees it.
        workdir: the job directory.
        text: shell text of the payload.
        environment: of the payload.
        memory_kb: the most it may use, 0 for no limit.
        linked: directories of inputs that are only linked.

    Raises:
        PilotError: SETUPFAILURE.
    """
    cvmfs = Path(bench.settings.cvmfs_base)
    order = Order(
        job=job,
        queue=queue,
        image=job.container_image,
        text=text,
        workdir=workdir,
        private=make_private(workdir),
        environment=environment,
        environ=bench.environ,
        mounts=mounts_of([cvmfs, *linked, payload_directory(bench.main_dir, job), *named_files(environment)], workdir),
        options=runtime_options(queue, bench.settings, workdir),
        gpu=_wants_gpu(bench.settings.container_gpu, job, queue),
        memory_kb=memory_kb,
        cvmfs=cvmfs,
        logins=tuple(logins_of(job.secrets)),
        setup=bench.experiment.release_setup(job, queue, contained=True),
    )
    for login in order.logins:
        bench.masker.add(login.token)
    return runtime.kind(order, runtime.program)


def failure_of(container: Container, ended: Ended, mask: Callable[[str], str]) -> PilotError | None:
    """The error of a container that did not come up, or that says so although it ended well; None if it did its part.

    A container that was stopped or killed before its payload began is not at fault.
    """
    if container.started and ended.exit_code != 0:
        return None
    if ended.stopped or (ended.signum and not container.started):
        return None
    stderr = mask(tail(container.order.workdir / "payload.stderr", _STDERR))
    return swallowed_failure(container.name, stderr) if container.started else container.failure(ended.status, stderr)


def private_beside(workdir: Path) -> Path:
    """Where the pilot keeps what a container of the job needs and nobody else may see, such as logins.

    It is beside the job directory as long as something of the container may live.
    """
    return workdir.with_name(f"container-{workdir.name.removeprefix(JOB_DIRECTORY)}")


def make_private(workdir: Path, *names: str) -> Path:
    """Make that directory, and others in it.

    Raises:
        PilotError: SETUPFAILURE.
    """
    path = private_beside(workdir)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            path /= name
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise PilotError(Code.SETUPFAILURE, f"{path}: {error.strerror}") from error
    return path


def runtime_options(queue: Queue, settings: Settings, workdir: Path) -> tuple[str, ...]:
    """Words of the queue's options; `${workdir}` in them is the job directory, whatever its name is made of.

    Raises:
        PilotError: QUEUENOTSETUPFORCONTAINERS.
    """
    try:
        words = shlex.split(queue.container_options or settings.container_options)
    except ValueError as error:
        raise PilotError(Code.QUEUENOTSETUPFORCONTAINERS, f"container_options: {error}") from error
    return tuple(word.replace("${workdir}", str(workdir)) for word in words)


def _wants_gpu(setting: str, job: Job, queue: Queue) -> bool:
    """`auto`: a queue of GPUs, or a job whose platform has a specification for one: `...#x86_64&nvidia`."""
    if setting != "auto":
        return setting == "on"
    return queue.resource_type.lower() == "gpu" or "&" in job.platform


def logins_of(secrets: Secret | None) -> Iterable[Login]:
    """Logins for registries among the secrets of a job: `DOCKER_TOKENS`, itself JSON text or a list."""
    try:
        table = json.loads(secrets.reveal()) if secrets else {}
        found = table.get(_TOKENS) or []
        entries: list[Any] = json.loads(found) if isinstance(found, str) else found
        return [login for entry in entries if (login := _login(entry))]
    except (ValueError, TypeError, AttributeError, RecursionError):
        logger.warning("the job's secret %s is no list of logins", _TOKENS)  # no detail: it would show some of it
        return []


def _login(entry: Mapping[str, Any]) -> Login | None:
    path, user, token = (str(entry.get(key) or "") for key in ("registry_path", "username", "token"))
    try:
        registry = urlsplit(path if "://" in path else f"docker://{path}").netloc
    except ValueError:
        registry = ""
    if not (registry and user and token):
        logger.warning("a login in the job's secret %s is not whole", _TOKENS)
        return None
    return Login(registry=registry, user=user, token=Secret(token))
