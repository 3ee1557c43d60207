"""DarkSide: as `generic`, with its transformations at any of three PanDA servers at CERN."""

from __future__ import annotations

from plugins.experiments.generic import Generic


class DarkSide(Generic):
    """Dark matter search at Gran Sasso."""

    name = "darkside"
    # In Pilot 3 the last two run together into one host that does not exist (PILOT3 10.5, 44).
    base_urls = (
        "https://pandaserver.cern.ch/trf/user",
        "https://pandaserver-doma.cern.ch/trf/user",
        "https://pandaserver-tb.cern.ch/trf/user",
    )
