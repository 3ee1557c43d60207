"""The copy tools of a slot: found by name or scheme, made when first used, kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pilot import plugins
from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.staging.copytool import CopyTool, KeyFinder, ToolContext, no_keys

logger = logging.getLogger(__name__)

KIND = "pilot.copytools"

#: Tools for URLs of which nobody says by which: the programs of others can do what these do, and need more to be there.
PREFERRED = ("xrdcp", "https", "s3", "gs")


def find_tool(name: str) -> type[CopyTool]:
    """The class of a copy tool, ours or a third party's."""
    found: type[CopyTool] = plugins.load(KIND, name, CopyTool)
    return found


class ToolBox:
    """Copy tools by name.

    Args:
        options: the queue's `copytools` entry for a tool name.
        launch_dir: where the pilot was started.
        settings: those that concern tools, by name.
        environ: the pilot's environment.
        find: from a name to a class.
        names: of all tools that are installed.
        keys: for URLs of object stores.
    """

    def __init__(
        self,
        *,
        options: Callable[[str], Mapping[str, Any]] = lambda name: {},
        launch_dir: Path,
        settings: Mapping[str, Any],
        environ: Mapping[str, str] = MappingProxyType({}),
        find: Callable[[str], type[CopyTool]] = find_tool,
        names: Callable[[], set[str]] = lambda: plugins.names(KIND),
        keys: KeyFinder = no_keys,
    ) -> None:
        self._options = options
        self._launch_dir = launch_dir
        self._settings = settings
        self._environ = environ
        self._find = find
        self._names = names
        self._keys = keys
        self._tools: dict[str, CopyTool] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> CopyTool:
        """The tool of that name.

        Raises:
            TransferError: UNKNOWNCOPYTOOL (1323): there is none, it cannot be loaded, or it cannot work on this node.
        """
        with self._lock:
            if name not in self._tools:
                self._tools[name] = self._make(name)
            return self._tools[name]

    def for_scheme(self, scheme: str, first: Sequence[str] = ()) -> list[str]:
        """Names of the tools that can move URLs of a scheme.

        Those in `first`; if none of them can, one that is installed: the one that has the scheme's name, one of those
        that are preferred, any other, in the order of their names.
        """
        able = [name for name in first if self._can(name, scheme)]
        if able:
            return able
        names = sorted(self._names() - set(first), key=lambda name: (name != scheme, _rank(name), name))
        return next(([name] for name in names if self._can(name, scheme)), [])

    def schemes(self, name: str) -> frozenset[str]:
        """The schemes of a tool, none if it cannot be used."""
        try:
            return self.get(name).schemes
        except PilotError as error:
            logger.info("copy tool %s is passed over: %s", name, error)
            return frozenset()

    def _can(self, name: str, scheme: str) -> bool:
        return scheme in self.schemes(name)

    def _make(self, name: str) -> CopyTool:
        try:
            tool = self._find(name)(
                ToolContext(
                    options=self._options(name),
                    launch_dir=self._launch_dir,
                    settings=self._settings,
                    environ=self._environ,
                    keys=self._keys,
                )
            )
        except TransferError:
            raise
        except PilotError as error:
            raise TransferError(Code.UNKNOWNCOPYTOOL, error.detail, Trait.NEXT) from error
        if why := tool.unavailable():
            raise TransferError(Code.UNKNOWNCOPYTOOL, f"{name} cannot be used on this node: {why}", Trait.NEXT)
        return tool


def _rank(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
