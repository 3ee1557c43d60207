"""`pilot plugins`: what is installed, from which package, and what is missing for what."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "plugins",
        help="list copy tools, experiments and other plug-ins",
        description="List the plug-ins that are installed, the package each comes from, and what is missing for it.",
    )
    parser.add_argument("kind", nargs="?", help="only this kind, such as copytools")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; 2 for a kind that does not exist."""
    import dataclasses
    import json

    from pilot.plugins import KINDS, listing

    kinds = [kind for kind in KINDS if args.kind in (None, kind, kind.removeprefix("pilot."))]
    if not kinds:
        print(f"no kind {args.kind!r}; there are: {', '.join(kind.removeprefix('pilot.') for kind in KINDS)}")
        return 2
    found = [plugin for kind in kinds for plugin in listing(kind, _base(kind))]
    if args.json:
        print(json.dumps([dataclasses.asdict(plugin) for plugin in found], indent=2))
        return 0
    for kind in kinds:
        rows = [plugin for plugin in found if plugin.kind == kind]
        print(kind.removeprefix("pilot.") + ("" if rows else ": none installed"))
        for plugin in rows:
            print(f"  {plugin.name:<14} {plugin.package:<20} {plugin.problem or plugin.summary}")
    return 0


def _base(kind: str) -> type:
    """What a plug-in of a kind must derive from."""
    from pilot.experiment import Experiment
    from pilot.logship.sink import LogSink
    from pilot.payload.container import Container
    from pilot.staging.catalogue import Catalogue
    from pilot.staging.copytool import CopyTool
    from pilot.watch.meter import Meter

    bases: dict[str, type] = {
        "pilot.catalogues": Catalogue,
        "pilot.containers": Container,
        "pilot.copytools": CopyTool,
        "pilot.experiments": Experiment,
        "pilot.logsinks": LogSink,
        "pilot.meters": Meter,
    }
    return bases.get(kind, object)
