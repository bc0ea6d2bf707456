"""How soon, and with how many dials, has every proxy a tunnel? `make bench-coverage`.

A simulation in virtual time: trackd's own pools, client and rules, and models of other systems,
behind the same simulated balancer. The same seeds give the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.coverage import plan, report
from benchmarks.coverage.targets import judge


def main() -> None:
    """Simulate, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1, help="the seeds are this and the next")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="seeds, in proportion to the usual"
    )
    parser.add_argument("--only", default="", help="the cases with this in their line")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    parser.add_argument(
        "--markdown", action="store_true", help="print the targets as Markdown, too"
    )
    args = parser.parse_args()
    cases = [case for case in plan.cases() if args.only in f"{case}"]
    if not cases:
        parser.error(f"no case has {args.only!r} in its line")
    began = time.monotonic()
    rows = plan.measure_all(cases, args.first_seed, args.scale)
    targets = [] if args.only else judge(rows)
    print(report.text(rows, targets))
    runs = sum(row.runs for row in rows)
    seconds = time.monotonic() - began
    most = max(row.runs for row in rows)
    print(
        f"\n{runs} runs in {seconds:.0f} s; seeds {args.first_seed} to"
        f" {args.first_seed + most - 1} at most (--first-seed, --scale {args.scale:g})"
    )
    if args.markdown:
        print("\n" + report.markdown(targets))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report.plain(rows, targets, args.first_seed)) + "\n")
        print(f"{args.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
