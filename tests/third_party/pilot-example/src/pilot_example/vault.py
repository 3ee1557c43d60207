"""Copy tool `vault`: URLs `vault://folder/name` are files below one directory of this node.

The queue names the directory: `"copytools": {"vault": {"directory": "/data/vault"}}`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import BLOCK, Hasher, file_checksums
from pilot.staging.copytool import CopyTool, Handle, Stored, Transfer
from pilot.staging.faults import Direction, of_os_error


class Vault(CopyTool):
    """Keeps files in a directory."""

    name = "vault"
    schemes = frozenset({"vault"})
    checksums = frozenset({"adler32", "md5"})

    def unavailable(self) -> str | None:
        if not self.context.options.get("directory"):
            return 'the queue must say where: "copytools": {"vault": {"directory": "/data/vault"}}'
        return None

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        with faults(Direction.IN, transfer.url):
            return self.copy(self.path(transfer.url), transfer.path, transfer, handle)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        target = self.path(transfer.url)
        with faults(Direction.OUT, transfer.url):
            if not target.exists():
                return self.copy(transfer.path, target, transfer, handle)
            found = file_checksums(target, [transfer.checksum_type], handle.check)
            if found != file_checksums(transfer.path, [transfer.checksum_type], handle.check):
                raise TransferError(Code.FILEEXISTS, f"{transfer.url} has other content", Trait.NEXT)
            return Stored(url=transfer.url, size=target.stat().st_size, checksums=found)

    def stat(self, url: str, handle: Handle) -> Stored | None:
        path = self.path(url)
        return Stored(url=url, size=path.stat().st_size) if path.is_file() else None

    def remove(self, url: str, handle: Handle) -> None:
        self.path(url).unlink(missing_ok=True)

    def path(self, url: str) -> Path:
        """Where a URL lies. Names that lead out of the vault are refused."""
        name = unquote(url.removeprefix("vault://"))
        if ".." in name.split("/"):
            raise TransferError(Code.NOSUCHFILE, f"{url} is not in the vault", Trait.FATAL)
        return Path(self.context.options["directory"]) / name.lstrip("/")

    def copy(self, source: Path, target: Path, transfer: Transfer, handle: Handle) -> Stored:
        """Copy under a name that nobody knows, summing up the bytes; the name comes last."""
        hasher, size = Hasher(transfer.checksums or [transfer.checksum_type]), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as reader, tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as writer:
            try:
                while block := reader.read(BLOCK):
                    handle.advance(len(block))
                    hasher.update(memoryview(block))
                    size += writer.write(block)
                writer.close()
                os.replace(writer.name, target)
            except BaseException:
                os.unlink(writer.name)
                raise
        return Stored(url=transfer.url, size=size, checksums=hasher.digests())


@contextmanager
def faults(direction: Direction, what: str) -> Iterator[None]:
    """Errors of the file system as errors of the pilot's table."""
    try:
        yield
    except FileNotFoundError as error:
        raise TransferError(direction.missing, what, Trait.NEXT) from error
    except OSError as error:
        raise of_os_error(error, direction, what) from error
