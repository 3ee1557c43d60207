"""The pilot's own log: `pilotlog.txt` in the main directory, and the same lines on stdout, where the batch log is.

    2026-11-22 10:04:31,207 | INFO     | pilot.slot                       | run                       | text

Time (UTC) | level | logger | function | message: the columns of Pilot 3 (`util/loggingsupport.py`, its debug format),
since wrappers and log readers look for `| LEVEL ` and for texts such as `job definition = {...}`. A message may have
several lines. The masker sees whole lines, so it covers message, arguments and tracebacks.

Our own packages log at INFO, or DEBUG when asked; all other libraries from WARNING up, Python's warnings included.
They are all caught at the root, as what nobody catches is printed by Python without a mask.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pilot.errors import Code, PilotError
from pilot.masking import Masker

NAME = "pilotlog.txt"
FORMAT = "%(asctime)s | %(levelname)-8s | %(name)-32s | %(funcName)-25s | %(message)s"

#: Where our own code logs: the packages of this project.
OURS = ("pilot", "copytools", "plugins")
STDOUT = 1


class PilotLog:
    """The log of this process, from `open` to `close`.

    Attributes:
        path: the file, None if there is none.
        header_end: bytes of the file that belong to every job: what the pilot said before its first one.
    """

    def __init__(self, masker: Masker, *, path: Path | None, console: int | None, debug: bool) -> None:
        self.path = path
        self._header_end: int | None = None
        # O_TRUNC as in Pilot 3: without --workdir every pilot writes to the directory it was started in.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = None if path is None else os.open(path, flags, 0o644)
        self._handler = _Handler(masker, [fd for fd in (self._fd, console) if fd is not None])
        self._levels = {name: logging.getLogger(name).level for name in OURS}
        for name in OURS:
            logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)

    @classmethod
    def open(
        cls,
        main_dir: Path,
        masker: Masker,
        *,
        debug: bool = False,
        quiet: bool = False,
        file: bool = True,
        redirect_stdout: str | Path = "",
        console: int = STDOUT,
    ) -> PilotLog:
        """Begin to log.

        Args:
            main_dir: where `pilotlog.txt` is made; an older one is overwritten.
            masker: stands before every line.
            debug: log at DEBUG.
            quiet: to the file only.
            file: False for no file (`--no-pilot-log`).
            redirect_stdout: file that takes stdout from now on, such as `/dev/null`; empty for none.
            console: file descriptor of the batch log.

        Raises:
            PilotError: FILEHANDLINGFAILURE (1303), the file or the redirection cannot be opened.
        """
        try:
            if redirect_stdout:
                _redirect(STDOUT, redirect_stdout)
            path = main_dir / NAME if file else None
            return cls(masker, path=path, console=None if quiet else console, debug=debug)
        except OSError as error:
            raise PilotError(Code.FILEHANDLINGFAILURE, f"log file {error.filename}: {error.strerror}") from error

    def show_life(self) -> None:
        """Touch the file: wrappers end a pilot whose log has not changed for an hour (PILOT3 9.1)."""
        if self._fd is not None:
            with suppress(OSError):
                os.utime(self._fd)

    def position(self) -> int:
        """Bytes in the file by now: taken when a job begins, it finds the job's part later (`part`)."""
        return 0 if self._fd is None else os.fstat(self._fd).st_size

    @property
    def header_end(self) -> int:
        """Where the part of all jobs ends; the end of the file as long as nobody said so."""
        return self.position() if self._header_end is None else self._header_end

    def end_header(self) -> None:
        """Call before the first job is asked for: what was logged by now goes into the log of every job."""
        if self._header_end is None:
            self._header_end = self.position()

    def part(self, start: int) -> tuple[Path, int, int] | None:
        """What `make_log_archive` needs to find the header and a job's part, which begins at `start`."""
        return None if self.path is None else (self.path, min(self.header_end, start), start)

    def link_into(self, directory: Path) -> None:
        """Show the log in a job's directory too. For people and tools that look there; the log archive does without."""
        if self.path is not None:
            with suppress(OSError):
                (directory / NAME).symlink_to(self.path.absolute())

    def close(self) -> None:
        """Stop logging and put the loggers back as they were."""
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        self._handler.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> PilotLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(logging.Handler):
    """Formats a record once, for all file descriptors. Never raises and never prints by itself."""

    def __init__(self, masker: Masker, fds: list[int]) -> None:
        super().__init__()
        self._masker = masker
        self._outlets = [_Outlet(fd) for fd in fds]
        formatter = logging.Formatter(FORMAT)
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except (
            Exception
        ) as error:  # a wrong log call must not end the work it tells of; logging would print its secrets
            line = self._unformatted(record, error)
        data = (self._masker.mask(line) + "\n").encode("utf-8", "backslashreplace")
        for outlet in self._outlets:
            outlet.write(data)

    def _unformatted(self, record: logging.LogRecord, error: Exception) -> str:
        text = f"{record.msg!r} from {record.pathname}:{record.lineno} cannot be formatted: {type(error).__name__}"
        plain = logging.LogRecord(
            record.name, record.levelno, record.pathname, record.lineno, text, (), None, record.funcName
        )
        return self.format(plain)


class _Outlet:
    """A file descriptor that takes lines without a buffer, so that a killed pilot's last ones are there.

    When it takes none (full disk, closed pipe), lines are dropped and counted, and the count is written when it does
    again. It is not Python's `sys.stdout`, whose buffer would fail once more at exit and change the exit code.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lost = 0

    def write(self, data: bytes) -> None:
        if self._lost:
            data = b"\n%d log lines were lost\n%s" % (self._lost, data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            self._lost = 0
        except OSError:
            self._lost += 1


def _redirect(fd: int, path: str | Path) -> None:
    """Let what is written to `fd` go to a file, by this process and those it starts."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
    if target != fd:  # it is the same when stdout was closed before
        os.dup2(target, fd)
        os.close(target)
