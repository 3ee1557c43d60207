"""`pilot deliver`: stage out and report what earlier pilots could not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.flags import RunParser

_USAGE = "pilot deliver -q QUEUE --pilot-user NAME [options] [DIR...]"
_DESCRIPTION = """\
Stage out the outputs that pilots with --keep-undelivered could not deliver, or were killed before they did; report
their jobs finished, and remove what was kept."""
_EPILOG = """\
DIR is where they are, or a directory above: that of --keep-undelivered, or the --workdir of pilots that were killed.
Without any, both are looked at. Every other option of `pilot run` is taken too.

  pilot deliver -q MY_QUEUE --pilot-user generic --url https://pandaserver.example.org /data/undelivered

Exit codes: 0 if nothing is left, 71 and others if something is. See docs/stage-out.md."""

#: Settings whose options are shown in the help.
_SHOWN = (
    *("queue", "pilot_user", "url", "port", "queuedata_url", "storagedata_url", "cacert", "capath", "allow_http"),
    *("workdir", "keep_undelivered", "stageout_attempts", "config", "debug"),
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Show the subcommand in the list; its command line is that of `pilot run` and more, and is parsed by `main`."""
    commands.add_parser("deliver", help="stage out and report what earlier pilots could not", add_help=False)


def main(argv: Sequence[str]) -> int:
    """Deliver; the exit code of what went wrong, 0 if nothing did."""
    import os

    from pilot.errors import PilotError
    from pilot.settings import TABLE, Settings, SettingsError

    if {"-h", "--help"}.intersection(argv):
        _parser(_SHOWN).print_help()
        return 0
    args = _parser(TABLE).parse_args(argv)
    try:
        settings = Settings.from_flags(vars(args) | {"workerpilotstatusupdate": False, **_kept(args)}, os.environ)
        from pilot.pilotrun import PilotRun

        return PilotRun(settings, os.environ, argv=argv, deliver=args.directories).run()
    except SettingsError as error:
        print(f"pilot deliver: error: {error}", file=sys.stderr)
        return 2
    except PilotError as error:
        print(f"pilot deliver: {error}", file=sys.stderr)
        return error.code.exit_code


def _kept(args: argparse.Namespace) -> dict[str, str]:
    """`mv` leaves the files where they are until their job is reported, as with --keep-undelivered."""
    return {} if vars(args).get("mv_stageout") == "copy" else {"mv_stageout": "link"}


def _parser(shown: Collection[str]) -> RunParser:
    """A parser of those settings' options, and of our own."""
    from pilot.flags import RunParser, add_options
    from pilot.settings import TABLE

    parser = RunParser(
        prog="pilot deliver",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
    )
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="where to look")
    add_options(parser, {name: option for name, option in TABLE.items() if name in shown})
    return parser
