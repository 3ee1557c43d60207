"""Look for the file by which a manager on the node (Raythena) has a payload ended."""

from __future__ import annotations

from pathlib import Path

from pilot.errors import Code, PilotError

#: As Pilot 3 has it (`kill_instruction_filename`, PILOT3 1.4).
KILL_FILE = "pilot_kill_payload"

#: Pilot 3 looked once a minute; to ask for two files costs 5 us.
_PERIOD = 5.0


class KillFile:
    """KILLPAYLOAD (1363) once there is a file `pilot_kill_payload` in one of `folders`."""

    slow = False

    def __init__(self, *folders: Path) -> None:
        self._files = [folder / KILL_FILE for folder in folders]

    def look(self) -> float:
        """Every 5 s."""
        for path in self._files:
            if path.exists():
                raise PilotError(Code.KILLPAYLOAD, f"{path} is there")
        return _PERIOD
