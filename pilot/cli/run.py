"""`pilot run`: jobs from a PanDA server, one after the other, as on a worker node."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Show the subcommand in the list; its command line is Pilot 3's and is parsed by `main`."""
    commands.add_parser("run", help="run jobs from a PanDA server, as on a worker node", add_help=False)


def main(argv: Sequence[str]) -> int:
    """Run a pilot with Pilot 3's command line; its exit code."""
    import os
    from pathlib import Path

    from pilot.errors import PilotError
    from pilot.settings import Settings, SettingsError

    try:
        settings = Settings.load(argv, os.environ)
        if settings.show_settings:
            for row in settings.explain():
                print(f"{row.name:<28} {row.value:<32} {row.source}")
            return 0
        from pilot.pilotrun import PilotRun

        if settings.alive_socket:
            from pilot.alive import Alive

            alive = Alive(Path(settings.alive_socket).absolute())
            return PilotRun(settings, os.environ, argv=argv, progress=alive).run(alive.serve)
        return PilotRun(settings, os.environ, argv=argv).run()
    except SettingsError as error:
        print(f"pilot run: error: {error}", file=sys.stderr)
        return 2
    except PilotError as error:
        print(f"pilot run: {error}", file=sys.stderr)
        return error.code.exit_code
