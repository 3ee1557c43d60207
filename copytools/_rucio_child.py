"""The program that speaks to Rucio and its storages by rucio-clients: `python THIS REQUEST REPLY`, both JSON files.

It is a program of its own because rucio-clients can only be stopped from outside: it waits without end for some
answers, starts `xrdcp` and `gfal` itself, and takes its configuration from the process. It runs with the pilot's Python
or with the one of a site's Rucio setup, so it needs nothing but the standard library and rucio-clients, and Python 3.9.

A request names a function of `ACTIONS` and its arguments. The reply has `result`, or `error` with class and message of
what was raised; `left` says what of a registration was not done.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, Optional
from urllib.parse import urlsplit

#: Seconds for one answer of the server; how long a call may take in all is decided by who started us.
TIMEOUT = 60

#: Longest file name of every file system in use, bytes.
NAME_MAX = 255

#: Checksum types that the catalogue keeps.
KEPT = ("adler32", "md5")

#: Seconds that signed URLs of replicas are good for, as with Pilot 3.
SIGNATURE_LIFETIME = 86400

#: RSEs that files of virtual placement are read from (PILOT3 4.3).
REAL_DISKS = r"istape=False\type=SPECIAL"


class ChecksumMismatch(Exception):  # noqa: N818 - these names are words of the reply
    """The catalogue has a file of this name with other content."""


class PlainHttp(Exception):  # noqa: N818
    """The server is asked without TLS and nobody allowed that."""


class NoServer(Exception):  # noqa: N818
    """Nobody says which server to ask."""


class NoCredential(Exception):  # noqa: N818
    """Neither Rucio's configuration nor the environment has one."""


class CannotRead(Exception):  # noqa: N818
    """The file is there, and the storage does not give it."""


class Rucio:
    """Clients of one server.

    Args:
        host: URL of the server; none: as configured.
        tokens: a private directory for them.
        allow_http: without TLS to others than ourselves.

    Attributes:
        left: files of a registration that are not where they shall be: as replicas, and in their datasets.
    """

    def __init__(self, host: str, tokens: str, allow_http: bool) -> None:
        from rucio.client.baseclient import BaseClient

        if host:
            _make_configuration(host, tokens)
        elif not _configured("rucio_host"):
            raise NoServer("neither --rucio-host nor a rucio.cfg (RUCIO_CONFIG, RUCIO_HOME) names a server")
        BaseClient.TOKEN_PATH_PREFIX = os.path.join(tokens, "rucio_")
        os.environ.setdefault("LOGNAME", "pilot")  # some containers have a user without a name
        auth_host = host and (_configured("auth_host") if _configured("rucio_host") == host else host)
        for url in (host or _configured("rucio_host"), auth_host or _configured("auth_host")):
            if urlsplit(url).scheme == "http" and not (allow_http or _is_local(url)):
                raise PlainHttp(f"{url} is plain http")
        self._options = {
            "rucio_host": host or None,
            "auth_host": auth_host or None,
            "auth_type": _auth_type(),
            "ca_cert": os.environ.get("X509_CERT_DIR") or _expanded(_configured("ca_cert")) or True,  # never unverified
            "timeout": TIMEOUT,
            "user_agent": "pilot-toolkit",
        }
        self._made: dict[str, Any] = {}
        self.left: list[str] = []

    def client(self, module: str, name: str) -> Any:
        """A client of rucio-clients, such as `replicaclient`, `ReplicaClient`."""
        if name not in self._made:
            made = getattr(__import__(f"rucio.client.{module}", fromlist=[name]), name)
            self._made[name] = made(**self._options)
        return self._made[name]

    @property
    def replicas(self) -> Any:
        """For replicas."""
        return self.client("replicaclient", "ReplicaClient")

    @property
    def dids(self) -> Any:
        """For files and datasets."""
        return self.client("didclient", "DIDClient")

    @property
    def rses(self) -> Any:
        """For RSEs."""
        return self.client("rseclient", "RSEClient")

    def protocol(self, rse: str, operation: str, scheme: str = "") -> Any:
        """What speaks to an RSE, connected."""
        from rucio.common.exception import RSEProtocolDomainNotSupported, RSEProtocolNotSupported
        from rucio.rse import rsemanager

        info = self.rses.get_rse(rse)
        token = self.rses.auth_token
        options = {"scheme": scheme or None, "auth_token": token if token.count(".") == 2 else None}
        try:
            found = rsemanager.create_protocol(info, operation, domain="wan", **options)
        except (RSEProtocolNotSupported, RSEProtocolDomainNotSupported):
            found = rsemanager.create_protocol(info, operation, domain="lan", **options)
        found.connect()
        return found


