"""Running a site's programs in the environment that the site's own words prepare."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilot.errors import Code, Trait, TransferError
from pilot.staging.copytool import Handle
from pilot.staging.faults import Direction

#: A setup that is a command by itself; else it is the name of a file to source, as for Pilot 3 (PILOT3 4.6).
_COMMAND = re.compile(r"(source|\.|export|eval|module|lsetup|unset)\s|\w+=|.*[;&|\n]")


class SitePrograms:
    """Programs of a tool.

    Args:
        options: the queue's entry for the tool; `setup` is a file to source before each program, or commands that a
            shell understands. It is the site's text. The arguments of programs are never part of it.
        variables: of the environment of all programs.
    """

    def __init__(self, options: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> None:
        self._setup = str(options.get("setup") or "").strip().rstrip(";")
        self._variables = dict(variables or {})

    @property
    def prepared(self) -> bool:
        """Whether there is a setup: then programs may come from it that are not there yet."""
        return bool(self._setup)

    def missing(self, *names: str) -> str | None:
        """The first program that is not in the path and cannot come from the setup; None if all are there."""
        if self.prepared:
            return None
        return next((name for name in names if shutil.which(name) is None), None)

    def run(
        self, handle: Handle, direction: Direction, argv: Sequence[str], watch: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Raises:
            TransferError: it cannot be started, or a signal ended it.
        """
        try:
            done = self._run(handle, argv, watch)
        except OSError as error:
            raise TransferError(direction.failed, f"{argv[0]} cannot be run: {error.strerror}", Trait.NEXT) from error
        if done.returncode < 0:
            raise direction.fault(f"{argv[0]} was ended by signal {-done.returncode}")
        if done.returncode == 127:  # a shell's word for a program that is not there, be it the interpreter of a script
            why = f"{argv[0]} does not work here: {done.stderr.strip()[-200:]}"
            raise TransferError(Code.UNKNOWNCOPYTOOL, why, Trait.NEXT)
        return done

    def _run(self, handle: Handle, argv: Sequence[str], watch: Path | None) -> subprocess.CompletedProcess[str]:
        if not self._setup:
            return handle.run(argv, self._variables, watch)
        with tempfile.NamedTemporaryFile("w", prefix="pilot-setup-", suffix=".sh") as script:
            words = self._setup if _COMMAND.match(self._setup) else f"source {self._setup}"
            # a sourced file without arguments sees those of the script: some setups take them for their own
            script.write(f'argv=("$@"); set --\n{words}\nexec "${{argv[@]}}"\n')
            script.flush()
            return handle.run(["bash", script.name, *argv], self._variables, watch)
