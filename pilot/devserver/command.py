"""`pilot devserver`: from the command line to a server that runs until it is told to stop."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

from pilot.devserver.app import Settings
from pilot.devserver.auth import Guard
from pilot.devserver.faults import FaultError, parse
from pilot.devserver.jobs import DefinitionError, load
from pilot.devserver.server import Server
from pilot.masking import Secret

_USAGE = 2


class UsageError(Exception):
    """The command line asks for something that cannot be."""


class _Stop(BaseException):
    """SIGTERM or SIGINT: leaves the accept loop at once."""


def serve(args: argparse.Namespace) -> int:
    """Run the server until SIGTERM or SIGINT; returns the exit code: 0, or 2 for a command line that cannot be."""
    signals = (signal.SIGTERM, signal.SIGINT)
    for signum in signals:
        signal.signal(signum, _raise_stop)
    try:
        with Server(settings(args)) as server:
            _prepare(server, args)
            _announce(server, args.ready_file)
            server.serve_forever()
    except _Stop:
        return 0
    except (UsageError, DefinitionError, FaultError, OSError, OverflowError, sqlite3.Error) as error:
        print(f"pilot devserver: {error}", file=sys.stderr)
        return _USAGE
    return 0


def _raise_stop(signum: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # a second signal must not cut the clean end short
    raise _Stop


def settings(args: argparse.Namespace) -> Settings:
    """The settings that a command line stands for.

    Raises:
        UsageError: options that do not go together; OSError: a token file that cannot be read.
    """
    if (args.token is None) != (args.origin is None):
        raise UsageError("--token and --origin go together")
    if (args.key or args.client_ca) and not args.cert:
        raise UsageError("--key and --client-ca need --cert")
    if args.files and not args.files.is_dir():
        raise UsageError(f"--files {args.files} is not a directory")
    return Settings(
        host=args.host,
        port=args.port,
        api=args.api,
        state=args.state,
        record=args.record,
        files=args.files,
        adder_delay=args.adder_delay,
        guard=Guard(_token(args.token), args.origin or "", certificates=args.client_ca is not None),
        cert=args.cert,
        key=args.key,
        client_ca=args.client_ca,
        verbose=args.verbose,
    )


def _token(given: str | None) -> Secret | None:
    if given is None:
        return None
    path = Path(given)
    # A token is longer than a file name may be: then asking for the file is an error of its own.
    is_file = len(given) < 1024 and path.is_file()
    token = path.read_text(encoding="utf-8").strip() if is_file else given.strip()
    if not token:
        raise UsageError("--token is empty")
    return Secret(token)


def _prepare(server: Server, args: argparse.Namespace) -> None:
    for path in args.jobs:
        server.app.admin.submit(load(path))
    for text in args.fault:
        server.app.faults.add(parse(text))
    for text in args.grant:
        what, _, name = text.partition("=")
        if what not in ("proxy", "token", "keys") or not Path(name).is_file():
            raise UsageError(f"--grant {text!r} is not proxy=FILE, token=FILE or keys=FILE")
        server.app.state.grant({"token": "access token"}.get(what, what), Path(name))
        server.app.recorder.learn([{"secrets": Path(name).read_text(encoding="utf-8")}])
    for text in args.command:
        job_id, _, command = text.partition(":")
        if not job_id.isdigit() or not command:
            raise UsageError(f"--command {text!r} is not JOBID:TEXT")
        done, message = server.app.admin.command(int(job_id), command)
        if not done:
            raise UsageError(f"--command {text}: {message}")


def _announce(server: Server, ready_file: Path | None) -> None:
    if ready_file:
        value = {"url": server.url, "port": server.server_port, "pid": os.getpid()}
        partial = ready_file.with_name(f"{ready_file.name}.partial")
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(ready_file)
    print(server.url, flush=True)
