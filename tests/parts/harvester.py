"""A real Harvester: the daemon with all its agents, on a database of its own, beside a grid.

Its sources are in no registry, so they are looked for in `.cache/harvester` (the directory that has `pandaharvester`);
what they need from elsewhere is installed. Its queues are those of `wrappers/harvester/queueconfig.json`, unchanged but
for names, paths and numbers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.grid import ROOT, Grid, Job, until
from tests.parts import CACHE, environment

TEMPLATES = ROOT / "wrappers" / "harvester"
SOURCES = Path(os.environ.get("PILOT_REAL_HARVESTER", CACHE / "harvester"))
needs_harvester = pytest.mark.skipif(
    not (SOURCES / "pandaharvester" / "harvesterbody" / "master.py").is_file(),
    reason="Harvester is in no registry: put the sources of HSF/harvester into .cache/harvester",
)
#: Its id at the server.
ID = "harv"
_PACKAGES = (
    *("panda-common==0.1.11", "future", "six", "python-daemon", "pycryptodomex", "requests", "psutil", "rpyc"),
    "htcondor==23.10.29",  # the last with the bindings that it imports
    "panda-pilot==3.7.0.36",  # whose error codes it imports
)

#: All agents look once a second, and again at what they have looked at when they look the next time.
_AGENT = "nThreads = 1\nsleepTime = 1\nlockInterval = 600\ncheckInterval = 0\ntriggerInterval = 0"
_MANY = "\n".join(
    f"max{name} = 100"
    for name in (
        *("Jobs", "Workers", "NewWorkers", "Dialogs", "JobsToCheck", "JobsToTrigger", "JobsToZip"),
        *("FilesPerJobToCheck", "FilesPerJobToPrepare", "FilesPerJobToTrigger", "FilesPerJobToZip"),
    )
)
_CONFIG = """\
[master]
uname = root
gname = root
harvester_id = {id}
dynamic_plugin_change = False
[db]
engine = sqlite
database_filename = {top}/data/harvester.db
nConnections = 3
verbose = False
[fifo]
fifoModule = pandaharvester.harvesterfifo.sqlite_fifo
fifoClass = SqliteFifo
database_filename = {top}/data/$(TITLE)_fifo.db
[communicator]
nConnections = 2
[pandacon]
timeout = 20
ca_cert = False
auth_type = oidc
auth_token = none
auth_origin = none
pandaURL = {url}/server/panda
pandaURLSSL = {url}/server/panda
pandaCacheURL_W = {url}/server/panda
server_api_url = {url}/api/v1
server_api_url_ssl = {url}/api/v1
getEventsChunkSize = 5120
[qconf]
configFile = panda_queueconfig.json
queueList = ALL
resolverModule = pandaharvester.harvestermisc.info_utils
resolverClass = PandaQueuesDict
resolverConfig =
 {{
 "refreshPeriod": 0
 }}
[commandmanager]
commands_bulk_size = 20
sleepTime = 1
[jobfetcher]
nQueues = 5
lookupTime = 1
{agent}
{many}
[propagator]
nJobsInBulk = 100
nWorkersInBulk = 100
minMessageLevel = WARNING
updateInterval = 3
{agent}
{many}
[preparator]
{agent}
{many}
[submitter]
nQueues = 3
lookupTime = 1
{agent}
{many}
[monitor]
{agent}
{many}
[stager]
{agent}
{many}
[eventfeeder]
{agent}
{many}
[sweeper]
keepFinished = 24
keepFailed = 24
keepCancelled = 24
{agent}
{many}
[credmanager]
outCertFile = none
sleepTime = 1800
[file_syncer]
sleepTime = 60
[cacher]
data =
 panda_queues.json||{url}/cache/panda_queues.json
 resource_types.json||panda_server:get_resource_types
