"""Stage-in and stage-out where the clients of storages are: in a container, or behind a site's set-up commands.

A queue says so by `container_type`: `container:middleware`, or `bash:middleware` for a script on the node (PILOT3 7.5).
A copy of this program runs there, with the request in a file; what it does comes back line by line in another one, and
becomes the same results, progress and traces as of transfers of our own. All of it is in a directory beside the job's,
which no payload can write to; what Pilot 3 leaves in the job directory for people and their tools is made from it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pilot.contain import Runtime, find_runtime, runtime_options
from pilot.errors import Code, PilotError
from pilot.job import Access, File, Job, Kind
from pilot.payload.container import Container, Mount, Order, mounts_of, named_files, write_file
from pilot.plugins import KINDS
from pilot.portable import Decoder, encoded
from pilot.queuedata import QueueInfo
from pilot.removal import remove_tree
from pilot.settings import Settings
from pilot.staging.call import Call
from pilot.staging.engine import StagingEngine
from pilot.staging.faults import Direction
from pilot.staging.handle import TransferHandle
from pilot.staging.mover import TIMEOUT_MAX
from pilot.staging.pace import PaceLimits
from pilot.staging.result import FailedFile, StagedFile, StagingObserver, StagingResult, Trial
from pilot.stop import Stop, in_thread

logger = logging.getLogger(__name__)

#: Files in the directory of a call.
REQUEST, EVENTS = "request.json", "events.jsonl"
#: Seconds between two looks at the latter.
_LOOK = 1.0
#: Seconds for a runtime to take away what is left of its container; at a stop it has a quarter of what there is.
_TIDY = 10.0
#: How the script ends where there is no Python for us: Pilot 3's exit status for middleware that cannot be imported.
_NO_PYTHON = Code.MIDDLEWAREIMPORTFAILURE.exit_code
#: What the copy of this program is made of, as far as it is here. Compiled parts are of use to the same Python only.
_PACKAGES = ("pilot", "plugins", "copytools", "urllib3", "zlib_ng")
#: Variables of the node's Python, which is not the one inside.
_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
#: Variables whose files the clients of storages read, beside those that payloads may have.
_FILE_VARIABLES = (
    *("RUCIO_CONFIG", "RUCIO_HOME", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE"),
    *("AWS_CONFIG_FILE", "AWS_CA_BUNDLE", "XrdSecSSSKT"),
)

_SCRIPT = """{setup}
export PYTHONPATH={library}${{PYTHONPATH:+:$PYTHONPATH}}
for python in "$PILOT_PYTHON" python3 python3.14 python3.13 python3.12 python3.11 \\
    {cvmfs}/sft.cern.ch/lcg/releases/Python/3.1[1-9]*/*-opt/bin/python3; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        exec "$python" -m pilot.middlewarerun {folder}
done
echo "there is no Python >= 3.11" >&2
exit {no_python}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What decides how the files of a job are staged, and what is to be staged."""

    settings: Settings
    info: QueueInfo
    job: Job
    launch_dir: Path
    checksum_types: tuple[str, ...]
    direction: Direction = Direction.IN
    files: tuple[File, ...] = ()
    workdir: Path = Path()
    together: bool = False


class MiddlewareEngine(StagingEngine):
    """Has files moved by an engine like itself that runs elsewhere.

    Args:
        request: without what is to be staged.
        main_dir: the pilot's own directory.
        environ: of the tools.
        observer, options: as for the engine.
    """

    def __init__(
        self, request: Request, main_dir: Path, environ: Mapping[str, str], *, observer: StagingObserver, **options: Any
    ) -> None:
        super().__init__(observer=observer, **options)
        job = replace(request.job, secrets=None, pilot_secrets={})
        self._request = replace(request, settings=_absolute(request.settings), job=job)
        self._make_errand = partial(_Errand, main_dir, environ, observer)
        # Whether a transfer is too slow, and all of them too large, is for those to see who move them.
        limits = replace(self._limits, pace=PaceLimits(idle=0.0, speed=0.0), input_size=None)
        self._call = partial(self._call, limits=limits)

    async def stage_in(
        self, files: Sequence[File], workdir: Path, stop: Stop, *, together: bool = True
    ) -> StagingResult:
        """As the engine."""
        return await self._elsewhere(Direction.IN, files, workdir, stop, together=together)

    async def stage_out(
        self, files: Sequence[File], workdir: Path, stop: Stop, *, paths: Mapping[str, Path] = MappingProxyType({})
    ) -> StagingResult:
        """As the engine; what is not in the job directory is taken from here, if the node can."""
        if paths:
            return await super().stage_out(files, workdir, stop, paths=paths)
        return await self._elsewhere(Direction.OUT, files, workdir, stop, together=False)

    async def _elsewhere(
        self, direction: Direction, files: Sequence[File], workdir: Path, stop: Stop, *, together: bool
    ) -> StagingResult:
        call = self._call(direction, files, stop, together=together)
        request = replace(self._request, direction=direction, files=tuple(files), workdir=workdir, together=together)
        errand = self._make_errand(request, call, stop)

        async def one(file: File) -> StagedFile | FailedFile:
            done = errand.done.get(file.lfn)
            if not getattr(done, "attempts", True):  # given up because of another one, which is to be told first
                await asyncio.sleep(0)
            if done is None:
                raise errand.problem
            return done

        if not files:
            return await call.run(one)
        _leave(request, {"replicas.json": _replicas(request)} if direction is Direction.IN else {})
        result = await call.run(one, errand.run)
        only_log = all(file.kind is Kind.LOG for file in files)
        _leave(request, {**errand.left, f"status.json{'.log' if only_log else ''}": _status(result, direction)})
        return replace(result, metrics=errand.metrics)


class _Errand:
    """One call, made elsewhere.

    Attributes:
        done: what is known of files, by LFN.
        problem: why nothing is known of the others.
        metrics: for the job's.
        left: files for the job directory: what follows `stagein_` in a name to its text.
    """

    def __init__(
        self,
        main_dir: Path,
        environ: Mapping[str, str],
        observer: StagingObserver,
        request: Request,
        call: Call,
        stop: Stop,
    ) -> None:
        self._main_dir = main_dir
        self._environ = environ
        self._observer = observer
        self._request = request
        self._call = call
        self._stop = stop
        self._decoder = Decoder()
        self._read = 0
        self._ended = False
        self.done: dict[str, StagedFile | FailedFile] = {}
        self.problem: PilotError = request.direction.fault("the staging elsewhere has not told of it")
        self.metrics: dict[str, str] = {}
        self.left: dict[str, str] = {}

    async def run(self) -> None:
        """All of it; what goes wrong is the problem of the files that have not moved by then."""
        progress = self._call.progress
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"middleware-{self._request.job.job_id}-", dir=self._main_dir))
            try:
                await self._in(folder)
            finally:
                await in_thread(remove_tree, folder)
        except PilotError as error:
            self.problem = error
        except OSError as error:
            self.problem = PilotError(Code.SETUPFAILURE, f"{self._where}: {error}")
        finally:
            progress.finished = progress.linked = 0  # the files themselves are about to be counted

    async def _in(self, folder: Path) -> None:
        container = self._container(folder)
        await self._call.aside(self._lay_out, folder)
        try:
            await self._stop.guard(container.prepare())
        except PilotError as error:
            raise PilotError(error.code, f"{self._where}: {error.detail}") from error
        logger.info("%s: %s (%s)", self._request.direction.value, self._where, container.name)
        over = asyncio.Event()
        following = asyncio.create_task(self._follow(folder, over))
        parallel = max(1, self._request.settings.parallel_transfers)
        patience = TIMEOUT_MAX * (1 + len(self._request.files) / parallel), self._request.direction.timed_out
        try:
            ended = await self._call.in_slot(None, partial(_execute, container, container.stdin()), "", patience)
        finally:
            over.set()
            await following
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_TIDY, self._stop.deadline.remaining / 4)):
                    await container.close()
        self.left |= {"stdout.txt": ended.stdout, "stderr.txt": ended.stderr}
        if not self._ended:
            self.problem = self._failure(container, ended)

    def _container(self, folder: Path) -> Container:
        settings, queue = self._request.settings, self._request.info.queue
        runtime = self._runtime()
        image, environ = settings.middleware_container, dict(self._environ)
        if self._is_contained:
            environ = {name: value for name, value in environ.items() if name.isidentifier() and name not in _PYTHON}
        is_platform = "/" not in image
        text = _SCRIPT.format(
            setup=settings.middleware_setup,
            library=shlex.quote(str(folder / "lib")),
            folder=shlex.quote(str(folder)),
            cvmfs=shlex.quote(settings.cvmfs_base),
            no_python=_NO_PYTHON,
        )
        self.left[".sh"] = text
        order = Order(
            job=Job(job_id=self._request.job.job_id, platform=image if is_platform else ""),
            queue=queue,
            image="" if is_platform else image,
            text=text,
            workdir=folder,
            private=folder,
            environment=environ,
            environ=self._environ,
            mounts=self._mounts(environ, folder),
            options=runtime_options(queue, settings, self._request.workdir),
            cvmfs=Path(settings.cvmfs_base),
        )
        return runtime.kind(order, runtime.program)

    def _runtime(self) -> Runtime:
        """What runs payloads in containers runs this, too."""
        named = self._request.info.queue.container_type.get("pilot", "apptainer").lower()
        return find_runtime(named if self._is_contained else "none", self._request.settings, self._environ)

    @property
    def _is_contained(self) -> bool:
        return self._request.info.queue.container_type["middleware"] == "container"

    def _mounts(self, environ: Mapping[str, str], folder: Path) -> tuple[Mount, ...]:
        """The job directory and where `mv` may write; to be read: credentials, CVMFS, and where inputs may lie."""
        request, settings = self._request, self._request.settings
        folders = [request.workdir, *map(Path, filter(None, (settings.output_dir, settings.input_cache)))]
        if "mv" in request.info.queue.copytools:
            folders.append(request.launch_dir)
        files = [*named_files(environ), *(environ[name] for name in _FILE_VARIABLES if environ.get(name))]
        read = mounts_of([settings.cvmfs_base, *filter(None, (settings.input_dir,)), *files], folder)
        return (*(Mount(path, read_only=False) for path in dict.fromkeys(folders) if path.exists()), *read)

    def _lay_out(self, folder: Path) -> None:
        """The request, and the program that carries it out, in the directory of the call. Blocks."""
        write_file(folder / REQUEST, json.dumps(encoded(self._request)), 0o600)
        library = folder / "lib"
        points = [(kind, point) for kind in KINDS for point in entry_points(group=kind)]
        for name in dict.fromkeys((*_PACKAGES, *(point.module.partition(".")[0] for _, point in points))):
            spec = find_spec(name)
            for place in (spec.submodule_search_locations or [spec.origin or ""]) if spec else []:
                if os.path.isdir(place):
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(place, library / name, ignore=ignored, dirs_exist_ok=True)
                elif os.path.isfile(place):
                    shutil.copy(place, library)
        known = library / "plugins-0.dist-info"
        known.mkdir()
        (known / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 0\n")
        lines = [f"[{kind}]\n{point.name} = {point.value}\n" for kind, point in points]
        (known / "entry_points.txt").write_text("".join(lines))

    async def _follow(self, folder: Path, over: asyncio.Event) -> None:
        """Take in what is told, until it is over, to the last line."""
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await over.wait()
            for line in await in_thread(self._new_lines, folder / EVENTS):
                try:
                    self._take(json.loads(line))
                except (ValueError, TypeError, LookupError, AttributeError):
                    logger.exception("a line that makes no sense: %r", line[:200])

    def _new_lines(self, path: Path) -> list[bytes]:
        """Whole lines that have come since the last time. Blocks."""
        try:
            with open(path, "rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return []
        lines = text[: text.rfind(b"\n") + 1].splitlines()
        self._read += text.rfind(b"\n") + 1
        return lines

    def _take(self, event: Mapping[str, Any]) -> None:
        decode = self._decoder.decode
        for name, value in event.items():
            if name == "tried":
                self._observer.tried(decode(Trial, value))
            elif name == "moved":
                progress = self._call.progress
                progress.finished, progress.linked, progress.bytes = value
            elif name == "end":
                self.metrics, self._ended = dict(value), True
            else:
                done = decode(StagedFile if name == "arrived" else FailedFile, value)
                self.done[done.file.lfn] = done

    @property
    def _where(self) -> str:
        image = self._request.settings.middleware_container
        return f"middleware container {image!r}" if self._is_contained else "middleware script"

    def _failure(self, container: Container, ended: subprocess.CompletedProcess[str]) -> PilotError:
        """Why nobody has told of the end: no container, no Python, or a program that broke."""
        if not container.started:
            return container.failure(ended.returncode, ended.stderr)
        last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "")
        text = f"{self._where}: {last or f'exit status {ended.returncode}'}"
        if ended.returncode == _NO_PYTHON:
            return PilotError(Code.MIDDLEWAREIMPORTFAILURE, text)
        return self._request.direction.fault(text)


def _absolute(settings: Settings) -> Settings:
    """Without where they come from; directories mean the same wherever somebody works."""
    places = {name: getattr(settings, name) for name in ("input_dir", "output_dir", "input_cache")}
    found: dict[str, Any] = {name: os.path.abspath(value) for name, value in places.items() if value}
    return replace(settings, origins={}, notes=(), **found)


def _execute(container: Container, stdin: int, handle: TransferHandle) -> subprocess.CompletedProcess[str]:
    go = ["/bin/bash", "-c", 'cd "$1" && shift && exec "$@"', "middleware", str(container.order.workdir)]
    return handle.run([*go, *container.argv], container.environment, stdin=stdin)


def _replicas(request: Request) -> str:
    """`stagein_replicas.json`: all that is known of the inputs before."""
    queue = request.info.queue
    table = {
        file.lfn: {
            "guid": file.guid,
            "scope": file.scope,
            "dataset": file.dataset,
            "ddmendpoint": file.endpoint,
            "filesize": file.size or 0,
            "checksum": next((file.checksums[kind] for kind in ("adler32", "md5") if kind in file.checksums), "None"),
            "allowlan": queue.allow_lan,
            "allowwan": queue.allow_wan,
            "directaccesslan": queue.direct_access_lan,
            "directaccesswan": queue.direct_access_wan,
            "istar": file.is_tar,
            "accessmode": "direct" if file.access is Access.DIRECT else "copy",
            "storagetoken": file.token,
        }
        for file in request.files
    }
    return json.dumps(table, indent=1)


def _status(result: StagingResult, direction: Direction) -> str:
    """`stagein_status.json` or `stageout_status.json`: a list for each file, and the first error.

    The list of one that failed has its diagnostic behind what Pilot 3 writes.
    """
    table: dict[str, list[Any]] = {}
    for done in result.staged:
        if direction is Direction.IN:
            word = "remote_io" if done.file.turl else "transferred"
            table[done.file.lfn] = [word, 0, done.file.turl or done.url, done.file.endpoint]
        else:
            checksum = next(iter(done.checksums.values()), "")
            table[done.file.lfn] = ["transferred", 0, done.url, done.url, checksum, done.size]
    for failure in result.failed:
        rest = ["", failure.file.endpoint] if direction is Direction.IN else ["", "", "", failure.file.size or 0]
        table[failure.file.lfn] = ["failed", int(failure.error.code), *rest, failure.error.diag]
    error = result.error
    return json.dumps({**table, "error": [error.diag, int(error.code)] if error else ["", 0]}, indent=1)


def _leave(request: Request, texts: Mapping[str, str]) -> None:
    """Write `stagein_...` or `stageout_...` into the job directory; no job fails for them, or loses its own file."""
    taken = {file.lfn for file in request.files}
    for rest, text in texts.items():
        name = request.direction.value.replace("-", "") + ("" if rest.startswith(".") else "_") + rest
        try:
            if name not in taken:
                write_file(request.workdir / name, text, 0o644)
        except PilotError as error:
            logger.warning("%s is not written: %s", name, error.detail)
