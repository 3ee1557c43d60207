"""The commands of debug mode: what a person may look at in a job that runs, through the server (PILOT3 2.8).

    tail [-n N] [NAME] | ls [options] [PATH] | du [options] [PATH] | ps | gdb [--pid N]

A command is text from outside: it is taken apart into words, never given to a shell, and only what is in the table here
is done. Paths are below the job directory and no link on the way is followed; processes are the payload's.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pilot.watch.stacks import process_tree, stacks

#: Most characters of an answer (PILOT3 2.6), and bytes of a file or an output from which they are cut: a secret that is
#: cut in two cannot be masked, so more is read.
LIMIT = 2048
_READ = 16_384

#: Seconds for one program.
_TIMEOUT = 20.0

#: Most files to look at for the newest one: a job directory with a million files is looked at in part.
_MOST_FILES = 100_000

#: Options of ls and du that neither follow links nor write.
_OPTIONS = re.compile(
    r"-[1AFRSachiklmnorstux]+|-d\d+|--(all|human-readable|recursive|reverse|summarize|size|apparent-size)"
)

_PS_FORMAT = "pid,ppid,stat,nlwp,rss,etime,time,args"


class RefusedError(Exception):
    """A command that is not carried out; the text says why, to who sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What there is to look at.

    Attributes:
        workdir: the job directory.
        pids: living processes of the payload, parents first.
        hidden: names of files in it that are not shown, such as that with the job's secrets.
        own: names of the pilot's own files in it, which are not the newest of the payload.
        pilot_log: the pilot's log, which the name `pilotlog.txt` stands for.
        path: `PATH` to find programs in.
    """

    workdir: Path
    pids: Callable[[], list[int]]
    hidden: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    pilot_log: Path | None = None
    path: str | None = None


def is_command(text: str) -> bool:
    """Whether a text begins with a command of debug mode."""
    return text.split(maxsplit=1)[:1] != [] and text.split(maxsplit=1)[0] in _COMMANDS


def answer(text: str, place: Place, mask: Callable[[str], str]) -> str:
    """What a command has to say, masked and not longer than `LIMIT`; also if it is refused. Blocks, up to 40 s."""
    try:
        name, *words = shlex.split(text)
        said = mask(_COMMANDS[name](words, place))
    except (RefusedError, OSError, ValueError, KeyError) as error:
        return mask(f"{text[:200]}: {error}")[:LIMIT]
    if name == "tail":
        head, _, rest = said.partition("\n")
        head = head[: LIMIT // 4]
        return f"{head}\n{rest[-(LIMIT - len(head) - 1) :]}"
    return said if len(said) <= LIMIT else f"{said[: LIMIT - 4]}\n..."


def _tail(words: Sequence[str], place: Place) -> str:
    """The end of the newest file, or of the newest that matches a name; its path is the first line."""
    pattern = _name_of(words)
    if pattern == "pilotlog.txt" and place.pilot_log is not None:
        return f"{pattern}\n{_end(os.open(place.pilot_log, os.O_RDONLY | os.O_CLOEXEC))}"
    for path in _by_age(place, pattern):
        with _folder(place.workdir, path.parent.parts) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            text = _end(os.open(path.name, flags, dir_fd=folder))
        if pattern or "\0" not in text:
            return f"{path}\n{text}"
    raise RefusedError(f"no file {pattern}" if pattern else "no file yet")


def _name_of(words: Sequence[str]) -> str:
    """The name among the words of `tail`: how many lines are wanted makes no difference, all that fit are sent."""
    names = [word for word in words if not re.fullmatch(r"-[fF]|-n|-c|-n?\d+|\d+", word)]
    if len(names) > 1 or any(name.startswith("-") for name in names):
        raise RefusedError("one name, please")
    return names[0].removeprefix("./") if names else ""


def _by_age(place: Place, pattern: str) -> Iterator[PurePosixPath]:
    """Files below the job directory, the newest first."""
    found = []
    for number, (path, changed) in enumerate(_files(place.workdir)):
        if number > _MOST_FILES:
            break
        if path.name in place.hidden or (path.name in place.own and not pattern):
            continue
        if not pattern or fnmatchcase(path.name, pattern) or fnmatchcase(str(path), pattern):
            found.append((changed, path))
    return (path for _, path in sorted(found, reverse=True))


def _files(top: Path) -> Iterator[tuple[PurePosixPath, float]]:
    """Regular files below a directory, and when they were written; links are not followed."""
    pending = [PurePosixPath()]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(top / folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(folder / entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        yield folder / entry.name, entry.stat(follow_symlinks=False).st_mtime
        except OSError:  # it went away while we looked, or is not ours to read
            continue


def _end(fd: int) -> str:
    """The last bytes of a regular file; closes it."""
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise RefusedError("not a regular file")
        file.seek(max(0, found.st_size - _READ))
        return file.read(_READ).decode(errors="replace")


@contextmanager
def _folder(top: Path, parts: Sequence[str]) -> Iterator[int]:
    """A descriptor of a directory below `top`: no component may be a link, whatever a payload swaps meanwhile."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(top, flags)
    try:
        for part in parts:
            below = os.open(part, flags, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _list(program: str, words: Sequence[str], place: Place) -> str:
    """`ls` or `du` of a place in the job directory."""
    options = [word for word in words if word.startswith("-")]
    paths = [word for word in words if not word.startswith("-")]
    for option in options:
        if not _OPTIONS.fullmatch(option):
            raise RefusedError(f"{program} {option} is not carried out here")
    return "\n".join(_listed(program, options, path, place) for path in paths[:20] or ["."])


def _listed(program: str, options: Sequence[str], path: str, place: Place) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise RefusedError("only what is below the job directory is shown: name it from there")
    where, names = parts, list[str]()
    if parts and not _is_folder(place.workdir.joinpath(*parts)):
        *where, pattern = parts
        with _folder(place.workdir, where) as folder:
            names = sorted(name for name in os.listdir(folder) if fnmatchcase(name, pattern))[:1000]
        if not names:
            raise RefusedError(f"no {path}")
    itself = ["-d"] if names and program == "ls" else []  # or it would follow a link that is named
    with _folder(place.workdir, where) as folder:
        return _output([program, *options, *itself, *(["--", *names] if names else [])], place, folder)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _ps(words: Sequence[str], place: Place) -> str:
    """The payload's processes, whatever the words ask for."""
    pids = place.pids()
    if not pids:
        raise RefusedError("the payload does not run")
    if shutil.which("ps", path=place.path):
        return _output(["ps", "-ww", "-o", _PS_FORMAT, "-p", ",".join(map(str, pids))], place)
    return process_tree(pids)


def _gdb(words: Sequence[str], place: Place) -> str:
    """Stacks of one process of the payload, or of its youngest. What else gdb could do is not done."""
    pids = place.pids()
    asked = re.findall(r"(?:--pid|-p)[= ]?(\d+)", " ".join(words))
    wanted = [int(pid) for pid in asked] or pids
    if not wanted or not set(wanted) <= set(pids):
        raise RefusedError("no such process of the payload")
    return "\n".join(f"pid {pid} ({tool}):\n{text}" for pid, tool, text in stacks(wanted, place.path)) or (
        f"neither py-spy nor gdb can look at it\n{process_tree(pids)}"
    )


def _output(command: Sequence[str], place: Place, folder: int | None = None) -> str:
    """What a program prints, cut; it stays in our session, so it is never taken for a payload's."""
    program = shutil.which(command[0], path=place.path)
    if program is None:
        raise RefusedError("there is no such program on this node")
    process = subprocess.Popen(
        [program, *command[1:]],
        cwd=place.workdir if folder is None else f"/proc/self/fd/{folder}",
        env={"LC_ALL": "C.UTF-8", "PATH": place.path or os.defpath},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    impatient = threading.Timer(_TIMEOUT, process.kill)
    impatient.start()
    with process:
        try:
            text = process.stdout.read(_READ) if process.stdout else b""
        finally:
            impatient.cancel()
            process.kill()
    return text.decode(errors="replace").rstrip()


_COMMANDS: Mapping[str, Callable[[Sequence[str], Place], str]] = {
    "tail": _tail,
    "ls": lambda words, place: _list("ls", words, place),
    "du": lambda words, place: _list("du", words, place),
    "ps": _ps,
    "gdb": _gdb,
}
