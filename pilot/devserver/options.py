"""The command line of `pilot devserver`. Imports nothing heavy: it is read for every `pilot --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
A small PanDA server for demos and tests. It speaks both APIs of the real one (/api/v1 of panda-server 1.0 and
/server/panda of 0.8) with the same strictness, hands out the jobs you give it, keeps what pilots report, and breaks
in the ways you ask for. Its URL is printed as one line on stdout. It listens on loopback unless told otherwise."""
EPILOG = """\
examples:
  pilot devserver --jobs jobs.json --files data/          offer jobs; data/x is http://.../cache/x
  pilot devserver --port 25080 --verbose                  a fixed port, a line for every exchange
  pilot devserver --fault update_job:reset:2              the first two updates are lost
  pilot devserver --fault update_job@finished:503:3:after carry out a final update, answer 503, three times
  pilot run -q QUEUE --url http://127.0.0.1 -p PORT ...   a pilot for it

While it runs it can be changed and asked over /devserver/: see docs/devserver.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the options of `pilot devserver` into a parser."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_basics(parser)
    _add_doors(parser)
    _add_orders(parser)


def _add_basics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0, the default, takes any free one")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help='written when ready: {"url", "port", "pid"}')
    parser.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE|DIR",
        action="append",
        default=[],
        help="jobs to offer: JSON of one job, of a list, or one job a line; of a directory, its *.json and *.jsonl",
    )
    parser.add_argument(
        "--api",
        choices=("v1", "legacy", "both"),
        default="both",
        help="what to answer: v1 as panda-server 1.0, legacy as an old one, both as 0.8 (default: %(default)s)",
    )
    parser.add_argument("--files", type=Path, metavar="DIR", help="serve this directory, read only, under /cache/")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep jobs in this SQLite file (default: in memory)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write every exchange to this JSONL, secrets masked"
    )
    parser.add_argument("--verbose", action="store_true", help="write a line for every exchange to stderr")


def _add_doors(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("credentials (none asked for by default)")
    group.add_argument("--cert", type=Path, metavar="PEM", help="the server's certificate; turns TLS on")
    group.add_argument("--key", type=Path, metavar="PEM", help="its private key, if it is not in the same file")
    group.add_argument("--client-ca", type=Path, metavar="PEM", help="take client certificates and proxies of this CA")
    group.add_argument("--token", metavar="FILE|TEXT", help="ask for this bearer token; better a file than its text")
    group.add_argument("--origin", metavar="VO.ROLE", help="the Origin header that goes with the token")
    group.add_argument(
        "--grant",
        action="append",
        default=[],
        metavar="proxy|token|keys=FILE",
        help="hand out the text of FILE to whoever asks for a proxy or an access token, or keys of object stores by "
        "their names in its JSON object; the real server knows who may",
    )


def _add_orders(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("behaviour")
    group.add_argument(
        "--adder-delay",
        type=float,
        default=0.2,
        metavar="SECONDS",
        help="from a final report to the job's last state (default: %(default)s)",
    )
    group.add_argument(
        "--command",
        action="append",
        default=[],
        metavar="JOBID:TEXT",
        help="answer every update of a job with this command (tobekilled, debug, softkill, 'tail log', ...)",
    )
    group.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="METHOD[@STATE]:KIND[=VALUE][:TIMES][:after]",
        help="break calls of METHOD (update_job, acquire_jobs, cache, * for all), of updates only those with STATE; "
        "KIND is delay=SECONDS, reset, garbage or an HTTP status such as 503; TIMES 0 is for ever; after: the call is "
        "carried out and only its answer is lost",
    )
