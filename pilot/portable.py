"""Values as JSON and back, for a process of ours that runs elsewhere, perhaps with another Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pilot.errors import Code, PilotError, Trait, TransferError


def encoded(thing: object) -> Any:
    """What `json.dumps` takes; a dataclass is a table of its fields, and so is an error of ours."""
    if isinstance(thing, PilotError):
        trait = getattr(thing, "trait", None)
        return {"code": thing.code.name, "detail": thing.detail, "trait": trait.value if trait else None}
    if isinstance(thing, Enum):
        return thing.value
    if isinstance(thing, Path):
        return os.fspath(thing)
    if isinstance(thing, Mapping):
        return {str(key): encoded(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [encoded(item) for item in thing]
    if is_dataclass(thing):
        return {item.name: encoded(getattr(thing, item.name)) for item in fields(thing)}
    return thing


class Decoder:
    """Makes values of what `encoded` made. The same error is one object again, however often it comes."""

    def __init__(self) -> None:
        self._errors: dict[tuple[object, ...], PilotError] = {}

    def decode(self, kind: Any, raw: Any) -> Any:
        """The value.

        Args:
            kind: its type, as annotations have it; a union is of one type and None.
            raw: as `json.loads` gives it.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        origin, args = get_origin(kind), get_args(kind)
        if raw is None or kind is Any:
            return raw
        if origin in (Union, UnionType):
            return self.decode(next(arg for arg in args if arg is not type(None)), raw)
        if origin in (tuple, Sequence):
            return tuple(self.decode(args[0], item) for item in raw)
        if origin is Mapping:
            return {key: self.decode(args[1], value) for key, value in raw.items()}
        if issubclass(kind, PilotError):
            return self._error(raw["code"], raw["detail"], raw["trait"])
        if hasattr(kind, "__dataclass_fields__"):
            hints = get_type_hints(kind)
            return kind(**{name: self.decode(hints[name], value) for name, value in raw.items()})
        return kind(raw) if issubclass(kind, Enum | Path) else raw

    def _error(self, code: str, detail: str, trait: str | None) -> PilotError:
        fresh = TransferError(Code[code], detail, Trait(trait)) if trait else PilotError(Code[code], detail)
        return self._errors.setdefault((code, detail, trait), fresh)
