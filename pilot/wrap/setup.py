"""The environment of a pilot: what the site's set-up files and the queue make of the node's own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from pilot.masking import Masker

#: Seconds that a set-up file may take: CVMFS may have to fetch it.
_PATIENCE = 300.0
#: Names of variables whose values are nobody's business.
_PRIVATE = re.compile(r"PASS|SECRET|TOKEN$|TOKEN_VALUE|KEY$|CREDENTIAL|PROXYCONTENT", re.IGNORECASE)
#: Variables that name files, perhaps relative to where we were started.
_FILES = ("PANDA_AUTH_TOKEN", "OIDC_AUTH_TOKEN", "PANDA_AUTH_TOKEN_KEY", "X509_USER_PROXY")
#: What a shell does with a set-up file: its output is for people, the environment after it is for us.
_SOURCE = (
    'strict=$1; before=$2; file=$3; shift 3; [ -z "$before" ] || . "$before" --quiet >&2; '
    '. "$file" "$@" >&2 || [ -z "$strict" ] || exit 1; exec env -0'
)


class SetupError(Exception):
    """A set-up file failed."""


def after_sourcing(
    path: str, arguments: Sequence[str], environ: Mapping[str, str], *, strict: bool = True, before: str = ""
) -> dict[str, str]:
    """The environment after a shell has sourced a file.

    Args:
        path: of the file.
        arguments: for it.
        environ: before.
        strict: the status of its last command counts. Pilot 3's wrapper does not look at it, and many a site's file
            ends with a test.
        before: a file that makes functions which this one may use, such as `lsetup` of ALRB.

    Raises:
        SetupError: it is not there, failed, left the shell, or took too long.
    """
    command = ["/bin/bash", "-c", _SOURCE, "setup", "strict" if strict else "", before, path, *arguments]
    try:
        done = subprocess.run(command, env=dict(environ), stdout=subprocess.PIPE, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{path}: {error}") from error
    if done.returncode:
        raise SetupError(f"{path} ended with status {done.returncode}")
    if not done.stdout:
        raise SetupError(f"{path} has left the shell with status 0")
    rows = (row.partition("=") for row in os.fsdecode(done.stdout).split("\0") if row)
    return {name: value for name, mark, value in rows if mark and name not in ("_", "SHLVL")}


def atlas_variables(environ: Mapping[str, str], cvmfs: str, tag: str) -> dict[str, str]:
    """What a site's files and ALRB expect, as Pilot 3's wrapper exports it; nothing where ATLAS' software is not.

    Args:
        environ: what it has counts more.
        cvmfs: where CVMFS is.
        tag: type of the pilot; `RC` and `ALRB` try new versions of tools.
    """
    top = f"{cvmfs}/atlas.cern.ch/repo"
    if not os.path.isdir(top):
        return {}
    found = {
        "VO_ATLAS_SW_DIR": f"{top}/sw",
        "ATLAS_LOCAL_ROOT_BASE": f"{top}/ATLASLocalRootBase",
        "ALRB_noGridMW": "NO",
    }
    trial = {"RC": {"ALRB_rucioVersion": "testing"}, "ALRB": {"ALRB_adcTesting": "YES"}}.get(tag, {})
    given = {name: environ[name] for name in found if environ.get(name)}
    return {**found, **given, "ALRB_userMenuFmtSkip": "YES", "ALRB_LOCAL_PY3": "YES", **trial}


def site_files(environ: Mapping[str, str], queue: str, tag: str) -> list[tuple[str, list[str]]]:
    """Set-up files of ATLAS sites that are there, with their arguments (PILOT3 9.1)."""
    software, alrb = (
        environ.get("VO_ATLAS_SW_DIR", "/nonexistent"),
        environ.get("ATLAS_LOCAL_ROOT_BASE", "/nonexistent"),
    )
    files = [(f"{software}/local/setup.sh", ["-s", queue, "-p", "python3"])]
    if tag == "RC":
        files.insert(0, (f"{alrb}/etc/ADCPilotTesting.sh", []))
    if environ.get("ALRB_noGridMW") == "YES" and environ.get("OSG_GRID"):
        files.append((f"{environ['OSG_GRID']}/setup.sh", []))
    return [(path, arguments) for path, arguments in files if os.path.isfile(path)]


def queue_variables(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a queue's `environ`, `KEY=VALUE` with spaces, commas or semicolons between them.

    Values may be quoted and name variables, as for a shell; nothing else of one is carried out.
    """
    words = shlex.shlex(text, posix=True)
    words.whitespace, words.whitespace_split, words.commenters = " \t\r\n;", True, ""
    try:
        parts = [part for word in words for part in re.split(r",(?=[A-Za-z_]\w*=)", word)]
    except ValueError:  # a quote without its end
        parts = text.split()
    pairs = (part.partition("=") for part in parts)
    return {
        name: Template(value).safe_substitute(environ) for name, mark, value in pairs if mark and name.isidentifier()
    }


def with_whole_paths(environ: Mapping[str, str], launch_dir: Path) -> dict[str, str]:
    """The same, with credentials named from the root: the pilot works in another directory."""
    places = {name: launch_dir / environ[name] for name in _FILES if environ.get(name)}
    return {**environ, **{name: str(place) for name, place in places.items() if place.is_file()}}


def shown(environ: Mapping[str, str]) -> list[str]:
    """The environment for the log: what may be secret is masked."""
    mask = Masker().mask
    rows = ((name, "***" if _PRIVATE.search(name) else mask(value)) for name, value in sorted(environ.items()))
    return [f"{name}={value}" for name, value in rows]
