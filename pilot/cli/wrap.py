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
    import sys
    from pathlib import Path

    from pilot.wrap.options import parse
    from pilot.wrap.program import pilot_program
    from pilot.wrap.wrapper import FAULT, Wrapper, remove_scratch

    try:
        options = parse(argv, os.environ)
        return Wrapper(options, os.environ, pilot_program()).run()
    except SystemExit as end:  # a mistake on the command line has 2, which tells Harvester of a stuck pilot
        if len(argv) > 1 and argv[0] == "--scratch":  # by the script that has become us
            remove_scratch(Path(argv[1]), Path.cwd())
        sys.exit(FAULT if end.code == 2 else end.code)
