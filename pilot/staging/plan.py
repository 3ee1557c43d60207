"""Where an input can be had and where an output goes: the tools and URLs to try for a file, best first.

Inputs: a URL that the job gives is the only place. Else `--input-dir`, the launch directory (where ARC has placed files
before the pilot began), and the storage of the file's endpoint, by each tool of the queue. Outputs: the job's URL, else
`--output-dir`, else the queue's storage for the activity. `mv` writes to the storage itself if that has a `file://`
protocol; else it leaves the file in the launch directory, for the batch system to take it from there (PILOT3 4.2, 4.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.experiment import Experiment
from pilot.job import File, Kind
from pilot.queuedata import Queue, QueueInfo, Storage, StorageProtocol, hash_path
from pilot.staging.result import shown
from pilot.staging.toolbox import ToolBox

#: The tool for paths.
LOCAL_TOOL = "mv"

#: MB of input that a queue without `maxwdir` allows (`maximum_input_file_sizes`, PILOT3 1.4).
DEFAULT_INPUT_SIZE = 14336

#: Activities of a storage's protocols, in the order to look; the last two are older names.
READ, WRITE = ("read_lan", "read_wan", "pr", "r"), ("write_lan", "write_wan", "pw", "w")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way for a file.

    Attributes:
        tool: name of the copy tool.
        url: for the tool.
        endpoint: the storage, empty if no storage is concerned.
        surl: what to report as the file's place instead of `url`, if that is not the same.
        onward: the tool only hands the file over at `url`; the batch system takes it to `surl`.
    """

    tool: str
    url: str
    endpoint: str = ""
    surl: str = ""
    onward: bool = False


class Planner:
    """Finds candidates for the files of one job.

    Args:
        info: the queue with its storages, as the job sees it.
        tools: the copy tools there are.
        experiment: may have paths of its own.
        launch_dir: where the pilot was started.
        input_dir, output_dir: of the command line, None if not given.
        analysis: an analysis job: a unified queue may have storages for those.
        job_id: PandaID, for tools that make it a part of their paths.
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
        analysis: bool = False,
        job_id: int = 0,
    ) -> None:
        self._info = info
        self._tools = tools
        self._experiment = experiment
        self._launch_dir = launch_dir
        self._input_dir = input_dir
        self._output_dir = output_dir
        self._analysis = analysis and info.queue.type == "unified"
        self._job_id = job_id
        self._final = experiment.mv_to_final_destination or info.queue.catchall_flag("mv_final_destination")

    def sources(self, file: File) -> list[Candidate]:
        """Where an input can be had.

        Raises:
            PilotError: NOSTORAGE (1133), NOSTORAGEPROTOCOL (1313), UNKNOWNCOPYTOOL (1323), ...: why there is nothing.
        """
        if file.url:
            return self._by_url(file, file.url, READ)
        activities = ["read_lan_analysis", "read_lan"] if self._analysis else ["read_lan"]
        tools = self._info.queue.tools(activities)
        places = list(self._local_places(file, tools))
        found = [Candidate(tool=LOCAL_TOOL, url=str(path)) for path in places if path.exists()]
        problems: list[PilotError] = []
        endpoint = file.endpoint or next(iter(self._info.queue.storages(activities)), "")
        found += _collected(tools, lambda tool: self._in_storage(tool, file, endpoint, activities, READ), problems)
        if not found and (self._input_dir or tools == [LOCAL_TOOL]):  # let the first place say what is missing
            return [Candidate(tool=LOCAL_TOOL, url=str(places[0]))]
        return found or _nothing(problems)

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
        problems: list[PilotError] = []

        def ways(tool: str) -> Iterable[Candidate]:
            if tool == LOCAL_TOOL and not self._final:
                return self._in_file_storage_or_onward(file, endpoint, activities)
            return self._in_storage(tool, file, endpoint, activities, WRITE)

        return _collected(self._info.queue.tools(activities), ways, problems) or _nothing(problems)

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
        return Candidate(tool=tool, url=url, endpoint=storage.name, surl=surl if surl != url else "")

    def _surl(self, tool: str, file: File, storage: Storage, protocol: StorageProtocol) -> str:
        path = self._experiment.storage_path(file.scope, file.lfn)
        if path is None and not storage.is_deterministic:
            path = self._tools.get(tool).storage_path(file, storage.type, self._info.queue.name, self._job_id)
        return storage.surl(protocol, file.scope, file.lfn, path)


def input_limit(queue: Queue) -> int | None:
    """Bytes that all inputs of a job may have together, None if the queue does not care (PILOT3 4.4)."""
    if queue.maxinputsize == -1:
        return None
    return (queue.maxwdir or DEFAULT_INPUT_SIZE) * 1024**2


def _scheme(protocol: StorageProtocol) -> str:
    """The scheme of a protocol; one whose endpoint is a path, or empty, is a mounted file system."""
    return protocol.scheme if "://" in protocol.endpoint else "file"


def _collected(
    tools: Iterable[str], ways: Callable[[str], Iterable[Candidate]], problems: list[PilotError]
) -> list[Candidate]:
    """What each tool can do; why it cannot goes to `problems`."""
    found: list[Candidate] = []
    for tool in tools:
        try:
            found += ways(tool)
        except PilotError as error:
            problems.append(error)
    return found


def _nothing(problems: list[PilotError]) -> list[Candidate]:
    """Raise the first problem, with the others in its detail."""
    first = problems[0]
    detail = "; ".join(dict.fromkeys(problem.detail for problem in problems))
    raise TransferError(first.code, detail, Trait.FATAL)
