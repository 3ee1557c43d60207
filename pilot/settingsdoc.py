"""`docs/settings.md`, written from the settings table. Print it with `python -m pilot.settingsdoc`."""

from __future__ import annotations

from collections.abc import Iterator

from pilot.batch import BATCH_SYSTEMS
from pilot.option import Group, Option
from pilot.settings import TABLE

_HEAD = """\
# Settings

<!-- Made by `python -m pilot.settingsdoc > docs/settings.md`; change pilot/settings.py, not this page. -->

A setting comes from the first of these places that has it:

1. a flag on the command line,
2. an environment variable (an empty one counts as not set),
3. the `params` of the queue,
4. the file that `--config` or `HARVESTER_PILOT_CONFIG` names,
5. the experiment (`--pilot-user`),
6. the default below.

`pilot run --show-settings ...` prints what holds, and where each value came from. A value that cannot be used ends the
pilot with exit code 2 and one line that says where it was found and what was expected.

Sizes are bytes; in the file `500 MB` or `2 GB` are understood, by powers of 1024. Times are seconds. True or false may
be written `true`, `false`, `yes`, `no`, `t`, `f`, `y`, `n`, `1` or `0`; a flag of this kind without a value means true.
The file is INI as for Pilot 3. A value `$NAME` reads that environment variable, `None` means not set, and keys that are
not in these tables are passed over, with one line in the log that names them:

```ini
[Pilot]
heartbeat = 1800
pandaserver = $MY_SERVER
```

An option marked *not used yet* is accepted, so that command lines need no change; a pilot that is given one says in one
warning what it will not do. *New* means that Pilot 3 did not have it.
"""

_TAIL = """
## What differs from Pilot 3

- A flag wins over its variable. With Pilot 3 `PANDAPILOT_LIFETIME` won over `--lifetime`.
- `--verifypayloadproxy` does what it says. With Pilot 3 it switched the check off.
- A flag for true or false may stand without a value.
- The connection to a server is given 20 s, not 100 s, and then tried again.
- `queuedata_url`, `queues_url`, `storages_url`, the CVMFS files, `rucio_host` and the server of live logs have no
  default: an experiment, the file or a flag names them. With Pilot 3 they were those of ATLAS for everybody.
- TLS is always verified: `ssl_enable` and `ssl_verify` are not read.
- `PILOT_NOKILL` is not needed: signals go only to processes that the pilot started.

## Other variables

Credentials and trust, read when the server is first called:

| variable | use |
|---|---|
| `PANDA_AUTH_TOKEN`, `OIDC_AUTH_TOKEN` | name of the file with the bearer token |
| `PANDA_AUTH_ORIGIN`, `OIDC_AUTH_ORIGIN` | whom the token speaks for, `VO` or `VO.ROLE` |
| `PANDA_AUTH_DIR`, `OIDC_AUTH_DIR` | where that file is looked for first |
| `REQUESTS_CA_BUNDLE`, `SSL_CERT_FILE`, `CURL_CA_BUNDLE` | files with CAs to trust |
| `https_proxy`, `http_proxy`, `all_proxy`, `no_proxy` | proxies |

Facts about the slot, set by the batch system, the factory or Harvester:

| variable | use |
|---|---|
| `GTAG` | URL of the batch log, first part of the pilot's id |
| `PANDA_JSID` | scheduler id, `unknown` without it |
| `HARVESTER_ID`, `HARVESTER_WORKER_ID`, `HARVESTER_WORKDIR` | Harvester, its worker and their directory |
| `PANDA_HOSTNAME` | name of the node instead of its own |
| `_CONDOR_SLOT` | put before the node's name as `slot@` |
| @BATCH@ | batch system and job id; the first that is set counts |
| `_CONDOR_JOB_AD` | file with `GlobalJobId`, the job id if none of these is set |
| `_CONDOR_MACHINE_AD`, `CONDOR_MACHINE_AD` | file with `GLIDEIN_Site` and `RemoteScheddName` |

Changes to every job of a site:

| variable | use |
|---|---|
| `ATHENA_PROC_NUMBER` | cores instead of the job's |
| `PILOT_LOGFILE` | name of the log file instead of the job's |
| `IMAGE_BASE` | prefix of container images |
"""

_COLUMNS = """\
| setting | flag | environment | file, *queue* | default | meaning | status |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    tail = _TAIL.replace("@BATCH@", _code([*BATCH_SYSTEMS]))
    return _HEAD + "".join(_section(group) for group in Group) + tail


def _section(group: Group) -> str:
    rows = [_row(name, option) for name, option in TABLE.items() if _heading(option) is group]
    return f"\n## {group.value}\n\n{_COLUMNS}{''.join(rows)}" if rows else ""


def _heading(option: Option) -> Group:
    return Group.UNUSED if option.later else option.group


def _row(name: str, option: Option) -> str:
    cells = (
        f"`{name}`",
        _code(_with_value(option)),
        _code(option.env),
        ", ".join(filter(None, (_code([option.ini]), f"*{_code([option.queue])}*" if option.queue else ""))),
        _code([option.show(option.default)]),
        _meaning(option),
        ", ".join(_status(option)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _meaning(option: Option) -> str:
    text = option.what.replace("*", "\\*")
    if option.sets is False:
        return f"the flag sets false: {text}"
    return f"{text} (s)" if option.kind.unit == "s" else text


def _with_value(option: Option) -> list[str]:
    flags = list(option.flags)
    if flags and option.sets is None:
        flags[-1] += f" {option.kind.metavar}"
    return flags


def _code(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words if word)


def _status(option: Option) -> Iterator[str]:
    if option.required:
        yield "required"
    if option.new:
        yield "new"
    if option.later:
        yield f"not used yet: {option.later}"


if __name__ == "__main__":
    print(page(), end="")
