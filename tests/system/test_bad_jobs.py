"""Bad definitions and bad payloads: each is reported failed with its own cause, and the next job runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.grid import Grid, Job, processes_with

#: Root without the capabilities that let it pass by file modes: like any user.
AS_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


# --- definitions

LONG = "x" * 300

#: What is wrong with a definition: the fields that make it so, the field that the message names, the code.
DEFINITIONS: Mapping[str, tuple[Mapping[str, Any], str, int]] = {
    "sizes do not fit the inputs": ({"inFiles": "a,b", "fsize": "1,2,3"}, "fsize", 0),
    "scopes do not fit the inputs": ({"inFiles": "a,b", "scopeIn": "s,s,s"}, "scopeIn", 0),
    "checksums do not fit the inputs": ({"inFiles": "a,b", "checksum": "ad:1,ad:2,ad:3"}, "checksum", 0),
    "endpoints do not fit the outputs": ({"outFiles": "a,b", "logFile": "", "ddmEndPointOut": "E,E,E"},
                                         "ddmEndPointOut", 0),
    "scopes do not fit the outputs": ({"outFiles": "a,b", "logFile": "", "ddmEndPointOut": "", "scopeOut": "s,s,s"},
                                      "scopeOut", 0),
    "an input with a slash": ({"inFiles": "a/b"}, "inFiles", 0),
    "an input in the directory above": ({"inFiles": ".."}, "inFiles", 0),
    "an input with a NUL": ({"inFiles": "a\0b"}, "inFiles", 0),
    "an input with a line feed": ({"inFiles": "a\nb"}, "inFiles", 0),
    "an input of 300 characters": ({"inFiles": LONG}, "inFiles", 1190),
    "an input of 300 bytes": ({"inFiles": "é" * 150}, "inFiles", 1190),
    "an input with half a character": ({"inFiles": "a\ud800b"}, "inFiles", 0),
    "an output with a slash": ({"outFiles": "../a"}, "outFiles", 1371),
    "an output of 300 characters": ({"outFiles": LONG}, "outFiles", 1190),
    "an output named twice": ({"outFiles": "a,a", "ddmEndPointOut": ""}, "outFiles", 1371),
    "a log with a slash": ({"logFile": "/tmp/log.tgz"}, "logFile", 1371),
    "an output called as a file of ours": ({"outFiles": "journal.jsonl"}, "outFiles", 0),
    "a size that is no number": ({"inFiles": "a", "fsize": "many"}, "fsize", 0),
    "a negative size": ({"inFiles": "a", "fsize": "-5"}, "fsize", 0),
    "a checksum that is none": ({"inFiles": "a", "checksum": "ad:xyz"}, "checksum", 0),
    "cores that are no number": ({"coreCount": "four"}, "coreCount", 0),
    "a wall time like a float": ({"maxWalltime": 1e300}, "maxWalltime", 0),
    "a name that is a list": ({"jobName": ["a"]}, "jobName", 0),
    "parameters of 10 MB": ({"jobPars": "x" * 10_000_000}, "jobPars", 0),
    "a deep nest": ({"containerOptions": "[" * 5000}, "containerOptions", 0),
    "container options that are no dictionary": ({"containerOptions": "__import__('os')"}, "containerOptions", 0),
    "a flag that is none": ({"debug": "perhaps"}, "debug", 0),
    "a file to write outside": ({"writeToFile": "../../x:a,b"}, "writeToFile", 0),
    "no transformation": ({"transformation": "NULL"}, "transformation", 0),
    "secrets that are a number": ({"secrets": 5}, "secrets", 0),
}  # fmt: skip


@pytest.mark.parametrize("api", ["v1", "legacy"])
def test_a_definition_that_cannot_be_used_is_reported_failed_and_names_the_field(tmp_path: Path, api: str) -> None:
    with Grid(tmp_path, api=api) as grid:
        bad = [{**grid.job(attemptNr=1), "_raw": True, **fields} for fields, *_ in DEFINITIONS.values()]
        ids = grid.submit(*bad)
        (good,) = grid.submit(grid.job())
        pilot = grid.pilot()
        assert pilot.wait(60) == 0, pilot.text[-3000:]
        assert "Traceback" not in pilot.text
        assert grid.job_of(good).state == "finished"
        for job_id, (what, (_, field, code)) in zip(ids, DEFINITIONS.items(), strict=True):
            job = grid.job_of(job_id)
            assert job.finals == ["failed"], what
            assert job.reported_once(), what
            assert field in job.diag, (what, job.diag)
            assert job.code > 0, what
            assert code in (0, job.code), (what, job.code, job.diag)
            assert len(job.diag) <= 500, what


def test_a_job_without_a_usable_id_is_passed_over(grid: Grid) -> None:
    queue = grid.queue("NAMELESS")
    base = {"computingSite": queue, "_raw": True, "transformation": "true"}
    grid.submit(base, {**base, "PandaID": None}, {**base, "jobName": "x"})
    (good,) = grid.submit(grid.job(queue=queue))
    pilot = grid.pilot("-v", "9", "-x", "9", queue=queue)
    assert pilot.wait() == 0
    assert pilot.text.count("a job that cannot be reported") == 3
    assert "Traceback" not in pilot.text
    assert grid.job_of(good).state == "finished"


# --- payloads


class Zoo:
    """Payloads that a few pilots run one after the other."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.ids: dict[str, int] = {}
        self.queues = [grid.queue(f"ZOO{number}") for number in range(3)]

    def add(self, name: str, command: str, **fields: Any) -> None:
        """Give a payload to one of the pilots."""
        queue = self.queues[len(self.ids) % len(self.queues)]
        (self.ids[name],) = self.grid.submit(self.grid.job(command, queue=queue, **fields))

    def run(self) -> None:
        """Start the pilots and wait for their end."""
        pilots = [self.grid.pilot(queue=queue) for queue in self.queues]
        for pilot in pilots:
            assert pilot.wait(100) == 0, pilot.text[-5000:]
            assert "Traceback" not in pilot.text

    def __getitem__(self, name: str) -> Job:
        return self.grid.job_of(self.ids[name])


