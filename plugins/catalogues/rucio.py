"""Catalogue `rucio`: replicas from a Rucio server, and outputs into it, by rucio-clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from copytools._remote import local_faults
from copytools._rucio import HINT, RucioError, RucioProgram, allows_http
from pilot.errors import Code, PilotError
from pilot.job import File
from pilot.staging.catalogue import Catalogue, CatalogueContext, Registration, RegistrationError, Replica
from pilot.staging.checksum import normal
from pilot.staging.copytool import Handle
from pilot.staging.faults import Direction

#: Faults that say what is wrong; every other one while replicas are looked up is RUCIOLISTREPLICASFAILED.
_TELLING = {
    Code.RUCIOSERVICEUNAVAILABLE,
    Code.STAGEINAUTHENTICATIONFAILURE,
    Code.BADQUEUECONFIGURATION,
    Code.MIDDLEWAREIMPORTFAILURE,
}

#: LFNs that an error names; there may be thousands.
_NAMED = 10


class Rucio(Catalogue):
    """A Rucio server: `rucio_host`, else the one of Rucio's own configuration.

    Credentials are those of `rucio.cfg` and of the environment (`RUCIO_AUTH_TYPE`, `RUCIO_ACCOUNT`, `X509_USER_PROXY`,
    `BEARER_TOKEN_FILE`...). Tokens are kept in a directory of the pilot's own, and removed with it.
    """

    name = "rucio"
    needs: ClassVar[Mapping[str, str]] = {"rucio": HINT}

    def __init__(self, context: CatalogueContext) -> None:
        super().__init__(context)
        self._rucio = RucioProgram(
            context.host,
            context.environ,
            allow_http=allows_http(context.settings),
            scratch=context.scratch,
        )

    def replicas(
        self, files: Sequence[File], handle: Handle, schemes: Sequence[str] = (), site: str = ""
    ) -> Mapping[str, Sequence[Replica]]:
        """One `list_replicas` call, in the server's order: what is on the LAN of `site` comes first.

        Raises:
            PilotError: RUCIOLISTREPLICASFAILED (1322), RUCIOSERVICEUNAVAILABLE (1316), ...
        """
        return self._look_up(files, handle, schemes=list(schemes), site=site)

    def virtual_replicas(
        self, files: Sequence[File], handle: Handle, site: str = ""
    ) -> Mapping[str, Sequence[Replica]]:
        """As `replicas`, by XRootD from disks of RSEs that are real and available, in order of the way from here.

        Where that is say `RUCIO_LATITUDE` and `RUCIO_LONGITUDE` (PILOT3 4.3).
        """
        return self._look_up(files, handle, schemes=["root"], site=site, virtual=True)

    def _look_up(self, files: Sequence[File], handle: Handle, **how: Any) -> Mapping[str, Sequence[Replica]]:
        dids = [{"scope": file.scope, "name": file.lfn} for file in files]
        try:
            found = self._ask(handle, Direction.IN, "replicas", dids=dids, **how)
        except RucioError as error:
            code = error.code if error.code in _TELLING else Code.RUCIOLISTREPLICASFAILED
            raise PilotError(code, error.detail) from error
        places = {(entry["scope"], entry["name"]): _replicas(entry) for entry in found}
        known = {file.lfn: places.get((file.scope, file.lfn), ()) for file in files}
        return {lfn: replicas for lfn, replicas in known.items() if replicas}

    def register(self, files: Sequence[Registration], handle: Handle) -> None:
        """Replicas with size, checksums, GUID and events; then datasets, made if missing, closed if a setting says so.

        What the catalogue then has is read back: Rucio takes a name that it knows with another checksum, and keeps the
        first one.

        Raises:
            RegistrationError: PUTADMISMATCH (1172), RUCIOSERVICEUNAVAILABLE (1316), STAGEOUTFAILED (1137), ...
        """
        _refuse_unusable(files)
        new = [_as_request(entry) for entry in files]
        close = bool(self.context.settings.get("catalogue_close"))
        try:
            self._ask(handle, Direction.OUT, "register", files=new, close=close)
        except PilotError as error:
            left = getattr(error, "left", ())
            remaining = [one.file.lfn for one in files if not left or f"{one.file.scope}:{one.file.lfn}" in left]
            raise _not_registered(error, remaining, len(files)) from error

    def _ask(self, handle: Handle, direction: Direction, action: str, **arguments: Any) -> Any:
        if why := self._rucio.unavailable():
            raise RucioError.missing(why)
        with local_faults(direction, f"rucio {action}"):  # a disk that the payload filled keeps no request
            return self._rucio.ask(handle, direction, action, **arguments)


def _replicas(entry: Mapping[str, Any]) -> tuple[Replica, ...]:
    checksums = {kind: normal(kind, value) for kind, value in entry["checksums"].items()}
    return tuple(
        Replica(
            url=pfn["url"],
            endpoint=pfn["rse"],
            domain=pfn["domain"],
            priority=pfn["priority"],
            size=entry["bytes"],
            checksums=checksums,
        )
        for pfn in entry["pfns"]
    )


def _as_request(entry: Registration) -> dict[str, Any]:
    """For the program. A dataset may be written with its scope; it has the file's if not."""
    file = entry.file
    scope, _, dataset = file.dataset.rpartition(":")
    return {
        "rse": file.endpoint,
        "scope": file.scope,
        "name": file.lfn,
        "bytes": entry.size,
        "checksums": {kind: normal(kind, value) for kind, value in entry.checksums.items()},
        "pfn": entry.url,
        "guid": file.guid.replace("-", "").lower(),
        "events": file.events,
        "dataset": dataset.rstrip("/"),
        "dataset_scope": scope or file.scope,
    }


def _refuse_unusable(files: Sequence[Registration]) -> None:
    """What cannot be registered at all: without scope or RSE, without a checksum that Rucio keeps, or twice."""
    problems = [f"{one.file.lfn} has no scope" for one in files if not one.file.scope]
    problems += [f"{one.file.lfn} is in no RSE" for one in files if not one.file.endpoint]
    problems += [f"{one.file.lfn} has neither adler32 nor md5" for one in files
                 if not one.checksums.keys() & {"adler32", "md5"}]  # fmt: skip
    names = Counter((one.file.scope, one.file.lfn, one.file.endpoint) for one in files)
    problems += [f"{lfn} is there twice" for (_, lfn, _), count in names.items() if count > 1]
    if problems:
        remaining = [one.file.lfn for one in files]
        raise RegistrationError(Code.STAGEOUTFAILED, f"not registered: {'; '.join(problems)}", remaining)


def _not_registered(error: PilotError, remaining: Sequence[str], total: int) -> RegistrationError:
    named = ", ".join(remaining[:_NAMED]) + (", ..." if len(remaining) > _NAMED else "")
    detail = f"{len(remaining)} of {total} outputs not registered ({named}): {error.detail}"
    return RegistrationError(error.code, detail, remaining)
