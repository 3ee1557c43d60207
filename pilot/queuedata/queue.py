"""A PanDA queue as a value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot.errors import Code, PilotError
from pilot.job import NOTHING
from pilot.queuedata.fields import FALSE, Fields, first_of, ordered

_CATCHALL_WORD = re.compile(r"""([^\s,=]+)(?:=('[^']*'|"[^"]*"|[^\s,]*))?""")
_CATCHALL_OPTIONS = [re.compile(rf"""{name}_options=['"]?([^'"]+)['"]?""") for name in ("singularity", "apptainer")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A PanDA queue.

    Attributes:
        name: CRIC's `nickname`.
        resource: `panda_resource`, the `siteName` on the wire.
        site: `atlas_site`, else `gstat`.
        platform: `cmtconfig`.
        type: `unified`, `production`, `analysis`.
        state: `ACTIVE`, or why not. status: `online`, `offline`, `brokeroff`, `test`; see `check_active`.
        environ: `KEY=VALUE` words to set for the payload.
        catchall: words for everything that has no field; see `catchall_value` and `catchall_flag`.
        container_type: user (`pilot`, `wrapper`, `middleware`) to the container tool; empty is legal: no containers.
        container_options: of the container tool, also from `catchall`; `${workdir}` stands for the job directory.
        copytools: tool to its options, such as `setup`.
        acopytools, astorages: activity to tools, to endpoints.
        acopytools_schemas: activity to tool (or `default`) to URL schemes.
        aprotocols: activity to protocols.
        params: free settings of the queue.
        maxwdir, maxrss: MB, 0 if not limited. maxinputsize: MB, -1 for no check.
        timefloor: s in which a pilot may begin another job; 0 for one job only.
        maxtime: s that a pilot may run, 0 if the queue does not say.
        corecount: cores of a job, at least 1.
        pledgedcpu: -1 for an opportunistic queue.
        es_stageout_gap: s between stage-outs of an event service job (`zip_time_gap`).
        memkillgrace: per cent of the memory limit at which a payload is killed.
        allow_altstageout: True or False, None if the queue does not say.
        walltime_grace, rss_grace, maxwdir_grace: factors on the limits: 1.2 is 20 % more.
        job_maxwalltime: the job's own `maxWalltime` is its limit.
        internet_protocol_version: `IPv4`, `IPv6` or empty.
    """

    name: str = ""
    resource: str = ""
    site: str = ""
    platform: str = ""
    type: str = ""
    resource_type: str = ""
    state: str = ""
    status: str = ""
    appdir: str = ""
    environ: str = ""
    catchall: str = ""
    container_type: Mapping[str, str] = field(default_factory=dict)
    container_options: str = ""
    copytools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    acopytools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    acopytools_schemas: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    astorages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aprotocols: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    allow_lan: bool = True
    allow_wan: bool = False
    direct_access_lan: bool = False
    direct_access_wan: bool = False
    use_pcache: bool = False
    is_cvmfs: bool = True
    maxwdir: int = 0
    maxrss: int = 0
    maxinputsize: int = 0
    timefloor: int = 0
    maxtime: int = 0
    corecount: int = 1
    pledgedcpu: int = 0
    es_stageout_gap: int = 7200
    memkillgrace: int = 100
    allow_altstageout: bool | None = None
    walltime_grace: float = 1.0
    rss_grace: float = 2.0
    maxwdir_grace: float = 1.2
    job_maxwalltime: bool = False
    internet_protocol_version: str = ""

    @classmethod
    def from_record(cls, record: Mapping[str, Any], name: str = "") -> Queue:
        """The queue that `record` describes; keys nobody reads are passed over.

        Args:
            record: CRIC's JSON object of one queue.
            name: for a record that does not say its own.

        Raises:
            PilotError: QUEUEDATANOTOK, naming the field that has the wrong type.
        """
        fields = Fields(record)
        name = fields.text("nickname", "name") or name
        catchall = fields.text("catchall")
        return cls(
            name=name,
            resource=fields.text("panda_resource") or name,
            site=fields.text("atlas_site", "gstat"),
            platform=fields.text("cmtconfig"),
            type=fields.text("type"),
            resource_type=fields.text("resource_type"),
            state=fields.text("state"),
            status=fields.text("status"),
            appdir=fields.text("appdir"),
            environ=fields.text("environ"),
            catchall=catchall,
            container_type=_container_type(fields.text("container_type")),
            container_options=_container_options(fields.text("container_options"), catchall),
            **_tools_and_storages(fields),
            **_access(fields),
            **_limits(fields),
            **_params(fields.table("params")),
        )

    @property
    def has_middleware(self) -> bool:
        """Whether files are moved by a script, in a container or behind set-up commands (PILOT3 7.5)."""
        return self.container_type.get("middleware") in ("container", "bash")

    def tools(self, activities: str | Sequence[str]) -> list[str]:
        """Copy tools to try, in order, for the first of `activities` that has any.

        Without `acopytools` they are all `copytools`; when nothing fits it is `rucio` (PILOT3 4.2).
        """
        table = self.acopytools or {"default": tuple(self.copytools)}
        return list(first_of(table, (*ordered(activities), "default")) or ("rucio",))

    def storages(self, activities: str | Sequence[str]) -> tuple[str, ...]:
        """Endpoints of the first of `activities` that has any; empty if none has."""
        return first_of(self.astorages, ordered(activities)) or ()

    def schemas(self, activities: str | Sequence[str], tool: str = "") -> tuple[str, ...]:
        """URL schemes that `tool` may use for `activities`, in order; empty if the queue does not restrict them."""
        table = first_of(self.acopytools_schemas, (*ordered(activities), "default")) or {}
        return table.get(tool if tool in table else "default", ())

    def options(self, tool: str) -> Mapping[str, Any]:
        """What the queue says of a copy tool: its `copytools` entry."""
        return self.copytools.get(tool, NOTHING)

    def catchall_value(self, word: str) -> str | None:
        """The value of `word=value` in `catchall`, without its quotes; None if there is none."""
        found = [match[2] for match in _CATCHALL_WORD.finditer(self.catchall) if match[1] == word and match[2]]
        return found[-1].strip("'\"") if found else None

    def catchall_flag(self, word: str) -> bool:
        """True if `word` stands in `catchall`, alone or with a value that is not a no."""
        found = [match[2] for match in _CATCHALL_WORD.finditer(self.catchall) if match[1] == word]
        return bool(found) and (found[-1] or "").lower() not in FALSE


def _container_type(text: str) -> Mapping[str, str]:
    """`name:user;name:user` as {user: name}."""
    pairs = (part.split(":") for part in text.split(";"))
    return {pair[1].strip(): pair[0].strip() for pair in pairs if len(pair) == 2}


def _container_options(text: str, catchall: str) -> str:
    """The queue's own options, else those in `catchall`; the job directory is always visible in a contained one."""
    if text.lower() == "none":
        text = ""
    found = (pattern.search(catchall) for pattern in _CATCHALL_OPTIONS)
    options = text or next((match[1] for match in found if match), "")
    return options if "${workdir}" in options else options.replace(" --contain", ",${workdir} --contain")


def _tools_and_storages(fields: Fields) -> dict[str, Any]:
    copytools = fields.table("copytools")
    for options in copytools.values():
        if options is not None and not isinstance(options, Mapping):
            raise fields.wrong("copytools", "a table of tables", options)
    return {
        "copytools": {tool: options or NOTHING for tool, options in copytools.items()},
        "acopytools": fields.names("acopytools"),
        "acopytools_schemas": _schemas(fields),
        "astorages": fields.names("astorages"),
        "aprotocols": fields.table("aprotocols"),
    }


def _schemas(fields: Fields) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """`{activity: [schemes]}` or `{activity: {tool: [schemes]}}`, always as the second."""
    name = "acopytools_schemas"
    table = fields.table(name)
    tools = {key: value if isinstance(value, Mapping) else {"default": value} for key, value in table.items()}
    return {
        activity: {tool: fields.list_of_names(name, schemes) for tool, schemes in entry.items()}
        for activity, entry in tools.items()
    }


def _access(fields: Fields) -> dict[str, Any]:
    defaults = {
        "allow_lan": True,
        "allow_wan": False,
        "direct_access_lan": False,
        "direct_access_wan": False,
        "use_pcache": False,
        "is_cvmfs": True,
    }
    return {name: fields.flag(name, default) for name, default in defaults.items()}


def _limits(fields: Fields) -> dict[str, Any]:
    pledgedcpu = fields.number("pledgedcpu")
    return {
        **{name: fields.number(name) for name in ("maxwdir", "maxrss", "maxinputsize", "maxtime")},
        "timefloor": 60 * fields.number("timefloor"),
        "corecount": fields.number("corecount") or 1,
        "pledgedcpu": pledgedcpu,
        "es_stageout_gap": fields.number("zip_time_gap") or (600 if pledgedcpu == -1 else 7200),
        "memkillgrace": fields.number("memkillgrace", 100),
    }


def _params(table: Mapping[str, Any]) -> dict[str, Any]:
    fields = Fields(table, "queuedata params")
    allow = "allow_altstageout"
    return {
        "params": table,
        allow: None if table.get(allow) is None else fields.flag(allow, False),
        "walltime_grace": 1 + fields.real("pilot_walltime_grace") / 100,
        "rss_grace": 1 + fields.real("pilot_rss_grace", 100) / 100,
        "maxwdir_grace": 1 + fields.real("pilot_maxwdir_grace", 20) / 100,
        "job_maxwalltime": fields.flag("job_maxwalltime", False),
        "internet_protocol_version": fields.text("internet_protocol_version"),
    }


def check_active(queue: Queue) -> None:
    """Raise for a queue that takes no pilots: PANDAQUEUENOTACTIVE or PANDAQUEUENOTONLINE."""
    if queue.state and queue.state.upper() != "ACTIVE":
        raise PilotError(Code.PANDAQUEUENOTACTIVE, f"{queue.name} is in state {queue.state}")
    if queue.status.lower() == "offline":
        raise PilotError(Code.PANDAQUEUENOTONLINE, f"{queue.name} has status {queue.status}")
