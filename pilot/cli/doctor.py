"""`pilot doctor`: looks at the node as a pilot would, and says what to do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.doctor.check import Patient
    from pilot.doctor.examine import Line
    from pilot.flags import RunParser

_USAGE = "pilot doctor [-q QUEUE] [--url SERVER] [options]"
_DESCRIPTION = "Look at this node as a pilot would, and print one line a check: ok, warning or failure, and what to do."
_EPILOG = """\
Every other option of `pilot run` is taken too, so that a wrapper can give the same command line to both.

Exit codes: 0 if no check failed, 1 if one did, 2 for an option that cannot be used. See docs/doctor.md."""

#: Settings whose options are shown in the help: those that checks look at.
_SHOWN = (
    *("queue", "pilot_user", "url", "port", "queuedata_url", "storagedata_url", "cacert", "capath", "allow_http"),
    *("workdir", "cvmfs", "free_space_limit", "cgroup", "config", "update_server"),
)

#: Seconds for `--back-off` without a value: long enough for a bad node not to drain a queue, short enough to end in the
#: slot that it has.
_BACK_OFF = "300-900"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Show the subcommand in the list; its command line is that of `pilot run` and more, and is parsed by `main`."""
    commands.add_parser("doctor", help="look at this node as a pilot would, and say what is wrong", add_help=False)


def main(argv: Sequence[str]) -> int:
    """Examine the node; 0 if nothing failed, 1 if something did."""
    import os

    from pilot.settings import TABLE, Settings, SettingsError

    if {"-h", "--help"}.intersection(argv):
        _parser(_SHOWN).print_help()
        return 0
    args = _parser(TABLE).parse_args(argv)
    try:
        settings = Settings.from_flags(vars(args), os.environ)
    except SettingsError as error:
        print(f"pilot doctor: error: {error}", file=sys.stderr)
        return 2
    from pilot.doctor.check import Patient

    return run(args, Patient(settings=settings, environ=os.environ, needs_cvmfs=args.needs_cvmfs))


def run(args: argparse.Namespace, patient: Patient) -> int:
    """Print what was found, and wait if it is bad and that was asked for."""
    import logging

    from pilot.doctor.check import Level
    from pilot.doctor.examine import examine, worst

    logging.getLogger().addHandler(logging.NullHandler())  # what modules warn of is in our own lines
    lines = examine(patient)
    is_bad = worst(lines) is Level.FAILURE
    wait = _draw(args.back_off) if is_bad and args.back_off else 0.0
    _show(lines, wait, args.json)
    if wait:
        _back_off(wait)
    return int(is_bad)


def _show(lines: list[Line], wait: float, as_json: bool) -> None:
    from pilot.doctor.examine import worst

    if as_json:
        import dataclasses
        import json
        import os

        checks = [dataclasses.asdict(line) for line in lines]
        node = os.uname().nodename
        print(json.dumps({"node": node, "level": worst(lines), "back_off": wait, "checks": checks}, indent=2))
    else:
        print("\n".join(map(str, lines)))
        if wait:
            print(f"this node is not fit for jobs: waiting {wait:.0f} s, so that others take them")
    sys.stdout.flush()


def _back_off(seconds: float) -> None:
    """Wait, until SIGTERM at the latest."""
    import signal
    import threading

    enough = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    enough.wait(seconds)


def _draw(limits: tuple[float, float]) -> float:
    import random

    return random.uniform(*limits)


def _parser(shown: Collection[str]) -> RunParser:
    """A parser of those settings' options, and of our own."""
    from dataclasses import replace

    from pilot.flags import RunParser, add_options
    from pilot.settings import TABLE

    names = [name for name in TABLE if name in shown]
    parser = RunParser(
        prog="pilot doctor",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for wrappers")
    parser.add_argument(
        "--back-off",
        nargs="?",
        type=_seconds,
        const=_seconds(_BACK_OFF),
        metavar="MIN-MAX",
        help=f"wait so many seconds, drawn at random, before a bad node ends ({_BACK_OFF}); SIGTERM ends the wait",
    )
    parser.add_argument("--cvmfs", dest="needs_cvmfs", action="store_true", help="CVMFS must be there")
    add_options(parser, {name: replace(TABLE[name], required=False, later="") for name in names})
    return parser


def _seconds(text: str) -> tuple[float, float]:
    least, _, most = text.partition("-")
    try:
        limits = float(least), float(most or least)
    except ValueError:
        limits = -1.0, -1.0
    if not 0 <= limits[0] <= limits[1] <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds as MIN-MAX, up to 86400, got {text}")
    return limits
