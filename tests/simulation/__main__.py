"""`python -m simulation`: runs many seeds, or one of them again, and says what was reached."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator

from simulation.disk import Fate
from simulation.plan import Plan, plan_of, plan_of_statement
from simulation.run import Outcome, explain, run


def _plans(args: argparse.Namespace) -> Iterator[Plan]:
    if args.faults is not None:
        faults = [int(number) for number in args.faults.split(",") if number]
        yield plan_of(args.first, args.seconds).only(faults)
        return
    if args.statements:
        for number in range(1, args.statements + 1):
            for fate in Fate:
                yield plan_of_statement(number, fate)
    for seed in range(args.first, args.first + args.seeds):
        yield plan_of(seed, args.seconds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--seconds", type=float, default=40.0, help="virtual seconds of faults")
    parser.add_argument("--faults", help="only these faults of the first seed, as in 0,3,7")
    parser.add_argument("--statements", type=int, default=0, help="fail each of so many statements")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so long")
    return parser.parse_args()


class Totals:
    """What the runs so far have done."""

    def __init__(self) -> None:
        """Begin to count."""
        self._began = time.monotonic()
        self._told = 0.0
        self._reached = Counter[str]()
        self._runs = 0
        self._seconds = 0.0
        self._events = 0
        self.broken = 0

    @property
    def minutes(self) -> float:
        """How long it has taken."""
        return (time.monotonic() - self._began) / 60

    def add(self, outcome: Outcome) -> None:
        """Count a run, print what it broke, and once a minute how far this is."""
        self._runs += 1
        self._seconds += outcome.seconds
        self._events += outcome.revision
        self._reached.update(outcome.reached)
        if outcome.problem is not None:
            self.broken += 1
            print(explain(outcome), flush=True)
        if self.minutes >= self._told + 1:
            self._told = self.minutes
            print(self, flush=True)

    def print_reached(self) -> None:
        """Print how often each rare state was reached."""
        for name, times in sorted(self._reached.items()):
            print(f"{times:9,d}  {name}")

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self._runs:,d} runs, {self._seconds / 3600:.1f} virtual hours,"
            f" {self._reached['requests']:,d} requests, {self._events:,d} events"
            f" in {self.minutes * 60:.0f} s: {self.broken} broken"
        )


def main() -> int:
    """Run what the arguments say; return 1 when a promise was broken."""
    args = _parse()
    totals = Totals()
    with contextlib.suppress(KeyboardInterrupt):
        for plan in _plans(args):
            if totals.minutes > args.minutes:
                break
            totals.add(run(plan))
    totals.print_reached()
    print(totals)
    return 1 if totals.broken else 0


if __name__ == "__main__":
    sys.exit(main())