# ------------------------------------------------------------------------------------------------------------ catalogue


def replicas(
    rucio: Rucio, dids: list[dict[str, str]], schemes: list[str], site: str, virtual: bool = False
) -> list[dict[str, Any]]:
    """Replicas of files on disk, one call for all; `virtual` for a job with `useVP`."""
    location = {"site": site} if site else {}
    only: dict[str, Any] = {}
    if virtual:
        only = {"rse_expression": REAL_DISKS, "ignore_availability": False}
        names = [name for name in ("latitude", "longitude") if os.environ.get(f"RUCIO_{name.upper()}")]
        location.update({name: os.environ[f"RUCIO_{name.upper()}"] for name in names})
    found = rucio.replicas.list_replicas(
        dids,
        schemes=schemes or None,
        sort="geoip",
        client_location=location or None,
        signature_lifetime=SIGNATURE_LIFETIME,
        domain=None if site else "wan",
        **only,
    )
    return [_replica(entry) for entry in found]


def register(rucio: Rucio, files: list[dict[str, Any]], close: bool) -> list[str]:
    """Make the catalogue know files and their datasets: what it knows already is left as it is.

    Replicas come first, one transaction for each RSE; then the files enter all their datasets in one transaction. So
    who looks at the datasets sees all files of the job or none.
    """
    rucio.left = [_did(file) for file in files]
    known = _known(rucio, files)
    _refuse_others(files, known)
    by_rse: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        if file["rse"] not in known.get(_did(file), {}).get("rses", {}):
            by_rse.setdefault(file["rse"], []).append(file)
    for rse, missing in by_rse.items():
        _add_replicas(rucio, rse, missing)
        alone = {_did(file) for file in missing if not file["dataset"]}
        rucio.left = [did for did in rucio.left if did not in alone]
    if by_rse:  # Rucio takes a name that it knows with another checksum, and keeps the first
        known = _known(rucio, files)
        _refuse_others(files, known)
    absent = [_did(file) for file in files if file["rse"] not in known.get(_did(file), {}).get("rses", {})]
    if absent:
        raise LookupError(f"the catalogue has not kept {', '.join(absent)}")
    rucio.left = [_did(file) for file in files if file["dataset"]]
    _attach(rucio, files, close)
    rucio.left = []
    return [_did(file) for file in files]


def _replica(entry: dict[str, Any]) -> dict[str, Any]:
    pfns = [
        {"url": pfn, "rse": facts["rse"], "domain": facts.get("domain", "wan"), "priority": facts.get("priority", 0)}
        for pfn, facts in entry.get("pfns", {}).items()
        if facts.get("type", "DISK") == "DISK" and not facts.get("client_extract")
    ]
    checksums = {kind: entry[kind] for kind in KEPT if entry.get(kind)}
    return {**{key: entry[key] for key in ("scope", "name")}, "bytes": entry.get("bytes"), "checksums": checksums,
            "pfns": sorted(pfns, key=lambda pfn: pfn["priority"])}  # fmt: skip


