"""Faults to inject: what a network and a server do to a client at their worst, so many times, for a chosen call."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import Any

_ERRORS = frozenset(int(status) for status in HTTPStatus if status >= 400)
KINDS = ("delay", "reset", "garbage", "status")


class FaultError(ValueError):
    """A fault that cannot be understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        method: the call's v1 name (`update_job` is also legacy updateJob), `cache` for files, or `*` for every call.
        kind: `delay`, `reset` (connection closed with RST), `garbage` (200 and no JSON), `status` (an error status).
        value: seconds for delay, the HTTP status for status.
        times: how often; 0 is for ever.
        after: let the call be carried out first, so that only its answer is lost; else the call is not carried out
            (a delay comes before the call or between the call and its answer).
        state: only for updates with this job_status; empty for any.
    """

    method: str
    kind: str
    value: float = 0
    times: int = 1
    after: bool = False
    state: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FaultError(f"unknown kind of fault {self.kind!r}: one of {', '.join(KINDS)}, or an HTTP status")
        if not self.method or self.times < 0 or self.value < 0:
            raise FaultError(f"a fault needs a method, and no negative numbers: {self}")
        if self.kind == "status" and self.value not in _ERRORS:
            raise FaultError(f"{self.value:g} is not the status of an HTTP error")

    def fits(self, method: str, parameters: Mapping[str, Any]) -> bool:
        """Whether this is a call to hit."""
        state = parameters.get("job_status") or parameters.get("state")
        return self.method in ("*", method) and self.state in ("", state)


def parse(text: str) -> Fault:
    """A fault from `METHOD[@STATE]:KIND[=VALUE][:TIMES][:after]`, like `update_job@finished:reset:2:after`.

    Raises:
        FaultError: it is not of that form.
    """
    method, *parts = text.split(":")
    after = "after" in parts
    rest = [part for part in parts if part not in ("after", "before")]
    if not rest or len(rest) > 2:
        raise FaultError(f"{text!r} is not METHOD[@STATE]:KIND[=VALUE][:TIMES][:after]")
    kind, _, value = rest[0].partition("=")
    if kind.isdigit():
        kind, value = "status", kind
    elif kind == "5xx":
        kind, value = "status", value or "503"
    method, _, state = method.partition("@")
    try:
        numbers = {"value": float(value or 0), "times": int(rest[1]) if len(rest) > 1 else 1}
    except ValueError:
        raise FaultError(f"{text!r}: VALUE and TIMES are numbers") from None
    return Fault(method=method, kind=kind, after=after, state=state, **numbers)  # type: ignore[arg-type]


def from_json(value: Any) -> Fault:
    """A fault from its text, or from a mapping with the fields of `Fault`.

    Raises:
        FaultError: neither.
    """
    if isinstance(value, str):
        return parse(value)
    try:
        return Fault(**value)
    except TypeError as error:
        raise FaultError(str(error)) from None


class Faults:
    """The faults that are still to come. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a fault behind the others: the first that fits a call is taken."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Take all faults away."""
        with self._lock:
            self._faults.clear()

    def take(self, method: str, parameters: Mapping[str, Any]) -> Fault | None:
        """The fault for this call, counted down, or None."""
        with self._lock:
            for index, fault in enumerate(self._faults):
                if fault.fits(method, parameters):
                    if fault.times == 1:
                        del self._faults[index]
                    elif fault.times:
                        self._faults[index] = replace(fault, times=fault.times - 1)
                    return fault
        return None

    def left(self) -> list[dict[str, Any]]:
        """What is still to come, as JSON values."""
        with self._lock:
            return [asdict(fault) for fault in self._faults]
