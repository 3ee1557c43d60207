"""From a job to the command of its payload: the transformation fetched, the files it expects written.

The command is the payload's own shell text, given to `bash -c` as the job has it. Nothing else of a job ever reaches a
shell.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pilot.download import shown
from pilot.errors import Code, PilotError
from pilot.experiment import Experiment
from pilot.job import Job
from pilot.stop import in_thread

logger = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]


async def prepare_command(
    job: Job, workdir: Path, experiment: Experiment, fetch: Fetch, base_urls: Sequence[str] = ()
) -> str:
    """Make the job directory ready and return the shell text to run in it.

    Args:
        job: the job.
        workdir: its directory.
        experiment: may change the text.
        fetch: brings the bytes of a URL, or raises a `PilotError`.
        base_urls: other places that have the transformation, see `_places`.

    Raises:
        PilotError: TRFDOWNLOADFAILURE if the transformation cannot be had, SETUPFAILURE if it names nothing.
    """
    _write_option_files(job, workdir)
    if not job.transformation:
        raise PilotError(Code.SETUPFAILURE, "the job names no transformation (field 'transformation')")
    call = await transformation(job.transformation, workdir, fetch, [*base_urls, *experiment.base_urls])
    return experiment.command(job, call)


def _write_option_files(job: Job, workdir: Path) -> None:
    for name, lines in job.write_to_file.items():
        try:
            with open(workdir / name, "x") as file:
                file.write("\n".join(lines) + "\n")
        except (OSError, UnicodeEncodeError) as error:
            raise PilotError(Code.SETUPFAILURE, f"field 'writeToFile': {name}: {error}") from error


async def transformation(text: str, folder: Path, fetch: Fetch, base_urls: Sequence[str], at: str | Path = ".") -> str:
    """How to call the transformation: `./name` when it is a URL or a file of this node, else the text itself.

    Args:
        text: of the job.
        folder: where the file goes.
        fetch: brings the bytes of a URL.
        base_urls: other places that have it, see `_places`.
        at: that folder, for who calls it from the job directory.

    Raises:
        PilotError: TRFDOWNLOADFAILURE or CHMODTRF.
    """
    try:
        scheme = urlsplit(text).scheme if "://" in text else ""
    except ValueError as error:
        raise PilotError(Code.TRFDOWNLOADFAILURE, f"{text!r}: {error}") from error
    if scheme in ("http", "https"):
        name = _name_of(text)
        _install(await _download(text, fetch, base_urls), folder / name)
        return _call(at, name)
    path = Path(unquote(urlsplit(text).path)) if scheme == "file" else Path(text)
    # In a thread: the file may be far away, and a mount that hangs must not hang the pilot.
    if scheme == "file" or (path.is_absolute() and _is_single_word(text) and await in_thread(path.is_file)):
        await in_thread(_copy, path, folder / path.name)
        return _call(at, path.name)
    return text


def _is_single_word(text: str) -> bool:
    return len(text.split()) == 1


async def _download(url: str, fetch: Fetch, base_urls: Sequence[str]) -> bytes:
    problems = []
    for candidate in _places(url, base_urls):
        try:
            return await fetch(candidate)
        except PilotError as error:
            problems.append(f"{shown(candidate)}: {error.detail}")
            logger.warning("transformation %s", problems[-1])
    raise PilotError(Code.TRFDOWNLOADFAILURE, "; ".join(problems))


def _places(url: str, base_urls: Sequence[str]) -> list[str]:
    """The URL, then the file below each base: under the path that it has below a base itself, else by its name.

    A base without a scheme means https; Pilot 3 takes those too.
    """
    name = _name_of(url)
    bases = [(base if "://" in base else f"https://{base}").rstrip("/") for base in base_urls]
    paths = [url.removeprefix(f"{base}/") for base in bases if url.startswith(f"{base}/")]
    path = min(paths, key=len, default=name)
    return list(dict.fromkeys([url, *(f"{base}/{path}" for base in bases)]))


def _name_of(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if name in ("", ".", "..") or "\0" in name or name.startswith("-"):
        raise PilotError(Code.TRFDOWNLOADFAILURE, f"{url!r} does not end in a file name")
    return name


def _install(content: bytes, target: Path) -> None:
    # A new file: one of that name may be an input, linked from its storage, or the pilot's own.
    try:
        with open(target, "xb") as file:
            file.write(content)
    except OSError as error:
        raise PilotError(Code.TRFDOWNLOADFAILURE, f"{target}: {error.strerror}") from error
    try:
        target.chmod(0o755)
    except OSError as error:
        raise PilotError(Code.CHMODTRF, f"{target}: {error.strerror}") from error


def _copy(source: Path, target: Path) -> None:
    try:
        if not source.is_file():  # a pipe or a device has no end
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        content = source.read_bytes()
    except OSError as error:
        raise PilotError(Code.TRFDOWNLOADFAILURE, f"{source}: {error.strerror}") from error
    _install(content, target)


def _call(at: str | Path, name: str) -> str:
    """`./name`, quoted for the shell: the name comes from a URL."""
    import shlex

    return shlex.quote(f"{at}/{name}")
