"""The pilot as a program to start: the one that we are a part of."""

from __future__ import annotations

import sys
from pathlib import Path

#: Files beside the package that find its libraries: of a checkout or an archive, and of `pilot.pyz`.
_STARTERS = ("pilot.py", "pilot_main.py")


def pilot_program() -> list[str]:
    """The command that starts this pilot, with this Python; `pip install` leaves the module alone."""
    top = Path(__file__).parents[2]
    found = [top / name for name in _STARTERS if (top / name).is_file()]
    return [sys.executable, *([str(found[0])] if found else ["-m", "pilot.cli.main"])]
