"""`pilot local`: one job from a file, with no server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.cli.terminal import Terminal

_DESCRIPTION = """\
Run one job from a file on this machine, with no server: bring its inputs, run and watch its payload, take its outputs
out. The file is short YAML (see --example) or a server's job definition in JSON."""

_EPILOG = """\
  pilot local --example > job.yaml && pilot local job.yaml

The exit code is 0 if the job finished, else that of the error (the table in pilot/errors.py)."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "local",
        help="run one job from a file, with no server",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", nargs="?", type=Path, metavar="JOB", help="the job file")
    parser.add_argument("--example", action="store_true", help="print a commented job file that runs as it is")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="make the job directory in here (default: $TMPDIR)")
    parser.add_argument("--keep", action="store_true", help="do not remove the job directory at the end")
    parser.add_argument("--queuedata", metavar="FILE", help="queue JSON: copy tools, limits, as on a grid node")
    parser.add_argument("--storagedata", metavar="FILE", help="storage JSON, for files given by endpoint")
    parser.add_argument("--grace", type=_seconds, default=25.0, metavar="SECONDS", help="from a stop to the end (25)")
    parser.add_argument(
        "--realtime-logging-server", default="", metavar="SINKS", help="send the log there while it runs"
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="write what became of the job as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing unless the job fails")
    parser.add_argument("--debug", "-d", action="store_true", help="show the pilot's log, with details")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the job; the exit code is that of its outcome."""
    if args.example:
        from pilot.jobfile import EXAMPLE

        print(EXAMPLE, end="")
        return 0
    if args.job is None:
        args.parser.error("which job? Give a job file, or --example to see one")
    return _run_job(args)


def _run_job(args: argparse.Namespace) -> int:
    import os

    from pilot.cli.terminal import Terminal, size
    from pilot.localrun import LocalRun
    from pilot.signals import held

    if args.result and not os.access(args.result.absolute().parent, os.W_OK | os.X_OK):
        args.parser.error(f"--result: {args.result.absolute().parent} is no directory that can be written to")
    if args.result and args.result.is_dir():
        args.parser.error(f"--result: {args.result} is a directory")
    _check_sinks(args)
    terminal = Terminal(sys.stderr, quiet=args.quiet)
    local = LocalRun(
        job_file=args.job,
        workdir=args.workdir,
        keep=args.keep,
        queuedata=args.queuedata or "",
        storagedata=args.storagedata or "",
        grace=args.grace,
        debug=args.debug,
        log_sinks=args.realtime_logging_server,
        environ=os.environ,
        progress=terminal,
    )
    with held():  # a signal that comes while nobody listens waits until the result is written
        outcome = local.run(terminal.tick)
        written = _write_result(args.result, outcome.as_dict(), terminal) if args.result else True
    if not args.quiet:
        for done in outcome.stored():
            terminal.line(f"  {done.file.kind.value:<6} {done.url} ({size(done.size)})")
        if lost := outcome.metrics.get("logLinesLost"):
            terminal.line(f"  {lost} lines of the live log were lost")
        if args.keep and local.main_dir.name:
            terminal.line(f"  kept   {local.main_dir}")
    return outcome.error.code.exit_code if outcome.error else int(not written)


def _check_sinks(args: argparse.Namespace) -> None:
    """On a node a job goes on without its live log; here somebody can mend what is wrong."""
    if not args.realtime_logging_server:
        return
    from pilot.errors import PilotError
    from pilot.logship.choose import make_sinks, parse
    from pilot.logship.sink import SinkContext

    try:
        make_sinks(parse(args.realtime_logging_server), SinkContext())
    except PilotError as error:
        args.parser.error(f"--realtime-logging-server: {error.detail}")


def _write_result(path: Path, result: dict[str, object], terminal: Terminal) -> bool:
    """Whole or not at all: somebody may be waiting for this file. False if it could not be written."""
    import json
    import os

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(result, indent=2) + "\n")
        partial.rename(path)
    except OSError as error:
        terminal.line(f"the result is not written: {path}: {error.strerror}")
        return False
    return True


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"expected 1 to 86400 seconds, got {text}")
    return value
