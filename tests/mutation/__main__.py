"""Runs the fast tests of modules against their mutants, and lists those that survive.

    make mutants ARGS="daemon/trackd/rules daemon/trackd/sessions"
    make mutants ARGS="daemon/trackd/rules/marks.py --tests tests/model/test_tracker_model.py"

A mutant that survives is a mistake that no test notices, or no mistake at all. Those that
explained.txt explains are only counted; any other one makes this exit with 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from mutation.mutants import Mutant, mutants_of
from mutation.trials import BELONG, REPOSITORY, SURVIVED, TIMED_OUT, Timing, measure, outcomes

#: A line for each mutant that may survive: its module, what it changes where, `  # `, and why.
EXPLAINED = Path(__file__).with_name("explained.txt")


def explanations() -> dict[str, dict[str, str]]:
    """Return why mutants may survive, by module and name."""
    found: dict[str, dict[str, str]] = {}
    for line in EXPLAINED.read_text().splitlines():
        if line and not line.startswith("#"):
            mutant, reason = line.split("  # ")
            module, name = mutant.split(": ", 1)
            found.setdefault(module, {})[name] = reason
    return found


def main() -> None:
    """Print what survives, and how many there were."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("module", type=Path, nargs="+", help="files or packages of the daemon")
    parser.add_argument("--tests", nargs="*", help="instead of those of the packages")
    parser.add_argument("--lines", help="only mutants of these lines: 10-20")
    options = parser.parse_args()
    packages: dict[Path, list[Path]] = {}
    for path in (each.resolve() for each in options.module):
        modules = sorted(path.glob("*.py")) if path.is_dir() else [path]
        packages.setdefault(path if path.is_dir() else path.parent, []).extend(modules)
    total: Counter[str] = Counter()
    for package, modules in packages.items():
        tests = options.tests or tests_of(package, modules)
        begun = time.monotonic()
        timings = measure(modules, tests)
        print(
            f"{len(timings)} fast tests; measured in {time.monotonic() - begun:.0f} s", flush=True
        )
        for path in modules:
            mutants = mutants_of(path.read_text())
            if options.lines:
                first, last = map(int, options.lines.split("-"))
                mutants = [each for each in mutants if first <= each.lines[0] <= last]
            total += try_all(path, mutants, timings)
    print(f"all: {counted(total)}")
    sys.exit(1 if total["not explained"] or total["stale"] else 0)


def tests_of(package: Path, modules: list[Path]) -> list[str]:
    """Return where the tests of a package of the daemon are, and those that belong to modules."""
    found = [REPOSITORY / "tests/unit/daemon" / package.relative_to(REPOSITORY / "daemon/trackd")]
    for path in modules:
        also = BELONG.get(str(path.relative_to(REPOSITORY)), ())
        found += [REPOSITORY / each.split("::")[0] for each in also]
    return [str(path) for path in dict.fromkeys(found)]


def try_all(path: Path, mutants: list[Mutant], timings: dict[str, Timing]) -> Counter[str]:
    """Print the mutants of a module that survive; return how many there are of each kind."""
    name = str(path.relative_to(REPOSITORY))
    known = explanations().get(name, {})
    total = Counter({"mutants": len(mutants)})
    told = time.monotonic()
    for i, outcome in enumerate(outcomes(path, mutants, timings)):
        mutant = mutants[i]
        if outcome == SURVIVED and mutant.name in known:
            outcome = "explained"  # noqa: PLW2901
        elif outcome == SURVIVED:
            outcome = "not explained"  # noqa: PLW2901
        total[outcome] += 1
        if outcome in {"not explained", TIMED_OUT}:
            print(f"{name}:{mutant.lines[0]}: {outcome}: {mutant.name}", flush=True)
        if sys.stderr.isatty() or time.monotonic() > told + 60.0:
            told = time.monotonic()
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{name}: {i + 1} of {len(mutants)}", end=end, file=sys.stderr, flush=True)
    for stale in known.keys() - {mutant.name for mutant in mutants_of(path.read_text())}:
        total["stale"] += 1
        print(f"{EXPLAINED.name} explains what is no mutant of {name}: {stale}")
    print(f"{name}: {counted(total)}", flush=True)
    return total


def counted(total: Counter[str]) -> str:
    """Return the numbers in words."""
    return ", ".join(f"{number} {kind}" for kind, number in total.items())


if __name__ == "__main__":
    main()
