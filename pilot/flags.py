"""The command line of `pilot run`, made from the settings table.

Two habits of Pilot 3's command line are kept: the names of long options may be shortened, and what is not known is
refused with exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from pilot.option import Group, Option, shortened

_DESCRIPTION = "Take jobs from a PanDA server and run them in this slot, one after the other, until its time is up."
_EPILOG = """\
Values in true or false also take yes, no, t, f, y, n, 1 and 0; without a value they mean true.
Sizes and times are in bytes and seconds. Long names may be shortened as long as they are clear.

  pilot run -q MY_QUEUE --pilot-user generic -j managed --url https://pandaserver.example.org -a /scratch

Exit codes: 0 if all went well, 2 for a setting that cannot be used, else that of the error (pilot/errors.py).
Settings also come from the environment and from a file: docs/settings.md."""

_NOTES = {Group.UNUSED: "So that no command line needs to change; in brackets the feature that is still to come."}


class RunParser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, also as the parser of a subcommand.

    Attributes:
        clear: long names that a shortened one means if it fits only one of them, whatever else there is. They are those
            of Pilot 3: an option that is new here must not make its users' habits ambiguous.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clear: list[str] = []

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in the base class, but nothing may be left over: a mistyped option must not be lost on the way."""
        given = sys.argv[1:] if args is None else args
        parsed, rest = super().parse_known_args([self._in_full(arg) for arg in given], namespace)
        if rest:
            self.error(self._unknown(rest))
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2; the usage of 80 options would only hide it."""
        self.exit(2, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")

    def _in_full(self, arg: str) -> str:
        name, mark, value = arg.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return arg
        fits = [flag for flag in self.clear if flag.startswith(name)]
        return f"{fits[0]}{mark}{value}" if len(fits) == 1 else arg

    def _unknown(self, rest: Sequence[str]) -> str:
        from difflib import get_close_matches

        options = [arg.partition("=")[0] for arg in rest if arg.startswith("-")]
        if not options:
            return f"unexpected argument {shortened(rest[0])}"
        close = get_close_matches(options[0], self._option_string_actions, 1)
        hint = f", did you mean {close[0]}?" if close else ""
        return f"unknown option {shortened(options[0])}{hint}"


def run_parser(table: Mapping[str, Option], prog: str) -> RunParser:
    """A parser whose namespace has the flags that were given, and nothing else."""
    parser = RunParser(
        prog=prog,
        usage="%(prog)s -q QUEUE --pilot-user NAME [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
    )
    add_options(parser, table)
    return parser


def add_options(parser: argparse.ArgumentParser, table: Mapping[str, Option]) -> None:
    """Add a flag for each setting that has one, under the heading of its group; `dest` is the setting's name."""
    groups = {name: Group.UNUSED if option.later else option.group for name, option in table.items() if option.flags}
    used = set(groups.values())
    headings = {group: parser.add_argument_group(group.value, _NOTES.get(group)) for group in Group if group in used}
    for name, option in table.items():
        if option.flags:
            headings[groups[name]].add_argument(*option.flags, dest=name, default=argparse.SUPPRESS, **_details(option))
    if isinstance(parser, RunParser):
        old = [flag for option in table.values() if not option.new for flag in option.flags]
        parser.clear += ["--help", *(flag for flag in old if flag.startswith("--"))]


def _details(option: Option) -> dict[str, Any]:
    details: dict[str, Any] = {"help": _help(option), "required": option.required}
    if option.sets is not None:
        return details | {"action": "store_const", "const": option.sets}
    details |= {"type": _reader(option), "metavar": option.kind.metavar}
    return details | ({"nargs": "?", "const": True} if isinstance(option.default, bool) else {})


def _help(option: Option) -> str:
    default = "" if option.sets is not None else option.show(option.default)
    words = [option.what, f"(default: {default})" if default else "", f"[{option.later}]" if option.later else ""]
    return " ".join(word for word in words if word).replace("%", "%%")


def _reader(option: Option) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return option.kind.parse(text)
        except ValueError:
            problem = f"expected {option.kind.expects}, got {shortened(text)}"
            raise argparse.ArgumentTypeError(problem) from None

    return read
