"""Which sinks a job's log goes to: from the words of options, queues and experiments to sinks.

Pilot 3 knows two forms (PILOT3 6), and so do we: the name of a sink alone (`google-cloud-logging`), or with a place,
`logserver=TYPE;PROTOCOL://HOST:PORT`, where queues leave `logserver=` out (`logging=TYPE;...` in catchall). Further
words after another `;` are options of the sink, `key=value`. Several sinks are separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pilot import plugins
from pilot.errors import Code, PilotError
from pilot.logship.sink import LogSink, SinkContext, SinkError
from pilot.queuedata import Queue
from pilot.settings import Settings

KIND = "pilot.logsinks"

#: What Pilot 3 calls a sink, and what we call it.
_PILOT3_NAMES = {"fluent": "fluentd", "stdout": "file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A sink by name, with its place and options."""

    name: str
    url: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def wanted(settings: Settings, queue: Queue, *, debug: bool = False) -> list[Choice]:
    """The sinks for a job: the option's, else the queue's, else the file's or experiment's; none if nobody asks.

    A queue with `logging=` asks for it, a job in `debug` mode, and `--use-realtime-logging`, which without a place is a
    mistake.

    Raises:
        PilotError: BADQUEUECONFIGURATION, the words make no sense.
    """
    of_queue = queue.catchall_value("logging") or ""
    if not (settings.use_realtime_logging or of_queue or debug):
        return []
    text = settings.realtime_logging_server or of_queue or settings.rtlogging
    if not text and settings.use_realtime_logging:
        raise PilotError(Code.BADQUEUECONFIGURATION, "it is switched on, but nothing says where it goes")
    return parse(text)


def log_files(settings: Settings, queue: Queue, *named: str) -> list[str]:
    """Names of the files to follow, relative to the job directory: the payload's output, what a site adds, and more."""
    more = (*re.split("[:,]", settings.realtime_logfiles), queue.catchall_value("loggingfile") or "", *named)
    names = ("payload.stdout", "payload.stderr", *(name.strip() for name in more))
    return [name for name in dict.fromkeys(names) if is_inside(name)]


def is_inside(name: str) -> bool:
    """Whether a name is one of a file below the job directory."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")


def parse(text: str) -> list[Choice]:
    """`google-cloud-logging`, `logserver=loki;https://host:3100;env=prod,file;/tmp/x` as choices."""
    return [_choice(part.strip()) for part in text.split(",") if part.strip()]


def _choice(text: str) -> Choice:
    name, *words = [word.strip() for word in text.removeprefix("logserver=").split(";")]
    if not name:
        raise PilotError(Code.BADQUEUECONFIGURATION, f"log server {text!r}: expected TYPE or TYPE;PROTOCOL://HOST:PORT")
    url = words[0] if words and ("=" not in words[0] or "://" in words[0]) else ""
    options = dict(word.partition("=")[::2] for word in words if word != url and word)
    return Choice(name=name.lower(), url=url, options=options)


def make_sinks(
    choices: Sequence[Choice], context: SinkContext, find: Callable[[str], type[LogSink]] | None = None
) -> list[LogSink]:
    """The sinks themselves.

    Raises:
        PilotError: there is none of that name, a library is missing, or the place cannot be used.
    """
    find = find or find_sink
    try:
        return [
            find(choice.name)(replace(context, url=choice.url, options={**context.options, **choice.options}))
            for choice in choices
        ]
    except (SinkError, ValueError) as error:  # ValueError: of urllib.parse, for a port that is none
        raise PilotError(Code.BADQUEUECONFIGURATION, str(error)) from error


def find_sink(name: str) -> type[LogSink]:
    """A sink by its name, or by one it had in Pilot 3."""
    found: type[LogSink] = plugins.load(KIND, _PILOT3_NAMES.get(name, name), LogSink)
    return found
