"""Finding plug-ins: our own by the place of their module, others by entry point.

A plug-in `NAME` of ours is the module `NAME` of its kind's package (with `_` for `-`), so a checkout or an archive
works without being installed. A third party announces its class in the entry-point group of the same name as the kind.
Nothing is imported before it is asked for by name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from pilot.errors import Code, PilotError

#: Kind (and entry-point group) to the package with our own plug-ins of that kind.
KINDS: Mapping[str, str] = {
    "pilot.copytools": "copytools",
    "pilot.experiments": "plugins.experiments",
    "pilot.containers": "plugins.containers",
    "pilot.meters": "plugins.meters",
    "pilot.logsinks": "plugins.logsinks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """What `pilot plugins` shows of one: `problem` is empty, or says what is missing and how to get it."""

    kind: str
    name: str
    package: str
    summary: str
    problem: str


class PluginError(PilotError):
    """A plug-in is not there, cannot be imported, or is not what its kind must be."""


def load(kind: str, name: str, base: type) -> type[Any]:
    """The class of plug-in `name`.

    Args:
        kind: one of `KINDS`.
        name: as a queue or a user writes it; lower case counts.
        base: what the class must derive from; checked here, not at night on a worker.

    Raises:
        PluginError: with the names there are, or the library that is missing.
    """
    wanted = name.lower()
    try:
        found = _find(kind, wanted)
    except ImportError as error:
        raise PluginError(Code.INTERNALPILOTPROBLEM, f"{kind} {wanted!r} cannot be imported: {error}") from error
    if found is None:
        known = ", ".join(sorted(names(kind))) or "none"
        raise PluginError(Code.UNKNOWNEXCEPTION, f"no plug-in {name!r} in {kind}; there are: {known}")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise PluginError(Code.INTERNALPILOTPROBLEM, f"{kind} {wanted!r} is no {base.__module__}.{base.__name__}")
    return found


def names(kind: str) -> set[str]:
    """Names of all plug-ins of a kind, without importing them."""
    return {*_own(kind), *(point.name for point in entry_points(group=kind))}


def listing(kind: str, base: type) -> Iterator[Plugin]:
    """All plug-ins of a kind, loaded one by one to see whether they can be."""
    packages = {point.name: point.dist.name for point in entry_points(group=kind) if point.dist}
    for name in sorted(names(kind)):
        package = packages.get(name, "pilot-toolkit")
        try:
            found = load(kind, name, base)
        except PilotError as error:
            yield Plugin(kind=kind, name=name, package=package, summary="", problem=error.detail)
        else:
            summary = (inspect.getdoc(found) or "").split("\n")[0]
            yield Plugin(kind=kind, name=name, package=package, summary=summary, problem=_missing(found))


def _find(kind: str, name: str) -> Any:
    if name in _own(kind):
        return _class_in(import_module(f"{KINDS[kind]}.{name.replace('-', '_')}"), name)
    points: tuple[EntryPoint, ...] = tuple(entry_points(group=kind, name=name))
    return points[0].load() if points else None


def _own(kind: str) -> set[str]:
    spec = find_spec(KINDS[kind])
    places = spec.submodule_search_locations if spec else None
    modules = (module.name for module in iter_modules(places or []))
    return {name.replace("_", "-") for name in modules if not name.startswith("_")}


def _class_in(module: ModuleType, name: str) -> Any:
    """The one class of a module whose `name` is the plug-in's."""
    found = [member for _, member in inspect.getmembers(module, inspect.isclass) if vars(member).get("name") == name]
    return found[0] if found else None


def _missing(plugin: type[Any]) -> str:
    """Which of the libraries that a plug-in says it `needs` are not installed (`{module: how to install}`)."""
    needs: Mapping[str, str] = getattr(plugin, "needs", {})
    absent = [f"{module} ({hint})" for module, hint in needs.items() if not _importable(module)]
    return "needs " + ", ".join(absent) if absent else ""


def _importable(module: str) -> bool:
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module):
        return False
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
