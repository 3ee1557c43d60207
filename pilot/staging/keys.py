"""Keys of object stores that storages only name, and the PanDA server has (`getKeyPair`, PILOT3 4.1)."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from pilot.errors import Code, PilotError, ServerError, Trait, TransferError
from pilot.masking import Secret
from pilot.queuedata import QueueInfo, Storage
from pilot.server.faults import AuthRefusedError, NotServedError, RefusedError
from pilot.staging.copytool import KeyFinder, StorageKeys

logger = logging.getLogger(__name__)

#: Values of `is_secure` for plain http.
_PLAIN = {"false", "0", "no"}


class _Named(NamedTuple):
    """What a storage says of the keys for URLs that begin so."""

    prefix: str
    storage: str
    names: tuple[str, str]
    secure: bool


class KeyRing:
    """Keys that were asked for once, for all jobs of a pilot. Any thread may.

    Args:
        ask: from the names of a public and a private key to the keys; blocks. Raises `ServerError`.
        tell: is given each secret, such as a masker's `add`.
    """

    def __init__(self, ask: Callable[[str, str], tuple[str, Secret]], tell: Callable[[Secret], None]) -> None:
        self._ask = ask
        self._tell = tell
        self._known: dict[tuple[str, str], tuple[str, Secret] | None] = {}
        self._lock = threading.Lock()

    def of(self, info: QueueInfo) -> KeyFinder:
        """From a URL to the keys for it: None if its storage names none, or the server gives us none."""
        named = cache(lambda: sorted(_named(info), key=lambda one: -len(one.prefix)))

        def find(url: str) -> StorageKeys | None:
            plain = _plain(url)
            found = next((one for one in named() if plain.startswith(one.prefix)), None)
            pair = self._pair(found) if found else None
            return StorageKeys(*pair, found.secure) if found and pair else None

        return find

    def _pair(self, named: _Named) -> tuple[str, Secret] | None:
        with self._lock:
            if named.names not in self._known:
                try:
                    self._known[named.names] = pair = self._ask(*named.names)
                    self._tell(pair[1])
                except ServerError as error:
                    if not isinstance(error, RefusedError | NotServedError) or isinstance(error, AuthRefusedError):
                        detail = f"keys of {named.storage}: {error.detail}"
                        raise TransferError(Code.MISSINGCREDENTIALS, detail, Trait.RETRY) from error
                    logger.warning("the server gives no keys of %s: %s", named.storage, error.detail)
                    self._known[named.names] = None  # others may do: of the environment, of the machine
            return self._known[named.names]


def _named(info: QueueInfo) -> Iterator[_Named]:
    for name in info.storage_records.keys() | info.storage_overrides.keys():
        if "access_key" in str((info.storage_records.get(name, {}), info.storage_overrides.get(name, {}))):
            try:
                yield from _named_by(info.storage(name))
            except PilotError as error:  # nobody may need it
                logger.warning("%s", error)


def _named_by(storage: Storage) -> Iterator[_Named]:
    for protocol in {way for ways in storage.arprotocols.values() for way in ways}:
        about = storage.rprotocols.get(protocol.id)
        settings = about.get("settings") if isinstance(about, Mapping) else None
        if isinstance(settings, Mapping) and settings.get("access_key") and settings.get("secret_key"):
            secure = str(settings.get("is_secure", True)).lower() not in _PLAIN
            names = (str(settings["access_key"]), str(settings["secret_key"]))
            prefix = _plain(f"{protocol.endpoint}{protocol.path}/")  # `bucket` is not where `bucket2` begins
            yield _Named(prefix, storage.name, names, secure)


def _plain(url: str) -> str:
    return re.sub("(?<!:)/+", "/", url)
