"""Where an input can be had and where an output goes: the tools and URLs to try for a file, best first.

Inputs: a URL that the job gives is the only place. Else `--input-dir`, the launch directory (where ARC has placed files
before the pilot began), and the storage of the file's endpoint, by each tool of the queue. Outputs: the job's URL, else
`--output-dir`, else the queue's storage for the activity. `mv` writes to the storage itself if that has a `file://`
protocol; else it leaves the file in the launch directory, for the batch system to take it from there (PILOT3 4.2, 4.6).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pilot.errors import Code, Trait, TransferError
from pilot.experiment import Experiment
from pilot.job import File, Job, Kind
from pilot.queuedata import QueueInfo, Storage, StorageProtocol, hash_path
from pilot.staging.catalogue import Catalogue
from pilot.staging.choice import Candidate, Choice, not_mounted
from pilot.staging.copytool import Handle
from pilot.staging.replicas import Place, Replicas, direct_schemes, reads_directly
from pilot.staging.result import shown
from pilot.staging.toolbox import ToolBox

__all__ = ["Candidate", "Planner"]

logger = logging.getLogger(__name__)

#: The tool for paths.
LOCAL_TOOL = "mv"

#: Activities of a storage's protocols, in the order to look; the last two are older names.
READ, WRITE = ("read_lan", "read_wan", "pr", "r"), ("write_lan", "write_wan", "pw", "w")


class Planner:
    """Finds candidates for the files of one job.

    Args:
        info: the queue with its storages, as the job sees it.
        tools: the copy tools there are.
        experiment: may have paths of its own.
        launch_dir: where the pilot was started.
        input_dir, output_dir: of the command line, None if not given.
        job: whose files they are: a unified queue may have storages for analysis, tools may have PandaIDs in paths.
        catalogue: of replicas; if there is none, inputs are where the layout of their storage says.
    """

    def __init__(
        self,
        *,
        info: QueueInfo,
        tools: ToolBox,
        experiment: Experiment,
        launch_dir: Path,
        input_dir: Path | None = None,
        output_dir: Path | None = None,
        job: Job | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        self._info = info
        self._tools = tools
        self._experiment = experiment
        self._launch_dir = launch_dir
        self._input_dir = input_dir
        self._output_dir = output_dir
        self._job = job or Job(job_id=0)
        self._analysis = self._job.is_analysis and info.queue.type == "unified"
        self._reading = ["read_lan_analysis", "read_lan"] if self._analysis else ["read_lan"]
        self._near = info.queue.storages(self._reading)
        self._replicas = Replicas(info.queue, self._near, catalogue, virtual=self._job.use_vp)
        self._said: set[tuple[str, ...]] = set()
        self._final = experiment.mv_to_final_destination or info.queue.catchall_flag("mv_final_destination")

    def look_up(self, files: Sequence[File], handle: Handle) -> Sequence[File]:
        """The same inputs with what the catalogue knows of those that are neither here nor where the job says."""
        wanted = [file for file in files if not file.url and not self._here(file)]
        known = {file.lfn: file for file in self._replicas.look_up(wanted, handle, self._schemes())}
        return [known.get(file.lfn, file) for file in files]

    def sources(self, file: File) -> list[Candidate]:
        """Where an input can be had.

        Raises:
            PilotError: NOREPLICAS (1326), NOSTORAGE (1133), NOSTORAGEPROTOCOL (1313), UNKNOWNCOPYTOOL (1323), ...: why
                there is nothing.
        """
        if file.url:
            return self._by_url(file, file.url, READ)
        tools = self._info.queue.tools(self._reading)
        choice = Choice()
        choice.found += self._here(file)
        local = bool(choice.found)
        if (places := self._places(file, local)) != []:
            choice.ask(tools, partial(self._elsewhere, file, places))
        if not choice.found and (self._input_dir or tools == [LOCAL_TOOL]):  # let the first place say what is missing
            return [Candidate(tool=LOCAL_TOOL, url=str(next(self._local_places(file, tools))))]
        if not choice.found:
            self._nothing(choice)
        self._tell("inputs", choice)
        return choice.sure() if local else self._with_direct(file, choice.sure())

    def destinations(self, file: File) -> list[Candidate]:
        """Where an output goes.

        Raises:
            PilotError: as `sources`, and NONDETERMINISTICDDM (1329).
        """
        if file.url:
            return self._by_url(file, file.url + file.lfn if file.url.endswith("/") else file.url, WRITE)
        if self._output_dir is not None:
            return [Candidate(tool=LOCAL_TOOL, url=str(self._output_dir / self._local_path(file)))]
        activities = ["write_lan_analysis"] if self._analysis else []
        activities = [*(["pl"] if file.kind is Kind.LOG else []), *activities, "write_lan", "w"]
        endpoint = self._output_endpoint(file, activities)
        choice = Choice()
        choice.ask(self._info.queue.tools(activities), partial(self._to_storage, file, endpoint, activities))
        self._tell(f"{file.kind.value}s", choice)
        found = [*choice.sure(), *self._alternative(file, endpoint, activities)]
        return found or choice.nothing()

    def _tell(self, what: str, choice: Choice) -> None:
        """One line why a tool was chosen, not one for each file."""
        text, key = choice.told()
        if text and (what, *key) not in self._said:
            self._said.add((what, *key))
            logger.info("%s: %s", what, text)

    def _nothing(self, choice: Choice) -> None:
        if self._replicas.problem:
            raise self._replicas.problem
        choice.nothing()

    # --- inputs

    def _here(self, file: File) -> list[Candidate]:
        """A file that somebody has brought to this node."""
        places = self._local_places(file, self._info.queue.tools(self._reading))
        return [Candidate(tool=LOCAL_TOOL, url=str(path)) for path in places if path.exists()]

    def _schemes(self) -> list[str]:
        """What the tools of the queue can read, the preferred first; payloads read nothing else themselves."""
        found = [
            scheme
            for tool in self._info.queue.tools(self._reading)
            for scheme in self._info.queue.schemas(self._reading, tool) or sorted(self._tools.schemes(tool))
        ]
        return list(dict.fromkeys(found))

    def _places(self, file: File, local: bool) -> list[Place] | None:
        """The replicas of a file; None if only the layout of its storage can tell.

        Raises:
            TransferError: NOREPLICAS (1326), if the file is not here either.
        """
        if not self._replicas.known:
            return None
        try:
            return self._replicas.of(file)
        except TransferError:
            if local:
                return []
            raise

    def _elsewhere(self, file: File, places: list[Place] | None, tool: str) -> list[Candidate]:
        if places is not None:
            return self._of_replicas(file, places, tool)
        endpoint = file.endpoint or next(iter(self._near), "")
        return self._in_storage(tool, file, endpoint, self._reading, READ)

    def _of_replicas(self, file: File, places: list[Place], tool: str) -> list[Candidate]:
        """Those replicas that a tool can read, best first; of one storage by the queue's order of schemes."""
        schemes = self._info.queue.schemas(self._reading, tool)
        able = self._tools.get(tool).schemes
        usable = [
            (places.index(next(one for one in places if one.replica.endpoint == place.replica.endpoint)), scheme, place)
            for place in places
            if (scheme := _scheme_of(place.replica.url)) in able and (not schemes or scheme in schemes)
        ]
        if not usable:
            there = ", ".join(dict.fromkeys(_scheme_of(place.replica.url) for place in places))
            detail = f"{file.scope}:{file.lfn} has no replica that {tool} can read, only by {there}"
            raise TransferError(Code.NOREPLICAS, detail, Trait.NEXT)
        usable.sort(key=lambda item: (item[0], schemes.index(item[1]) if schemes else 0))
        return [_of_replica(tool, place) for _, _, place in usable]

    def _with_direct(self, file: File, found: list[Candidate]) -> list[Candidate]:
        """First the ways by which the payload reads the input itself, if job and queue want that (PILOT3 4.3)."""
        if not reads_directly(file, self._job):
            return found
        direct: dict[str, Candidate] = {}
        for way in found:
            if way.tool != LOCAL_TOOL and _scheme_of(way.url) in direct_schemes(self._info.queue, way.near):
                direct.setdefault(way.url, replace(way, direct=True))
        return [*direct.values(), *found]

    # --- outputs

    def _to_storage(self, file: File, endpoint: str, activities: list[str], tool: str) -> list[Candidate]:
        if tool == LOCAL_TOOL and not self._final:
            return self._in_file_storage_or_onward(file, endpoint, activities)
        return self._into(file, endpoint, activities, tool)

    def _into(self, file: File, endpoint: str, activities: list[str], tool: str) -> list[Candidate]:
        return self._in_storage(tool, file, endpoint, activities, WRITE)

    def _alternative(self, file: File, endpoint: str, activities: list[str]) -> list[Candidate]:
        """The ways to one other storage, if the queue wants that, else if the job does (PILOT3 4.4)."""
        wanted = self._info.queue.allow_altstageout
        if not (self._job.alt_stageout if wanted is None else wanted):
            return []
        for other in self._others(file, endpoint, activities):
            choice = Choice()
            choice.ask(self._info.queue.tools(activities), partial(self._into, file, other, activities))
            if ways := [way for way in choice.found if not way.doubt]:
                return ways
        return []

    def _others(self, file: File, endpoint: str, activities: list[str]) -> list[str]:
        """Other storages for an output, the best first.

        The job's own if the queue does not list it, those behind the first one in the queue's list and then those
        before it; for a log also those of data. Never the nucleus: it gets its copy later.
        """
        allowed = self._info.queue.storages(activities)
        place = allowed.index(endpoint) if endpoint in allowed else 0
        data = self._info.queue.storages([name for name in activities if name != "pl"])
        names = [file.endpoint, *allowed[place:], *allowed[:place], *data]
        return [name for name in dict.fromkeys(names) if name not in ("", endpoint, self._job.nucleus)]

    def _local_places(self, file: File, tools: Iterable[str]) -> Iterator[Path]:
        if self._input_dir is not None:
            yield from dict.fromkeys((self._input_dir / self._local_path(file), self._input_dir / file.lfn))
        if LOCAL_TOOL in tools:
            yield self._launch_dir / file.lfn

    def _local_path(self, file: File) -> str:
        """Below `--input-dir` or `--output-dir`: the experiment's layout if files are there for good."""
        if not self._final:
            return file.lfn
        return self._experiment.storage_path(file.scope, file.lfn) or hash_path(file.scope, file.lfn)

    def _output_endpoint(self, file: File, activities: list[str]) -> str:
        """The file's own endpoint if the queue may write there, else the first that it may write to (PILOT3 4.2)."""
        allowed = self._info.queue.storages(activities)
        return file.endpoint if file.endpoint in allowed or not allowed else allowed[0]

    def _by_url(self, file: File, url: str, activities: tuple[str, ...]) -> list[Candidate]:
        scheme, mark, _ = url.partition("://")
        if not mark or scheme == "file":
            return [Candidate(tool=LOCAL_TOOL, url=url, endpoint=file.endpoint)]
        names = self._tools.for_scheme(scheme, self._info.queue.tools(activities))
        if not names:
            detail = f"no tool of this installation moves {shown(url)}; `pilot plugins` shows what there is"
            raise TransferError(Code.UNKNOWNCOPYTOOL, detail, Trait.FATAL)
        return [Candidate(tool=name, url=url, endpoint=file.endpoint) for name in names]

    def _in_storage(
        self, tool: str, file: File, endpoint: str, activities: list[str], protocol_activities: tuple[str, ...]
    ) -> list[Candidate]:
        """By all protocols of a storage that a tool can use, those for the nearer network first."""
        storage = self._info.storage(endpoint)
        schemes = self._info.queue.schemas(activities, tool)
        able = self._tools.get(tool).schemes
        protocols = [
            protocol
            for activity in protocol_activities
            for protocol in storage.arprotocols.get(activity, ())
            if _scheme(protocol) in able and (not schemes or _scheme(protocol) in schemes)
        ]
        if not protocols:
            detail = f"{endpoint} has none for {tool} ({', '.join(sorted(able))}) and {protocol_activities[0]}"
            raise TransferError(Code.NOSTORAGEPROTOCOL, detail, Trait.NEXT)
        protocols.sort(key=lambda protocol: schemes.index(_scheme(protocol)) if schemes else 0)
        return list(dict.fromkeys(self._candidate(tool, file, storage, protocol) for protocol in protocols))

    def _in_file_storage_or_onward(self, file: File, endpoint: str, activities: list[str]) -> list[Candidate]:
        handed_over = str(self._launch_dir / file.lfn)
        if not endpoint:
            return [Candidate(tool=LOCAL_TOOL, url=handed_over)]
        try:
            return self._in_storage(LOCAL_TOOL, file, endpoint, activities, WRITE)
        except TransferError:  # the storage is not mounted here
            storage = self._info.storage(endpoint)
            surl = self._surl(LOCAL_TOOL, file, storage, storage.protocols(WRITE)[0])
            return [Candidate(tool=LOCAL_TOOL, url=handed_over, endpoint=endpoint, surl=surl, onward=True)]

    def _candidate(self, tool: str, file: File, storage: Storage, protocol: StorageProtocol) -> Candidate:
        surl = self._surl(tool, file, storage, protocol)
        url = surl.replace("%", "%25") if protocol.scheme == "file" else surl  # an LFN is not a URL: %41 is no A
        return Candidate(
            tool=tool,
            url=url,
            endpoint=storage.name,
            surl=surl if surl != url else "",
            near=not self._near or storage.name in self._near,
            doubt=not_mounted(protocol, storage.name) if _scheme(protocol) == "file" else "",
        )

    def _surl(self, tool: str, file: File, storage: Storage, protocol: StorageProtocol) -> str:
        path = self._experiment.storage_path(file.scope, file.lfn)
        if path is None and not storage.is_deterministic:
            path = self._tools.get(tool).storage_path(file, storage.type, self._info.queue.name, self._job.job_id)
        return storage.surl(protocol, file.scope, file.lfn, path)


def _scheme(protocol: StorageProtocol) -> str:
    """The scheme of a protocol; one whose endpoint is a path, or empty, is a mounted file system."""
    return protocol.scheme if "://" in protocol.endpoint else "file"


def _scheme_of(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "file"


def _of_replica(tool: str, place: Place) -> Candidate:
    replica = place.replica
    path = replica.url.removeprefix("file://localhost").removeprefix("file://") if tool == LOCAL_TOOL else ""
    return Candidate(
        tool=tool,
        url=replica.url.replace("%", "%25") if path else replica.url,  # a PFN is not escaped
        endpoint=replica.endpoint,
        surl=replica.url if "%" in path else "",
        near=place.near,
        doubt=f"there is no {path} here" if path and not Path(path).exists() else "",
    )
