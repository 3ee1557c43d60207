"""No container: the script of the job directory runs on the node itself, as a queue for tests may want it."""

from __future__ import annotations

from collections.abc import Sequence

from pilot.payload.container import SCRIPT, Container


class NoContainer(Container):
    """The node itself, whatever image a job names."""

    name = "none"

    async def command(self) -> Sequence[str]:
        """The script, with the payload's own variables."""
        self.write_script()
        self.environment = dict(self.order.environment)
        return ["/bin/bash", f"./{SCRIPT}"]
