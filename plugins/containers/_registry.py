"""Registry logins as the file that all runtimes read (containers-auth.json(5), Docker's config.json)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pilot.payload.container import Login

#: Docker looks for a file of this name in the directory of `DOCKER_CONFIG`.
FILE = "config.json"


def write_auth_file(directory: Path, logins: Iterable[Login]) -> Path | None:
    """A file that only we may read, in a directory that only we may enter; None if there is no login."""
    auths = {login.registry: {"auth": _encoded(login)} for login in logins}
    if not auths:
        return None
    path = directory / FILE
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"auths": auths}, file)
    return path


def _encoded(login: Login) -> str:
    return base64.b64encode(f"{login.user}:{login.token.reveal()}".encode()).decode()
