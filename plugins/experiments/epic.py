"""ePIC: the experiment at the Electron-Ion Collider, as newer Pilot 3 names it; it does what `eic` does."""

from __future__ import annotations

from plugins.experiments.eic import Eic


class Epic(Eic):
    """The ePIC experiment at the Electron-Ion Collider."""

    name = "epic"
