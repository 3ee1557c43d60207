r"""sPHENIX: outputs go straight to their storage; given by pattern (`regex|DST_.*\.root`, `pilot.patterns`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pilot.job import Job
from pilot.queuedata import Queue
from plugins.experiments import DOMA_URLS
from plugins.experiments.generic import Generic


class Sphenix(Generic):
    """sPHENIX at RHIC."""

    name = "sphenix"
    base_urls = DOMA_URLS
    mv_to_final_destination = True
    #: Where Pilot 3 sends its live logs, if one asks for them; there it did not verify TLS.
    settings: ClassVar[Mapping[str, Any]] = {"rtlogging": "logstash;https://splogstash.sdcc.bnl.gov:8080"}

    def needs_container(self, job: Job, queue: Queue) -> bool:
        """Never: the payload starts what containers it wants."""
        return False
