"""The rows of a run as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.coverage.plan import Row
from benchmarks.coverage.targets import Target, coupons

#: Seconds at which a bar begins.
LEAST: Final = 0.05
#: The figures that a table shows, by scenario, and their headings.
_SHOWN: Final[dict[str, dict[str, str]]] = {
    "cold": {
        "seconds": "s to full",
        "dials": "dials",
        "dials at rest": "at rest",
        "covered": "covered",
    },
    "agent dies": {"seconds": "s to full", "to the dial": "s to the dial", "dials": "dials"},
    "proxy dies": {"seconds": "s to full", "dials": "dials"},
    "proxy returns": {
        "seconds": "s to full",
        "dials": "dials since",
        "futile dials": "futile before",
    },
    "proxy returns late": {
        "seconds": "s to full",
        "dials": "dials since",
        "futile dials": "futile before",
    },
    "rolling": {
        "short": "s below",
        "short / downtime": "/ downtime",
        "dials": "dials",
        "futile dials": "futile",
    },
    "rolling, announced": {
        "short": "s below",
        "short / downtime": "/ downtime",
        "dials": "dials",
        "futile dials": "futile",
    },
    "everything restarts": {
        "seconds": "s to full",
        "dials at rest": "dials",
        "most in a second": "most in 1 s",
        "most in 0.1 s": "in 0.1 s",
    },
}
_TITLES: Final = {
    "cold": "From nothing to a tunnel to every proxy",
    "agent dies": "An agent is killed: until the others have its tunnels",
    "proxy dies": "A proxy dies where fewer are wanted: until another has a tunnel instead",
    "proxy returns": "A proxy is away for 5 s: from its return to its tunnel",
    "proxy returns late": "A proxy is away for 60 s: from its first mention to its tunnel",
    "rolling": "All proxies restart one after the other, 5 s each, without a word",
    "rolling, announced": "The same, and each says so 5 s before",
    "everything restarts": "Balancer and proxies are away for 10 s: until all tunnels are back",
}


def number(value: float) -> str:
    """Return a figure with three digits."""
    if not math.isfinite(value):
        return "never"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(cells: Sequence[Sequence[str]]) -> str:
    """Return lines with columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def name_of(row: Row) -> str:
    """Return what a line is about."""
    case = row.case
    wanted = f" ({case.count} wanted)" if case.count else ""
    agents = "" if "processes" in case.fleet else f", {case.agents} agent{'s' * (case.agents > 1)}"
    return f"{case.fleet}{agents}, {case.proxies} proxies{wanted}, {case.balancer}"


def bars(rows: Sequence[Row], figure: str) -> str:
    """Return a plot of the medians of a figure: each character is a quarter more than the last."""
    lines = []
    for row in rows:
        median = row.median(figure)
        length = round(math.log(max(median, LEAST) / LEAST, 1.25)) if math.isfinite(median) else 0
        lines.append([name_of(row), "#" * length + f" {number(median)}"])
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {bar}" for name, bar in lines)


def text(rows: Sequence[Row], targets: Sequence[Target]) -> str:
    """Return the tables for people: of each figure the median and the 99th percentile."""
    parts = []
    for scenario, shown in _SHOWN.items():
        some = [row for row in rows if row.case.scenario == scenario]
        if not some:
            continue
        head = ["median / p99", "runs", *shown.values()]
        if scenario == "cold":
            head.append("N·H(N)")
        cells = [head]
        for row in some:
            line = [name_of(row), str(row.runs)]
            for figure in shown:
                if figure == "covered":
                    line.append(f"{100 * row.mean('covered'):.0f} %")
                else:
                    line.append(f"{number(row.median(figure))} / {number(row.p99(figure))}")
            if scenario == "cold":
                line.append(f"{coupons(row.case.proxies):.1f}")
            cells.append(line)
        parts.append(f"{_TITLES[scenario]}\n\n{table(cells)}")
        if scenario == "cold":
            title = "Seconds to full coverage, median; each # is a quarter more"
            parts.append(f"{title}\n\n{bars(some, 'seconds')}")
    if targets:
        head = ["target", "measured", "at most", "met", ""]
        lines = [
            [
                target.what,
                number(target.measured),
                number(target.limit),
                "yes" if target.met else "no",
                target.note,
            ]
            for target in targets
        ]
        parts.append("Targets\n\n" + table([head, *lines]))
    return "\n\n".join(parts)


def markdown(targets: Sequence[Target]) -> str:
    """Return the table of targets for docs/performance.md."""
    head = "| what | measured | target | met | |\n| --- | ---: | ---: | --- | --- |"
    lines = (
        f"| {target.what} | {number(target.measured)} | ≤ {number(target.limit)} |"
        f" {'yes' if target.met else 'no'} | {target.note} |"
        for target in targets
    )
    return "\n".join([head, *lines])


def plain(rows: Sequence[Row], targets: Sequence[Target], first: int) -> dict[str, Any]:
    """Return everything as JSON has it; what never came is null."""
    return {
        "first_seed": first,
        "cases": [
            {
                **asdict(row.case),
                "runs": row.runs,
                "figures": {
                    name: {
                        "median": _finite(row.median(name)),
                        "p99": _finite(row.p99(name)),
                        "mean": _finite(row.mean(name)),
                    }
                    for name in row.figures
                },
            }
            for row in rows
        ],
        "targets": [{**asdict(target), "met": target.met} for target in targets],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
