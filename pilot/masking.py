"""Secrets: a type that does not print, and the masker that stands before every log, sink, tarball and error text."""

from __future__ import annotations


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
