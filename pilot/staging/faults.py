"""Which code of the table a failed transfer has: it depends on the direction as much as on the fault."""

from __future__ import annotations

import errno
from enum import Enum

from pilot.errors import Code, Trait, TransferError


class Direction(Enum):
    """Into the node or out of it, with the codes that tell the two apart (PILOT3 3: stage-in, stage-out)."""

    IN = "stage-in"
    OUT = "stage-out"

    @property
    def failed(self) -> Code:
        """Any fault without a code of its own."""
        return Code.STAGEINFAILED if self is Direction.IN else Code.STAGEOUTFAILED

    @property
    def timed_out(self) -> Code:
        """It took too long."""
        return Code.STAGEINTIMEOUT if self is Direction.IN else Code.STAGEOUTTIMEOUT

    @property
    def no_space(self) -> Code:
        """The disk that is written to is full: ours or the storage's."""
        return Code.NOLOCALSPACE if self is Direction.IN else Code.NOREMOTESPACE

    @property
    def missing(self) -> Code:
        """The file to copy is not there."""
        return Code.MISSINGINPUTFILE if self is Direction.IN else Code.MISSINGOUTPUTFILE

    @property
    def refused(self) -> Code:
        """The storage does not know who we are."""
        return Code.STAGEINAUTHENTICATIONFAILURE if self is Direction.IN else Code.STAGEOUTAUTHENTICATIONFAILURE

    def mismatch(self, checksum_type: str) -> Code:
        """The bytes are not those they should be. Only adler32 has codes of its own; all others share those of md5."""
        if checksum_type == "adler32":
            return Code.GETADMISMATCH if self is Direction.IN else Code.PUTADMISMATCH
        return Code.GETMD5MISMATCH if self is Direction.IN else Code.PUTMD5MISMATCH

    def fault(self, detail: str, trait: Trait = Trait.RETRY) -> TransferError:
        """An error without a code of its own."""
        return TransferError(self.failed, detail, trait)


#: Faults of the file system that pass: the same again may work. All others need another place or a person.
_PASSING = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN,
            errno.EHOSTDOWN, errno.ECONNRESET, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}  # fmt: skip

_FULL = {errno.ENOSPC, errno.EDQUOT}


def of_os_error(error: OSError, direction: Direction, what: str) -> TransferError:
    """What the operating system said, as a transfer's error.

    Args:
        error: as raised.
        direction: of the transfer.
        what: was being done, for a person: "copying /a to /b".
    """
    detail = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return TransferError(direction.no_space, detail, Trait.NEXT if direction is Direction.OUT else Trait.FATAL)
    if error.errno == errno.ENAMETOOLONG:
        return TransferError(Code.LFNTOOLONG, detail, Trait.FATAL)
    return direction.fault(detail, Trait.RETRY if error.errno in _PASSING else Trait.NEXT)