FAR = "/etc/passwd"
MARK = Path(FAR).read_text().splitlines()[0]


@pytest.fixture(scope="module")
def zoo(grid: Grid) -> Zoo:
    zoo = Zoo(grid)
    zoo.add("exit 1", "exit 1")
    zoo.add("exit 255", "exit 255")
    zoo.add("SIGSEGV", "kill -SEGV $$")
    zoo.add("SIGKILL", "kill -KILL $$")
    zoo.add("leaves a daemon", "(setsid sleep 600 >/dev/null 2>&1 &); exit 0")
    zoo.add("leaves a child holding stdout", "sleep 600 & echo done")
    zoo.add("leaves a child that ignores TERM", "(trap '' TERM; sleep 600; sleep 600) & sleep 0.1; exit 0")
    zoo.add("binary stdout", "head -c 300000 /dev/urandom; head -c 1000 /dev/urandom >&2; exit 4")
    zoo.add("no outputs", "exit 0")
    zoo.add("a zero-size output", ": > zero.dat", outputs=["zero.dat"])
    zoo.add("an output that is missing", "exit 0", outputs=["zoo.missing"])
    zoo.add("an output that may be missing", "exit 0", outputs=["zoo.maybe"], allowNoOutput="zoo.maybe")
    zoo.add("an output that is a directory", "mkdir zoo.dir", outputs=["zoo.dir"])
    zoo.add("an output that is a pipe", "mkfifo zoo.pipe", outputs=["zoo.pipe"])
    remove = 'd=$PWD; cd ..; until rm -rf "$d" 2>/dev/null; do :; done'  # the pilot may be writing its time line there
    zoo.add("removes its directory", remove, outputs=["zoo.gone"])
    zoo.add("puts a file in place of its directory", f'{remove}; echo x > "$d"')
    zoo.add("puts a link in place of its directory", f'{remove}; ln -s /etc "$d"')
    zoo.add(
        "links out everywhere",
        f"rm payload.stderr; for n in a b payload.stderr payload_error_report.json jobReport.json core.1; "
        f"do ln -s {FAR} $n; done; ln -s /etc etc; ln -s . loop; exit 1",
    )
    zoo.add(
        "puts pipes everywhere", "rm payload.*; mkfifo payload.stdout payload.stderr payload_error_report.json; exit 1"
    )
    zoo.add("a garbage error report", "head -c 1000 /dev/urandom > payload_error_report.json; exit 7")
    zoo.add("an endless error report", "truncate -s 30M payload_error_report.json; exit 7")
    zoo.add("an error report of something else", "echo '[{\"error_code\": 1}]' > payload_error_report.json; exit 7")
    zoo.add("an error code beyond all", "echo '{\"error_code\": 1e400}' > payload_error_report.json; exit 7")
    zoo.add("an error code too large", "echo '{\"error_code\": 99999999999999}' > payload_error_report.json; exit 7")
    zoo.add("a script that is not there", "", transformation=f"{grid.server.url}/cache/no-such.sh", jobPars="")
    zoo.add("a path that is not there", "", transformation="/no/such/path.sh", jobPars="")
    zoo.add("a script called as the journal", "", transformation=f"{grid.server.url}/cache/journal.jsonl", jobPars="")
    (grid.files / "journal.jsonl").write_text("#!/bin/sh\n")
    (grid.files / "zoo.input").write_text("#!/bin/sh\necho overwritten\n")
    zoo.add(
        "a script called as an input", "", inputs={"zoo.input": b"precious"},
        transformation=f"{grid.server.url}/cache/zoo.input", jobPars="",
    )  # fmt: skip
    zoo.add("a device for a script", "", transformation="file:///dev/zero", jobPars="")
    zoo.add("odd words", "printf '%s|' \"$1\" 'a  b' \"ü\n\" '$(touch /tmp/x)' > zoo.odd", outputs=["zoo.odd"])
    zoo.add(
        "many words",
        "",
        transformation="set --",
        jobPars="word " * 50_000 + "; echo $# > zoo.many",
        outputs=["zoo.many"],
    )
    zoo.add("files that are not UTF-8", r"touch $'\xff\xfe' $'a\nb'; mkdir -p $'d\x80/e'; exit 2")
    zoo.add("deep directories", "for n in $(seq 300); do mkdir d; cd d; done; exit 2")
    zoo.add("the last one", "exit 0")
    zoo.run()
    return zoo


