"""The grace that the node gives, and how it is divided."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pilot.classad import ClassAd
from pilot.grace import REPORT_LEAST, Ledger, node_grace
from pilot.settings import Settings


def ads(folder: Path, job: str = "", machine: str = "") -> dict[str, str]:
    (folder / ".job.ad").write_text(job)
    (folder / ".machine.ad").write_text(machine)
    return {"_CONDOR_JOB_AD": str(folder / ".job.ad"), "_CONDOR_MACHINE_AD": str(folder / ".machine.ad")}


def test_without_a_word_from_the_node_the_setting_counts() -> None:
    assert node_grace({}) is None
    assert node_grace({"TERMINATION_GRACE_PERIOD_SECONDS": "soon"}) is None


def test_a_pod_gives_five_sixths_of_its_grace() -> None:
    assert node_grace({"TERMINATION_GRACE_PERIOD_SECONDS": "90"}) == (75, "TERMINATION_GRACE_PERIOD_SECONDS is 90 s")


@pytest.mark.parametrize(
    ("job", "machine", "seconds", "who"),
    [
        ("", "MachineMaxVacateTime = 10 * 6\n", 50, "MachineMaxVacateTime"),
        ("JobMaxVacateTime = 12\n", "MachineMaxVacateTime = 60\n", 10, "JobMaxVacateTime"),
        ("killsigtimeout = 6\nJobMaxVacateTime = 12\n", "", 5, "KillSigTimeout"),
        ("", "MachineMaxVacateTime = 6000\n", 300, "MachineMaxVacateTime"),
        ("JobMaxVacateTime = 0\n", "MachineMaxVacateTime = 1\n", 1, "MachineMaxVacateTime"),
    ],
)
def test_of_htcondors_times_the_shortest_counts(
    tmp_path: Path, job: str, machine: str, seconds: float, who: str
) -> None:
    found = node_grace(ads(tmp_path, job, machine))
    assert found is not None
    assert found[0] == pytest.approx(seconds)
    assert who in found[1]


def test_an_expression_says_nothing(tmp_path: Path) -> None:
    assert node_grace(ads(tmp_path, machine="MachineMaxVacateTime = ifThenElse(Draining, 60, 600)\n")) is None


def test_slurms_kill_wait_is_read_from_its_file(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=c\n# KillWait=1\nKillWait=60\n")
    assert node_grace({"SLURM_JOB_ID": "1", "SLURM_CONF": str(conf)}) == (50, "KillWait of Slurm is 60 s")
    conf.write_text("ClusterName=c\n")
    assert node_grace({"SLURM_JOB_ID": "1", "SLURM_CONF": str(conf)}) == (25, "KillWait of Slurm is 30 s")


def test_who_chose_a_grace_is_not_overruled_by_the_node() -> None:
    chosen = Settings.load(["-q", "Q", "--pilot-user", "generic", "--grace", "7"], {}).with_node("grace", 50.0, "pod")
    assert (chosen.grace, chosen.explained("grace").source) == (7, "flag --grace")
    default = Settings().with_node("grace", 50.0, "the pod")
    assert (default.grace, default.explained("grace").source) == (50, "the pod")
    assert default.with_queue({"pilot_grace": 9}).grace == 9


def test_shares_of_the_usual_grace_sum_up_to_it() -> None:
    ledger = Ledger(25.0)
    rest = ledger.after_payload()
    assert (ledger.payload, rest.left) == (15, 10)
    assert rest.ship < rest.log == 6
    assert ledger.payload + rest.log + (rest.left - rest.log) == 25
    assert str(ledger) == "25.0 s: payload 15.0 s (KILL after 10.0 s), log 6.0 s (last lines 2.0 s), final report 4.0 s"


def test_the_report_has_a_second_even_when_there_is_none_left() -> None:
    assert Ledger(0.0).report == REPORT_LEAST == Ledger(0.0).removal
    assert Ledger(math.inf).report is None is Ledger(math.inf).removal
    assert "slot goes on" in str(Ledger(math.inf))


def test_a_class_ad_has_texts_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "ad"
    path.write_text('Name = "a \\"b\\""\nCpus=4\nRank = 0.5\nStart = true\nLong = "1"\n')
    ad = ClassAd.read(str(path))
    assert (ad.text("NAME"), ad.number("cpus"), ad.number("rank")) == ('a "b"', 4, 0.5)
    assert (ad.number("start"), ad.number("long"), ad.text("cpus"), ad.number("none")) == (None, None, "", None)
    assert ClassAd.read(str(tmp_path / "none")).text("Name") == ""
