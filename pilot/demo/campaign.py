"""The jobs of the demo, the files they need, and how each must end."""

from __future__ import annotations

import json
import random
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilot.errors import Code
from pilot.queuedata import hash_path
from pilot.staging.checksum import file_checksums

QUEUE = "DEMO_QUEUE"
ENDPOINT = "DEMO_DISK"
SCOPE = "demo.campaign"

_SCRIPTS = Path(__file__).parent / "transformations"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoJob:
    """A job of the campaign.

    Attributes:
        name: its jobName.
        command: the transformation: a script of ours, or text for bash.
        parameters: jobPars.
        inputs, outputs: LFNs.
        expected: the pilot error code it must end with, 0 for a good one.
        spoilt: True if its catalogue has a wrong checksum for the input.
    """

    name: str
    command: str
    parameters: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    expected: int = 0
    spoilt: bool = False


CAMPAIGN = (
    DemoJob(
        name="word-count",
        command="wordcount.py",
        parameters="novel.txt words.tsv",
        inputs=("novel.txt",),
        outputs=("words.tsv",),
    ),
    DemoJob(
        name="sort",
        command="bash",
        parameters="-c 'sort -n energies.txt | tee sorted.txt | tail -n 3'",
        inputs=("energies.txt",),
        outputs=("sorted.txt",),
    ),
    DemoJob(name="mandelbrot", command="mandelbrot.py", parameters="mandelbrot.pgm 320", outputs=("mandelbrot.pgm",)),
    DemoJob(name="pi", command="pi.sh", parameters="pi.json 2000000", outputs=("pi.json",)),
    DemoJob(
        name="join",
        command="join",
        parameters="-t, <(sort runs.csv) <(sort shifts.csv) > joined.csv; wc -l joined.csv",
        inputs=("runs.csv", "shifts.csv"),
        outputs=("joined.csv",),
    ),
    DemoJob(
        name="compress",
        command="gzip",
        parameters="-9 -c novel.txt > novel.txt.gz && gzip -l novel.txt.gz",
        inputs=("novel.txt",),
        outputs=("novel.txt.gz",),
    ),
    DemoJob(
        name="split",
        command="split",
        parameters="-n l/2 --additional-suffix=.part energies.txt && wc -l *.part",
        inputs=("energies.txt",),
        outputs=("xaa.part", "xab.part"),
    ),
    DemoJob(
        name="user-error",
        command="analyse.py",
        parameters="energies.txt result.txt",
        inputs=("energies.txt",),
        outputs=("result.txt",),
        expected=int(Code.PAYLOADEXECUTIONFAILURE),
    ),
    DemoJob(
        name="bad-input",
        command="wordcount.py",
        parameters="spoilt.txt words.tsv",
        inputs=("spoilt.txt",),
        outputs=("words.tsv",),
        expected=int(Code.GETADMISMATCH),
        spoilt=True,
    ),
)


