"""How long are ssh tunnels missing when things break? `make bench-ssh`.

Real sshd behind a real HAProxy, on loopback: the faults of tests/helpers/ssh_faults.py in a row,
for trackd and for what people use without it. The figures are seconds of real time: a busy machine
makes them larger. It takes about 15 minutes, and each fault at most 20 s more than it lasts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from helpers.ssh_faults import FAULTS
from helpers.ssh_site import ASYNCSSH, AUTOSSH, KEEP, LOOPS, POOL, Keeper, Site
from laboratory import NEEDED
from trackd_client import Tracker

KEEPERS: Final = (KEEP, ASYNCSSH, POOL, *LOOPS, AUTOSSH)
#: Seconds after the end of a fault in which coverage may come back.
LONGEST: Final = 20.0
#: Seconds for which coverage must be full before it counts.
STEADY: Final = 3.0


class Outcome(NamedTuple):
    """What a fault did.

    Attributes:
        fault: its title.
        back: seconds from its end until each bastion had a tunnel; None: not in time.
        below: seconds without full coverage, during the fault and until the next one.
        dials: how often ssh was started, or asyncssh dialled.
        surplus: seconds of tunnels beside the first one of a bastion.
        complaints: what was not as it should be in the end; only trackd is asked.
    """

    fault: str
    back: float | None
    below: float
    dials: int
    surplus: float
    complaints: list[str]


class Result(NamedTuple):
    """What all faults did to a way to keep tunnels.

    Attributes:
        keeper: its title.
        outcomes: one for each fault.
        covered: how many bastions had a tunnel in the end.
        bastions: how many there were then.
    """

    keeper: str
    outcomes: list[Outcome]
    covered: int
    bastions: int


def measure(keeper: Keeper, bastions: int, scale: float) -> Result:
    """Let all faults happen to a keeper of tunnels, one after the other."""
    with (
        tempfile.TemporaryDirectory(prefix="trackd-") as place,
        Site(Path(place), keeper, bastions, scale=scale, patience=2.0) as site,
    ):
        outcomes = []
        for fault in FAULTS:
            below, dials, surplus = site.monitor.below, count_dials(site), site.monitor.surplus
            fault.happen(site)
            ended = time.monotonic()
            back = await_coverage(site, ended)
            outcome = Outcome(
                fault.title,
                back,
                site.monitor.below - below,
                count_dials(site) - dials,
                site.monitor.surplus - surplus,
                await_health(site, ended) if keeper.uses_trackd else [],
            )
            outcomes.append(outcome)
            text = "never" if back is None else f"{back:.1f} s"
            say(f"{keeper.title}: {fault.title}: {text}, {'; '.join(outcome.complaints)}")
        seen = site.monitor.last.tunnels
        covered = sum(1 for name in site.wanted if seen.get(name))
        return Result(keeper.title, outcomes, covered, len(site.wanted))


def await_coverage(site: Site, ended: float) -> float | None:
    """Return the seconds from the end of a fault until coverage was full for good, or None."""
    while time.monotonic() < ended + LONGEST + STEADY:
        since = site.monitor.full_since
        if since is not None and site.monitor.last.at - max(since, ended) >= STEADY:
            return max(0.0, since - ended)
        time.sleep(0.05)
    return None


def await_health(site: Site, ended: float) -> list[str]:
    """Wait until all is well, and return what is not."""
    while complaints := site.list_complaints():
        if time.monotonic() > ended + LONGEST + STEADY:
            return complaints
        time.sleep(0.5)
    return []


def count_dials(site: Site) -> int:
    """Return how often somebody has dialled; for asyncssh, the leases that were granted."""
    if site.keeper.runs_ssh or site.daemon is None:
        return site.count_dials()
    with Tracker(site.daemon.endpoint) as tracker:
        return int(tracker.status()["last_lease"])


def say(text: str) -> None:
    """Print how far it is."""
    print(text, file=sys.stderr, flush=True)


def tables(results: Sequence[Result]) -> str:
    """Return the figures as two tables in Markdown."""
    titles = [each.keeper for each in results]
    rows = [["seconds to full coverage after", *titles]]
    for number, outcome in enumerate(results[0].outcomes):
        backs = [each.outcomes[number].back for each in results]
        rows.append([outcome.fault, *("never" if b is None else f"{b:.1f}" for b in backs)])
    more = [["all faults together", *titles]]
    for title, field in (
        ("seconds below target", "below"),
        ("dials", "dials"),
        ("surplus tunnel-seconds", "surplus"),
    ):
        sums = [sum(getattr(one, field) for one in each.outcomes) for each in results]
        more.append([title, *(f"{value:,.0f}" for value in sums)])
    more.append(
        ["bastions with a tunnel in the end", *(f"{e.covered} of {e.bastions}" for e in results)]
    )
    return f"{table(rows)}\n\n{table(more)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown; all columns but the first are for figures."""
    head, *others = ("| " + " | ".join(row) + " |" for row in rows)
    rule = "| --- |" + " ---: |" * (len(rows[0]) - 1)
    return "\n".join([head, rule, *others])


def plain(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the figures as JSON has them."""
    return [
        each._asdict() | {"outcomes": [one._asdict() for one in each.outcomes]} for each in results
    ]


def main() -> None:
    """Measure, and print tables.

    Raises:
        SystemExit: a program is missing, something failed, or trackd has not mended something.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="the ways to keep tunnels with this in their name"
    )
    parser.add_argument("--bastions", type=int, default=6, help="how many there are at first")
    parser.add_argument("--scale", type=float, default=1.0, help="how long faults last")
    parser.add_argument("--jobs", type=int, default=3, help="how many are measured at once")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    args = parser.parse_args()
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            sys.exit(f"there is no {program} (Debian's package {package})")
    keepers = [each for each in KEEPERS if args.only in each.title]
    if shutil.which("autossh") is None and AUTOSSH in keepers:
        say("autossh is left out: there is none (Debian's package autossh)")
        keepers.remove(AUTOSSH)
    if not keepers:
        parser.error(f"nothing has {args.only!r} in its name")
    began = time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(measure, each, args.bastions, args.scale) for each in keepers]
    results = [run.result() for run in runs if run.exception() is None]
    if results:
        print(tables(results))
    print(
        f"\n{args.bastions} bastions at first; {time.monotonic() - began:.0f} s in all;"
        f" {os.cpu_count()} processors, load {os.getloadavg()[2]:.1f}"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(plain(results)) + "\n")
    wrong = [
        f"{each.title}: {run.exception()!r}"
        for each, run in zip(keepers, runs, strict=True)
        if run.exception() is not None
    ]
    wrong += [
        f"{each.keeper}: {one.fault}: {complaint}"
        for each in results
        for one in each.outcomes
        for complaint in one.complaints
    ]
    if wrong:
        sys.exit("\n".join(["what went wrong:", *wrong]))


if __name__ == "__main__":
    main()
