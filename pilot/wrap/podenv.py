"""What Harvester tells a pod by variables, as a command line and an environment of a pilot (PILOT3 9.2)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Where Harvester mounts the job of a worker that is pushed; else it is `jobconfig` below `TMPDIR`.
CONFIG_DIR = "/scratch/jobconfig"
#: What it has there for the pilot.
CONFIG_FILES = ("pandaJobData.out", "PoolFileCatalog_H.xml")
#: Seconds that a pod has to end, from its manifest; Kubernetes' own default.
GRACE, DEFAULT_GRACE = "TERMINATION_GRACE_PERIOD_SECONDS", 30.0
#: Where temporary files are without `TMPDIR`: fixed, since the probe and the pilot must mean the same.
_TMP = "/tmp"  # noqa: S108 - the pod's own


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """What a pod was told.

    Attributes:
        arguments: of the pilot.
        environ: of the pilot, without secrets; `X509_USER_PROXY` is as the manifest says.
        scratch: the directory to work in.
        proxy: PEM text of a proxy that came in a variable, empty if none did.
        config_dir: directory with the files of a job that was pushed, None if none was.
        log_url: where the log is sent at the end (`URL/putFile`), empty for nowhere.
        log_name: its name there.
        sinks: log sinks for the log while it is written, empty for none.
        grace: seconds from a stop signal to SIGKILL.
    """

    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    scratch: Path
    proxy: str
    config_dir: Path | None
    log_url: str
    log_name: str
    sinks: str
    grace: float

    @classmethod
    def read(cls, argv: Sequence[str], environ: Mapping[str, str]) -> PodOptions:
        """Turn variables into options; what stands on the command line counts more."""
        given = _given(environ)
        scratch = Path(given.get("TMPDIR") or _TMP)
        log_name = (
            given.get("stdout_name", "").rpartition("/")[2] or f"{given.get('HARVESTER_ID', '')}_{_worker(given)}.out"
        )
        push = given.get("submit_mode", "").upper() == "PUSH"
        return cls(
            arguments=(*_arguments(given), *argv),
            environ=_environ(given, log_name),
            scratch=scratch,
            proxy=given.get("proxyContent", "").replace(",", "\n"),
            config_dir=_config_dir(scratch) if push else None,
            log_url=given.get("logs_frontend_w", ""),
            log_name=log_name,
            sinks=given.get("PILOT_WRAPPER_LOGSHIP", ""),
            grace=_seconds(given.get(GRACE, "")),
        )


def alive_socket(environ: Mapping[str, str]) -> str:
    """Where a pilot in a pod answers, and is asked: the probe has the variables of the manifest, as the pilot has."""
    return environ.get("PILOT_ALIVE_SOCKET") or os.path.join(environ.get("TMPDIR") or _TMP, "pilot-alive.sock")


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    """Without placeholders that nobody has filled: Harvester leaves `$proxyContent` as it is."""
    return {name: value for name, value in environ.items() if value not in (f"${name}", f"${{{name}}}")}


def _arguments(given: Mapping[str, str]) -> list[str]:
    queue = given.get("pandaQueueName", "")
    words = {
        "-q": queue,
        "-r": queue,
        "-s": given.get("computingSite", ""),
        "-i": given.get("pilotTyp", ""),
        "-j": given.get("prodSourceLabel") or "managed",
        "--resource-type": given.get("resourceType", ""),
        "--job-type": given.get("jobType", ""),
        "--harvester-submit-mode": given.get("submit_mode", ""),
    }
    found = [word for flag, value in words.items() if value for word in (flag, value)]
    return ["--pod", "--alive-socket", alive_socket(given), *found]


def _environ(given: Mapping[str, str], log_name: str) -> dict[str, str]:
    found = {name: value for name, value in given.items() if name != "proxyContent"}
    if given.get("proxySecretPath"):
        found["X509_USER_PROXY"] = given["proxySecretPath"]
    if given.get("logs_frontend_r"):  # in the server's records of a job, for people to click on
        found["GTAG"] = f"{given['logs_frontend_r'].rstrip('/')}/{log_name}"
    if worker := _worker(given):
        found["HARVESTER_WORKER_ID"] = worker
    return found


def _worker(given: Mapping[str, str]) -> str:
    return given.get("HARVESTER_WORKER_ID") or given.get("workerID", "")


def _config_dir(scratch: Path) -> Path:
    return Path(CONFIG_DIR) if os.path.isdir(CONFIG_DIR) else scratch / "jobconfig"


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() else DEFAULT_GRACE