class Campaign:
    """The campaign in a directory: `storage/` is the RSE, `files/` is what the server hands out.

    Args:
        top: an empty or missing directory.
        files_url: where the server serves `files/`.
    """

    def __init__(self, top: Path, files_url: str) -> None:
        self.storage = top / "storage"
        self.files = top / "files"
        self._files_url = files_url

    @property
    def queuedata_url(self) -> str:
        """The queue's JSON, from the server."""
        return f"{self._files_url}/queuedata.json"

    @property
    def storagedata_url(self) -> str:
        """The storages' JSON, from the server."""
        return f"{self._files_url}/storagedata.json"

    def prepare(self) -> None:
        """Write inputs into the storage; queue, storage and scripts for the server."""
        self.files.mkdir(parents=True, exist_ok=True)
        for script in _SCRIPTS.iterdir():
            if script.is_file():
                shutil.copyfile(script, self.files / script.name)  # not its mode: the pilot may be read-only
        (self.files / "queuedata.json").write_text(json.dumps({QUEUE: queue_record()}, indent=1))
        storages = {ENDPOINT: storage_record(self.storage)}
        (self.files / "storagedata.json").write_text(json.dumps(storages, indent=1))
        for lfn, lines in inputs():
            path = self.stored(lfn)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w") as file:
                file.writelines(lines)

    def stored(self, lfn: str) -> Path:
        """Where a file lies in the storage: Rucio's deterministic layout."""
        return self.storage / hash_path(SCOPE, lfn)

    def definitions(self) -> list[dict[str, Any]]:
        """The jobs as a PanDA server gives them."""
        return [self._definition(job) for job in CAMPAIGN]

    def _definition(self, job: DemoJob) -> dict[str, Any]:
        outputs = [*job.outputs, f"{job.name}.log.tgz"]
        script = (self.files / job.command).is_file()
        return {
            "jobName": job.name,
            "prodSourceLabel": "managed",
            "transformation": f"{self._files_url}/{job.command}" if script else job.command,
            "jobPars": job.parameters,
            "attemptNr": 1,
            "coreCount": 1,
            "maxWalltime": 600,
            "prodUserID": "Demo User",
            **self._input_fields(job),
            "outFiles": ",".join(outputs),
            "realDatasets": ",".join(["demo.out"] * len(outputs)),
            "ddmEndPointOut": ",".join([ENDPOINT] * len(outputs)),
            "scopeOut": ",".join([SCOPE] * len(job.outputs)),
            "scopeLog": SCOPE,
            "logFile": outputs[-1],
            "logGUID": str(uuid.uuid4()),
        }

    def _input_fields(self, job: DemoJob) -> dict[str, str]:
        paths = [self.stored(lfn) for lfn in job.inputs]
        sums = [file_checksums(path, ["adler32"])["adler32"] for path in paths]
        count = len(job.inputs)
        return {
            "inFiles": ",".join(job.inputs),
            "fsize": ",".join(str(path.stat().st_size) for path in paths),
            "checksum": ",".join(f"ad:{_spoilt(value) if job.spoilt else value}" for value in sums),
            "GUID": ",".join(str(uuid.uuid4()) for _ in paths),
            "scopeIn": ",".join([SCOPE] * count),
            "ddmEndPointIn": ",".join([ENDPOINT] * count),
            "realDatasetsIn": ",".join(["demo.in"] * count),
            "prodDBlockToken": ",".join(["NULL"] * count),
        }


def _spoilt(checksum: str) -> str:
    """Another checksum of the same form."""
    return f"{int(checksum, 16) ^ 0x1000:08x}"


def inputs() -> Iterator[tuple[str, Sequence[str]]]:
    """LFNs and lines of the campaign's inputs, always the same."""
    dice = random.Random(1612)
    syllables = ["ka", "lo", "mi", "ran", "te", "vo", "shi", "qua", "ren", "du"]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(4000)]
    yield "novel.txt", [" ".join(dice.choices(words, k=12)) + ".\n" for _ in range(30_000)]
    yield "spoilt.txt", [" ".join(dice.choices(words, k=12)) + ".\n" for _ in range(1000)]
    yield "energies.txt", [f"{dice.expovariate(0.02):.6f}\n" for _ in range(100_000)]
    yield "runs.csv", [f"{number:05d},{dice.randint(1, 10**6)}\n" for number in range(2000)]
    yield "shifts.csv", [f"{number:05d},shifter-{dice.randint(1, 40)}\n" for number in range(0, 2000, 2)]


def queue_record() -> dict[str, Any]:
    """The queue, in CRIC's words."""
    activities = ("read_lan", "write_lan", "pl", "pr", "pw")
    return {
        "nickname": QUEUE,
        "panda_resource": QUEUE,
        "state": "ACTIVE",
        "status": "online",
        "type": "unified",
        "resource_type": "local",
        "catchall": "mv_final_destination",
        "container_type": "",
        "copytools": {"mv": {"setup": ""}},
        "acopytools": {activity: ["mv"] for activity in activities},
        "astorages": {activity: [ENDPOINT] for activity in activities},
        "corecount": 1,
        "maxwdir": 2000,
        "maxrss": 2000,
        "maxinputsize": 1000,
        "timefloor": 60,
        "maxtime": 0,
    }


def storage_record(top: Path) -> dict[str, Any]:
    """The RSE, in CRIC's words: a directory of this machine."""
    protocol = {"endpoint": "file://localhost", "path": str(top), "flavour": "POSIX", "id": 1}
    activities = ("read_lan", "write_lan", "pl", "pr", "pw")
    return {
        "name": ENDPOINT,
        "type": "DATADISK",
        "state": "ACTIVE",
        "is_deterministic": True,
        "arprotocols": {activity: [protocol] for activity in activities},
    }
