"""Asking Rucio: a program of our own (`_rucio_child.py`) does it with rucio-clients, and can be ended at any moment."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from copytools._site import SitePrograms
from copytools._xrootd_programs import settings as xrootd_settings
from pilot.errors import Code, Trait, TransferError
from pilot.staging.copytool import Handle
from pilot.staging.faults import Direction

#: How to get the library.
HINT = "pip install 'pilot-toolkit[rucio]'"

#: Characters of what Rucio says that are kept.
_SAID = 1000


class RucioError(TransferError):
    """What went wrong at Rucio or at a storage.

    Attributes:
        left: files of a registration (`scope:name`) that it was not done for.
    """

    def __init__(self, code: Code, detail: str, trait: Trait, left: tuple[str, ...] = ()) -> None:
        super().__init__(code, detail, trait)
        self.left = left

    @classmethod
    def missing(cls, why: str) -> RucioError:
        """There is no rucio-clients."""
        return cls(Code.MIDDLEWAREIMPORTFAILURE, why, Trait.NEXT)


class RucioProgram:
    """Runs the program.

    Args:
        host: URL of the server; empty: as Rucio's own configuration says.
        environ: the pilot's environment: it says where that is, and has the credentials.
        options: of the queue; `setup` as for `SitePrograms`: then Rucio comes from there, with its `python3`.
        allow_http: without TLS to others than ourselves.
        scratch: where to make a directory for tokens; none: where temporary files are.
    """

    def __init__(
        self,
        host: str,
        environ: Mapping[str, str],
        *,
        options: Mapping[str, Any] | None = None,
        allow_http: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self._host = host
        self._allow_http = allow_http
        self._site = SitePrograms(options or {}, {**environ, **xrootd_settings()})
        self._scratch = scratch
        self._made: Path | None = None
        self._lock = threading.Lock()
        self._text = ""

    def unavailable(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if self._site.prepared or find_spec("rucio") is not None:
            return None
        return f"no module rucio: {HINT}"

    def ask(
        self, handle: Handle, direction: Direction, action: str, watch: Path | None = None, **arguments: Any
    ) -> Any:
        """One action of the program with its arguments, and what it returns.

        Raises:
            RucioError: with the code for it in that direction.
        """
        with tempfile.TemporaryDirectory(dir=self._directory(), prefix="call-") as folder:  # 0700
            request, reply, script = (Path(folder) / name for name in ("request.json", "reply.json", "rucio_child.py"))
            about = {"host": self._host, "tokens": str(self._directory()), "allow_http": self._allow_http}
            request.write_text(json.dumps({**about, "action": action, "arguments": arguments}))
            script.write_text(self._program())
            python = "python3" if self._site.prepared else sys.executable
            done = self._site.run(handle, direction, [python, str(script), str(request), str(reply)], watch)
            try:
                answer = json.loads(reply.read_bytes())
            except (OSError, ValueError):
                said = done.stderr.strip()[-_SAID:] or f"exit code {done.returncode}"
                raise RucioError(direction.failed, f"rucio {action}: {said}", Trait.NEXT) from None
        if "error" in answer:
            raise _fault(answer["error"], direction)
        return answer["result"]

    def _directory(self) -> Path:
        """A directory of our own (0700) for tokens and requests, removed at the end."""
        with self._lock:
            if self._made is None:
                self._made = Path(tempfile.mkdtemp(prefix="pilot-rucio-", dir=self._scratch))
                weakref.finalize(self, shutil.rmtree, self._made, True)
            return self._made

    def _program(self) -> str:
        if not self._text:
            self._text = files("copytools").joinpath("_rucio_child.py").read_text()
        return self._text


def allows_http(settings: Mapping[str, Any]) -> bool:
    """Whether the pilot's settings allow plain http to anybody."""
    return bool(settings.get("allow_http"))


class _Meaning(NamedTuple):
    """What a fault is, if the pattern is found in its classes and its message."""

    pattern: str
    code: Callable[[Direction], Code]
    trait: Trait


def _is(code: Code) -> Callable[[Direction], Code]:
    return lambda direction: code


#: The first that matches counts. A storage's own words come first: they arrive in errors of other names.
_MEANINGS = (
    _Meaning("ModuleNotFoundError|ImportError", _is(Code.MIDDLEWAREIMPORTFAILURE), Trait.NEXT),
    _Meaning("MissingClientParameter.*(proxy|X.509)", lambda to: to.refused, Trait.NEXT),
    _Meaning("PlainHttp|NoServer|ConfigNotFound|MissingClientParameter|ClientProtocolNot",
             _is(Code.BADQUEUECONFIGURATION), Trait.NEXT),
    _Meaning("ChecksumMismatch.* with md5", lambda to: to.mismatch("md5"), Trait.FATAL),
    _Meaning("ChecksumMismatch", lambda to: to.mismatch("adler32"), Trait.FATAL),
    _Meaning("SourceNotFound", lambda to: to.missing, Trait.NEXT),
    _Meaning("CannotRead", lambda to: to.failed, Trait.NEXT),
    _Meaning(r"No space left|\[3009\]|\[3021\]|quota exceeded", lambda to: to.no_space, Trait.NEXT),
    _Meaning(r"ALERT_\w*(CERTIFICATE|_CA\b)", lambda to: to.refused, Trait.NEXT),  # by TLS itself
    _Meaning("ServerConnectionException|DatabaseException|JSONDecodeError", _is(Code.RUCIOSERVICEUNAVAILABLE),
             Trait.RETRY),
    _Meaning("Operation expired|timed out|Timeout", lambda to: to.timed_out, Trait.RETRY),
    _Meaning("RSEAccessDenied.*(onnection|onnect)", _is(Code.SERVICENOTAVAILABLE), Trait.RETRY),
    _Meaning("ConnectionError", _is(Code.RUCIOSERVICEUNAVAILABLE), Trait.RETRY),
    _Meaning("CannotAuthenticate|NoCredential|AccessDenied|NoAuthInformation", lambda to: to.refused, Trait.NEXT),
    _Meaning("RSENotFound|RSEProtocol|InvalidPath|RSEFileNameNotSupported", _is(Code.NOSTORAGEPROTOCOL), Trait.NEXT),
    _Meaning("FileReplicaAlreadyExists", _is(Code.FILEEXISTS), Trait.NEXT),
    _Meaning("InvalidObject|UnsupportedOperation|ScopeNotFound|InputValidation", lambda to: to.failed, Trait.FATAL),
)  # fmt: skip


def _fault(error: Mapping[str, Any], direction: Direction) -> RucioError:
    name, said = error["classes"][0], " ".join(str(error["message"]).split())
    said = re.sub(r"(\w+://[^\s?]+)\?[^\s'\"]+", r"\1", said)[:_SAID]  # what follows may be a signature
    text = f"{' '.join(error['classes'])} {said}"
    found = next((meaning for meaning in _MEANINGS if re.search(meaning.pattern, text)), None)
    code, trait = (found.code(direction), found.trait) if found else (direction.failed, Trait.RETRY)
    return RucioError(code, f"Rucio: {name}: {said}", trait, tuple(error.get("left", ())))
