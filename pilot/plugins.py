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
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from pilot.errors import Code, PilotError

#: Kind (and entry-point group) to the package with our own plug-ins of that kind.
KINDS: Mapping[str, str] = {
    "pilot.copytools": "copytools",
    "pilot.catalogues": "plugins.catalogues",
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
        name: as a queue or a user writes it; see `_normal`.
        base: what the class must derive from; checked here, not at night on a worker.

    Raises:
        PluginError: with the names there are, or the library that is missing.
    """
    wanted = _normal(name)
    try:
        found = _find(kind, wanted)
    except Exception as error:  # the door: a stranger's module may do anything while it is imported
        why = f"{type(error).__name__}: {error}"
        raise PluginError(Code.INTERNALPILOTPROBLEM, f"{kind} {wanted!r} cannot be imported: {why}") from error
    if found is None:
        known = ", ".join(sorted(names(kind))) or "none"
        raise PluginError(Code.UNKNOWNEXCEPTION, f"no plug-in {name!r} in {kind}; there are: {known}")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise PluginError(Code.INTERNALPILOTPROBLEM, f"{kind} {wanted!r} is no {base.__module__}.{base.__name__}")
    plugin: type[Any] = found
    if inspect.isabstract(plugin):
        lacking = ", ".join(sorted(plugin.__abstractmethods__))
        raise PluginError(Code.INTERNALPILOTPROBLEM, f"{kind} {wanted!r} lacks {lacking}")
    return plugin


def names(kind: str) -> set[str]:
    """Names of all plug-ins of a kind, without importing them."""
    return {*_own(kind), *(_normal(point.name) for point in entry_points(group=kind))}


def listing(kind: str, base: type) -> Iterator[Plugin]:
    """All plug-ins of a kind, loaded one by one to see whether they can be."""
    packages = {_normal(point.name): point.dist.name for point in entry_points(group=kind) if point.dist}
    packages |= dict.fromkeys(_own(kind), "pilot-toolkit")
    for name in sorted(names(kind)):
        package = packages.get(name, "")
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
    point = next((point for point in entry_points(group=kind) if _normal(point.name) == name), None)
    return point.load() if point else None


def _own(kind: str) -> set[str]:
    spec = find_spec(KINDS[kind])
    places = spec.submodule_search_locations if spec else None
    modules = (module.name for module in iter_modules(places or []))
    return {_normal(name) for name in modules if not name.startswith("_")}


def _normal(name: str) -> str:
    """As names are compared: neither case nor the kind of dash counts, since people write both."""
    return name.lower().replace("_", "-")


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
