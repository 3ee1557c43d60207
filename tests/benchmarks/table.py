"""The table of the benchmarks: what, target, ours, Pilot 3, ratio, and whether the target is reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.bench_logship import NETWORK_RATE, RATES, SINKS
from tests.benchmarks.measures import Plan, Samples


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        key: of the samples. what: in words.
        limit: the target. most: True if values up to it are good, False if values from it on are.
        unit: of the values. form: how one is written.
        judged: False if the plan does not measure what the target is for.
    """

    key: str
    what: str
    limit: float
    most: bool = True
    unit: str = ""
    form: str = ".3g"
    judged: bool = True

    @property
    def target(self) -> str:
        """The target in words."""
        return f"{'<=' if self.most else '>='} {self.limit:g}{self.unit}"

    def show(self, values: Sequence[float]) -> str:
        """Median and spread."""
        if not values:
            return "-"
        if self.form == "of":
            return f"{sum(values):g} of {len(values)}"
        middle, low, high = (f"{value:{self.form}}" for value in (median(values), min(values), max(values)))
        spread = f" ({low} to {high})" if len(values) > 1 else ""
        return f"{middle}{self.unit}{spread}"

    def verdict(self, values: Sequence[float]) -> str:
        """Whether the median is at the target."""
        if not self.judged or not values:
            return "not judged"
        if self.form == "of":
            reached = min(values) >= self.limit
        else:
            reached = median(values) <= self.limit if self.most else median(values) >= self.limit
        return "ok" if reached else "NOT REACHED"

    def ratio(self, mine: Sequence[float], theirs: Sequence[float]) -> str:
        """How many times better we are, by the medians."""
        if not theirs or self.form == "of":
            return ""
        better, worse = (mine, theirs) if self.most else (theirs, mine)
        if not median(better):
            return ""
        times = median(worse) / median(better)
        return f"{times:.0f}" if times >= 10 else f"{times:.1f}"


def rows(plan: Plan) -> list[Row]:
    """All rows."""
    return [
        Row(key="own", what="own time of an empty job (1 input, 1 output, log)", limit=0.15, unit=" s"),
        Row(key="whole", what="whole pilot for one empty job, start to exit", limit=0.8, unit=" s"),
        Row(key="rate", what="empty jobs in one slot", limit=5, most=False, unit=" /s"),
        Row(
            key="cpu",
            what=f"CPU while a payload sleeps {plan.sleep:g} s",
            limit=0.1,
            unit=" %",
            form=".3f",
            judged=plan.sleep >= 60,  # in its first seconds a payload is looked at often
        ),
        Row(key="threads", what="threads while a payload sleeps", limit=3, form="g"),
        Row(key="peak_one", what="peak memory, one empty job", limit=40, unit=" MiB", form=".1f"),
        Row(key="peak_many", what="peak memory, a slot of empty jobs", limit=40, unit=" MiB", form=".1f"),
        Row(key="stop_sleep", what="SIGTERM to final report, payload obeys", limit=2, unit=" s"),
        Row(key="log_sleep", what="... and the log is in the storage", limit=1, most=False, form="of"),
        Row(key="stop_ignore", what="SIGTERM to final report, payload ignores it", limit=25, unit=" s"),
        Row(key="log_ignore", what="... and the log is in the storage", limit=1, most=False, form="of"),
        *_log_rows(),
    ]


def _log_rows() -> Iterator[Row]:
    """Live logs: 100 bytes a line."""
    yield Row(key="log_p99", what="live log: p99 from a line to its record, 100 lines/s", limit=1, unit=" s")
    yield Row(key="log_idle", what="live log: CPU with four quiet files", limit=0.05, unit=" %", form=".3f")
    for kind in SINKS:
        what = f"live log: CPU at {RATES.get(kind, NETWORK_RATE):,} lines/s to {kind}"
        yield Row(key=f"log_{kind}", what=what, limit=30, unit=" %", form=".0f")
    yield Row(key="log_memory", what="live log: memory beside the sink's library", limit=15, unit=" MiB", form=".1f")
    yield Row(key="log_behind", what="live log: last line behind at these rates", limit=1, unit=" s", form=".1f")
    yield Row(key="log_missing", what="live log: lines lost at these rates", limit=0, form="g")


def table(plan: Plan, mine: Samples, theirs: Samples, peer: str) -> Iterator[str]:
    """The lines of the table, as Markdown."""
    lines = [["what", "target", "this pilot", peer, "times better", ""], []]
    for row in rows(plan):
        here, there = mine.get(row.key, []), theirs.get(row.key, [])
        target = "all" if row.form == "of" else row.target
        lines.append([row.what, target, row.show(here), row.show(there), row.ratio(here, there), row.verdict(here)])
    widths = [max(len(line[column]) for line in lines if line) for column in range(6)]
    for line in lines:
        cells = line or ["-" * width for width in widths]
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
