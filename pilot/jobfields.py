"""Reading what a job says of itself: single values out of raw data, checked for type, size and sense.

Everything here raises `JobDefinitionError` with the name of the field, what was expected and the value, cut short. The
two encodings of the wire are read alike: JSON with numbers and objects, and `a=b&c=d` where all is text and objects are
Python's `repr` (SERVER.md, Legacy).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pilot.errors import Code, JobDefinitionError
from pilot.job import NOTHING

#: Characters in one field, and in all of a definition. The largest real field is the LFN list of some thousand inputs,
#: a tenth of this; what is larger is a mistake or an attack, and would be copied around for the life of the job.
MAX_FIELD = 1_000_000
MAX_TOTAL = 4_000_000

#: Bytes in a file name on every file system in use, and the limit in the text of LFNTOOLONG (1190).
MAX_LFN = 255

#: Characters of the text of a dictionary: enough for a whole queue's CRIC record, little enough for Python's parser.
_MAX_DICTIONARY = 100_000

_NULLS = frozenset({"", "null", "none"})
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,30}(\.0*)?", re.ASCII)
#: Characters that have no place in a name, a URL or a line of text.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FLAGS = {True: (True, "true", "yes", "1"), False: (False, "false", "no", "0")}  # 1 and 0 are among them: 1 == True
#: Hexadecimal digits of a checksum by its type.
CHECKSUM_LENGTHS = {"adler32": 8, "md5": 32, "crc32c": 8}
_CHECKSUM_PREFIXES = {"ad": "adler32", "md": "md5"} | {kind: kind for kind in CHECKSUM_LENGTHS}


def shorten(value: object) -> str:
    """A value for an error message: never long, and never the inside of a list or mapping."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print very long ones
        return f"a number of {value.bit_length()} bits"
    shown = repr(value[:61] if isinstance(value, str) else value)
    return shown if len(shown) <= 62 else shown[:58] + "..." + shown[0]


def is_null(text: str) -> bool:
    """True for the ways in which a server says nothing: empty, `NULL`, `None`."""
    return text.strip().lower() in _NULLS


def parse_dictionary(field: str, text: str, *, secret: bool = False) -> dict[str, Any]:
    """A dictionary given as text, in JSON or as Python literals; nothing is evaluated.

    Args:
        field: where it stands, for messages.
        text: what is there.
        secret: the text must not be shown.
    """
    import ast
    import json

    found: object = None
    if len(text) <= _MAX_DICTIONARY:
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text.strip())
                break
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    if isinstance(found, dict) and all(isinstance(key, str) for key in found):
        return found
    got = "other text" if secret else shorten(text)
    limit = f" of at most {_MAX_DICTIONARY} characters"
    raise JobDefinitionError(field, f"expected a dictionary such as {{'key': 'value'}}{limit}, got {got}")


def checked_lfn(field: str, lfn: str, *, output: bool = False) -> str:
    """`lfn` if it is the name of a file: one path component that every storage and file system takes.

    Raises:
        JobDefinitionError: LFNTOOLONG, BADOUTPUTFILENAME for outputs and logs, else CONVERSIONFAILURE.
    """
    size = len(lfn.encode(errors="replace"))
    if size > MAX_LFN:
        raise JobDefinitionError(field, f"LFN {shorten(lfn)} has {size} bytes", Code.LFNTOOLONG)
    problem = _lfn_problem(lfn)
    if problem:
        code = Code.BADOUTPUTFILENAME if output else Code.CONVERSIONFAILURE
        raise JobDefinitionError(field, f"LFN {shorten(lfn)} {problem}: it must be a plain file name", code)
    return lfn


def _lfn_problem(lfn: str) -> str:
    if not lfn:
        return "is empty"
    if "/" in lfn:
        return "contains a slash"
    if lfn in (".", ".."):
        return "is a directory"
    if CONTROL.search(lfn) or not is_unicode(lfn):
        return "contains a control character"
    return ""


