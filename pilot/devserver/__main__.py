"""`python -m pilot.devserver`: the same as `pilot devserver`, without the rest of the command."""

from __future__ import annotations

import argparse
import sys

from pilot.devserver.command import serve
from pilot.devserver.options import add_arguments


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="pilot devserver")
    add_arguments(parser)
    return serve(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
