"""A copy tool that a test can hold: `mv` behind a gate. A plug-in from outside, found by its entry point.

Options in the queue's `copytools`: `directory`, where a file `get-LFN` or `put-LFN` appears when a transfer has come to
the gate and where it waits for a file `open`; `seconds` that each transfer takes besides; `fault`, which makes it go
wrong: `hang` (and not listen), `bug`, `exit`, `flaky` (the first try of each), `retry` (every try), `garbage` (bytes
that were not sent).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from copytools.mv import Mv
from pilot.errors import Code, Trait, TransferError
from pilot.staging.copytool import Handle, Stored, Transfer


class Gate(Mv):
    """Moves files as `mv` does, when it is let."""

    name = "gate"

    def get(self, transfer: Transfer, handle: Handle) -> Stored:
        self._pass("get", transfer, handle)
        return super().get(transfer, handle)

    def put(self, transfer: Transfer, handle: Handle) -> Stored:
        self._pass("put", transfer, handle)
        return super().put(transfer, handle)

    def _pass(self, what: str, transfer: Transfer, handle: Handle) -> None:
        options = self.context.options
        directory = Path(options["directory"])
        mark = directory / f"{what}-{transfer.file.lfn}"
        first = not mark.exists()
        mark.touch()
        _misbehave(options.get("fault", "") if options.get("where", what) == what else "", first, transfer)
        end = time.monotonic() + float(options.get("seconds", 0))
        while time.monotonic() < end or not (directory / "open").exists():
            handle.check()
            time.sleep(0.005)


def _misbehave(fault: str, first: bool, transfer: Transfer) -> None:
    if fault == "hang":
        time.sleep(600)
    elif fault == "bug":
        raise KeyError("the tool's own mistake")
    elif fault == "exit":
        sys.exit(3)
    elif fault == "retry" or (fault == "flaky" and first):
        raise TransferError(Code.SERVICENOTAVAILABLE, "the storage is busy", Trait.RETRY)
    elif fault == "garbage":
        with open(transfer.path, "ab") as file:
            file.write(b"garbage")
