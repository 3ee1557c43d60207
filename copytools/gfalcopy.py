"""Copy tool `gfalcopy`: the name that some queues have for `gfal`."""

from __future__ import annotations

from copytools.gfal import Gfal


class GfalCopy(Gfal):
    """Files by the gfal2 programs, under the name that some queues have for `gfal`."""

    name = "gfalcopy"
