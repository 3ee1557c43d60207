"""Copy tool `lsm`: a site's own programs, `lsm-get` and `lsm-put` (the local site mover of US ATLAS).

    lsm-get SOURCE-URL PATH
    lsm-put --size BYTES [-t TOKEN] --checksum TYPE:VALUE [--guid GUID] PATH DESTINATION-URL

The programs verify what they do and say by exit code 200 to 220 what was wrong. Two more are used if the site has them:
`lsm-size URL` prints the bytes of a file and fails if there is none, `lsm-rm URL` deletes one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from copytools._remote import checksum_types, local_faults, partial_file, regular_size, verify
from copytools._site import SitePrograms
from pilot.errors import Code, Trait, TransferError
from pilot.staging.checksum import file_checksums
from pilot.staging.copytool import CopyTool, Handle, Stored, ToolContext, Transfer
from pilot.staging.faults import Direction
from pilot.staging.result import shown

#: The destination has the very file already: nothing is wrong.
_THERE = 212

#: Exit codes of the specification: which of them are not just a failed transfer worth another try.
_TRAITS: Mapping[int, Trait] = MappingProxyType(
    {202: Trait.NEXT, 203: Trait.NEXT, 206: Trait.NEXT, 207: Trait.NEXT, 209: Trait.FATAL, 210: Trait.FATAL}
)
_CHECKSUM_DIFFERS, _OTHER_FILE, _FULL = (205, 210), 211, 213

_MISSING = re.compile("no such file|not found|does not exist", re.I)


class Lsm(CopyTool):
    """Files by the site's own programs `lsm-get` and `lsm-put` (srm, gsiftp, root).

    Options of the queue: `setup`, a file to source before the programs.
    """

    name = "lsm"
    schemes = frozenset({"srm", "gsiftp", "root"})

    def __init__(self, context: ToolContext) -> None:
        super().__init__(context)
        self._site = SitePrograms(context.options)

    def unavailable(self) -> str | None:
        """No programs."""
        missing = self._site.missing("lsm-get", "lsm-put")
        return f"no program {missing}: it is the site's to provide" if missing else None

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        """`lsm-get`."""
        with local_faults(Direction.IN, f"lsm to {transfer.path}"):
            transfer.path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(transfer.path) as partial:
                done = self._site.run(handle, Direction.IN, ["lsm-get", transfer.url, str(partial)], partial)
                self._check(done, transfer, Direction.IN)
                found = file_checksums(_there(partial, transfer), checksum_types(transfer), handle.check)
                stored = Stored(url=transfer.url, size=partial.stat().st_size, checksums=found)
                verify(stored, transfer, Direction.IN)
                partial.replace(transfer.path)
        return stored

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        """`lsm-put`. The size is what it has been told to verify, unless `lsm-size` can be asked."""
        with local_faults(Direction.OUT, f"lsm of {transfer.path}"):
            size = regular_size(transfer.path)
            kind = checksum_types(transfer)[0]
            value = transfer.checksums.get(kind) or file_checksums(transfer.path, [kind], handle.check)[kind]
            argv = ["lsm-put", "--size", str(transfer.size if transfer.size is not None else size)]
            argv += ["-t", transfer.file.token] if transfer.file.token else []
            argv += ["--checksum", f"{kind}:{value}"]
            argv += ["--guid", transfer.file.guid] if transfer.file.guid else []
            done = self._site.run(handle, Direction.OUT, [*argv, str(transfer.path.absolute()), transfer.url])
        if done.returncode != _THERE:
            self._check(done, transfer, Direction.OUT, kind)
        return Stored(url=transfer.url, size=size)

    def stat(self, url: str, handle: Handle) -> Stored | None:
        """`lsm-size`, if there is one."""
        done = self._optional("lsm-size", url, handle)
        size = re.fullmatch(r"\s*(\d+)\s*", done.stdout.splitlines()[-1] if done.stdout.strip() else "")
        if done.returncode == 0 and size:
            return Stored(url=url, size=int(size[1]))
        if _MISSING.search(done.stdout + done.stderr):
            return None
        raise Direction.OUT.fault(f"lsm-size {shown(url)}: {_said(done)}")

    def remove(self, url: str, handle: Handle) -> None:
        """`lsm-rm`, if there is one."""
        done = self._optional("lsm-rm", url, handle)
        if done.returncode and not _MISSING.search(done.stdout + done.stderr):
            raise Direction.OUT.fault(f"lsm-rm {shown(url)}: {_said(done)}")

    def _optional(self, name: str, url: str, handle: Handle) -> subprocess.CompletedProcess[str]:
        if not self._site.prepared and shutil.which(name) is None:
            raise TransferError(Code.NOTIMPLEMENTED, f"the site has no {name}", Trait.NEXT)
        return self._site.run(handle, Direction.OUT, [name, url])

    def _check(
        self, done: subprocess.CompletedProcess[str], transfer: Transfer, direction: Direction, kind: str = "adler32"
    ) -> None:
        if done.returncode:
            code, trait = _meaning(done, direction, kind)
            raise TransferError(code, f"{done.args[0]} {shown(transfer.url)}: {_said(done)}", trait)


def _there(path: Path, transfer: Transfer) -> Path:
    if not path.exists():
        raise Direction.IN.fault(f"lsm-get {shown(transfer.url)}: success, but no file", Trait.NEXT)
    return path


def _meaning(done: subprocess.CompletedProcess[str], direction: Direction, kind: str) -> tuple[Code, Trait]:
    status = done.returncode
    if status in _CHECKSUM_DIFFERS:
        code = direction.mismatch(kind)
    elif status == _OTHER_FILE:
        return Code.FILEEXISTS, Trait.NEXT
    elif status == _FULL:
        return direction.no_space, Trait.NEXT
    elif direction is Direction.IN and "No space left on device" in done.stderr:
        return direction.no_space, Trait.FATAL
    elif direction is Direction.IN and _MISSING.search(done.stdout + done.stderr):
        return direction.missing, Trait.NEXT
    else:
        code = direction.failed
    return code, _TRAITS.get(status, Trait.RETRY)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    words = (done.stderr.strip() or done.stdout.strip())[-300:]
    return f"exit code {done.returncode} {words}".strip()
