"""`pilot logship`: a worker's log to log sinks while it is written, for any wrapper."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilot.logship.worker import WorkerShip
    from pilot.masking import Masker

_DESCRIPTION = """\
Follow the log files of a worker, of wrapper and pilot together, and send each line to log sinks. The job is found in
the log. Ends with the process of --pid, or by SIGTERM, and then sends what is left."""

_EPILOG = """\
  pilot run ... > worker.log 2>&1 &
  pilot logship worker.log --pid $! --server google-cloud-logging --logname Panda-WorkerLog

Passwords and tokens of sinks are read from the environment; see docs/live-logs.md.
Exit code 0, or 1 if lines were lost or the upload failed."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "logship",
        help="send a worker's log to log sinks while it is written",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="may be made later")
    parser.add_argument("--server", required=True, metavar="SINKS", help="as --realtime-logging-server of pilot run")
    parser.add_argument("--logname", default="Panda-WorkerLog", metavar="NAME", help="name of the log (%(default)s)")
    parser.add_argument("--job-id", default="", metavar="ID", help="job of lines whose job the log does not tell")
    parser.add_argument("--queue", default="", metavar="NAME", help="queue, for the records")
    parser.add_argument("--pid", type=int, metavar="PID", help="end when this process has ended")
    parser.add_argument("--grace", type=float, default=20.0, metavar="SECONDS", help="from then to our end (20)")
    parser.add_argument(
        "--rate", type=float, default=0.0, metavar="LINES", help="lines per second on average, 0 for all"
    )
    parser.add_argument("--spool", type=Path, metavar="DIR", help="for lines that wait (a temporary directory)")
    parser.add_argument("--upload", metavar="URL", help="at the end, POST each file to URL/putFile")
    parser.add_argument("--upload-name", metavar="NAME", help="name there (the file's own)")
    parser.add_argument("--allow-http", action="store_true", help="let lines leave the node unencrypted")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Ship until the end; the exit code."""
    import asyncio
    import os

    from pilot.errors import PilotError

    if not args.server.strip(", "):
        args.parser.error("--server: which sinks?")
    try:
        return asyncio.run(_main(args, os.environ))
    except PilotError as error:
        print(f"pilot logship: {error.detail}", file=sys.stderr)
        return 2


async def _main(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    import asyncio
    import shutil
    import signal
    import tempfile

    from pilot.logship.worker import make_masker
    from pilot.stop import Deadline, in_thread

    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    masker = make_masker(environ)
    spool = Path(tempfile.mkdtemp(prefix="logship-", dir=args.spool))
    try:
        ship = _make_ship(args, environ, masker, spool)
        ship.start()
        await _wait_for_end(args.pid, stopped)
        deadline = Deadline(args.grace)
        await ship.finish(deadline.less(args.grace / 2 if args.upload else 0.5))
        lost = ship.losses()
        for name, count in lost.items():
            print(f"pilot logship: {count} lines lost: {name}", file=sys.stderr)
        uploaded = (
            await in_thread(_upload, args, environ, masker, max(1.0, deadline.remaining)) if args.upload else True
        )
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    return int(bool(lost) or not uploaded)


def _make_ship(args: argparse.Namespace, environ: Mapping[str, str], masker: Masker, spool: Path) -> WorkerShip:
    import socket

    from pilot.logship.choose import make_sinks, parse
    from pilot.logship.record import Origin
    from pilot.logship.sink import SinkContext
    from pilot.logship.worker import WorkerShip

    context = SinkContext(log_name=args.logname, environ=environ, allow_http=args.allow_http, tls=_tls(environ))
    origin = Origin(
        job_id=args.job_id,
        worker_id=environ.get("HARVESTER_WORKER_ID") or environ.get("workerID", ""),
        harvester_id=environ.get("HARVESTER_ID", ""),
        host=socket.gethostname(),
        queue=args.queue or environ.get("computingSite", ""),
    )
    ship = WorkerShip(origin, Path.cwd(), masker, make_sinks(parse(args.server), context), spool, rate=args.rate)
    ship.enter("worker")
    for path in args.files:
        ship.follow(path.absolute())
    return ship


async def _wait_for_end(pid: int | None, stopped: Any) -> None:
    """Until a signal comes, or the process has ended."""
    import asyncio

    while not stopped.is_set() and (pid is None or _runs(pid)):
        try:
            await asyncio.wait_for(stopped.wait(), None if pid is None else 0.3)
        except TimeoutError:
            pass


def _runs(pid: int) -> bool:
    from pilot.processes import is_zombie

    return Path(f"/proc/{pid}").exists() and not is_zombie(pid)


def _upload(args: argparse.Namespace, environ: Mapping[str, str], masker: Masker, timeout: float) -> bool:
    from pilot.logship.worker import upload

    for path in args.files:
        try:
            upload(path, args.upload, args.upload_name or path.name, masker, _tls(environ), timeout)
        except OSError as error:
            print(f"pilot logship: {path} is not uploaded: {error}", file=sys.stderr)
            return False
    return True


def _tls(environ: Mapping[str, str]) -> Any:
    from pilot.server.tls import find_tls

    return find_tls(environ).context
