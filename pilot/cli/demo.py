"""`pilot demo`: a small campaign of real jobs on this machine, with an embedded server, end to end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilot.outcome import Outcome

_PHASES = ("stagein", "setup", "payload", "stageout", "log", "total")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="run a small campaign of jobs on this machine",
        description="Start the embedded server, submit a few real jobs, run a pilot over them, and show what became "
        "of each. Two jobs fail on purpose. Exit code 0 if every job ended as it should.",
    )
    parser.add_argument("--dir", type=Path, default=Path("demo-run"), help="where to work; made anew (demo-run)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the campaign and print its table."""
    import os
    import shutil

    from pilot.cli.terminal import Terminal
    from pilot.demo.campaign import QUEUE, Campaign
    from pilot.devserver.client import DevServer
    from pilot.pilotrun import PilotRun
    from pilot.settings import Settings

    top = args.dir.absolute()
    shutil.rmtree(top, ignore_errors=True)
    (top / "files").mkdir(parents=True)
    with DevServer(files=top / "files", adder_delay=0) as server:
        campaign = Campaign(top, f"{server.url}/cache")
        campaign.prepare()
        ids = server.submit(campaign.definitions())
        print(f"server {server.url}, {len(ids)} jobs, working in {top}", file=sys.stderr)
        settings = Settings(
            queue=QUEUE,
            url=server.url,
            port=0,
            job_label="managed",
            queuedata_url=campaign.queuedata_url,
            storagedata_url=campaign.storagedata_url,
            workdir=str(top),
            getjob_requests=1,
        )
        terminal = Terminal(sys.stderr)
        pilot = PilotRun(settings, os.environ, progress=terminal, console=False)
        exit_code = pilot.run(terminal.tick)
        if exit_code and len(terminal.outcomes) < len(
            ids
        ):  # stopped, or it could not begin: the other jobs stay waiting
            print(f"the pilot ended after {len(terminal.outcomes)} of {len(ids)} jobs: {pilot.reason}", file=sys.stderr)
            return exit_code
        states = server.wait(ids, timeout=10)
    return _judge(terminal.outcomes, states, exit_code)


def _judge(outcomes: Sequence[Outcome], states: Mapping[int, str], exit_code: int) -> int:
    """Print the table; 0 if the pilot and every job ended as they should."""
    from pilot.demo.campaign import CAMPAIGN

    expected = {job.name: job.expected for job in CAMPAIGN}
    as_expected = {
        outcome.job.job_id: outcome.code == expected[outcome.job.name]
        and states[outcome.job.job_id] == ("failed" if outcome.code else "finished")
        for outcome in outcomes
    }
    for line in table(outcomes, states, as_expected):
        print(line)
    right = sum(as_expected.values())
    print(f"\n{right} of {len(CAMPAIGN)} jobs ended as they should; the pilot's exit code is {exit_code}")
    return 0 if right == len(CAMPAIGN) and exit_code == 0 else 1


def table(outcomes: Iterable[Outcome], states: Mapping[int, str], as_expected: Mapping[int, bool]) -> Iterable[str]:
    """One row a job, then where its files are."""
    from pilot.cli.terminal import size

    yield (
        f"\n{'job':>4} {'name':<12} {'state':<9} {'code':>5} " + "".join(f"{p:>9}" for p in _PHASES) + f"{'bytes':>10}"
    )
    for outcome in outcomes:
        job = outcome.job
        times = "".join(_seconds(outcome.timings.get(phase)) for phase in _PHASES)
        moved = size(sum(done.size for done in outcome.files))
        mark = "" if as_expected[job.job_id] else "   NOT AS EXPECTED"
        yield f"{job.job_id:>4} {job.name:<12} {states[job.job_id]:<9} {outcome.code:>5} {times}{moved:>10}{mark}"
        if outcome.error:
            yield f"{'':>17} {outcome.error.diag[:160]}"
        for done in outcome.stored():
            yield f"{'':>17} {done.file.kind.value:<6} {done.url}"


def _seconds(value: Any) -> str:
    return f"{value:>7.2f} s" if value is not None else f"{'-':>9}"
