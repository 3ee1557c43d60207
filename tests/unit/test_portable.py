"""Values that go to another process of ours, and come back as they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.job import File, Job, Kind, Utility
from pilot.portable import Decoder, encoded
from pilot.queuedata import Queue, QueueInfo
from pilot.settings import TABLE, Settings
from pilot.staging.result import Attempt, FailedFile, StagedFile, StagingResult


def there_and_back(kind: type, value: object) -> Any:
    return Decoder().decode(kind, json.loads(json.dumps(encoded(value))))


FILE = File(lfn="a \udcff", kind=Kind.INPUT, checksums={"adler32": "00000001"}, size=3)


def test_a_job_its_queue_and_its_settings_are_the_same_again() -> None:
    job = Job(job_id=3, inputs=(FILE,), preprocess=Utility(command="x"), write_to_file={"a": ("b", "c")})
    assert there_and_back(Job, job) == job
    record = {"nickname": "Q", "acopytools": {"pr": ["mv"]}, "container_type": "bash:middleware", "maxinputsize": 2}
    info = QueueInfo(queue=Queue.from_record(record, "Q"), record=record, storage_records={"X": {"id": [1, None]}})
    assert there_and_back(QueueInfo, info) == info
    settings = Settings(queue="Q", input_dir="/in", heartbeat=2.5)
    again = there_and_back(Settings, dataclasses.replace(settings, origins={}, notes=()))
    assert {name: getattr(again, name) for name in TABLE} == {name: getattr(settings, name) for name in TABLE}


def test_an_error_that_several_files_share_is_one_object_again() -> None:
    error = TransferError(Code.STAGEINFAILED, "why", Trait.NEXT)
    tried = Attempt(tool="mv", url="u", error=error, seconds=1.5)
    staged = StagedFile(
        file=FILE, path=Path("/x"), url="u", size=3, checksums={}, tool="mv", seconds=0.5, attempts=(tried,)
    )
    lost = FailedFile(file=FILE, error=PilotError(Code.NOREPLICAS, "none"))
    result = there_and_back(StagingResult, StagingResult(staged=(staged,), failed=(lost, lost)))
    assert (result.staged[0].file, result.staged[0].path) == (FILE, Path("/x"))
    assert result.staged[0].attempts[0].error.trait is Trait.NEXT
    assert result.failed[0].error is result.failed[1].error
    assert (type(result.error), result.error.code, result.error.detail) == (PilotError, Code.NOREPLICAS, "none")
