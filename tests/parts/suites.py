"""Packages of other Debian suites, fetched and not installed: for programs that are newer than this system."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

_SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {}\n"


def fetch(top: Path, packages: Sequence[str], suites: Sequence[str] = ("sid main", "trixie main")) -> str:
    """Download packages (`name/suite`) into a directory that also holds apt's state; why not, if it cannot be."""
    for name in ("lists/partial", "cache/archives/partial"):
        (top / name).mkdir(parents=True, exist_ok=True)
    (top / "sources.list").write_text("".join(_SOURCE.format(suite) for suite in suites))
    words = [
        *(f"Dir::Etc::sourcelist={top}/sources.list", "Dir::Etc::sourceparts=/dev/null"),
        *(f"Dir::State::lists={top}/lists", f"Dir::Cache={top}/cache", "Acquire::Languages=none"),
        "APT::Sandbox::User=root",
    ]
    options = [word for option in words for word in ("-o", option)]
    for command in (["update", "-q"], ["download", "-q", *packages]):
        done = subprocess.run(["apt-get", *options, *command], cwd=top, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"apt-get {command[0]}: {done.stderr[-300:]}"
    return ""