def _known(rucio: Rucio, files: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the catalogue knows of files; those that it does not know are left out."""
    from rucio.common.exception import DataIdentifierNotFound, ScopeNotFound

    dids = [{"scope": file["scope"], "name": file["name"]} for file in files]
    try:
        return {_did(entry): entry for entry in rucio.replicas.list_replicas(dids, all_states=True, domain="all")}
    except (DataIdentifierNotFound, ScopeNotFound):
        return {}


def _refuse_others(files: list[dict[str, Any]], known: dict[str, dict[str, Any]]) -> None:
    for file in files:
        entry = known.get(_did(file), {})
        there = {kind: str(entry[kind]).lower() for kind in ("bytes", *KEPT) if entry.get(kind) is not None}
        if "adler32" in there:
            there["adler32"] = there["adler32"].rjust(8, "0")  # some have cut zeros
        ours = {"bytes": str(file["bytes"]), **file["checksums"]}
        for kind in there.keys() & ours.keys():
            if there[kind] != ours[kind]:
                raise ChecksumMismatch(f"the catalogue has {_did(file)} with {kind} {there[kind]}, not {ours[kind]}")


def _add_replicas(rucio: Rucio, rse: str, files: list[dict[str, Any]]) -> None:
    info = rucio.rses.get_rse(rse)
    schemes = {protocol["scheme"] for protocol in info["protocols"]}
    added = []
    for file in files:
        meta = {key: file[key] for key in ("guid", "events") if file.get(key)}
        new = {"scope": file["scope"], "name": file["name"], "bytes": file["bytes"], "meta": meta}
        new.update({kind: file["checksums"][kind] for kind in KEPT if kind in file["checksums"]})
        # a path that the RSE has by another protocol (a mounted file system) is none that the catalogue could check
        if not info["deterministic"] or urlsplit(file["pfn"]).scheme in schemes:
            new["pfn"] = file["pfn"]
        added.append(new)
    rucio.replicas.add_replicas(rse, added)


def _attach(rucio: Rucio, files: list[dict[str, Any]], close: bool) -> None:
    datasets: dict[tuple[str, str], list[dict[str, str]]] = {}
    for file in files:
        if file["dataset"]:
            dids = datasets.setdefault((file["dataset_scope"], file["dataset"]), [])
            dids.append({"scope": file["scope"], "name": file["name"]})
    attachments = [
        {"scope": scope, "name": name, "dids": missing}
        for (scope, name), dids in datasets.items()
        if (missing := _missing(rucio, scope, name, dids))
    ]
    if attachments:
        rucio.dids.attach_dids_to_dids(attachments, ignore_duplicate=True)
    for scope, name in datasets if close else ():
        if rucio.dids.get_did(scope, name).get("open"):
            rucio.dids.close(scope, name)


def _missing(rucio: Rucio, scope: str, dataset: str, dids: list[dict[str, str]]) -> list[dict[str, str]]:
    """Files that may not be in a dataset, which is made if there is none; only a closed one is looked into."""
    from rucio.common.exception import DataIdentifierAlreadyExists, DataIdentifierNotFound

    try:
        is_open = rucio.dids.get_did(scope, dataset).get("open")
    except DataIdentifierNotFound:
        try:
            rucio.dids.add_dataset(scope, dataset)
        except DataIdentifierAlreadyExists:  # another job of the task was quicker
            pass
        return dids
    if is_open:
        return dids
    there = {_did(entry) for entry in rucio.dids.list_files(scope, dataset)}
    return [did for did in dids if _did(did) not in there]


def _did(file: dict[str, Any]) -> str:
    return f"{file['scope']}:{file['name']}"


# ------------------------------------------------------------------------------------------------------------- storages


def get(rucio: Rucio, place: dict[str, str], path: str, timeout: int) -> dict[str, Any]:
    """Bring a file to a path that is not there yet."""
    from rucio.common.exception import SourceNotFound

    protocol, pfn = _at(rucio, place, "read")
    try:
        protocol.get(pfn, path, transfer_timeout=timeout)
    except Exception as error:
        if not protocol.exists(pfn):
            raise SourceNotFound(pfn) from error
        if "SourceNotFound" in repr(error) or "source file was not found" in str(error):
            raise CannotRead(f"{pfn}: the storage refuses it") from error
        raise
    return {"pfn": pfn}


def put(rucio: Rucio, place: dict[str, str], path: str, suffix: str, size: int, adler32: str, timeout: int) -> Any:
    """Take a file to a storage; what is there already is left alone and told as `there`.

    `sent` is what the storage has of it; if that is not what was sent it is removed again.
    """
    protocol, pfn = _at(rucio, place, "write")
    there = _look(protocol, pfn)
    if there is not None:
        return {"pfn": pfn, "there": there}
    target = _beside(pfn, suffix) if protocol.renaming else pfn
    source_dir, name = os.path.split(path)
    try:
        protocol.put(name, target, source_dir, transfer_timeout=timeout)
        sent = _look(protocol, target) or {}
        whole = sent.get("size") in (None, size) and sent.get("adler32") in (None, adler32 or sent.get("adler32"))
        if whole and target != pfn:
            protocol.rename(target, pfn)
    except Exception:
        _discard(rucio, place, target)
        raise
    if not whole:
        _discard(rucio, place, target)
    return {"pfn": pfn, "sent": sent}


def stat(rucio: Rucio, place: dict[str, str]) -> Optional[dict[str, Any]]:  # noqa: UP045 - Python 3.9
    """Size and checksum of a file; None if there is none."""
    protocol, pfn = _at(rucio, place, "read")
    return _look(protocol, pfn)


def remove(rucio: Rucio, place: dict[str, str]) -> None:
    """Delete a file, if it is there."""
    protocol, pfn = _at(rucio, place, "delete")
    if protocol.exists(pfn):
        protocol.delete(pfn)


def _at(rucio: Rucio, place: dict[str, str], operation: str) -> tuple[Any, str]:
    """What speaks to an RSE, and the PFN of a file there."""
    pfn = place["pfn"]
    protocol = rucio.protocol(place["rse"], operation, urlsplit(pfn).scheme)
    if not pfn:
        lfn = {"scope": place["scope"], "name": place["name"]}
        pfn = next(iter(protocol.lfns2pfns(lfn).values()))
    return protocol, pfn


def _look(protocol: Any, pfn: str) -> Optional[dict[str, Any]]:  # noqa: UP045
    from rucio.common.exception import RSEChecksumUnavailable

    if not protocol.exists(pfn):
        return None
    try:
        found = protocol.stat(pfn)
    except RSEChecksumUnavailable:  # with it went the size
        return {}
    told = {"size": int(found["filesize"])} if "filesize" in found else {}
    return {**told, **{kind: found[kind].rjust(8, "0") for kind in KEPT if found.get(kind)}}


def _beside(pfn: str, suffix: str) -> str:
    folder, _, name = pfn.rpartition("/")
    stem = os.fsencode(name)[: NAME_MAX - len(suffix)].decode(errors="ignore")
    return f"{folder}/{stem}{suffix}"


def _discard(rucio: Rucio, place: dict[str, str], pfn: str) -> None:
    try:
        remove(rucio, {**place, "pfn": pfn})
    except Exception as error:  # what went wrong first is what will be told
        logging.warning("%s may be left: %s", pfn, error)


# ---------------------------------------------------------------------------------------------------------- the program


ACTIONS: dict[str, Any] = {
    "replicas": replicas,
    "register": register,
    "get": get,
    "put": put,
    "stat": stat,
    "remove": remove,
}


def _configured(option: str) -> str:
    from rucio.common.config import config_get
    from rucio.common.exception import ConfigNotFound

    try:
        return str(config_get("client", option, raise_exception=False, default="") or "")
    except ConfigNotFound:
        return ""


def _make_configuration(host: str, folder: str) -> None:
    """A file for rucio-clients, which fail without one, where there is none and the pilot was told the server."""
    from rucio.common.config import get_config
    from rucio.common.exception import ConfigNotFound

    try:
        get_config()
    except ConfigNotFound:
        path = os.path.join(folder, "rucio.cfg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"[client]\nrucio_host = {host}\nauth_host = {host}\nrequest_retries = 3\n")
        os.environ["RUCIO_CONFIG"] = path


def _auth_type() -> Optional[str]:  # noqa: UP045
    """As the environment or the configuration say; else what there is, a token or a proxy."""
    if os.environ.get("RUCIO_AUTH_TYPE") or _configured("auth_type"):
        return None
    if {"BEARER_TOKEN", "BEARER_TOKEN_FILE"} & os.environ.keys():
        return "oidc"
    proxies = [
        os.environ.get("RUCIO_CLIENT_PROXY"),
        os.environ.get("X509_USER_PROXY"),
        _configured("client_x509_proxy"),
    ]
    if not any([*proxies, os.path.isfile(f"/tmp/x509up_u{os.geteuid()}")]):  # noqa: S108 - where a proxy is by custom
        raise NoCredential("no auth_type is configured, and there is neither a token nor a proxy")
    return "x509_proxy"


def _expanded(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path.strip()))


def _is_local(url: str) -> bool:
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1")


class _Complaint(logging.Handler):
    """Keeps what rucio-clients logged last: why a server cannot be reached is not in their exception."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def main() -> None:
    """Do what a request says."""
    request_path, reply_path = sys.argv[1:]
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    logging.basicConfig(level=logging.WARNING)
    complaint = _Complaint(logging.ERROR)
    logging.getLogger().addHandler(complaint)
    rucio = None
    try:
        rucio = Rucio(request["host"], request["tokens"], request["allow_http"])
        reply = {"result": ACTIONS[request["action"]](rucio, **request["arguments"])}
    except Exception as error:  # the door: whatever it is, the pilot must hear of it
        names = [kind.__name__ for kind in type(error).__mro__ if kind not in (Exception, BaseException, object)]
        left = rucio.left if rucio else []
        why = f"{error} {complaint.text}" if "ServerConnectionException" in names else f"{error}"
        reply = {"error": {"classes": names or ["Exception"], "message": why, "left": left}}
    with open(reply_path, "w", encoding="utf-8") as file:
        json.dump(reply, file)


if __name__ == "__main__":
    main()
