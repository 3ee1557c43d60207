"""The environment of a payload: built, not inherited.

The pilot's own credentials, tokens, server addresses and Python set-up stay with the pilot. What a payload gets is what
a node offers everybody (search paths, locale, proxies, batch and GPU facts, software areas), what the queue's `environ`
says, and who it is.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from string import Template
from types import MappingProxyType

from pilot.job import Job

#: Variables of the node that are passed on by name.
PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "TMP", "TEMP",
    "LD_LIBRARY_PATH", "MANPATH", "MODULEPATH", "LOADEDMODULES",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "X509_CERT_DIR", "X509_VOMS_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip

#: Families of variables of the node that are passed on.
PASSED_PREFIXES = (
    "LC_",
    "OMP_", "OPENBLAS_", "MKL_", "NUMEXPR_",
    "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "GPU_", "ZE_",
    "SLURM_", "PBS_", "LSB_", "SGE_", "_CONDOR_", "OSG_", "GLIDEIN_", "K8S_", "KUBERNETES_",
    "LMOD_", "MODULES_", "CONDA_", "SPACK_", "EESSI_", "CVMFS_", "VO_", "ATLAS_", "FRONTIER_", "ALRB_",
    "XRD_", "RUCIO_", "DAVIX_", "GFAL_", "APPTAINER_", "SINGULARITY_",
)  # fmt: skip

#: What is never passed on, whatever family it is of: names that speak of credentials, or of files with some. HTCondor
#: keeps a job's tokens in `_CONDOR_CREDS`, Apptainer its key in `..._PASSPHRASE` or `..._PEM_DATA`.
REFUSED = re.compile(
    r"TOKEN|SECRET|PASS(W|PHRASE|_|$)|CRED|PRIVATE|BEARER|JWT|API_?KEY|ACCESS_?KEY|KEY_?FILE|_KEY(_|$)|_PEM(_|$)|LOGIN"
    r"|X509_U|USER_?PROXY|PROXY_?CERT|_AUTH|^AUTH|COOKIE"
)

#: `user:password@` in a URL. A proxy need not be a whole URL, and what its password is made of nobody checks: all up to
#: the last @ goes.
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_PROXY_USERINFO = re.compile(r"^(\w+://)?.*@", re.DOTALL)


def payload_environment(
    environ: Mapping[str, str],
    job: Job,
    *,
    queue_name: str = "",
    queue_environ: str = "",
    prefixes: Iterable[str] = (),
    names: Iterable[str] = (),
    experiment: Mapping[str, str | None] | None = None,
) -> dict[str, str]:
    """The variables a payload starts with.

    Args:
        environ: the pilot's own environment.
        job: sets its identity (`PandaID`, ...) and its own variables, which win over all others.
        queue_name: the PanDA resource.
        queue_environ: the queue's `environ` field, see `parse_environ`.
        prefixes: families that the experiment wants passed on.
        names: single variables that the site wants passed on, credentials or not: it said so by name.
        experiment: variables that the experiment sets; None takes one away.
    """
    families = PASSED_PREFIXES + tuple(prefixes)
    built = {name: _without_password(name, value) for name, value in environ.items() if _passes(name, families)}
    built |= {name: environ[name] for name in names if name in environ}
    built |= parse_environ(queue_environ, built)
    built |= {"PANDA_RESOURCE": queue_name} if queue_name else {}
    wanted = {**built, **_identity(job), **(experiment or {}), **job.environment}
    return {name: value for name, value in wanted.items() if value is not None}


def parse_environ(text: str, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """`KEY=VALUE KEY2='a b'` as a queue's `environ` field holds it; words without `=` are passed over.

    Pilot 3 makes a shell export them, so `$NAME` stands for what is `known` or was set before, else for nothing.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # an unbalanced quote in the queue configuration
        words = text.split()
    found: dict[str, str] = {}
    for key, equals, value in (word.partition("=") for word in words):
        if equals and key.isidentifier():
            found[key] = Template(value.rstrip(";")).safe_substitute(defaultdict(str, {**known, **found}))
    return found


def _passes(name: str, families: tuple[str, ...]) -> bool:
    return (name in PASSED or name.startswith(families)) and not REFUSED.search(name.upper())


def _without_password(name: str, value: str) -> str:
    if name.lower().endswith("_proxy"):
        return _PROXY_USERINFO.sub(r"\1", value)
    return _USERINFO.sub("", value)


def _identity(job: Job) -> dict[str, str]:
    identity = {"PandaID": str(job.job_id), "PanDA_AttemptNr": str(job.attempt), "ATHENA_PROC_NUMBER": str(job.cores)}
    if job.task_id is not None:
        identity["PanDA_TaskID"] = str(job.task_id)
    return identity
