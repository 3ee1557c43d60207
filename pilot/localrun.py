"""One job from a file on this machine, with no server: what `pilot local` does."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilot.assembly import Place, find_experiment, make_bench, make_fetch, make_main_dir
from pilot.batch import BatchFacts
from pilot.errors import Code, Fault, JobDefinitionError, PilotError
from pilot.job import Job
from pilot.jobfile import LOCAL_JOB_ID, LocalJob, load_job_file
from pilot.jobrun import JobRun
from pilot.masking import Masker
from pilot.node import read_node
from pilot.outcome import Outcome, Progress, internal_error
from pilot.pilotlog import PilotLog
from pilot.processes import Processes
from pilot.queuedata import Queue, QueuedataLoader, QueueInfo, Sources
from pilot.removal import remove_tree
from pilot.server.offline import NoServer
from pilot.server.tls import find_tls
from pilot.settings import Settings
from pilot.signals import hold, listen
from pilot.stop import Stop

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LocalRun:
    """A run of one job file.

    Attributes:
        workdir: where the job directory is made; a new one in $TMPDIR if None.
        keep: leave the job directory.
        queuedata, storagedata: JSON of a queue and of storages, empty for none.
        grace: from a stop to the end, s.
        debug: log to stderr.
        log_sinks: where the log goes while the job runs, as in `--realtime-logging-server`; empty for nowhere.
        main_dir: the directory of the run; its job directory is inside.
    """

    job_file: Path
    environ: Mapping[str, str]
    progress: Progress
    workdir: Path | None = None
    keep: bool = False
    queuedata: str = ""
    storagedata: str = ""
    grace: float = 25.0
    debug: bool = False
    log_sinks: str = ""
    main_dir: Path = field(init=False, default=Path())

    def run(self, tick: Callable[[], Awaitable[None]]) -> Outcome:
        """Run the job. Whatever goes wrong, such as a file that cannot be used, ends in a failed outcome too."""
        try:
            local = load_job_file(self.job_file)
            self.main_dir = make_main_dir(self._top(), Path.cwd())
            return self._run(local, tick)
        except PilotError as error:
            return self._failed(error)
        except Exception as error:  # the last door: somebody waits for the outcome
            logger.debug("internal error", exc_info=True)
            return self._failed(internal_error(error))
        finally:
            self._clean_up()

    def _top(self) -> str:
        if self.workdir:
            return str(self.workdir)
        try:
            return tempfile.mkdtemp(prefix="pilot-local-")
        except OSError as error:
            raise PilotError(Code.MKDIR, str(error)) from error

    def _failed(self, error: PilotError) -> Outcome:
        outcome = Outcome(Job(job_id=LOCAL_JOB_ID))
        outcome.fail(error)
        if isinstance(error, JobDefinitionError):  # of other jobs the server's fault
            outcome.fault = Fault.USER
        self.progress.ended(outcome)
        return outcome

    def _run(self, local: LocalJob, tick: Callable[[], Awaitable[None]]) -> Outcome:
        place = Place(
            launch_dir=Path.cwd(),
            main_dir=self.main_dir,
            environ=self.environ,
            batch=BatchFacts.read(self.environ),
            node=read_node(environ=self.environ),
        )
        masker = Masker()
        with PilotLog.open(self.main_dir, masker, debug=self.debug, quiet=not self.debug, console=2) as log:
            return asyncio.run(self._job(local, place, masker, log, tick))

    async def _job(
        self, local: LocalJob, place: Place, masker: Masker, log: PilotLog, tick: Callable[[], Awaitable[None]]
    ) -> Outcome:
        stop = Stop()
        processes = Processes()
        listen(stop, lambda: self.grace, processes)
        fetch = make_fetch(find_tls(self.environ), allow_http=False, environ=self.environ)
        info = await stop.guard(self._info(fetch, stop))
        # Copies, not links and moves: inputs belong to the user, and a kept job directory shall be whole.
        settings = Settings(
            queue=info.queue.name,
            grace=self.grace,
            mv_stagein="copy",
            mv_stageout="copy",
            mv_replace=True,
            free_space_limit_running=0,
            looping_limit=0,  # who runs a job by hand sees that it does nothing
            cleanup=False,  # the main directory goes as a whole, or is kept
            use_realtime_logging=bool(self.log_sinks),
            realtime_logging_server=self.log_sinks,
            realtime_logfiles=self.environ.get("REALTIME_LOGFILES", ""),
        )
        bench = make_bench(
            settings,
            NoServer(),
            info,
            place,
            experiment=find_experiment("generic"),
            processes=processes,
            masker=masker,
            log=log,
            progress=self.progress,
            fetch=fetch,
            checksum_types=("adler32", "md5"),  # the result file has both
        )
        beside = asyncio.ensure_future(tick())
        try:
            return await JobRun(bench, local.job, stop, limits=local.limits).run()
        finally:
            beside.cancel()
            bench.nest.close()
            hold()

    async def _info(self, fetch: Callable[[str], bytes], stop: Stop) -> QueueInfo:
        if not self.queuedata:
            return QueueInfo(queue=Queue(name="local", resource="local", copytools={"mv": {}}))
        sources = Sources(queuedata_url=self.queuedata, storagedata_url=self.storagedata)
        return await QueuedataLoader("", self.main_dir, fetch, sources).load(stop)

    def _clean_up(self) -> None:
        if self.keep or self.main_dir == Path():
            return
        remove_tree(self.main_dir if self.workdir else self.main_dir.parent)
