"""EIC: as `generic`, and the payload is told the platform that the node was set up for."""

from __future__ import annotations

from pilot.job import Job
from plugins.experiments import DOMA_URLS
from plugins.experiments.generic import Generic


class Eic(Generic):
    """Electron-Ion Collider."""

    name = "eic"
    base_urls = DOMA_URLS

    def command(self, job: Job, transformation: str) -> str:
        """`ALRB_USER_PLATFORM` of the node, where it is set, becomes the last argument (PILOT3 5.1, 8.2).

        Text of several lines stays as it is: its end may be that of a here-document.
        """
        text = super().command(job, transformation)
        return text if "\n" in text else f'{text} ${{ALRB_USER_PLATFORM:+"$ALRB_USER_PLATFORM"}}'
