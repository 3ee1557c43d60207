"""The seconds between a stop signal and SIGKILL: how many the node gives, and how they are divided.

Who sends the signal decides when the KILL follows, so the node is asked: a pod's grace, HTCondor's vacate times, the
KillWait of Slurm. Of what it gives five sixths are used (25 of the usual 30 s): the signal came late, and we end early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pilot.classad import ClassAd
from pilot.slurm import slurm_setting

#: Share of the node's grace that is used.
_USED = 5 / 6
#: Longest grace that is taken from a node, s: HTCondor's default is 600, and a payload that does not listen shall not
#: hold a slot for that long.
_LONGEST = 300.0
#: Shortest, s: below this nothing can be reported.
_SHORTEST = 1.0

#: Set by the pod manifest to its `terminationGracePeriodSeconds`, which the downward API does not tell.
POD_GRACE = "TERMINATION_GRACE_PERIOD_SECONDS"

#: Slurm's own default of KillWait, s (slurm.conf(5)).
_KILL_WAIT = 30.0

#: Share of the time left after a stop that the payload may take to end, KILL included, and the part of it before KILL.
PAYLOAD_SHARE, TERM_SHARE = 0.6, 2 / 3
#: Longest time for the last lines of a live log, s, and their share of what is left; and for a sink that takes none.
SHIP_TIME, SHIP_SHARE, SHIP_PATIENCE = 30.0, 0.2, 3.0
#: Longest wait for an update on its way before the final one is sent, s, and its share.
SETTLE, SETTLE_SHARE = 2.0, 0.1
#: Seconds kept back for the final report when the log is made and uploaded, and the share of what is left that this may
#: be at most.
REPORT_RESERVE, REPORT_SHARE = 4.0, 0.5
#: Seconds that the final report gets even when there is no time left: a server that is well answers in milliseconds.
REPORT_LEAST = 1.0


def node_grace(environ: Mapping[str, str]) -> tuple[float, str] | None:
    """Seconds that the pilot may take to end on this node, and who says so in words; None if nobody says anything.

    Args:
        environ: of the pilot; tells the batch system.
    """
    for told, origin in ((_pod(environ), POD_GRACE), _condor(environ), (_slurm(environ), "KillWait of Slurm")):
        if told:
            return min(max(told * _USED, _SHORTEST), _LONGEST), f"{origin} is {told:g} s"
    return None


def _pod(environ: Mapping[str, str]) -> float | None:
    text = environ.get(POD_GRACE, "").strip()
    return float(text) if text.isascii() and text.isdecimal() else None


def _condor(environ: Mapping[str, str]) -> tuple[float | None, str]:
    """The shortest of what the machine gives and the job asked for: each can be the one that kills."""
    job, machine = ClassAd.of_job(environ), ClassAd.of_machine(environ)
    told = {
        "MachineMaxVacateTime": machine.number("MachineMaxVacateTime"),
        "JobMaxVacateTime": job.number("JobMaxVacateTime"),
        "KillSigTimeout": job.number("KillSigTimeout"),
    }
    known = {name: seconds for name, seconds in told.items() if seconds}
    name = min(known, key=known.__getitem__, default="")
    return known.get(name), f"{name} of HTCondor"


def _slurm(environ: Mapping[str, str]) -> float | None:
    if not environ.get("SLURM_JOB_ID"):
        return None
    text = slurm_setting(environ, "KillWait")
    return float(text) if text.isascii() and text.isdecimal() else _KILL_WAIT


@dataclass(frozen=True, slots=True)
class Ledger:
    """How the seconds that are left after a stop are divided. Each step takes its share of what the one before left.

    Attributes:
        left: seconds, infinite if nothing hurries.
    """

    left: float

    @property
    def payload(self) -> float:
        """For the payload to end, KILL included."""
        return self.left * PAYLOAD_SHARE

    @property
    def ship(self) -> float:
        """For the last lines of a live log."""
        return min(SHIP_TIME, self.left * SHIP_SHARE)

    @property
    def settle(self) -> float:
        """For an update that is on its way."""
        return min(SETTLE, self.left * SETTLE_SHARE)

    @property
    def log(self) -> float:
        """For the log to be packed and uploaded: all but a reserve for the report."""
        return self.left - min(REPORT_RESERVE, self.left * REPORT_SHARE)

    @property
    def report(self) -> float | None:
        """For the final report: what is left, and a second if nothing is; None if nothing hurries."""
        return None if math.isinf(self.left) else max(self.left, REPORT_LEAST)

    @property
    def removal(self) -> float | None:
        """To remove the job directory, so that the farewell to the server has the rest; None if nothing hurries."""
        return None if math.isinf(self.left) else max(self.log, REPORT_LEAST)

    def after_payload(self) -> Ledger:
        """What is left if the payload takes all of its share."""
        return Ledger(self.left - self.payload)

    def __str__(self) -> str:
        """One line for the log, with each step taking all that it may."""
        if math.isinf(self.left):
            return "only the payload is in a hurry: the slot goes on"
        rest = self.after_payload()
        return (
            f"{self.left:.1f} s: payload {self.payload:.1f} s (KILL after {self.payload * TERM_SHARE:.1f} s), "
            f"log {rest.log:.1f} s (last lines {rest.ship:.1f} s), final report {rest.left - rest.log:.1f} s"
        )
