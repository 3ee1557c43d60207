"""Checks of the machine: Python, locale, cores and memory, control groups, containers, GPUs, CVMFS."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pilot.assembly import find_experiment
from pilot.cgroup import Nest
from pilot.contain import wants_alrb
from pilot.doctor.check import Finding, Patient, failure, in_threads, ok, warning
from pilot.errors import PilotError
from pilot.gpus import parse_gpus
from pilot.node import read_node
from pilot.nodechecks import check_cvmfs

#: Seconds for `PROGRAM --version`, far from the 10 s that a check has.
_PROGRAM_PATIENCE = 4.0

#: Seconds for one that was killed: a broken driver of a GPU keeps it in the kernel, and is no reason to take no job.
_LINGER = 0.5

#: Characters that are shown of what it says.
_LONGEST_VERSION = 200

_RUNTIMES = ("apptainer", "singularity", "podman", "docker")


def python(patient: Patient) -> Finding:
    """Python, and the libraries that the engine is slow without or does not start without."""
    found = f"Python {platform.python_version()}, {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036 - a doctor looks, whatever brought it here
        return failure(found, "install Python >= 3.11")
    missing = [name for name in ("psutil", "urllib3") if find_spec(name) is None]
    if missing:
        return failure(f"{found}, without {' and '.join(missing)}", f"pip install {' '.join(missing)}")
    if find_spec("zlib_ng") is None:
        return warning(f"{found}, without zlib-ng", "pip install zlib-ng: adler32 is 25 times faster with it")
    return ok(found)


def locale(patient: Patient) -> Finding:
    """Names of files must be UTF-8, for us and for payloads."""
    variables = ("LC_ALL", "LC_CTYPE", "LANG")
    value = next((patient.environ[name] for name in variables if patient.environ.get(name)), "")
    encoding = sys.getfilesystemencoding().lower()
    if encoding != "utf-8":
        return failure(f"names of files are in {encoding}", "export LC_ALL=C.UTF-8")
    if value.lower().replace("-", "").endswith("utf8"):
        return ok(value)
    return warning(
        f"{value or 'none'} is set: payloads may fail with names that are not ASCII", "export LC_ALL=C.UTF-8"
    )


def cores_and_memory(patient: Patient) -> Finding:
    """What the node has, against what the queue promises to jobs."""
    node = read_node(environ=patient.environ)
    found = f"{node.cores} of {node.logical_cpus} cores, {node.memory} MB, {node.cpu_model or node.architecture}"
    info = patient.known_queue()
    if info and info.queue.corecount > node.cores:
        return warning(found, f"the queue gives jobs {info.queue.corecount} cores: ask the batch system for as many")
    if info and info.queue.maxrss > node.memory:
        return warning(found, f"the queue gives jobs {info.queue.maxrss} MB: correct maxrss of the queue")
    return ok(found)


def control_group(patient: Patient) -> Finding:
    """The version, what the slot may use, and whether payloads can have groups of their own."""
    nest = Nest(patient.settings.cgroup)
    limit = nest.slot.memory_bound
    memory = f"the slot may use {limit >> 20} MB" if limit is not None else "no memory limit of the slot"
    own = "payloads get groups of their own" if nest.is_usable else "not delegated: payloads are held by processes"
    found = f"version {nest.slot.version}, {memory}, {own}"
    info = patient.known_queue()
    if info and limit is not None and limit >> 20 < info.queue.maxrss:
        advice = f"the queue gives jobs {info.queue.maxrss} MB: ask the batch system for as many"
        return warning(found, advice)
    if patient.settings.cgroup not in ("auto", "off") and not nest.is_usable:
        return warning(found, f"--cgroup {patient.settings.cgroup} is no group that we may write to")
    return ok(found)


def user_namespaces(patient: Patient) -> Finding | None:
    """What rootless containers need, tried out where there is `unshare`."""
    if shutil.which("unshare") is None:
        return None
    done = _run(["unshare", "--user", "--map-root-user", "true"])
    if done is not None and done.returncode == 0:
        return ok("may be made")
    if not any(shutil.which(name) for name in _RUNTIMES):
        return ok("may not be made; no container runtime would use them")
    return warning("may not be made", "set sysctl user.max_user_namespaces, or install the runtime setuid")


def containers(patient: Patient) -> Finding:
    """Container runtimes and their versions; those that the queue names must be there."""
    names = [name for name in _RUNTIMES if shutil.which(name)]
    told = in_threads([partial(program_version, name) for name in names], 2 * _PROGRAM_PATIENCE)
    versions = {name: text or f"{name} does not start" for name, text in zip(names, told, strict=True)}
    found = ", ".join(versions.values()) or "no container runtime"
    info = patient.known_queue()
    users = dict(info.queue.container_type) if info else {}
    if patient.environ.get("APPTAINER_CONTAINER") or patient.environ.get("SINGULARITY_CONTAINER"):
        users.pop("wrapper", None)  # that is the one we are in
    if users.get("pilot") in ("apptainer", "singularity") and wants_alrb(patient.settings, patient.environ):
        del users["pilot"]  # ALRB brings its own
    wanted = {name for name in users.values() if name in _RUNTIMES}
    same = {"singularity": "apptainer", "apptainer": "singularity"}
    missing = sorted(name for name in wanted if name not in versions and same.get(name) not in versions)
    if missing:
        return failure(f"{found}; the queue wants {', '.join(missing)}", f"install {' and '.join(missing)}")
    broken = sorted(name for name, text in versions.items() if text.endswith("does not start"))
    return warning(found, f"run `{broken[0]} --version` by hand") if broken else ok(found)


def gpus(patient: Patient) -> Finding | None:
    """GPUs, where there is the program of their driver: it may be there without the driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    done = _run(["nvidia-smi", "-q", "-x"])
    if done is None or done.returncode:
        said = " ".join((done.stdout or done.stderr).split()) if done else "it does not start or hangs"
        return warning(f"nvidia-smi: {said}", "load the NVIDIA driver, or take this node out of GPU queues")
    try:
        cards = parse_gpus(done.stdout.encode())
    except ValueError as error:
        return warning(f"nvidia-smi: {error}", "run `nvidia-smi -q -x` by hand")
    names = (f"{count} x {gpu.model}, {gpu.memory} MB, driver {gpu.driver}" for gpu, count in cards.items())
    return ok("; ".join(names) or "none")


