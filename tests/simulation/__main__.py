"""`python -m simulation`: runs many seeds, or one of them again, and says what was reached."""

from __future__ import annotations

import argparse
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


def main() -> int:
    """Run what the arguments say; return 1 when a promise was broken."""
    args = _parse()
    began = time.monotonic()
    reached: Counter[str] = Counter()
    broken: list[Outcome] = []
    runs, virtual, handled, events = 0, 0.0, 0, 0
    for plan in _plans(args):
        if time.monotonic() - began > 60 * args.minutes:
            break
        outcome = run(plan)
        runs += 1
        virtual += outcome.seconds
        handled += outcome.reached["requests"]
        events += outcome.revision
        reached.update(outcome.reached)
        if outcome.problem is not None:
            broken.append(outcome)
            print(explain(outcome), flush=True)
    for name, times in sorted(reached.items()):
        print(f"{times:9,d}  {name}")
    print(
        f"{runs:,d} runs, {virtual / 3600:.1f} virtual hours, {handled:,d} requests,"
        f" {events:,d} events in {time.monotonic() - began:.0f} s: {len(broken)} broken"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
