"""`pilot pod`: the entrypoint of a container image, process 1 of a pod; see docs/kubernetes.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_DESCRIPTION = """\
Run a pilot as process 1 of a pod: what Harvester says by variables becomes its command line, signals are passed on at
once, processes that lost their parents are collected, and the exit code is the pilot's.

All options are the pilot's (`pilot run --help`) and count more than the variables, which docs/kubernetes.md lists."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Show the subcommand in the list; its command line is the pilot's."""
    commands.add_parser("pod", help="run a pilot as process 1 of a container", add_help=False)


def main(argv: Sequence[str]) -> int:
    """Run a pilot in a pod; its exit code."""
    import os

    from pilot.wrap.pod import Pod
    from pilot.wrap.program import pilot_program

    if "-h" in argv or "--help" in argv:
        print(_DESCRIPTION)
        return 0
    return Pod(argv, os.environ, pilot_program()).run()
