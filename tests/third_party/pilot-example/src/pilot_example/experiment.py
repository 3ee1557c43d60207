"""Experiment `example`: what this collaboration does differently from `generic`, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from pilot.errors import Code
from pilot.errors import JobDefinitionError as Refused
from pilot.job import Job
from plugins.experiments.generic import Generic


class Example(Generic):
    """A small collaboration with a storage layout and a rule of its own."""

    name = "example"
    mv_to_final_destination = True
    redundant_files = ("*.tmp",)

    def storage_path(self, scope: str, lfn: str) -> str:
        """Files lie by scope and first letter, not by hash."""
        return f"{scope}/{lfn[0]}/{lfn}"

    def environment(self, job: Job) -> Mapping[str, str]:
        """The payload finds its task by a variable."""
        return {"EXAMPLE_TASK": str(job.task_id or 0)}

    def verify(self, job: Job) -> None:
        """Our jobs come with a scope for each output."""
        for file in job.outputs:
            if not file.scope:
                raise Refused("scopeOut", f"none for {file.lfn}", Code.NOTDEFINED)

    def metrics(self, job: Job, measured: Mapping[str, str]) -> Mapping[str, str]:
        """One metric of our own, before the others."""
        return {"example": str(len(job.inputs)), **measured}