def cvmfs(patient: Patient) -> Finding | None:
    """CVMFS, if the queue says that jobs may count on it."""
    info = patient.known_queue()
    certain = patient.needs_cvmfs or bool(info and "is_cvmfs" in info.record and info.queue.is_cvmfs)
    if not certain and not (info and info.queue.is_cvmfs and patient.settings.cvmfs):
        return None
    base = Path(patient.settings.cvmfs_base)
    try:
        names = sorted(os.listdir(base))
    except OSError as error:
        found = f"{base}: {error.strerror}"
    else:
        if names or _is_autofs(base):  # below autofs a repository appears when it is first used
            if missing := _missing_software(patient, base):
                return failure(missing, "repair CVMFS on this node: no job of this experiment is taken without it")
            return ok(f"{base}: {', '.join(names[:5]) or 'mounted when used'}")
        found = f"{base} is empty"
    if certain:
        return failure(found, "mount CVMFS, or set is_cvmfs of the queue to false")
    return warning(found, "mount CVMFS if jobs need it; say is_cvmfs: false in the queue, or -b, if not")


def _missing_software(patient: Patient, base: Path) -> str:
    """Why a pilot of the experiment would take no job, empty if it would."""
    paths = find_experiment(patient.settings.pilot_user).cvmfs_paths if patient.settings.cvmfs else ()
    try:
        asyncio.run(check_cvmfs(str(base), paths, _PROGRAM_PATIENCE))
    except PilotError as error:
        return error.detail
    return ""


def _is_autofs(path: Path) -> bool:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1:3] == [str(path), "autofs"] for line in lines)


def program_version(program: str) -> str:
    """What a program says of its version, with its name."""
    done = _run([program, "--version"])
    text = " ".join((done.stdout or done.stderr).split()) if done is not None and done.returncode == 0 else ""
    text = text[:_LONGEST_VERSION]
    if not text:
        return f"{program} does not start"
    return text if program in text.lower() else f"{program}: {text}"


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """A program run to its end; None if it cannot be started or hangs: then it is killed with its children."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        out, err = process.communicate(timeout=_PROGRAM_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_LINGER)
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()
        return None
    return subprocess.CompletedProcess(argv, process.returncode, out, err)
