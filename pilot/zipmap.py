"""Zip maps: `<ZIP_MAP>all.zip:a.root,b.root more.zip:c.root</ZIP_MAP>` in jobPars, as JEDI writes it.

The server reads the same text to register what is inside an archive. Commonly the payload makes the archives; one that
is an output, and was not made, is made here from the files of the job directory: stored, not compressed, since data
files are compressed already and can then be read inside the archive.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from pilot.errors import Code, PilotError
from pilot.job import Job
from pilot.left import regular

#: Bytes copied at once.
_BLOCK = 1 << 20


def parse(text: str) -> dict[str, list[str]]:
    """Archive to the names inside it; what has no colon is passed over, as by the server."""
    items = (item.partition(":") for item in text.split())
    return {archive: [name for name in names.split(",") if name] for archive, mark, names in items if mark and archive}


def linked_inputs(job: Job, workdir: Path) -> dict[str, str]:
    """Inputs that we have linked, and where to; ask before the payload can make links."""
    return {file.lfn: os.readlink(path) for file in job.inputs if (path := workdir / file.lfn).is_symlink()}


def make_archives(
    job: Job,
    workdir: Path,
    check: Callable[[], None] = lambda: None,
    links: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Make the archives that are outputs and are not there, as far as all their files are. Blocks.

    Args:
        job: with its zip map.
        workdir: its directory.
        check: called between blocks; what it raises ends the work.
        links: as `linked_inputs` said before the payload ran.

    Returns:
        Names of those that were made.

    Raises:
        PilotError: FILEHANDLINGFAILURE (1303), one cannot be written.
    """
    wanted = {file.lfn for file in job.outputs}
    made = []
    for archive, names in parse(job.zip_map).items():
        target = workdir / archive
        parts = [workdir / name for name in names]
        if archive not in wanted or target.exists():
            continue
        if not all(_is_ours(part, workdir, links) for part in parts):
            continue
        try:
            _write(target, parts, check)
        except OSError as error:
            raise PilotError(Code.FILEHANDLINGFAILURE, f"{archive}: {error.strerror or error}") from error
        made.append(archive)
    return made


def _is_ours(path: Path, workdir: Path, links: Mapping[str, str]) -> bool:
    """A file of the job directory itself; a link only if we have made it."""
    try:
        made = path.is_symlink() and os.readlink(path) == links.get(path.name)
        mode = (path.stat() if made else path.lstat()).st_mode
    except (OSError, ValueError):
        return False
    return path.parent == workdir and stat.S_ISREG(mode)


def _write(target: Path, parts: list[Path], check: Callable[[], None]) -> None:
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for part in parts:
                info = zipfile.ZipInfo.from_file(part, part.name, strict_timestamps=False)
                with open(part, "rb", opener=regular) as source, archive.open(info, "w", force_zip64=True) as inside:
                    while block := source.read(_BLOCK):
                        check()
                        inside.write(block)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
