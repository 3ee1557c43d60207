"""Secrets: a type that does not print, and the masker that stands before every log, sink, tarball and error text.

The masker hides what it was told (`Masker.add`) in the forms in which it turns up by accident, and shapes that are
secret whoever they belong to: bearer tokens, JWTs, private keys, signatures and passwords in URLs. It works line by
line, and only a PEM private key spans lines, so a live log can be masked and sent as soon as a line is complete.

What it is not: a guard against a payload that wants to give a secret away (rot13, base64 wrapped into short lines).
"""

from __future__ import annotations

import binascii
import re
import threading
from collections.abc import Iterable, Iterator, Mapping

#: Shorter texts are not masked: they would hide half of every log (`atlas`, `12345`).
SHORTEST = 6
#: What stands where a secret was.
MARK = b"***"
#: Longest private key block, bytes: an RSA key of 8192 bits takes 6.5 kB. Bounds what a stray BEGIN line can hide.
KEY_LIMIT = 8192
#: Bytes that a stream keeps of a line without end: more than the longest match of any pattern below.
HOLD = 16384

Span = tuple[int, int]


class Secret:
    """A text that must not be shown. `reveal()` is the only way to it, so every use can be found by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: for a header, a file of mode 0600 or a client library, nothing else."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class Masker:
    """Hides secrets in text and bytes. Any thread may add secrets and mask at any time.

    Args:
        secrets: what to hide from the start.
    """

    def __init__(self, secrets: Iterable[object] = ()) -> None:
        self._lock = threading.Lock()
        self._forms: set[bytes] = set()
        self._index: _Index | None = None
        for secret in secrets:
            self.add(secret)

    def __repr__(self) -> str:
        return f"Masker({len(self._forms)} forms)"

    def add(self, secret: object) -> None:
        """Hide `secret` from now on, and what can be read from it.

        That is: each of its lines, plain, as JSON, as Python and quoted for a URL; its base64 at the three alignments,
        standard and URL-safe; the values if it is JSON; the text inside if it is base64. Certificates in it are public
        and left alone. Texts under `SHORTEST` characters are not hidden.

        Args:
            secret: a text, a `Secret`, or dicts and lists with such in them; None and numbers are nothing to hide.
        """
        forms = {form for text in _texts_in(secret) for form in _forms(text)}
        with self._lock:
            if not forms <= self._forms:
                self._forms |= forms
                self._index = None

    def mask(self, text: str) -> str:
        """`text` with `***` for every secret; the same object if there is none."""
        data = text.encode("utf-8", "surrogatepass")
        spans, _ = self._spans(data)
        if not spans:
            return text
        masked = _cover(data, spans, keep_length=False)
        try:
            return masked.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # a value longer than its pattern's limit was cut inside a character
            return masked.decode("utf-8", "replace")

    def mask_bytes(self, data: bytes, *, keep_length: bool = False) -> bytes:
        """`data` with `***` for every secret, or with as many `*` as it had bytes."""
        spans, _ = self._spans(data)
        return _cover(data, spans, keep_length=keep_length) if spans else data

    def stream(self, *, keep_length: bool = False, patterns: bool = True) -> MaskingStream:
        """A masker for bytes that come in pieces.

        Args:
            keep_length: put as many `*` as there were bytes, for files whose size is already known.
            patterns: hide the general shapes too; off for binary files, where only added secrets are looked for.
        """
        return MaskingStream(self, keep_length=keep_length, patterns=patterns)

    def _spans(self, data: bytes, key_left: int = 0, *, patterns: bool = True) -> tuple[list[Span], int]:
        """Where the secrets are, in order and without overlap, and bytes left of a private key begun but not ended."""
        spans = self._forms_index().spans(data)
        if patterns:
            lower = data.lower()
            spans += _shapes(data, lower)
            if key_left or b"-----begin" in lower:
                keys, key_left = _private_keys(data, key_left)
                spans += keys
        return (_merge(spans) if spans else spans), key_left

    def _forms_index(self) -> _Index:
        index = self._index
        if index is None:
            with self._lock:
                index = self._index = _Index(self._forms)
        return index


class MaskingStream:
    """Masks bytes that come in pieces; a secret is found wherever the pieces end. Made by `Masker.stream`.

    What comes out is everything up to the last line end. Of a line without end all but the last `HOLD` bytes come out
    (or the length of the longest secret), so memory is bounded. Not for use by several threads at once.
    """

    def __init__(self, masker: Masker, *, keep_length: bool, patterns: bool) -> None:
        self._masker = masker
        self._keep_length = keep_length
        self._patterns = patterns
        self._rest = b""
        self._carry: list[Span] = []  # spans already known in `_rest`
        self._inside = False  # `_rest` begins inside a span whose mark is already out
        self._key_left = 0

    def feed(self, data: bytes) -> bytes:
        """Take `data` and give what can be shown by now, possibly nothing."""
        rest = self._rest = self._rest + data
        cut = rest.rfind(b"\n", len(rest) - len(data)) + 1
        hold = max(HOLD, self._masker._forms_index().longest)
        if len(rest) - cut > 2 * hold:
            return self._emit(len(rest) - hold, len(rest))
        return self._emit(cut, cut) if cut else b""

    def finish(self) -> bytes:
        """What is left. The stream can be used again afterwards, as a new one."""
        out = self._emit(len(self._rest), len(self._rest))
        self._key_left = 0
        return out

    def _emit(self, cut: int, seen: int) -> bytes:
        """Mask the first `cut` bytes, looking at `seen` of them: a line cut open needs `HOLD` bytes of sight."""
        found, key_left = self._masker._spans(self._rest[:seen], self._key_left, patterns=self._patterns)
        spans = _merge(self._carry + found)
        # Cut open, a private key that began before the cut ends within sight: its spans are carried, not its state.
        self._key_left = key_left if cut == seen else 0
        shown = [(start, min(end, cut)) for start, end in spans if start < cut]
        out = _cover(self._rest[:cut], shown, keep_length=self._keep_length, inside=self._inside)
        self._carry = [(max(start, cut) - cut, end - cut) for start, end in spans if end > cut]
        self._inside = any(start < cut < end for start, end in spans)
        self._rest = self._rest[cut:]
        return out


# Bytes from rare to common in logs; those not listed count as rare.
_FREQUENCY = b"QXZJKqjzYVUWHGkwBvFxNOMLyPRDCETIASbpg789654321f0mucdlhnrs=oiat/e-._ "


class _Index:
    """Finds many texts in one pass.

    Each text is looked for by six bytes of it that begin with its rarest letter, all in one alternation. The regular
    expression engine then skips over common letters at full speed: 130 MB/s for 200 forms, against 5 MB/s when the
    texts themselves are the alternatives (measured, one core).
    """

    def __init__(self, forms: Iterable[bytes]) -> None:
        self._places: dict[bytes, list[tuple[int, bytes]]] = {}
        self.longest = 0
        for form in forms:
            offset = self._rarest(form)
            self._places.setdefault(form[offset : offset + SHORTEST], []).append((offset, form))
            self.longest = max(self.longest, len(form))
        pattern = b"|".join(re.escape(anchor) for anchor in sorted(self._places))
        self._search = re.compile(pattern).search if pattern else None

    def _rarest(self, form: bytes) -> int:
        return min(range(len(form) - SHORTEST + 1), key=lambda i: _FREQUENCY.find(form[i]))

    def spans(self, data: bytes) -> list[Span]:
        """Every place where one of the texts stands, overlaps included."""
        spans: list[Span] = []
        match = self._search(data) if self._search else None
        while self._search and match:
            for offset, form in self._places[match[0]]:
                start = match.start() - offset
                if start >= 0 and data.startswith(form, start):
                    spans.append((start, start + len(form)))
            match = self._search(data, match.start() + 1)
        return spans


# A value after `=`, `:` or their URL quoting; in quotes it ends at the quote, else where values end in URLs and lists.
_VALUE = rb"""(?:\\{0,3}"([^"\\\r\n]{1,8192})|\\{0,3}'([^'\\\r\n]{1,8192})|([^\s"'&,;<>\\]{1,8192}))"""
_SET_TO = rb"""\\{0,3}["']?[ \t]{0,4}(?:[:=]|%3[ad])[ \t]{0,4}"""
_SPACE = rb"(?:[ \t+]|%20){1,4}"

# Shapes that are always secret, as (text that must be there at all, pattern), for lower-case data. Each pattern begins
# with a literal, so that the engine searches fast; the group that matched is the secret; no match is longer than
# `HOLD`, and none can be made to look at a byte more than a few hundred times. They are compiled when first needed:
# all of them at import would cost every pilot 10 ms.
_SHAPES = (
    (b"bearer", rb"bearer" + _SPACE + rb"([\w.~+/=%-]{12,8192})"),
    (b"authorization", rb"authorization" + _SET_TO + rb"""\\{0,3}["']?(?:[a-z]{3,12}""" + _SPACE
     + rb""")?([^\s"'\\,;&]{1,8192})"""),
    (b"token", rb"token(?:(?<=access_token)|(?<=refresh_token)|(?<=id_token)|(?<=bearer_token)|(?<=session_token)"
     rb"|(?<=security-token)|(?<=auth-token)|(?<=[?&]token))" + _SET_TO + _VALUE),
    (b"sig", rb"sig(?:nature(?:=|%3d)|(?<=[?&]sig)=)" + _VALUE),
    (b"authz=", rb"authz=(?:bearer" + _SPACE + rb")?" + _VALUE),
    (b"passw", rb"passw(?:or)?d" + _SET_TO + _VALUE),
    (b"secret", rb"secrets?(?:_?access)?(?:_?key)?" + _SET_TO + _VALUE),
    (b"@", rb"""://[^\s/:@"'<>]{0,128}:([^\s/@"'<>?#]{1,256})@"""),
)  # fmt: skip
# JSON in base64 begins with eyJ; header, claims and signature of a token are joined by dots.
_JWT = rb"eyJ[\w-]{4,2048}+(\.[\w-]{4,8192}+(?:\.[\w-]{0,2048})?)?"
_KEY_SPACE = rb"(?:[ +]|%20)"
_KEY_NAME = _KEY_SPACE + rb"(?:[A-Z0-9]{1,16}" + _KEY_SPACE + rb"){0,3}PRIVATE" + _KEY_SPACE + rb"KEY-----"
_KEY_BEGIN, _KEY_END = rb"-----BEGIN" + _KEY_NAME, rb"-----END" + _KEY_NAME


def _shapes(data: bytes, lower: bytes) -> list[Span]:
    """Where the general shapes are. `lower` is `data` in lower case."""
    spans: list[Span] = []
    for needed, pattern in _SHAPES:
        if needed in lower:
            spans += (match.span(match.lastindex) for match in re.finditer(pattern, lower) if match.lastindex)
    if b"eyJ" in data:
        spans += (match.span() for match in re.finditer(_JWT, data) if match.lastindex)
    return spans


def _private_keys(data: bytes, left: int) -> tuple[list[Span], int]:
    """The parts of lines inside PEM private keys, and how many bytes more may follow of one that does not end here.

    Args:
        data: where to look.
        left: bytes that may still belong to a key begun before `data`; 0 if there is none.
    """
    begin, end = re.compile(_KEY_BEGIN), re.compile(_KEY_END)
    spans: list[Span] = []
    start = 0
    while start < len(data):
        if not left:
            opening = begin.search(data, start)
            if opening is None:
                break
            start, left = opening.start(), KEY_LIMIT
        closing = end.search(data, start, start + left)
        stop = closing.end() if closing else min(start + left, len(data))
        spans += (line.span() for line in re.compile(rb"[^\r\n]+").finditer(data, start, stop))
        left = 0 if closing else left - (stop - start)
        start = stop
    return spans, left


def _merge(spans: list[Span]) -> list[Span]:
    """The same places, in order, those that overlap or touch made one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _cover(data: bytes, spans: list[Span], *, keep_length: bool, inside: bool = False) -> bytes:
    """`data` with the spans covered; with `inside`, a span at its very start had its mark before."""
    parts: list[bytes] = []
    done = 0
    for start, end in spans:
        parts.append(data[done:start])
        if keep_length:
            parts.append(b"*" * (end - start))
        elif start > 0 or not inside:
            parts.append(MARK)
        done = end
    parts.append(data[done:])
    return b"".join(parts)


def _forms(text: str) -> Iterator[bytes]:
    """The byte strings by which the secret `text` is recognised; none is shorter than `SHORTEST` or has a line end."""
    whole = text.strip()
    if len(whole) < SHORTEST:
        return
    yield from _base64_forms(_encode(whole))
    for value in _values_in(whole):
        yield from _forms(value)
    lines = [
        line for line in map(str.strip, re.sub(_CERTIFICATE, "", whole).splitlines()) if not line.startswith("-----")
    ]
    forms = [*lines, *(_escaped(whole) if len(lines) == 1 else _url_quoted(whole))]
    yield from (form for form in map(_encode, forms) if len(form) >= SHORTEST)


_CERTIFICATE = "(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _base64_forms(data: bytes) -> Iterator[bytes]:
    """What of base64 is the same whatever stands before and after `data`, for the three ways it can be aligned."""
    for shift, first in enumerate((0, 2, 3)):
        encoded = binascii.b2a_base64(bytes(shift) + data, newline=False)
        core = encoded[first : (shift + len(data)) * 8 // 6]
        yield core
        yield core.translate(_URL_SAFE)


def _values_in(text: str) -> Iterator[str]:
    """The texts in a JSON secret, or the text that a base64 secret holds: secret files are stored that way."""
    if text[0] in "{[":
        import json

        try:
            yield from _texts_in(json.loads(text))
        except (ValueError, RecursionError):
            return
    else:
        try:
            inner = binascii.a2b_base64(text, strict_mode=True).decode()
        except ValueError:
            return
        if "".join(inner.split()).isprintable():
            yield inner


def _texts_in(value: object) -> Iterator[str]:
    """The texts among values as JSON has them."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(item)


def _escaped(line: str) -> Iterator[str]:
    """How `line` looks inside JSON, a Python repr and a URL."""
    import json

    yield from (json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1], repr(line)[1:-1])
    yield from _url_quoted(line)


def _url_quoted(text: str) -> Iterator[str]:
    """How `text` looks in a URL's path and query, by whatever tool quoted it."""
    from urllib.parse import quote, quote_plus

    data = _encode(text)
    for quoted in (quote(data), quote(data, safe=""), quote_plus(data)):
        yield quoted
        yield re.sub("%..", lambda escape: escape[0].lower(), quoted)