@pytest.mark.parametrize(
    ("name", "code", "status", "words"),
    [
        ("exit 1", 1305, 1, "exit status 1"),
        ("exit 255", 1305, 255, "exit status 255"),
        ("SIGSEGV", 1328, 139, "SIGSEGV"),
        ("SIGKILL", 1305, 137, "SIGKILL"),
        ("leaves a daemon", 0, 0, ""),
        ("leaves a child holding stdout", 0, 0, ""),
        ("leaves a child that ignores TERM", 0, 0, ""),
        ("binary stdout", 1305, 4, "exit status 4"),
        ("no outputs", 0, 0, ""),
        ("a zero-size output", 1191, 0, "zero.dat"),
        ("an output that is missing", 1165, 0, "zoo.missing"),
        ("an output that may be missing", 0, 0, ""),
        ("an output that is a directory", 1165, 0, "zoo.dir"),
        ("an output that is a pipe", 1165, 0, "zoo.pipe"),
        ("removes its directory", 1165, 0, "zoo.gone"),
        ("puts a file in place of its directory", 0, 0, ""),
        ("puts a link in place of its directory", 0, 0, ""),
        ("links out everywhere", 1305, 1, "exit status 1"),
        ("puts pipes everywhere", 1305, 1, "exit status 1"),
        ("a garbage error report", 1305, 7, "exit status 7"),
        ("an endless error report", 1305, 7, "exit status 7"),
        ("an error report of something else", 1305, 7, "exit status 7"),
        ("an error code beyond all", 1305, 7, "exit status 7"),
        ("an error code too large", 1305, 7, "exit status 7"),
        ("a script that is not there", 1149, 0, "no-such.sh"),
        ("a path that is not there", 1305, 127, "/no/such/path.sh"),
        ("a script called as the journal", 1149, 0, "journal.jsonl"),
        ("a script called as an input", 1149, 0, "zoo.input"),
        ("a device for a script", 1149, 0, "/dev/zero"),
        ("odd words", 0, 0, ""),
        ("many words", 0, 0, ""),
        ("files that are not UTF-8", 1305, 2, "exit status 2"),
        ("deep directories", 1305, 2, "exit status 2"),
        ("the last one", 0, 0, ""),
    ],
)
def test_a_payload_ends_with_its_own_code_and_text_and_its_log(
    zoo: Zoo, name: str, code: int, status: int, words: str
) -> None:
    job = zoo[name]
    assert job.reported_once()
    assert (job.code, job.fields["trans_exit_code"]) == (code, status), job.diag
    assert job.state == ("failed" if code else "finished")
    assert words in job.diag
    assert job.log()["pilotlog.txt"]
    assert processes_with(f"PandaID={job.id}") == []