refreshInterval = 10
sleepTime = 60
[watcher]
sleepTime = 60
checkInterval = 3600
[payload_interaction]
workerAttributesFile = worker_attributes.json
jobReportFile = jobReport.json
eventStatusDumpJsonFile = event_status.dump.json
eventStatusDumpXmlFile = _event_status.dump
jobRequestFile = worker_requestjob.json
jobSpecFile = HPCJobs.json
eventRequestFile = worker_requestevents.json
eventRangesFile = JobsEventRanges.json
updateEventsFile = worker_updateevents.json
xmlPoolCatalogFile = PoolFileCatalog_H.xml
pandaIDsFile = worker_pandaids.json
killWorkerFile = kill_worker.json
heartbeatFile = worker_heartbeat.json
"""
_LOGGER = """\
[logger]
loghost = 127.0.0.1
monport-apache = 9
method = GET
encoding = url
monurlprefix = /
logdir = {top}/log
nemitters = 1
rotating_policy = none
"""


class Harvester:
    """A daemon that runs. Use as a context manager.

    Args:
        top: a directory for all that it writes, not there yet.
        grid: what it works for.
        release: the archives of the pilot.
        queues: the settings of each queue, over those of its template. A `templateFile` is one of `opt/templates`.
        environ: what its plug-ins need to reach the batch system.
    """

    def __init__(
        self,
        top: Path,
        grid: Grid,
        release: Path,
        queues: Mapping[str, Mapping[str, Any]],
        environ: Mapping[str, str],
    ) -> None:
        self.top, self.grid = top, grid
        self._environ = {**home(top, grid.server.url), **environ}
        for name in ("data/tokens", "data/logs", "opt/templates"):
            (top / name).mkdir(parents=True)
        (top / "opt" / "pilot").symlink_to(release)
        for name in ("slurm.sh", "htcondor.sdf"):
            self._template(name)
        self._configure(queues)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [self._environ["VIRTUAL_ENV"] + "/bin/python", "-m", "pandaharvester.harvesterbody.master"]
        with open(self.top / "harvester.out", "wb") as out:
            self._process = subprocess.Popen(
                [*command, "--foreground"],
                cwd=self.top,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                umask=0,  # the batch system's user may be another
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it does itself when it is told to end
        self._process.wait()

    def rows(self, table: str, **where: object) -> list[dict[str, Any]]:
        """Rows of its database; none as long as there is no such table."""
        condition = " AND ".join(f"{name} = ?" for name in where) or "1"
        file = self.top / "data" / "harvester.db"
        if not file.exists():
            return []
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)) as database:
            database.row_factory = sqlite3.Row
            try:
                found = database.execute(f"SELECT * FROM {table} WHERE {condition}", tuple(where.values())).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return []
        return [dict(row) for row in found]

    def workers(self, queue: str) -> list[dict[str, Any]]:
        """What it knows of the workers of a queue, the oldest first."""
        return sorted(self.rows("work_table", computingSite=queue), key=lambda row: int(row["workerID"]))

    def job(self, job_id: int) -> dict[str, Any]:
        """What it knows of a job; nothing before it has it."""
        return next(iter(self.rows("job_table", PandaID=job_id)), {})

    def story(self) -> str:
        """What it said, for a test that fails."""
        logs = "".join(path.read_text(errors="replace") for path in sorted((self.top / "log").glob("panda-*.log")))
        errors = [line for line in logs.splitlines() if " ERROR " in line or re.match(r"\w*(Error|Exception):", line)]
        said = (self.top / "harvester.out").read_text(errors="replace")
        return "\n".join([said[-3000:], *dict.fromkeys(line.partition(": ERROR")[2] or line for line in errors)])

    def waits(self, true: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
        """Wait until something is true; told with its story if it never is."""

        def looked() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise AssertionError(f"Harvester ended: {self.story()}")
            return bool(true())

        until(looked, seconds, lambda: f"{what}; {self.story()}")

    # --- jobs and workers

    def submit(self, command: str, queue: str, **more: Any) -> int:
        """A job for it to fetch, or for the pilot of a worker; its id."""
        (job_id,) = self.grid.submit(self.grid.job(command, queue=queue, **more))
        return job_id

    def worker(self, job_id: int) -> dict[str, Any]:
        """What it knows of the worker of a job."""
        (pair,) = self.rows("jw_table", PandaID=job_id)
        (worker,) = self.rows("work_table", workerID=pair["workerID"])
        return worker

    def sees_run(self, job_id: int) -> dict[str, Any]:
        """Wait until a job runs at the server and for Harvester; its worker."""
        self.waits(lambda: self.grid.job_of(job_id).state == "running", f"{job_id} runs")
        self.waits(lambda: self.job(job_id).get("status") == "running", f"Harvester sees that {job_id} runs")
        return self.worker(job_id)

    def sees_end(self, job_id: int) -> tuple[Job, str, str]:
        """Wait until a job and its worker have come to their end, here and there; the job, and its states here."""
        job = self.grid.job_of
        self.waits(lambda: self.job(job_id).get("subStatus") == "done", f"Harvester sees the end of {job_id}")
        self.waits(lambda: job(job_id).state in ("finished", "failed", "cancelled"), f"the end of {job_id}")
        self.waits(lambda: self.worker(job_id)["lastUpdate"] is None, f"the server knows the end of {job_id}'s worker")
        return job(job_id), self.job(job_id)["status"], self.worker(job_id)["status"]

    # --- configuration

    def sees_kill(self) -> None:
        """Have a job killed at the server while it runs: Harvester hears of it first, and cancels the worker."""
        job_id = self.submit("sleep 600", "PUSH")
        self.sees_run(job_id)
        self.grid.server.kill(job_id)
        job, here, worker = self.sees_end(job_id)
        assert (job.state, here, worker) == ("cancelled", "cancelled", "cancelled")

    def _template(self, name: str) -> None:
        """One of our templates, with what a site changes in it, and the options of the pilots of a grid."""
        words = self.grid.options(queue="{pandaQueueName}")
        options = " ".join(words[words.index("-p") :])
        text = (TEMPLATES / name).read_text().replace("/opt/harvester", f"{self.top}/opt")
        text = text.replace("https://pandaserver.example.org", f"http://127.0.0.1 {options}")
        (self.top / "opt" / "templates" / name).write_text(text)

    def change_template(self, name: str, new_name: str, *changes: tuple[str, str]) -> None:
        """Make another template of one."""
        text = (self.top / "opt" / "templates" / name).read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (self.top / "opt" / "templates" / new_name).write_text(text)

    def _configure(self, queues: Mapping[str, Mapping[str, Any]]) -> None:
        known, records = {}, {}
        for name, fields in queues.items():
            self.grid.queue(name, type="production", corecount=1, maxrss=500, maxtime=300, timefloor=0)
            record = json.loads((self.grid.files / f"{name}.json").read_text())[name]
            records[name] = record | {"pilot_manager": "Harvester", "harvester": ID}
            known[name] = {"queueStatus": "online", **fields}
        (self.grid.files / "panda_queues.json").write_text(json.dumps(records))
        text = json.dumps(json.loads((TEMPLATES / "queueconfig.json").read_text()) | known)
        for place in ("data", "opt"):
            text = text.replace(f"/{place}/harvester", f"{self.top}/{place}")
        (self.top / "etc" / "panda" / "panda_queueconfig.json").write_text(text)


def home(top: Path, url: str) -> dict[str, str]:
    """Make a directory that it can be started in, or imported with; its environment.

    Args:
        top: the directory, not there yet.
        url: of the server.
    """
    bin_directory = environment("harvester", *_PACKAGES)
    site = next((bin_directory.parent / "lib").glob("python3*/site-packages"))
    for name in ("etc/panda", "log", "modules"):
        (top / name).mkdir(parents=True)
    for name in ("pandalogger", "liveconfigparser"):  # as the package's own installation links them
        (top / "modules" / name).symlink_to(site / "pandacommon" / name)
    for name, text in (("harvester", _CONFIG), ("common", _LOGGER)):
        values = {"top": top, "url": url, "id": ID, "agent": _AGENT, "many": _MANY}
        (top / "etc" / "panda" / f"panda_{name}.cfg").write_text(text.format(**values))
    return {
        "PATH": "/usr/bin:/bin",
        "VIRTUAL_ENV": str(bin_directory.parent),
        "HOME": str(top),
        "LANG": "C.UTF-8",
        "PANDA_HOME": str(top),
        "PANDA_BEHIND_REAL_LB": "1",
        "PYTHONPATH": f"{SOURCES}:{top / 'modules'}:{site}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
