"""Checks of the work directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pilot.doctor.check import Finding, Patient, failure, ok, warning
from pilot.node import free_disk
from pilot.settings import SettingsError

#: Bytes written to see whether anything can be: a block is sometimes still free on a disk that is full.
_SAMPLE = 64 << 10


def work_directory(patient: Patient) -> Finding:
    """Files can be made, made once, renamed and executed there, and have UTF-8 names."""
    where = patient.workdir
    try:
        folder = Path(tempfile.mkdtemp(prefix="pilot-doctor-", dir=where))
    except OSError as error:
        return failure(f"{where}: {error.strerror}", "name another directory with -a, or make this one writable")
    try:
        return _try_out(folder) or ok(f"{where}: writable, programs run")
    except OSError as error:
        return failure(f"{where}: {error.strerror}", "name another directory with -a, or make room")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def space(patient: Patient) -> Finding:
    """Free space and inodes, against the least with which a pilot takes a job."""
    where, limit = patient.workdir, _space_limit(patient)
    free = free_disk(where)
    found = f"{free} MB free on {where}"
    if free << 20 < limit:
        return failure(f"{found}, {limit >> 20} MB are needed", "make room, or name another directory with -a")
    status = os.statvfs(where)
    if status.f_files and not status.f_favail:
        return failure(f"{found}, but no inode", "remove files, or name another directory with -a")
    info = patient.known_queue()
    if info and info.queue.maxwdir > free:
        return warning(found, f"the queue gives jobs {info.queue.maxwdir} MB: make room, or correct its maxwdir")
    return ok(found)


def _space_limit(patient: Patient) -> int:
    info = patient.known_queue()
    try:
        settings = patient.settings.with_queue(info.queue.params) if info else patient.settings
    except SettingsError:  # said by the check of the queue
        settings = patient.settings
    return settings.free_space_limit


def _try_out(folder: Path) -> Finding | None:
    """What does not work in an empty directory of ours.

    Raises:
        OSError: it cannot even be written to.
    """
    sample = folder / "sample"
    sample.write_bytes(b"x" * _SAMPLE)
    try:
        os.close(os.open(sample, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return failure(f"{folder.parent}: a file can be made twice (O_EXCL)", "use a local disk, or NFS 3 or later")
    except FileExistsError:
        pass
    (folder / "old").touch()
    sample.rename(folder / "old")
    if (folder / "old").stat().st_size != _SAMPLE:
        return failure(f"{folder.parent}: a rename did not replace a file", "use another file system")
    return _names(folder) or _execution(folder)


def _names(folder: Path) -> Finding | None:
    (folder / "\N{LATIN SMALL LETTER E WITH ACUTE}").touch()
    if "\N{LATIN SMALL LETTER E WITH ACUTE}" in os.listdir(folder):
        return None
    return warning(f"{folder.parent}: names come back changed", "mount it with UTF-8 names")


def _execution(folder: Path) -> Finding | None:
    script = folder / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o700)
    try:
        subprocess.run([str(script)], check=True, stdin=subprocess.DEVNULL, timeout=4)
    except (OSError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        advice = "mount it without noexec, or name another directory with -a"
        return failure(f"{folder.parent}: programs do not run: {why}", advice)
    return None
