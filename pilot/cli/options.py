"""The options of `pilot run` for argparse. What they are is in `pilot.settings`, how they look in `pilot.flags`."""

from __future__ import annotations

import argparse

from pilot.flags import RunParser, add_options, run_parser
from pilot.settings import TABLE


def build_parser(prog: str = "pilot run") -> RunParser:
    """The parser of `pilot run`; its namespace has only what was given, for `Settings.from_flags`."""
    return run_parser(TABLE, prog)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pilot run` to a parser; a `RunParser` also knows shortened names and suggests near ones."""
    add_options(parser, TABLE)
