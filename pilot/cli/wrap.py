"""`pilot wrap`: what the wrapper script becomes; see docs/wrapper.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Show the subcommand in the list; its command line is the wrapper's and the pilot's, and is parsed by `main`."""
    commands.add_parser("wrap", help="run a pilot in a batch slot: set-up, checks, supervision", add_help=False)


def main(argv: Sequence[str]) -> int:
    """Wrap a pilot; the exit status for the batch system."""
    import os
    import shutil
    import sys

    from pilot.wrap.options import parse
    from pilot.wrap.program import pilot_program
    from pilot.wrap.wrapper import FAULT, Wrapper

    try:
        options = parse(argv, os.environ)
        return Wrapper(options, os.environ, pilot_program()).run()
    except SystemExit as end:  # a mistake on the command line has 2, which tells Harvester of a stuck pilot
        # What the script that has become us has made, unless it is where we were started.
        scratch = argv[1] if len(argv) > 1 and argv[0] == "--scratch" else os.curdir
        if os.path.realpath(scratch) != os.path.realpath(os.curdir):
            shutil.rmtree(scratch, ignore_errors=True)
        sys.exit(FAULT if end.code == 2 else end.code)
