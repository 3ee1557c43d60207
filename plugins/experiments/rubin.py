"""Rubin: a pilot that was pushed runs one job, the URL of the batch log names the job, payloads start containers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from pilot.job import Job
from pilot.queuedata import Queue
from plugins.experiments import DOMA_URLS
from plugins.experiments.generic import Generic

#: CPUs to look at for a mean clock rate: on a large node reading all of /proc/cpuinfo takes 20 ms.
_CPUS = 8


class Rubin(Generic):
    """Vera C. Rubin Observatory."""

    name = "rubin"
    base_urls = (*DOMA_URLS, "https://pandaserver.cern.ch/trf/user")
    # Rubin's wrapper leaves the JSON of its storages where the pilot keeps its own copies (PILOT3 4.1, 9.2).
    storages_prefer_cache = True

    #: The kernel's text about its CPUs.
    cpuinfo = Path("/proc/cpuinfo")

    def uses_time_floor(self, submit_mode: str) -> bool:
        """A pilot that was pushed to a worker ends with its job."""
        return submit_mode.upper() != "PUSH"

    def needs_container(self, job: Job, queue: Queue) -> bool:
        """Never: the payload starts what containers it wants."""
        return False

    def metrics(self, job: Job, measured: Mapping[str, str]) -> Mapping[str, str]:
        """The clock rate comes first, in MHz."""
        rates = list(islice(self._clock_rates(), _CPUS))
        clock = {"cpuFrequency": str(int(sum(rates) / len(rates)))} if rates else {}
        return {**clock, **measured}

    def _clock_rates(self) -> Iterator[float]:
        try:
            with self.cpuinfo.open() as lines:
                for line in lines:
                    if found := re.match(r"cpu MHz\s*:\s*([\d.]+)", line):
                        yield float(found[1])
        except (OSError, ValueError):  # not x86
            return

    def pilot_id(self, gtag: str, job_id: int) -> str:
        """`PandaJob_N` in the URL of the batch log names this job: one pilot runs several."""
        return re.sub(r"PandaJob_\d+", f"PandaJob_{job_id}", super().pilot_id(gtag, job_id))
