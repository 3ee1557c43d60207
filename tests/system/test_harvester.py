"""Real pilots that speak with Harvester by files, as its shared-file messenger writes and reads them.

`Messenger` does what `shared_file_messenger.py` of Harvester does with these files: same names, same renames, same
order. `Harvesters` is that messenger itself, where its code is at hand.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pilot.errors import ServerError
from pilot.server.harvester import Exchange, HarvesterServer, output_entry, read_jobs, worker_attributes
from pilot.server.offline import NoServer
from pilot.server.report import FileReport, JobRequest, Report, State
from pilot.stop import Deadline, in_thread
from tests.grid import ROOT, Grid, until
from tests.parts.harvester import home, needs_harvester


class Messenger:
    """Harvester's side of the exchange for one worker, and its monitor's."""

    def __init__(self, access, subfolders=False):
        self.access = access
        self.subfolders = subfolders
        self.seen = {}
        access.mkdir()

    def home(self, job):
        home = self.access / str(job["PandaID"]) if self.subfolders else self.access
        home.mkdir(exist_ok=True)
        return home

    def feed(self, *jobs, cgi=False, name="HPCJobs.json"):
        for job in jobs:
            text = urlencode(job) if cgi else json.dumps({job["PandaID"]: job})
            (self.home(job) / name).write_text(text)
            (self.home(job) / "PoolFileCatalog_H.xml").write_text("<POOLFILECATALOG/>")
        (self.access / "worker_pandaids.json").write_text(json.dumps([job["PandaID"] for job in jobs]))
        (self.access / "worker_requestjob.json").unlink(missing_ok=True)

    def requested(self):
        path = self.access / "worker_requestjob.json"
        return json.loads(path.read_text())["nJobs"] if path.exists() else 0

    def attributes(self, job):
        home = self.home(job)
        read = [json.loads(path.read_text()) if path.exists() else None for path in
                (home / "worker_attributes.json", home / "jobReport.json")]  # fmt: skip
        return {**(read[0] or {}), **({"metaData": read[1]} if read[1] is not None else {})}

    def outputs(self, job):
        path = self.home(job) / "event_status.dump.json"
        if not path.exists():
            return {}
        path.rename(f"{path}.read")
        found = json.loads(Path(f"{path}.read").read_text())
        Path(f"{path}.read").rename(f"{path}.read.acknowledged")
        return found

    def kill_requested(self):
        return (self.access / "kill_worker.json").exists()

    def look(self, *jobs, batch="running"):
        """One cycle: Harvester looks no more at a job once it has read, or guessed by the batch job, how it ended."""
        for job in jobs:
            known = self.seen.setdefault(job["PandaID"], {"status": "", "files": []})
            attributes, files = self.attributes(job), self.outputs(job)
            if known["status"] not in ("finished", "failed"):
                known |= attributes
                known["files"] += files.get(str(job["PandaID"]), [])
                said = attributes.get("jobStatus", "")
                known["status"] = said if said in ("finished", "failed") else batch
        return [self.seen[job["PandaID"]] for job in jobs]


class Harvesters(Messenger):
    """The real one, from its sources."""

    def __init__(self, access, subfolders=False):
        from pandaharvester.harvestercore.job_spec import JobSpec
        from pandaharvester.harvestermessenger import shared_file_messenger as real

        super().__init__(access, subfolders)
        self.messenger, self.spec, self._job_spec = real.SharedFileMessenger(), real.WorkSpec(), JobSpec
        self.spec.workerID, self.spec.accessPoint = 7, str(access)
        self.spec.mapType = "ManyToOne" if subfolders else "OneToOne"

    def feed(self, *jobs):
        specs = []
        for job in jobs:
            more = {"taskID": 1, "attemptNr": 1, "jobsetID": "NULL", "currentPriority": 1, "logGUID": "g"}
            specs.append(self._job_spec())
            specs[-1].convert_job_json({"realDatasetsIn": "", "realDatasets": "", **more, **job})
        self.spec.set_jobspec_list(specs)
        assert self.messenger.setup_access_points([self.spec])
        assert self.messenger.feed_jobs(self.spec, specs)

    def requested(self):
        return self.messenger.job_requested(self.spec)

    def attributes(self, job):
        self.spec.pandaid_list = [job["PandaID"]]
        return self.messenger.get_work_attributes(self.spec)[job["PandaID"]]

    def outputs(self, job):
        self.spec.pandaid_list = [job["PandaID"]]
        found = self.messenger.get_files_to_stage_out(self.spec)
        self.messenger.acknowledge_events_files(self.spec)
        return {str(job_id): [file for same in files.values() for file in same] for job_id, files in found.items()}

    def kill_requested(self):
        return self.messenger.kill_requested(self.spec)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


@pytest.fixture
def messenger(tmp_path):
    return Messenger(tmp_path / "access")


@pytest.fixture(params=[Messenger, pytest.param(Harvesters, marks=needs_harvester)])
def either(request, tmp_path, monkeypatch):
    """A messenger for a worker of several jobs."""
    if request.param is Harvesters:
        environ = home(tmp_path / "harvester", "http://127.0.0.1:9")
        monkeypatch.setenv("PANDA_HOME", environ["PANDA_HOME"])
        monkeypatch.setattr(sys, "path", [*sys.path, *environ["PYTHONPATH"].split(":")])
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return request.param(tmp_path / "access", subfolders=True)


WORKER = {"HARVESTER_ID": "harv", "HARVESTER_WORKER_ID": "7"}


def push(grid, messenger, *more, env=None, queue="Q"):
    options = ["--harvester-submit-mode", "PUSH", "--harvester-datadir", str(messenger.access)]
    workdir = ["--harvester-workdir", str(messenger.access)]
    return grid.pilot(*options, *workdir, *more, env={**WORKER, **(env or {})}, queue=queue)


def acquired(grid, queue):
    """What Harvester gets from the server for a worker."""
    url = f"{grid.server.url}/api/v1/pilot/acquire_jobs"
    body = json.dumps({"site_name": queue, "prod_source_label": "managed", "n_jobs": 1}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        (job,) = json.load(answer)["data"]["jobs"]
    return job


def one_job_queue(grid, name):
    return grid.queue(name, timefloor=0)


@pytest.mark.parametrize("name", ["pandaJobData.out", "HPCJobs.json"])
@pytest.mark.parametrize("cgi", [True, False], ids=["url-encoded", "JSON"])
def test_a_job_that_was_pushed_is_run_and_reported_to_the_server(grid, messenger, cgi, name):
    """Either form under either name: the form is the messenger's, the name is Harvester's."""
    queue = one_job_queue(grid, f"PUSH{cgi}{name[0]}")
    (job_id,) = grid.submit(grid.job("echo x > out", outputs=["out"], queue=queue))
    messenger.feed(acquired(grid, queue), cgi=cgi, name=name)
    pilot = push(grid, messenger, queue=queue)

    assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"
    assert not (messenger.access / "pandaJobData.out").exists()
    assert not (messenger.access / "HPCJobs.json").exists()
    assert not (messenger.access / "worker_attributes.json").exists()  # the server knows
    assert (messenger.access / "kill_worker").exists()
    assert not (messenger.access / "kill_worker.json").exists()  # Harvester would end the batch job


def test_without_a_server_reports_are_files_as_harvester_reads_them(grid, messenger, tmp_path):
    queue = one_job_queue(grid, "FILES")
    report = '{"exitCode": 0, "executor": [{"name": "x", "logfileReport": {"countSummary": [1, 2]}}]}'
    job = grid.job(f"echo x > 'a b'; echo '{report}' > jobReport.json", outputs=["a b"], queue=queue)
    messenger.feed(job)
    pilot = push(grid, messenger, "-z", "--pilot-user", "generic", queue=queue)

    assert pilot.wait() == 0, pilot.text
    attributes = messenger.attributes(job)
    assert attributes["jobStatus"] == "finished"
    assert (attributes["pilotErrorCode"], attributes["transExitCode"]) == (0, 0)
    assert attributes["jobId"] == str(job["PandaID"])
    assert "xml" not in attributes
    (files,) = messenger.outputs(job).values()
    assert [file["type"] for file in files] == ["log", "output"]
    assert Path(files[1]["path"]).read_text() == "x\n"
    assert files[1]["fsize"] == 2
    assert len(files[1]["chksum"]) == 8
    short = json.loads((messenger.access / "jobReport.json").read_text())
    assert short["executor"] == [{"name": "x", "logfileReport": {}}]


def test_a_job_that_fails_says_so_in_its_file(grid, messenger):
    queue = one_job_queue(grid, "BAD")
    job = grid.job("exit 3", queue=queue)
    messenger.feed(job)
    push(grid, messenger, "-z", queue=queue).wait()

    attributes = messenger.attributes(job)
    assert (attributes["jobStatus"], attributes["transExitCode"]) == ("failed", 3)
    assert attributes["pilotErrorCode"] == 1305


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_harvester_sees_how_each_job_of_a_worker_ended_whenever_it_looks(grid, either):
    """All that were given are run, whatever the time floor; one that was not begun has not finished."""
    queue = one_job_queue(grid, "LIFE")
    good = grid.job("echo x > out; echo '{\"a\": 1}' > jobReport.json", outputs=["out"], queue=queue)
    jobs = [good, grid.job("exit 3", queue=queue), grid.job("sleep 30", queue=queue), grid.job(queue=queue)]
    either.feed(*jobs)
    pilot = push(grid, either, "-z", "--pilot-user", "generic", queue=queue)
    until(lambda: either.look(*jobs)[2].get("jobStatus") == "running")
    pilot.signal(signal.SIGTERM)
    while pilot.process.poll() is None:
        either.look(*jobs)
    for _ in range(2):
        seen = either.look(*jobs, batch="finished")

    assert [job["status"] for job in seen] == ["finished", "failed", "failed", "failed"], pilot.text
    assert [job["pilotErrorCode"] for job in seen] == [0, 1305, 1201, 1201]
    assert [[file["type"] for file in job["files"]] for job in seen[:3]] == [["log", "output"], ["log"], ["log"]]
    assert [job.get("metaData") for job in seen] == [{"a": 1}, None, None, None]
    assert [int(job["jobId"]) for job in seen] == [job["PandaID"] for job in jobs]
    assert "was not begun" in seen[3]["pilotErrorDiag"]
    assert not either.requested()
    assert not either.kill_requested()
    left = {path.name for path in either.access.rglob("*.json")}
    assert left == {"worker_attributes.json", "jobReport.json", "worker_pandaids.json", "worker_heartbeat.json"}


def test_a_job_is_taken_when_harvester_has_written_all_of_it(tmp_path):
    """It writes in place, and removes the request last."""
    (tmp_path / "main").mkdir()
    places = Exchange(
        inboxes=(tmp_path,), access=tmp_path, attributes=None, outputs=None, copies=tmp_path / "main", reports=True
    )
    server = HarvesterServer(places, NoServer(tmp_path / "heartbeat.json"))
    request = JobRequest(queue="Q", computing_element="Q", label="managed", node="n")
    file = tmp_path / "pandaJobData.out"
    assert asyncio.run(server.acquire(request)) == []
    for part in ("", "PandaID=5&jobP", "PandaID=5&jobPars=x"):
        file.write_text(part)
        assert asyncio.run(server.acquire(request)) == []
        assert file.read_text() == part
    (tmp_path / "jobReport.json").write_text("{}")  # of the job before
    assert asyncio.run(server.acquire(request)) == [{"PandaID": "5", "jobPars": "x"}]  # nothing new for a whole look
    assert not (tmp_path / "jobReport.json").exists()
    assert not (tmp_path / "worker_requestjob.json").exists()
    assert asyncio.run(server.acquire(request)) == []
    file.write_text("PandaID=6")
    (tmp_path / "worker_requestjob.json").unlink()
    assert asyncio.run(server.acquire(request)) == [{"PandaID": "6"}]


def test_names_of_the_files_may_be_given(grid, messenger):
    queue = one_job_queue(grid, "NAMED")
    job = grid.job(queue=queue)
    messenger.feed(job)
    names = ["--harvester-workerattributes", "attributes.json", "--harvester-eventstatusdump", "dump.json"]
    assert push(grid, messenger, "-z", *names, queue=queue).wait() == 0

    assert json.loads((messenger.access / "attributes.json").read_text())["jobStatus"] == "finished"
    assert str(job["PandaID"]) in json.loads((messenger.access / "dump.json").read_text())


def test_jobs_of_one_file_are_taken_one_by_one_and_the_rest_is_not_lost(grid, messenger):
    """A pilot that is stopped leaves in the file what it has not begun."""
    queue = grid.queue("ONE", timefloor=1)
    jobs = [grid.job("sleep 30", queue=queue), grid.job(queue=queue)]
    (messenger.access / "HPCJobs.json").write_text(json.dumps({job["PandaID"]: job for job in jobs}))
    pilot = push(grid, messenger, "-z", queue=queue)
    until(lambda: messenger.attributes(jobs[0]).get("jobStatus") == "running")
    pilot.signal(signal.SIGTERM)
    pilot.wait()

    assert messenger.attributes(jobs[0])["jobStatus"] == "failed"
    left = json.loads((messenger.access / "HPCJobs.json").read_text())
    assert list(left) == [str(jobs[1]["PandaID"])]


def test_the_outputs_of_a_job_stay_until_harvester_takes_them(tmp_path):
    """Two jobs of a worker may end between two looks of Harvester."""
    server = exchange(tmp_path)
    for number in (1, 2):
        asyncio.run(server.update(report(number, State.FINISHED), Deadline(5)))
    known = json.loads((tmp_path / "event_status.dump.json").read_text())
    assert {number: files[0]["path"] for number, files in known.items()} == {"1": "/x/f1", "2": "/x/f2"}


def test_an_update_that_was_kept_does_not_come_after_the_final_one(tmp_path):
    server = exchange(tmp_path)
    for state in (State.RUNNING, State.FAILED, State.RUNNING):
        asyncio.run(server.update(report(1, state), Deadline(5)))
    assert json.loads((tmp_path / "worker_attributes.json").read_text())["jobStatus"] == "failed"


def test_a_job_of_a_file_that_cannot_be_removed_is_run_once(tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "pandaJobData.out").write_text("PandaID=5&jobPars=x")
    if subprocess.run(["mount", "--bind", inbox, inbox], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", inbox], check=True)
        server = exchange(tmp_path, inbox)
        request = JobRequest(queue="Q", computing_element="Q", label="managed", node="n")
        taken = [asyncio.run(server.acquire(request)) for _ in range(2)]
    finally:
        subprocess.run(["umount", inbox], check=True)
    assert taken == [[{"PandaID": "5", "jobPars": "x"}], []]


def test_a_job_that_another_pilot_of_the_worker_takes_at_the_end_of_this_one_is_not_reported_by_it(tmp_path):
    for number in "12":
        (tmp_path / number).mkdir()
        (tmp_path / number / "pandaJobData.out").write_text(f"PandaID={number}")
    one, other = exchange(tmp_path, tmp_path), exchange(tmp_path, tmp_path)
    request = JobRequest(queue="Q", computing_element="Q", label="managed", node="n")
    update, taken = one.update, []

    async def late(*given):
        taken.extend(await other.acquire(request))
        await update(*given)

    one.update = late
    asyncio.run(one.finish(None))
    assert taken == [{"PandaID": "2"}]
    assert [path.parent.name for path in tmp_path.rglob("worker_attributes.json")] == ["1"]


def test_a_job_without_an_id_of_which_nobody_can_be_told_does_not_keep_the_end_from_harvester(tmp_path):
    for folder in "12":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pandaJobData.out").write_text(f"PandaID={int(folder) - 1}")
    asyncio.run(exchange(tmp_path, tmp_path).finish(None))
    assert json.loads((tmp_path / "2" / "worker_attributes.json").read_text())["jobStatus"] == "failed"
    assert (tmp_path / "kill_worker").exists()


def test_a_job_that_is_taken_when_a_stop_waits_no_longer_is_reported(tmp_path):
    (tmp_path / "pandaJobData.out").write_text("PandaID=1")
    server = exchange(tmp_path, tmp_path)
    strike_out, held = server._strike_out, threading.Event()
    server._strike_out = lambda *given: held.wait(10) and strike_out(*given)

    async def main():
        asking = asyncio.ensure_future(server.acquire(JobRequest(queue="Q", computing_element="Q", label="", node="n")))
        await asyncio.wait({asking}, timeout=0.2)
        asking.cancel()
        held.set()
        await in_thread(until, lambda: server._taken)
        await server.finish(None)

    asyncio.run(main())
    assert json.loads((tmp_path / "worker_attributes.json").read_text())["jobStatus"] == "failed"


def exchange(folder, *inboxes):
    places = Exchange(inboxes=inboxes, access=folder, attributes=None, outputs=None, copies=folder, reports=True)
    return HarvesterServer(places, NoServer(folder / "heartbeat.json"))


def test_harvester_is_told_what_it_understands():
    """It knows two final states, takes every checksum for an adler32, and hands on times that the server reads."""
    told = worker_attributes(replace(report(1, State.HOLDING), start_time=0.5, end_time=60.0))
    assert told["jobStatus"] == "failed"
    assert (told["startTime"], told["endTime"]) == ("1970-01-01 00:00:00", "1970-01-01 00:01:00")
    entry = output_entry(report(1, State.FINISHED).files[0])
    assert (entry["path"], "chksum" in entry) == ("/x/f1", False)


def report(number, state):
    name = f"f{number}"
    file = FileReport(lfn=name, guid="g", size=1, checksums={"md5": "0"}, surl=f"file:///x/{name}", endpoint="E")
    return Report(job_id=number, attempt=1, state=state, files=(file,))


def test_another_job_is_asked_for_and_taken(grid, messenger):
    queue = grid.queue("MORE", timefloor=1)
    first, second = grid.job(queue=queue), grid.job(queue=queue)
    messenger.feed(first)
    pilot = push(grid, messenger, "-z", queue=queue)
    until(messenger.requested)
    assert messenger.requested() == 1
    messenger.feed(second)
    until(lambda: messenger.attributes(second).get("jobId") == str(second["PandaID"]), timeout=30)
    pilot.signal()
    pilot.wait()


def test_arc_finds_its_job_where_the_pilot_starts_and_a_heartbeat_file(grid, tmp_path):
    """`-z` without Harvester (PILOT3 7.2)."""
    launch = tmp_path / "launch"
    launch.mkdir()
    job = grid.job("cat in > out", inputs={}, outputs=["out"])
    job |= {"inFiles": "in", "fsize": "2", "checksum": "ad:00fc0083", "GUID": "g", "scopeIn": "s", "ddmEndPointIn": "X"}
    (launch / "in").write_text("x\n")
    job["ddmEndPointOut"] = "REMOTE,REMOTE"
    (launch / "pandaJobData.out").write_text(urlencode(job))
    door = {"endpoint": "root://door.example.org:1094", "path": "/data", "flavour": "X", "id": 1}
    remote = {"name": "REMOTE", "state": "ACTIVE", "is_deterministic": True, "arprotocols": {"write_lan": [door]}}
    (grid.files / "remote.json").write_text(json.dumps({"REMOTE": remote}))
    grid.queue("ARC", catchall="", timefloor=0, astorages={"write_lan": ["REMOTE"], "pl": ["REMOTE"]})
    words = grid.options("-z", "--storagedata-url", f"{grid.server.url}/cache/remote.json", queue="ARC")
    del words[words.index("-a") : words.index("-a") + 2]
    options, grid.options = grid.options, lambda *more, queue="": words
    try:
        pilot = grid.pilot(cwd=launch)
    finally:
        grid.options = options
    assert pilot.wait() == 0, pilot.text
    heartbeat = json.loads((launch / "heartbeat.json").read_text())
    assert heartbeat["state"] == "finished", pilot.text
    assert (launch / "out").read_text() == "x\n"
    listed = (launch / "output.list").read_text()
    assert "out root://door.example.org:1094/data/test/scope/" in listed
    assert ":checksumtype=adler32:checksumvalue=00fc0083" in listed


def test_a_chosen_number_of_requests_counts_with_harvester_too(grid, messenger):
    pilot = push(grid, messenger, "-x", "1", queue=one_job_queue(grid, "ONCE"))
    assert pilot.wait(8) == 0, pilot.text
    assert "asking again" not in pilot.text


def test_a_job_that_lies_there_is_taken_by_a_pilot_that_pulls(grid, tmp_path):
    """And once it is done, the server is asked."""
    queue = grid.queue("LIES")
    ids = grid.submit(grid.job(queue=queue))
    given = acquired(grid, queue)
    ids += grid.submit(grid.job(queue=queue))
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "pandaJobData.out").write_text(urlencode(given))
    pilot = grid.pilot(queue=queue, cwd=launch)
    assert pilot.wait() == 0
    assert [grid.job_of(job_id).state for job_id in ids] == ["finished", "finished"]
    order = [line for line in pilot.text.splitlines() if "stagein" in line and "_enter" in line]
    assert str(ids[0]) in order[0]


def test_the_templates_have_what_harvester_s_submitters_look_for():
    """They fail otherwise: names of log files after one space (HTCondor), two words of the queue (Slurm)."""
    templates = ROOT / "wrappers" / "harvester"
    lines = (templates / "htcondor.sdf").read_text().splitlines()
    assert all(any(line.startswith(f"{name} = ") for line in lines) for name in ("log", "output", "error"))
    queue = json.loads((templates / "queueconfig.json").read_text())["production.push"]
    assert {"nCore", "logDir", "templateFile"} <= set(queue["submitter"])


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"1": {"PandaID": 1}}', '{"PandaID": 1}', '[{"PandaID": "1"}]', "PandaID=1&jobPars=a%3Db"]
)
def test_every_form_of_a_definition_is_read(tmp_path, text):
    (tmp_path / "f").write_text(text)
    jobs = read_jobs(tmp_path / "f")
    assert [int(job["PandaID"]) for job in jobs] == ([1] if "PandaID" in text else [])
    assert all(job.get("jobPars") in (None, "a=b") for job in jobs)


@pytest.mark.parametrize("text", ["{", "[1]", "nonsense", '{"a": {"b": 1}}', "PandaID=x"])
def test_what_is_no_definition_is_told_with_the_file(tmp_path, text):
    (tmp_path / "f").write_text(text)
    with pytest.raises(ServerError, match=str(tmp_path / "f")):
        read_jobs(tmp_path / "f")


def test_a_definition_s_copy_is_private(grid, messenger, tmp_path):
    queue = one_job_queue(grid, "PRIVATE")
    job = grid.job(queue=queue, secrets=json.dumps({"k": "very-secret-value"}))
    messenger.feed(job)
    pilot = push(grid, messenger, "-z", "--cleanup", "False", "-a", str(tmp_path / "kept"), queue=queue)
    assert pilot.wait() == 0
    (copy,) = (tmp_path / "kept").glob("*/job_definition.json")
    assert os.stat(copy).st_mode & 0o777 == 0o600
    assert "very-secret-value" not in pilot.text
