"""SKA: as `generic`, with its transformations at DOMA."""

from __future__ import annotations

from plugins.experiments import DOMA_URLS
from plugins.experiments.generic import Generic


class Ska(Generic):
    """Square Kilometre Array Observatory."""

    name = "ska"
    base_urls = DOMA_URLS
