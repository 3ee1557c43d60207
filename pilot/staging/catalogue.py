"""The catalogue as the engine sees it: where replicas are, and what new ones there are.

A catalogue is a plug-in (`pilot.catalogues`, ours in `plugins/catalogues/`). Like a copy tool it is plain blocking
code, called in a thread of its own with a handle that says when to end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pilot.errors import Code, PilotError
from pilot.job import File
from pilot.staging.copytool import Handle


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A copy of a file that the catalogue knows.

    Attributes:
        url: where it is, in any scheme.
        endpoint: its RSE.
        domain: `lan` if the catalogue takes it to be near us, else `wan`.
        priority: its place in the catalogue's order; smaller is better.
        size: bytes as the catalogue says, None if it does not.
        checksums: type to lower-case hex digits, as the catalogue says.
    """

    url: str
    endpoint: str
    domain: str = "wan"
    priority: int = 0
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A file that was staged out and shall be in the catalogue.

    Attributes:
        file: with scope, LFN, dataset, GUID, number of events, and the endpoint it went to.
        url: its place there (PFN).
        size: bytes.
        checksums: type to lower-case hex digits.
    """

    file: File
    url: str
    size: int
    checksums: Mapping[str, str]


class RegistrationError(PilotError):
    """Outputs were not registered, or not all.

    Args:
        code, detail: as for any error.
        remaining: LFNs that are still to be registered; all others are.
    """

    def __init__(self, code: Code, detail: str, remaining: Sequence[str]) -> None:
        super().__init__(code, detail)
        self.remaining = tuple(remaining)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueContext:
    """What a catalogue may know of the pilot, given to its constructor.

    Attributes:
        host: URL of its server; empty: its own configuration says.
        settings: the pilot's settings that concern catalogues, by name.
        environ: the pilot's environment.
        scratch: a directory of the pilot's own, for what a client library must write down.
    """

    host: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    scratch: Path = Path()


class Catalogue(ABC):
    """A catalogue of files. Errors are raised as `pilot.errors.PilotError` with a code of the table.

    Attributes:
        name: as in the setting `catalogue`.
    """

    name: ClassVar[str]

    def __init__(self, context: CatalogueContext) -> None:
        self.context = context

    @abstractmethod
    def replicas(
        self, files: Sequence[File], handle: Handle, schemes: Sequence[str] = (), site: str = ""
    ) -> Mapping[str, Sequence[Replica]]:
        """Replicas of inputs by LFN, best first, in one call for all of them; files without any are left out.

        Args:
            files: inputs with scope and LFN.
            handle: says when to end.
            schemes: that somebody here can read, the preferred first; empty for all.
            site: where we are, in the catalogue's words.
        """

    def virtual_replicas(
        self, files: Sequence[File], handle: Handle, site: str = ""
    ) -> Mapping[str, Sequence[Replica]]:
        """As `replicas`, for a job with `useVP` (ATLAS' virtual placement), which reads all by XRootD."""
        return self.replicas(files, handle, ("root",), site)

    @abstractmethod
    def register(self, files: Sequence[Registration], handle: Handle) -> None:
        """Register the outputs of a job with their datasets: all of them, or an error that says what remains.

        Doing it again is no error, so that a remainder can be done later. A name that the catalogue has with other
        content is refused before anything is changed.

        Raises:
            RegistrationError: with what remains.
        """
