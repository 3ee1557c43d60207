"""`pilot explain`: what an error code means, whose fault it commonly is, and what to do."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.errors import Code


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "explain",
        help="what an error code means, and what to do",
        description="Explain error codes of jobs: what they mean, whose fault it commonly is, and what to do.",
    )
    parser.add_argument("codes", nargs="*", metavar="CODE", help="a number (1305), a name, or text to look for")
    parser.add_argument("--exit", type=int, metavar="STATUS", help="the codes behind an exit status of the pilot")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was asked for, all codes if nothing was; 1 if there is no such code."""
    import json

    from pilot.errors import Code

    found = [code for code in Code if _wanted(code, args.codes, args.exit)]
    if args.json:
        print(json.dumps([_record(code) for code in found], indent=2))
    else:
        print("\n\n".join(_told(code) for code in found) or "no such code; `pilot explain` lists all")
    return 0 if found else 1


def _wanted(code: Code, asked: list[str], exit_status: int | None) -> bool:
    if exit_status is not None and code.exit_code != exit_status:
        return False
    return not asked or any(_matches(code, text) for text in asked)


def _matches(code: Code, text: str) -> bool:
    """By number (a recoverable code may be reported negated), by name, or by words of its text."""
    if re.fullmatch(r"-?\d+", text):
        return abs(int(text)) == code
    return text.upper() == code.name or (not text.isupper() and text.lower() in code.text.lower())


def _record(code: Code) -> dict[str, object]:
    from pilot.causes import CAUSES

    fault, cause, cure = CAUSES[code]
    return {
        "code": int(code),
        "name": code.name,
        "text": code.text,
        "exit": code.exit_code,
        "fault": fault.value,
        "cause": cause,
        "cure": cure,
    }


def _told(code: Code) -> str:
    from pilot.causes import CAUSES

    fault, cause, cure = CAUSES[code]
    head = f"{int(code)} {code.name}: {code.text} (exit status {code.exit_code})"
    return f"{head}\n  whose:  {fault.value}\n  cause:  {cause}\n  cure:   {cure}"
