"""The `pilot` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pilot.version import __version__

_DESCRIPTION = """\
A pilot for worker nodes: it fetches jobs from a PanDA server, brings their inputs, runs and watches their payloads,
takes outputs and logs out, and reports."""

_EPILOG = """\
first steps:
  pilot local --example > job.yaml     write a job file
  pilot local job.yaml                 run it here, with no server
  pilot run --help                     run jobs from a PanDA server, as on a worker node
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code is ours."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `pilot plugins | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a directory that is not ours to write to
        print(f"pilot: error: {error}", file=sys.stderr)
        return 1


def _open_streams() -> None:
    """Streams that were closed (`2>&-`) lead nowhere: else a file that we open gets the number and the messages."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["run"]:  # a worker node starts many: nothing else is looked at
        from pilot.cli import run

        return run.main(words[1:])
    if words[:1] == ["deliver"]:  # it takes the command line of `pilot run`
        from pilot.cli import deliver

        return deliver.main(words[1:])
    if words[:1] == ["doctor"]:  # it takes the command line of `pilot run`
        from pilot.cli import doctor

        return doctor.main(words[1:])
    if words[:1] == ["wrap"]:  # so does this
        from pilot.cli import wrap

        return wrap.main(words[1:])
    if words[:1] == ["pod"]:  # and this
        from pilot.cli import pod

        return pod.main(words[1:])
    parser = build_parser()
    args = parser.parse_args(words)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    return int(args.run(args))


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; what they need beyond argparse they import when they run."""
    from pilot.cli import (
        alive,
        deliver,
        demo,
        devserver,
        doctor,
        explain,
        local,
        logship,
        plugins,
        pod,
        run,
        stage,
        wrap,
    )

    parser = argparse.ArgumentParser(
        prog="pilot",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pilot {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (run, deliver, local, stage, demo, devserver, logship, plugins, doctor, explain, wrap, pod, alive):
        module.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
