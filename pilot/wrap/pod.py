"""Process 1 of a pod: starts a pilot with what Harvester says, and is to it what an init is to a system.

signals blocked -> directory, credentials, files of a pushed job -> pilot -> its log to the panda cache -> its exit code

The kernel throws away a signal that process 1 has no handler for, but keeps one that is blocked. So the image starts us
by `env --block-signal=...`, `pilot.py pod` blocks them once more as its first act, and they are let in when the
`Supervisor` listens. Without `env` (GNU coreutils 8.31) what comes while Python starts is lost: the pod then ends by
SIGKILL.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from pilot.mirror import Mirror
from pilot.version import __version__
from pilot.wrap.podenv import CONFIG_FILES, PodOptions
from pilot.wrap.setup import shown
from pilot.wrap.supervise import FORWARDED, StoppedError, Supervisor, put

#: Exit status when the pod itself is wrong, as of the wrapper.
FAULT = 1
#: Longest time for the log to be sent when nothing hurries, s.
_UPLOAD_PATIENCE = 60.0
#: Seconds of the grace that are kept back for our own end.
_RESERVE = 1.0
#: Least time that sending the log gets: a cache that is well takes one in less.
_UPLOAD_LEAST = 2.0
#: Variables that name credentials as files.
_CREDENTIALS = ("X509_USER_PROXY", "PANDA_AUTH_TOKEN", "OIDC_AUTH_TOKEN", "PANDA_AUTH_TOKEN_KEY")


class Pod:
    """Runs a pilot.

    Args:
        argv: more options of the pilot.
        environ: of the container.
        program: what the `pilot` command is.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], program: Sequence[str]) -> None:
        self._all = dict(environ)
        self._options = PodOptions.read(argv, environ)
        self._environ = dict(self._options.environ)
        self._program = program
        self._supervisor = Supervisor(self._say)
        self._log: Path | None = None
        self._stopped = 0.0

    def run(self) -> int:
        """Do all of it; the exit status."""
        workdir = None
        try:
            self._listen()
            workdir = self._make_workdir()
            self._log = workdir / "worker.log"
            self._tell()
            return self._end(self._run_pilot(workdir))
        except StoppedError as stopped:
            self._say(f"stopped by {stopped} before the pilot began")
            return 128 + signal.Signals[str(stopped)]
        except OSError as error:
            self._say(f"FATAL: {error}")
            return FAULT
        finally:
            self._supervisor.rest()
            _remove(workdir)

    def _end(self, status: int) -> int:
        """The log goes on its way; a signal ends only that."""
        try:
            self._say(f"the pilot ended with status {status}")
            self._send_log()
        except StoppedError as stopped:
            self._say(f"the log is not uploaded: stopped by {stopped}")
        return status

    def _listen(self) -> None:
        signal.signal(signal.SIGCHLD, self._reap)
        self._supervisor.listen()
        for signum in FORWARDED:
            if signum != signal.SIGCONT and callable(pass_on := signal.getsignal(signum)):
                signal.signal(signum, partial(self._heard, pass_on))

    def _heard(self, pass_on: Callable[[int, FrameType | None], object], signum: int, frame: FrameType | None) -> None:
        self._stopped = self._stopped or time.monotonic()
        pass_on(signum, frame)

    # ------------------------------------------------------------------------------------------------ what it stands on

    def _make_workdir(self) -> Path:
        """The pilot's directory, with credentials and the files of a job that was pushed."""
        options = self._options
        workdir = Path(tempfile.mkdtemp(prefix="pod-", dir=options.scratch))
        (workdir / "pilot3").mkdir()  # where the pilot leaves the ids of its jobs
        if not os.access(self._environ.get("HOME") or "/", os.W_OK):
            self._environ["HOME"] = str(workdir)
        if options.proxy and "X509_USER_PROXY" not in self._environ:
            proxy = workdir / "x509up"
            with open(os.open(proxy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(options.proxy.rstrip("\n") + "\n")
            self._environ["X509_USER_PROXY"] = str(proxy)
        for name in CONFIG_FILES if options.config_dir else ():
            if options.config_dir and (options.config_dir / name).is_file():  # a ConfigMap is read-only
                shutil.copyfile(options.config_dir / name, workdir / name)
        return workdir

    def _tell(self) -> None:
        self._say(f"pilot {__version__} in a pod, Python {platform.python_version()}, {platform.platform()}")
        self._say(f"process {os.getpid()}, user {os.getuid()}, node {platform.node()}")
        self._say("environment:\n" + "\n".join(shown(self._environ)))

    # -------------------------------------------------------------------------------------------------------- the pilot

    def _run_pilot(self, workdir: Path) -> int:
        options = self._options
        arguments = ["-a", str(workdir), *options.arguments]
        if options.config_dir:
            arguments += ["--harvester-datadir", str(workdir)]
        private = workdir / "credentials"
        with Mirror(private) as mirror:
            self._environ |= {name: mirror.add(self._environ[name]) for name in _CREDENTIALS if self._environ.get(name)}
            return self._supervisor.run(
                [*self._program, "run", *arguments],
                self._environ,
                workdir,
                copy=self._log if self._wants_log else None,
                beside=self._ship if options.sinks else None,
            )

    @property
    def _wants_log(self) -> bool:
        return bool(self._options.sinks or self._options.log_url)

    def _ship(self, pid: int) -> subprocess.Popen[bytes]:
        """Send the log to its readers while the pilot runs (docs/live-logs.md)."""
        # A pilot that is stopped uses five sixths of the grace: half of the rest is for the last lines.
        grace = min(20.0, max(1.0, self._options.grace / 12))
        command = [*self._program, "logship", str(self._log), f"--pid={pid}", f"--grace={grace}"]
        command += [f"--server={self._options.sinks}"]
        queue = self._environ.get("pandaQueueName", "")
        return subprocess.Popen([*command, f"--queue={queue}"], env=self._environ, stdin=subprocess.DEVNULL)

    def _reap(self, signum: int, frame: FrameType | None) -> None:
        """Collect processes whose parents have ended. As long as the pilot lives they come to it, not to us.

        What we have started ourselves is in our session, and is waited for by who started it.
        """
        for file in glob.glob("/proc/self/task/*/children"):
            with contextlib.suppress(OSError), open(file) as stream:
                for pid in map(int, stream.read().split()):
                    if os.getsid(pid) != os.getsid(0):
                        os.waitpid(pid, os.WNOHANG)

    # ---------------------------------------------------------------------------------------------------------- the end

    def _send_log(self) -> None:
        """To the panda cache, in what is left of the grace; without it the pilot's status is the same."""
        if not (self._options.log_url and self._log):
            return
        from pilot.logship.worker import make_masker, upload
        from pilot.server.tls import find_tls

        patience = _UPLOAD_PATIENCE
        if self._stopped:
            left = self._options.grace - (time.monotonic() - self._stopped) - _RESERVE
            patience = min(patience, max(left, _UPLOAD_LEAST))
        tls = find_tls(self._environ).context
        try:
            upload(self._log, self._options.log_url, self._options.log_name, make_masker(self._all), tls, patience)
        except OSError as error:
            self._say(f"the log is not uploaded: {error}")

    def _say(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} [pod] {text}\n"
        put(line.encode())
        if self._log and self._wants_log:
            with contextlib.suppress(OSError), open(self._log, "a") as log:  # a full disk changes no exit code
                log.write(line)


def _remove(workdir: Path | None) -> None:
    """Our directory, unless the pilot has left one of a job in it that is to be kept."""
    if workdir and not any(workdir.glob("PanDA_Pilot3_*")):
        shutil.rmtree(workdir, ignore_errors=True)
