"""`pilot devserver`: a small PanDA server for demos and tests."""

from __future__ import annotations

import argparse

from pilot.devserver.options import add_arguments


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("devserver", help="a small PanDA server for demos and tests")
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    # http.server and sqlite3 are 70 ms of import that no other subcommand needs.
    from pilot.devserver.command import serve

    return serve(args)
