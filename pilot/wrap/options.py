"""The command line of a wrapper: every option of the one of Pilot 3 (PILOT3 9.1); the rest is the pilot's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DESCRIPTION = """\
Set up the node, look whether it is fit, run a pilot under supervision, and end with the exit status that Harvester and
factories know. It is what wrappers/pilot-wrapper.sh becomes once it has found a Python and the pilot."""
_EPILOG = """\
All other options are the pilot's: see `pilot run --help`.

Exit codes: 0; 1 for a fault of wrapper or batch system, 2 for a pilot that was stuck, 64 when software is missing, else
the pilot's. See docs/wrapper.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrapOptions:
    """What the wrapper was told.

    Attributes:
        queue, label, version_tag: of the pilot's `-q`, `-j` and `-i`.
        scratch: directory that was made for this run, with `pilot3/` in it; None without one.
        localpy: leave ALRB out.
        container: we are in a container already: no set-up of the node's software.
        cvmfs: where CVMFS is.
        harvester: variable with the number of the node among many; `workflow` `OneToMany` uses it.
        mute: no messages to the monitor of factories.
        shoal: ask shoal for the Frontier server.
        setup: files for a shell to source before the pilot.
        image: of the wrapper's container where the queue wants one.
        doctor: look at the node first.
        stuck_after: s without a line in the pilot's log after which it is taken for stuck.
        ship_log: log sinks for the whole worker's log; empty for none.
        ship_upload: URL that takes that log at the end.
        pilot: arguments of the pilot.
        words: the whole command line.
    """

    queue: str
    label: str
    version_tag: str
    scratch: Path | None
    localpy: bool
    container: bool
    cvmfs: str
    harvester: str
    workflow: str
    mute: bool
    shoal: bool
    setup: tuple[str, ...]
    image: str
    doctor: bool
    stuck_after: float
    ship_log: str
    ship_upload: str
    pilot: tuple[str, ...]
    words: tuple[str, ...]


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> WrapOptions:
    """Tell the wrapper's options from the pilot's.

    Raises:
        SystemExit: 2 for a mistake.
    """
    args, rest = _parser(environ).parse_known_args(argv)
    skip = ["-t"] if args.skip_proxy else []
    return WrapOptions(
        queue=args.queue,
        label=args.label,
        version_tag=args.version_tag,
        scratch=Path(args.scratch).resolve() if args.scratch else None,  # as `Path.cwd()`, with which it is compared
        localpy=args.localpy,
        container=args.container,
        cvmfs=args.cvmfs,
        harvester=args.harvester,
        workflow=args.workflow,
        mute=args.mute or bool(args.harvester),
        shoal=args.shoal,
        setup=(*_paths(environ.get("PILOT_WRAPPER_SETUP", "")), *args.setup),
        image=args.image,
        doctor=args.doctor,
        stuck_after=args.stuck_after,
        ship_log=args.ship_log,
        ship_upload=args.ship_upload,
        pilot=("-q", args.queue, "-i", args.version_tag, "-j", args.label, *skip, *rest),
        words=tuple(argv),
    )


#: Options that the script has read before, or that mean nothing any more.
_FOR_BASH = (
    "-r",
    "-s",
    "--pandaenvtag",
    "--pilotversion",
    "--pythonversion",
    "--piloturl",
    "--pilotsha256",
    "--scratch",
)


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pilot wrap",
        usage="pilot wrap -q QUEUE [options of the wrapper] [options of the pilot]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-q", "--queue", required=True, metavar="QUEUE", help="PanDA queue")
    add("-j", "--joblabel", dest="label", default="managed", metavar="LABEL", help="kind of jobs (managed)")
    add("-i", "--versiontag", dest="version_tag", default="PR", metavar="TAG", help="type of the pilot (PR)")
    add("-t", dest="skip_proxy", action="store_true", help="no check of the proxy; the pilot gets it, too")
    add(
        "--setup",
        action="append",
        default=[],
        metavar="FILE",
        help="to source before the pilot; may be repeated",
    )
    add("--container", action="store_true", help="this is a container: leave out the set-up of the node's software")
    add("--cvmfsbase", dest="cvmfs", default=environ.get("ATLAS_SW_BASE") or "/cvmfs", metavar="DIR", help="(/cvmfs)")
    add("--harvester", default="", metavar="NAME", help="Harvester at an HPC's edge: variable with the node's number")
    add("--harvester_workflow", dest="workflow", default="", metavar="NAME", help="OneToMany: many nodes in one worker")
    add("--mute", action="store_true", help="no messages to the monitor of factories")
    add("-S", "--shoal", action="store_true", help="ask shoal for the Frontier server")
    add("--localpy", action="store_true", help="leave out ALRB and the Pythons of CVMFS")
    for flag in _FOR_BASH:
        add(flag, default="", help=argparse.SUPPRESS)
    add("--alma9", action="store_true", help=argparse.SUPPRESS)
    _add_new(add, environ)
    return parser


def _add_new(add: Callable[..., object], environ: Mapping[str, str]) -> None:
    """Options that Pilot 3's wrapper does not have."""
    add(
        "--image",
        default=environ.get("PILOT_WRAPPER_IMAGE", ""),
        help="of the container if the queue wants one",
    )
    add("--no-doctor", dest="doctor", action="store_false", help="do not look at the node first")
    add(
        "--stuck-after",
        type=float,
        default=3600.0,
        metavar="S",
        help="end a pilot that is silent for so long (3600)",
    )
    add(
        "--ship-log",
        default=environ.get("PILOT_WRAPPER_LOGSHIP", ""),
        metavar="SINKS",
        help="send the whole log to sinks",
    )
    add(
        "--ship-upload",
        default=environ.get("PILOT_WRAPPER_UPLOAD", ""),
        metavar="URL",
        help="POST the log to URL/putFile",
    )


def _paths(text: str) -> list[str]:
    return [path for path in text.split(":") if path]
