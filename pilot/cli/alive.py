"""`pilot alive`: is the pilot on this node alive? For the liveness probe of a pod."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

_DESCRIPTION = """\
Ask the pilot itself how it is. It answers from its event loop, so a pilot that hangs does not. Exit code 0 if it
answers, else 1; one line says what it does, or what is wrong."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("alive", help="ask a running pilot how it is", description=_DESCRIPTION)
    parser.add_argument("--socket", metavar="FILE", help="its --alive-socket (PILOT_ALIVE_SOCKET, or that of a pod)")
    parser.add_argument("--patience", type=float, default=10.0, metavar="SECONDS", help="for its answer (10)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask; 0 or 1."""
    import os

    from pilot.wrap.podenv import alive_socket

    path = args.socket or alive_socket(os.environ)
    try:
        status = ask(path, args.patience)
    except (OSError, ValueError) as error:
        print(f"no answer from a pilot at {path}: {error}")
        return 1
    print(_sentence(status))
    return 0


def ask(path: str, patience: float) -> Mapping[str, Any]:
    """The answer of the pilot at a socket.

    Raises:
        OSError: there is none, or not within `patience` seconds.
        ValueError: it is no answer of a pilot.
    """
    import json
    import socket

    answer = b""
    with socket.socket(socket.AF_UNIX) as pilot:
        pilot.settimeout(patience)
        pilot.connect(path)
        while part := pilot.recv(4096):
            answer += part
    status = json.loads(answer)
    if not isinstance(status, dict):
        raise ValueError("no object")
    return status


def _sentence(status: Mapping[str, Any]) -> str:
    doing = f", job {status['job']}: {status.get('phase')}" if status.get("job") else ""
    state = f"{status.get('state')} for {status.get('since')} s{doing}"
    return f"{state}; {status.get('jobs')} jobs before; up {status.get('up')} s"