def test_what_links_lead_to_stays_on_the_node(zoo: Zoo) -> None:
    job = zoo["links out everywhere"]
    assert MARK not in json.dumps(job.known)
    log = job.log()
    assert all(MARK.encode() not in content for content in log.values())
    assert b"link" in log["_missing.txt"]
    assert "passwd" not in zoo["puts a link in place of its directory"].log()


def test_an_input_in_the_storage_is_never_overwritten(zoo: Zoo) -> None:
    assert zoo["a script called as an input"].state == "failed"
    assert zoo.grid.stored("zoo.input").read_bytes() == b"precious"


def test_the_words_of_a_payload_are_its_own(zoo: Zoo) -> None:
    assert zoo["odd words"].path("zoo.odd").read_text() == "|a  b|ü\n|$(touch /tmp/x)|"
    assert zoo["many words"].path("zoo.many").read_text() == "50000\n"


@pytest.mark.skipif(not shutil.which("setpriv") or os.geteuid() != 0, reason="needs setpriv, and root to drop rights")
def test_a_payload_that_takes_all_rights_on_its_directory_away_still_has_a_log(grid: Grid) -> None:
    queue = grid.queue("RIGHTS")
    ids = grid.submit(
        grid.job('mkdir -p a/b; echo x > a/b/c; chmod 000 a "$PWD"; exit 1', queue=queue),
        grid.job("mkdir sub; chmod 000 sub; touch f; chmod 000 f; exit 1", queue=queue),
        grid.job(queue=queue),
    )
    pilot = grid.pilot(queue=queue, command=(*AS_A_USER, sys.executable, "-m", "pilot.cli.main", "run"))
    assert pilot.wait() == 0, pilot.text
    whole, part, good = map(grid.job_of, ids)
    assert (whole.code, part.code, good.state) == (1305, 1305, "finished")
    assert "exit status 1" in whole.diag
    assert b"a: Permission denied" in whole.log()["_missing.txt"]
    assert b"f: Permission denied" in part.log()["_missing.txt"]
    assert grid.main_dirs() == []


# --- secrets


def test_no_secret_gets_anywhere_it_does_not_belong(tmp_path: Path) -> None:
    token, pilot_secret, job_secret = "token-of-the-pilot-83475", "logstash-word-47113", "docker-word-99120"
    with Grid(tmp_path, token=token, origin="vo.production") as grid:
        (tmp_path / "token").write_text(token)
        environ = {"PANDA_AUTH_TOKEN": str(tmp_path / "token"), "PANDA_AUTH_ORIGIN": "vo.production"}
        command = "env > env.out; tee seen.txt < panda_secrets.json; cat panda_secrets.json >&2; exit 5"
        ids = grid.submit(
            *(
                grid.job(command, secrets=secrets, pilotSecrets=pilot_secrets)
                for secrets, pilot_secrets in (
                    (json.dumps({"DOCKER_TOKENS": job_secret}), json.dumps({"logstash_password": pilot_secret})),
                    ({"DOCKER_TOKENS": [{"token": job_secret}]}, {"logstash_password": pilot_secret}),
                )
            )
        )
        bad = grid.job(secrets=json.dumps({"a": job_secret}), pilotSecrets=f"password={pilot_secret}", coreCount="x")
        ids += grid.submit(bad)
        pilot = grid.pilot("-d", "--cleanup", "False", env=environ)
        assert pilot.wait() == 0
        hidden = [word.encode() for word in (token, pilot_secret, job_secret)]
        jobs = [grid.job_of(job_id) for job_id in ids]
        (main_dir,) = grid.main_dirs()
        places = {"stdout": pilot.text.encode(), "pilotlog": (main_dir / "pilotlog.txt").read_bytes()}
        for job in jobs:
            assert job.finals == ["failed"], job.states
            reported = {key: value for key, value in job.known.items() if key != "definition"}
            places[f"report of {job.id}"] = json.dumps(reported).encode()
        for job in jobs[:2]:
            places |= {f"{name} in the log of {job.id}": content for name, content in job.log().items()}
            assert "panda_secrets.json" not in job.log()
            secret_file = main_dir / f"PanDA_Pilot-{job.id}" / "panda_secrets.json"
            assert job_secret in secret_file.read_text()
            assert secret_file.stat().st_mode & 0o777 == 0o600
            seen = (secret_file.parent / "seen.txt").read_text()
            assert job_secret in seen
            assert pilot_secret not in seen
            assert b"PandaID" in job.log()["env.out"]
        found = [(place, word) for place, content in places.items() for word in hidden if word in content]
        assert found == []
