"""The environment of a pilot: what the site's set-up files and the queue make of the node's own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.masking import Masker

#: Seconds that a set-up file may take: CVMFS may have to fetch it.
_PATIENCE = 300.0
#: Names of variables whose values are nobody's business.
_PRIVATE = re.compile(r"PASS|SECRET|TOKEN$|TOKEN_VALUE|KEY$|CREDENTIAL|PROXYCONTENT", re.IGNORECASE)
#: Variables that name files, perhaps relative to where we were started.
_FILES = ("PANDA_AUTH_TOKEN", "OIDC_AUTH_TOKEN", "PANDA_AUTH_TOKEN_KEY", "X509_USER_PROXY")
#: What a shell does with a set-up file: its output is for people, the environment after it is for us.
_SOURCE = 'file=$1; shift; . "$file" "$@" >&2 || exit; exec env -0'


class SetupError(Exception):
    """A set-up file failed."""


def after_sourcing(path: str, arguments: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment after a shell has sourced a file.

    Raises:
        SetupError: it is not there, failed, or took too long.
    """
    command = ["/bin/bash", "-c", _SOURCE, "setup", path, *arguments]
    try:
        done = subprocess.run(command, env=dict(environ), stdout=subprocess.PIPE, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{path}: {error}") from error
    if done.returncode:
        raise SetupError(f"{path} ended with status {done.returncode}")
    rows = (row.partition("=") for row in os.fsdecode(done.stdout).split("\0") if row)
    return {name: value for name, mark, value in rows if mark and name not in ("_", "SHLVL")}


def site_files(environ: Mapping[str, str], cvmfs: str, site: str) -> list[tuple[str, list[str]]]:
    """Set-up files of ATLAS sites that are there, with their arguments (PILOT3 9.1)."""
    software = environ.get("VO_ATLAS_SW_DIR") or f"{cvmfs}/atlas.cern.ch/repo/sw"
    files = [(f"{software}/local/setup.sh", ["-s", site, "-p", "python3"])]
    if environ.get("ALRB_noGridMW") == "YES" and environ.get("OSG_GRID"):
        files.append((f"{environ['OSG_GRID']}/setup.sh", []))
    return [(path, arguments) for path, arguments in files if os.path.isfile(path)]


def queue_variables(text: str) -> dict[str, str]:
    """The `KEY=VALUE` words of a queue's `environ`."""
    pairs = (word.partition("=") for word in re.split(r"[\s,]+", text.removeprefix("export ")))
    return {name: value.strip("'\"") for name, mark, value in pairs if mark and name.isidentifier()}


def with_whole_paths(environ: Mapping[str, str], launch_dir: Path) -> dict[str, str]:
    """The same, with credentials named from the root: the pilot works in another directory."""
    places = {name: launch_dir / environ[name] for name in _FILES if environ.get(name)}
    return {**environ, **{name: str(place) for name, place in places.items() if place.is_file()}}


def shown(environ: Mapping[str, str]) -> list[str]:
    """The environment for the log: what may be secret is masked."""
    mask = Masker().mask
    rows = ((name, "***" if _PRIVATE.search(name) else mask(value)) for name, value in sorted(environ.items()))
    return [f"{name}={value}" for name, value in rows]
