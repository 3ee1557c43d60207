"""`pilot stage`: files moved by hand, with the copy tools of the pilot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pilot.stagerun import Done, StageRun
    from pilot.staging.result import StagingObserver
    from pilot.stop import Stop

_DESCRIPTION = """\
Move files with the copy tools of the pilot, several at once, verified on both ends: from and to root://, https://,
davs://, s3://, gs:// and whatever else is installed (`pilot plugins`), and paths."""

_EPILOG = """\
  pilot stage get root://host//data/file1 https://host/file2 here/
  pilot stage put results/*.root root://host//data/results/
  pilot stage get --checksum adler32:0a1b2c3d s3://bucket/key file
  pilot stage stat --json davs://host/data/file

Credentials are those a pilot uses: X509_USER_PROXY, BEARER_TOKEN_FILE, S3_ACCESS_KEY... (docs/copy-tools.md).
A file never has its name before it is whole. What is there already is left alone if it is the same, else an error.
The exit code is 0 if all went well, 1 if a file did not, 2 if the command makes no sense, 130 after Ctrl-C."""

_ARGUMENTS = {
    "get": ("bring files", (("URL", "+", "where it is"), ("DEST", None, "a file, or a directory: here is `.`"))),
    "put": ("take files", (("FILE", "+", "a local file"), ("URL", None, "where it goes; a directory ends with a /"))),
    "stat": ("tell size and checksum of files", (("URL", "+", "where it is"),)),
    "rm": ("delete files", (("URL", "+", "where it is"),)),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "stage",
        help="move files by hand, with the pilot's copy tools",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: parser.error("which? get, put, stat or rm"), parser=parser)
    kinds = parser.add_subparsers(title="what to do", metavar="get|put|stat|rm")
    for name, (what, arguments) in _ARGUMENTS.items():
        one = kinds.add_parser(name, help=what, description=what.capitalize() + ".")
        for metavar, count, text in arguments:
            one.add_argument(metavar.lower(), nargs=count, metavar=metavar, help=text)
        _add_options(one, name)
        one.set_defaults(run=run, action=name, parser=one)


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--tool", default="", metavar="NAME", help="copy tool (default: the one for the URL's scheme)")
    parser.add_argument(
        "--checksum",
        type=_checksum,
        default=("adler32", ""),
        metavar="TYPE[:VALUE]",
        help="adler32, md5 or crc32c (default: adler32), and the value that the one file must have",
    )
    parser.add_argument("--parallel", "-p", type=_count, default=4, metavar="N", help="files at once (default: 4)")
    if name == "get":
        parser.add_argument("--force", "-f", action="store_true", help="replace local files that are there already")
    parser.add_argument("--allow-http", action="store_true", help="allow plain http to other nodes")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    parser.add_argument("--debug", "-d", action="store_true", help="show what is tried and why it fails")


def run(args: argparse.Namespace) -> int:
    """Move the files."""
    import os

    from pilot.signals import held
    from pilot.stagerun import StageRun, UsageError, Wish

    _log_to(sys.stderr if args.debug else None)
    kind, value = args.checksum
    wish = Wish(
        tool=args.tool,
        checksum_type=kind,
        checksum=value,
        parallel=args.parallel,
        replace=getattr(args, "force", False),
        allow_http=args.allow_http,
    )
    live = _Live(sys.stderr, quiet=args.quiet or args.json)
    with held():
        stage = StageRun(wish, os.environ, live.observer())
        try:
            found = stage.run(live.beside(_work(stage, args)))
        except UsageError as error:
            args.parser.error(str(error))
    return _tell(found, stage, args)


def _work(stage: StageRun, args: argparse.Namespace) -> Callable[[Stop], Awaitable[list[Done]]]:
    if args.action == "get":
        return lambda stop: stage.get(args.url, args.dest, stop)
    if args.action == "put":
        return lambda stop: stage.put(args.file, args.url, stop)
    act = stage.stat if args.action == "stat" else stage.remove
    return lambda stop: act(args.url, stop)


def _tell(found: list[Done], stage: StageRun, args: argparse.Namespace) -> int:
    """Results go to stdout, errors to stderr, one line each."""
    import json

    for done in found:
        if args.json:
            print(json.dumps(done.as_dict()))
        elif done.error is None and (args.action == "stat" or not args.quiet):
            print(_line(args.action, done))
        if done.error is not None and (stage.stop_reason is None or done.error is not stage.stop_reason):
            print(f"pilot stage: {done.url}: {done.error}", file=sys.stderr)
    if stage.stop_reason is not None:
        print(f"pilot stage: {stage.stop_reason.detail}", file=sys.stderr)
        return stage.stop_reason.code.exit_code
    return int(any(done.error for done in found))


def _line(action: str, done: Done) -> str:
    from pilot.staging.progress import size

    sums = " ".join(f"{kind}:{value}" for kind, value in done.checksums.items())
    if action == "rm":
        return f"removed {done.url}"
    if action == "stat":
        return " ".join(word for word in (str(done.size if done.size is not None else "?"), sums, done.url) if word)
    names = (done.url, done.path) if action == "get" else (done.path, done.url)
    speed = f", {size(int(done.size / done.seconds))}/s" if done.size and done.seconds else ""
    return f"{names[0]} -> {names[1]} ({size(done.size or 0)}, {sums or 'no checksum'}, {done.tool}{speed})"


class _Live:
    """The line of progress: on a terminal it is always there, elsewhere there is one a minute."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._quiet = quiet
        self._text: Callable[[], str] | None = None

    def observer(self) -> StagingObserver:
        """Hears when files begin to move, and when they no longer do."""
        from pilot.staging.progress import ProgressLine
        from pilot.staging.result import Progress, StagingObserver, StagingResult

        live = self

        class Observer(StagingObserver):
            def started(self, progress: Progress) -> None:
                live._text = ProgressLine(progress).text

            def ended(self, result: StagingResult) -> None:
                live._text = None

        return Observer()

    def beside(self, work: Callable[[Stop], Awaitable[list[Done]]]) -> Callable[[Stop], Awaitable[list[Done]]]:
        """The same work, with the line."""
        import asyncio

        async def both(stop: Stop) -> list[Done]:
            showing = asyncio.ensure_future(self._show())
            try:
                return await work(stop)
            finally:
                showing.cancel()
                if self._terminal and not self._quiet:
                    print("\r\x1b[K", end="", file=self._stream, flush=True)

        return both

    async def _show(self) -> None:
        import asyncio
        import shutil

        while not self._quiet:
            await asyncio.sleep(0.2 if self._terminal else 60.0)
            if self._text is None:
                continue
            text = self._text()
            if self._terminal:
                text = "\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1]
            print(text, end="" if self._terminal else "\n", file=self._stream, flush=True)


def _log_to(stream: TextIO | None) -> None:
    import logging

    root = logging.getLogger()
    if stream is None:
        root.addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _checksum(text: str) -> tuple[str, str]:
    kind, _, value = text.partition(":")
    kind = {"ad": "adler32", "md": "md5"}.get(kind.lower(), kind.lower())
    if kind not in ("adler32", "md5", "crc32c") or not all(letter in "0123456789abcdefABCDEF" for letter in value):
        raise argparse.ArgumentTypeError(f"expected adler32, md5 or crc32c, and after a colon hex digits, got {text!r}")
    return kind, value


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"expected 1 to 100, got {text!r}")
    return int(text)