def is_unicode(text: str) -> bool:
    """False for half characters (lone surrogates, as JSON may bring): no file, log or command can hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_checksum(field: str, kind: str, digits: str) -> str:
    """The digits of a checksum of type `kind`, lower case; adler32 filled up to 8, since old catalogues cut zeros."""
    length = CHECKSUM_LENGTHS[kind]
    least = 1 if kind == "adler32" else length
    if not re.fullmatch(rf"[0-9a-fA-F]{{{least},{length}}}", digits):
        count = f"1 to {length}" if least < length else length
        raise JobDefinitionError(field, f"expected {count} hexadecimal digits for {kind}, got {shorten(digits)}")
    return digits.lower().zfill(length)


def parse_checksum(field: str, text: str) -> Mapping[str, str]:
    """A checksum as the server writes it: `ad:hex`, `md:hex`, or digits alone for adler32 (PILOT3 2.3).

    32 digits alone are an md5: the server sends its md5 column when it has no checksum. Object stores know
    `crc32c:hex`.
    """
    prefix, colon, digits = text.rpartition(":")
    if is_null(digits):
        return NOTHING
    kind = _CHECKSUM_PREFIXES.get(prefix.lower()) if colon else "md5" if len(digits) == 32 else "adler32"
    if kind is None:
        raise JobDefinitionError(field, f"expected ad:hex, md:hex or crc32c:hex, got {shorten(text)}")
    return {kind: checked_checksum(field, kind, digits)}


def whole_number(field: str, value: object) -> int | None:
    """A whole number from 0 to 2**63 - 1 as number or text (`3600`, `"3600"`, `"3600.0"`), None if there is none."""
    if value is None or (isinstance(value, str) and is_null(value)):
        return None
    number = _to_int(value)
    if number is None:
        raise JobDefinitionError(field, f"expected a whole number, got {shorten(value)}")
    if not 0 <= number < 2**63:
        raise JobDefinitionError(field, f"expected a number from 0 to 2**63 - 1, got {shorten(value)}")
    return number


def _to_int(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return None


class Fields:
    """A raw job definition, read field by field with the type that is wanted."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, Mapping):
            raise JobDefinitionError("PandaID", f"expected a job definition, got {shorten(raw)}")
        self.raw: Mapping[str, Any] = raw

    def check_sizes(self) -> None:
        """Refuse a field over `MAX_FIELD` and a definition over `MAX_TOTAL` characters."""
        total = 0
        for name, value in self.raw.items():
            size = _size(value)
            total += size + len(str(name))
            if size > MAX_FIELD:
                raise JobDefinitionError(str(name)[:60], f"has {size} characters, the limit is {MAX_FIELD} (1 MB)")
            if total > MAX_TOTAL:
                raise JobDefinitionError(
                    str(name)[:60], f"the definition up to here has {total} characters, the limit is {MAX_TOTAL} (4 MB)"
                )

    def text(self, name: str) -> str:
        """One line of text without blanks around it; empty for `NULL`, `None` and a field that is not there."""
        text = self.verbatim(name).strip()
        if CONTROL.search(text):
            raise JobDefinitionError(name, f"contains a control character: {shorten(text)}")
        return text

    def verbatim(self, name: str) -> str:
        """Text of any form, byte for byte; empty for `NULL`, `None` and a field that is not there."""
        value = self.raw.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**64:
            return str(value)
        if value is None or (isinstance(value, str) and is_null(value)):
            return ""
        if not isinstance(value, str):
            raise JobDefinitionError(name, f"expected text, got {shorten(value)}")
        if "\0" in value or not is_unicode(value):
            raise JobDefinitionError(name, "contains a NUL or half a character")
        return value

    def number(self, name: str) -> int | None:
        """A whole number, None for `NULL`, `None` and a field that is not there."""
        return whole_number(name, self.raw.get(name))

    def limit(self, name: str) -> int:
        """A whole number, 0 for a limit that is not set: not there, or -1 as databases say it."""
        value = self.raw.get(name)
        return 0 if _to_int(value) == -1 else self.number(name) or 0

    def flag(self, name: str, default: bool = False) -> bool:
        """Yes or no: a JSON bool, `True`/`False`, `yes`/`no`, `1`/`0`; `default` if it is not said."""
        value = self.raw.get(name)
        if value is None or (isinstance(value, str) and is_null(value)):
            return default
        for flag, spellings in _FLAGS.items():
            if (value.strip().lower() if isinstance(value, str) else value) in spellings:
                return flag
        raise JobDefinitionError(name, f"expected true or false, got {shorten(value)}")

    def entries(self, name: str) -> list[str]:
        """The entries of a comma list, as they are; none for an empty text."""
        text = self.verbatim(name)
        return [entry.strip(" ") for entry in text.split(",")] if text else []

    def column(self, name: str, of: str, *counts: int) -> list[str]:
        """A comma list that belongs to the list `of`: one entry for each of its entries, `NULL` made empty.

        An empty text or a single `NULL` says nothing for any number of files: the server sends that when one of the
        values is not known (PILOT3 2.3, `wire/`). Empty entries at the end are a trailing comma.

        Args:
            name: the field.
            of: the field with the LFNs, for messages.
            counts: the lengths that fit, the usual one first.
        """
        entries = self.entries(name)
        if not entries:
            return [""] * counts[0]
        while len(entries) > max(counts) and not entries[-1]:
            entries.pop()
        if len(entries) not in counts:
            raise JobDefinitionError(name, f"has {len(entries)} entries where {of} has {counts[0]}")
        for entry in entries:
            if CONTROL.search(entry):
                raise JobDefinitionError(name, f"contains a control character: {shorten(entry)}")
        return ["" if is_null(entry) else entry for entry in entries]

    def dictionary(self, name: str, *, secret: bool = False) -> dict[str, Any]:
        """An object: as such, or as text in JSON or Python's `repr`; empty if it is not there."""
        value = self.raw.get(name)
        if value is None or (isinstance(value, str) and is_null(value)):
            return {}
        if isinstance(value, str):
            return parse_dictionary(name, value, secret=secret)
        if not isinstance(value, Mapping):
            raise JobDefinitionError(
                name, f"expected a dictionary, got {'something else' if secret else shorten(value)}"
            )
        return dict(value)


def _size(value: object) -> int:
    """Characters in a value and all that it holds; numbers count as one."""
    total, pending = 0, [value]
    while pending and total <= MAX_TOTAL:
        item = pending.pop()
        if isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
        total += len(item) if isinstance(item, str) else 1
    return total
