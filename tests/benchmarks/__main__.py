"""Benchmarks of trackd, side by side with what might stand in its place: `make bench`.

Real processes over unix sockets, everything on. Nothing here is a test: figures are printed and
written, and a target that is missed ends nothing. Only `--guard` fails, when a ratio is worse
than a quarter of its target, and is so each time when it is measured twice more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import floods, growth, load, single
from benchmarks.peers import KINDS, Trackd, absent
from benchmarks.report import Results
from benchmarks.targets import QUICK, of_load

#: What the quick run measures: the columns that targets speak of.
_QUICK_COLUMNS = ("echo", "wire", "before", "library")
#: What is measured with a daemon of its own, by name.
_PARTS = {**single.PARTS, **floods.PARTS}
#: How often the guard measures again what is far off.
_MORE_TRIES = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    args = _arguments(argv)
    results = Results(absent={} if args.quick else absent())
    cases = [case for case in (QUICK if args.quick else load.CASES) if _wanted(args, case.name)]
    results.load = _load(args, cases, results.absent)
    for _ in range(_MORE_TRIES if args.guard else 0):
        # Whatever else the machine did meanwhile: what is slow is slow the next time too.
        suspects = [m for m in results.load if any(f.far_off for f in of_load(m))]
        again = _load(args, [m.case for m in suspects], results.absent)
        for before, after in zip(suspects, again, strict=True):
            results.load[results.load.index(before)] = after
    if not args.quick:
        _the_rest(args, results)
    progress("")
    print(results.text())
    if args.json is not None:
        results.write(args.json)
        print(f"all figures: {args.json}")
    far_off = [figure for figure in results.judged if figure.far_off]
    for figure in far_off:
        print(f"worse than a quarter of its target: {figure.name}")
    return 1 if args.guard and far_off else 0


def progress(text: str) -> None:
    """Say what is being done: over the same line of a terminal, else not at all."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="names: " + "; ".join(_names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the ratios that matter most, in under a minute")
    add("--only", metavar="NAME", action="append", default=[], help="what has NAME in its name")
    add("--rounds", type=int, metavar="N", help="of each figure (7; quick: 5)")
    add("--seconds", type=float, metavar="S", help="of one round (0.6; quick: 0.2)")
    add("--most", type=int, metavar="N", default=1_000_000, help="the end of the growth curves")
    add("--scale", type=float, metavar="X", default=1.0, help="less makes the other parts smaller")
    add("--json", type=Path, metavar="FILE", help="where to write all figures")
    add("--before", type=Path, metavar="DIR", help="a checkout of another version to measure too")
    add(
        "--guard",
        action="store_true",
        help="fail when a ratio is worse than a quarter of its target",
    )
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (5 if args.quick else 7)
    args.seconds = args.seconds or (0.2 if args.quick else 0.6)
    return args


def _names() -> list[str]:
    cases = dict.fromkeys(case.shape.name for case in load.CASES)
    mixes = dict.fromkeys(str(case.mix) for case in load.CASES)
    return [*cases, *mixes, *_PARTS, *(f"growth: {axis.name}" for axis in growth.AXES)]


def _wanted(args: argparse.Namespace, name: str) -> bool:
    return not args.only or any(word in name for word in args.only)


def _load(
    args: argparse.Namespace, cases: Sequence[load.Case], without: Mapping[str, str]
) -> list[load.Measured]:
    """Start the peers and measure the cases."""
    if not cases:
        return []
    columns = _QUICK_COLUMNS if args.quick else tuple(load.COLUMNS)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        kinds = {name: kind for name, kind in KINDS.items() if name not in without}
        if args.before is not None:
            kinds["before"] = partial(Trackd, tree=args.before.resolve())
        peers = {}
        for name in dict.fromkeys(load.COLUMNS[column] for column in columns):
            if name in kinds:
                directory = root / name
                directory.mkdir()
                peers[name] = kinds[name](directory)
                stack.callback(peers[name].close)
        return load.measure(
            cases,
            peers,
            columns=columns,
            rounds=args.rounds,
            seconds=args.seconds,
            progress=progress,
        )


def _the_rest(args: argparse.Namespace, results: Results) -> None:
    for name, part in _PARTS.items():
        if _wanted(args, name):
            progress(name)
            results.figures += part(progress, args.scale)
    for axis in growth.AXES:
        if _wanted(args, f"growth: {axis.name}"):
            results.curves += growth.measure(
                axis,
                rounds=args.rounds,
                turns=int(200 * args.scale) + 1,
                most=args.most,
                progress=progress,
            )


if __name__ == "__main__":
    sys.exit(main())
