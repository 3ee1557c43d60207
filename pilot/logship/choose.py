"""Which sinks a job's log goes to: from the words of options, queues and experiments to sinks.

Pilot 3 knows two forms (PILOT3 6), and so do we: the name of a sink alone (`google-cloud-logging`), or with a place,
`logserver=TYPE;PROTOCOL://HOST:PORT`, where queues leave `logserver=` out (`logging=TYPE;...` in catchall). Further
words after another `;` are options of the sink, `key=value`. Several sinks are separated by commas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pilot import plugins
from pilot.errors import Code, PilotError
from pilot.logship.sink import LogSink, SinkContext
from pilot.queuedata import Queue
from pilot.settings import Settings

KIND = "pilot.logsinks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A sink by name, with its place and options."""

    name: str
    url: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def wanted(settings: Settings, queue: Queue) -> list[Choice]:
    """The sinks for a job: the option's, else the queue's, else the experiment's default; none if nobody asks for any.

    `--use-realtime-logging` without any of these is a misconfiguration.

    Raises:
        PilotError: BADQUEUECONFIGURATION, the words make no sense.
    """
    text = settings.realtime_logging_server or queue.catchall_value("logging") or ""
    if not settings.use_realtime_logging and not queue.catchall_value("logging"):
        return []
    if not text:
        raise PilotError(Code.BADQUEUECONFIGURATION, "live logging is on, but neither option nor queue says where to")
    return parse(text)


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
        PilotError: there is none of that name, or a library is missing.
    """
    find = find or find_sink
    return [
        find(choice.name)(replace(context, url=choice.url, options={**context.options, **choice.options}))
        for choice in choices
    ]


def find_sink(name: str) -> type[LogSink]:
    """A sink by its name or an alias."""
    if name in plugins.names(KIND):
        return plugins.load(KIND, name, LogSink)
    for other in sorted(plugins.names(KIND)):
        try:
            sink: type[LogSink] = plugins.load(KIND, other, LogSink)
        except PilotError:
            continue
        if name in (sink.name, *sink.aliases):
            return sink
    return plugins.load(KIND, name, LogSink)  # raises, and names those there are
