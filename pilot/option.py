"""Options as data: what is known about one setting. Flags, environment, file, help and docs all come from it.

`pilot.settings` is the table. A setting is one line there: its name, type, default, and an `opt(...)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_TRUE = frozenset({"true", "yes", "t", "y", "1"})
_FALSE = frozenset({"false", "no", "f", "n", "0"})
_SIZE = r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?"
_PREFIXES = ("", "k", "m", "g", "t")


class SettingsError(Exception):
    """A setting that cannot be used. The text names where it was set and what was expected there."""

    exit_code = 2


class Group(Enum):
    """The headings under which help and docs list the options, the ones that matter first."""

    WHAT = "What to run"
    SERVER = "Server"
    WHERE = "Where"
    LIMITS = "Limits"
    HARVESTER = "Harvester"
    RARE = "Less often needed"
    UNUSED = "Accepted, not used yet"


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        metavar: how help writes the value of a flag.
        expects: what a good value is, for the text of an error.
        parse: from text to value; a `ValueError` says that the text is none.
        unit: of the value, for help and docs.
    """

    metavar: str
    expects: str
    parse: Callable[[str], Any]
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Option:
    """All that is known about one setting besides its name.

    Attributes:
        default: the value when nobody says anything.
        what: one line for help and docs.
        flags: short and long names on the command line.
        env: environment variables, the first one set wins.
        ini: `Section.key` in the file.
        sets: for a flag that takes no value, what it sets.
        queue: name among the queue's `params`, empty if a queue may not set it.
        later: the feature that is still missing, empty once the value is used.
        new: True if Pilot 3 did not have it.
    """

    default: Any
    what: str
    flags: tuple[str, ...]
    env: tuple[str, ...]
    ini: str
    kind: Kind
    group: Group
    sets: bool | None
    queue: str
    later: str
    new: bool
    required: bool

    @property
    def label(self) -> str:
        """The name by which a user knows it: its long flag, its variable or its key in the file."""
        names = [self.ini, *self.env[:1], *self.flags]
        return next(name for name in reversed(names) if name)

    def parse(self, text: str, where: str) -> Any:
        """The value of `text`, which was found at `where`.

        Raises:
            SettingsError: if it is none.
        """
        try:
            return self.kind.parse(text)
        except ValueError:
            raise SettingsError(f"{where}: expected {self.kind.expects}, got {shortened(text)}") from None

    def show(self, value: Any) -> str:
        """A value as it would be written in the file, without the password in a URL."""
        if isinstance(value, bool):
            return str(value).lower()
        if self.kind.unit == "bytes":
            return readable_size(value)
        return f"{value:g}" if isinstance(value, float) else _without_password(str(value))


def opt(
    default: T,
    what: str,
    flags: str = "",
    env: str = "",
    ini: str = "",
    kind: Kind | None = None,
    group: Group = Group.RARE,
    sets: bool | None = None,
    queue: str = "",
    later: str = "",
    new: bool = False,
    required: bool = False,
) -> T:
    """A field of the settings table; see `Option`. Several flags or variables are separated by blanks.

    The kind follows from the default (`bool`: yes or no, `int`: a count, `float`: seconds, `str`: text) unless given.
    """
    option = Option(
        default=default,
        what=what,
        flags=tuple(flags.split()),
        env=tuple(env.split()),
        ini=ini,
        kind=kind or _KINDS[type(default)],
        group=group,
        sets=sets,
        queue=queue,
        later=later,
        new=new,
        required=required,
    )
    return field(default=default, metadata={"option": option})


def one_of(*choices: str) -> Kind:
    """One of some words; case does not count, the value is spelt as here."""
    words = {choice.lower(): choice for choice in choices}

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]

    braces = "{" + ",".join(choices) + "}"
    return Kind(braces if len(braces) < 30 else "NAME", "one of " + ", ".join(choices), parse)


def parse_size(text: str) -> int:
    """Bytes of a text like `2 GB`, `500MiB` or `1024`. Prefixes are powers of 1024, as in Pilot 3's file."""
    found = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE | re.ASCII)
    if found is None:
        raise ValueError(text)
    number, prefix = found.groups()
    factor = 1024 ** _PREFIXES.index(prefix.lower())
    return int(number) * factor if number.isdigit() else int(float(number) * factor)


def readable_size(size: int) -> str:
    """The text that `parse_size` reads back as `size`, with the largest prefix that fits without loss."""
    power = 0
    while size and size % 1024 == 0 and power < len(_PREFIXES) - 1:
        size, power = size // 1024, power + 1
    return f"{size} {_PREFIXES[power].upper()}B" if power else str(size)


def shortened(text: str) -> str:
    """`text` quoted, without the password in a URL, and cut so that it fits into an error."""
    text = _without_password(text)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _without_password(text: str) -> str:
    return re.sub(r"//[^/\s]+@", "//***@", text)


def _yes_no(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = _count(text)
    if value > 65535:
        raise ValueError(text)
    return value


def _server(text: str) -> str:
    """Checked here, so that a mistyped port is an error at the start and not at the first call."""
    from urllib.parse import urlsplit

    scheme, mark, _ = text.partition("://")
    parts = urlsplit(text if mark else f"//{text}")
    if not parts.hostname or (mark and scheme.lower() not in ("http", "https")):
        raise ValueError(text)
    _ = parts.port  # a ValueError if it is no number up to 65535
    return text


def _signal(text: str) -> str:
    """`USR1` of `USR1`, `sigusr1` or `10`."""
    import signal

    name = text.upper().removeprefix("SIG")
    if not text:
        return ""
    if text.isascii() and text.isdigit():
        return signal.Signals(int(text)).name.removeprefix("SIG")
    if f"SIG{name}" not in signal.Signals.__members__:
        raise ValueError(text)
    return name


def _resource_type(text: str) -> str:
    if not re.fullmatch(r"|(SCORE|MCORE)(_\S*)?", text):
        raise ValueError(text)
    return text


TEXT = Kind("TEXT", "a text", str)
NAME = Kind("NAME", "a name", str)
LOWER = Kind("NAME", "a name", str.lower)
FILE = Kind("FILE", "a file name", str)
FOLDER = Kind("DIR", "a directory", str)
PLACE = Kind("URL|FILE", "a URL or a file name", str)
URL = Kind("URL", "a URL", str)
SERVER = Kind("URL", "an http or https URL, or HOST[:PORT]", _server)
YES_NO = Kind("{true,false}", "true or false", _yes_no)
COUNT = Kind("N", "a whole number, 0 or more", _count)
PORT = Kind("PORT", "a port number, 0 to 65535", _port)
WHOLE_SECONDS = Kind("SECONDS", "whole seconds, 0 or more", _count, "s")
SECONDS = Kind("SECONDS", "seconds, 0 or more", _number, "s")
FACTOR = Kind("FACTOR", "a number, 0 or more", _number)
SIZE = Kind("SIZE", "a size such as 2 GB, 500 MB or a number of bytes", parse_size, "bytes")
KILOBYTES = Kind("KB", "a whole number of kB", lambda text: _count(text) * 1024, "bytes")
SIGNAL = Kind("SIGNAL", "the name of a signal, such as USR1", _signal)
RESOURCE_TYPE = Kind("TYPE", "SCORE, MCORE, SCORE_* or MCORE_*", _resource_type)

_KINDS: dict[type, Kind] = {bool: YES_NO, int: COUNT, float: SECONDS, str: TEXT}


def words(comma_list: str) -> list[str]:
    """The words of a comma list; empty ones do not count."""
    return [word.strip() for word in comma_list.split(",") if word.strip()]
