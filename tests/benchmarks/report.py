"""What was measured, as tables on a terminal and as JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import zmq

from benchmarks.growth import Curve
from benchmarks.load import COLUMNS, ECHO, Measured
from benchmarks.targets import Figure, load_target, of_load

NOTE = """\
Each figure but the echo's own is a ratio to the echo's in the same round: the median of the
rounds, which alternate. p50: how long a turn takes, less is better. /s: requests per second of
all agents together, more is better. `wire` and `echo` are asked by the same bare DEALER with
frames made beforehand, and so is `before`, the version of --before; `library` is
trackd_client.Tracker (AsyncTracker for 4 x 64), as agents use it; `redis` is redis-py with Lua
scripts and an append-only file (fsync every second)."""

#: The columns of which the processor time is shown.
_COSTS = ("echo", "wire", "before", "redis")


@dataclass(slots=True, kw_only=True)
class Results:
    """All that one run has measured."""

    load: list[Measured] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> list[Figure]:
        """Every figure that has a target."""
        load = [figure for measured in self.load for figure in of_load(measured)]
        growth = [curve.figure for curve in self.curves]
        return [f for f in (*load, *self.figures, *growth) if f.target is not None]

    def as_json(self) -> str:
        """Return all of it, the machine included."""
        machine = {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "pyzmq": zmq.__version__,
            "libzmq": zmq.zmq_version(),
            "msgpack": ".".join(map(str, msgpack.version)),
            "sqlite": sqlite3.sqlite_version,
        }
        everything = {
            "machine": machine,
            "absent": dict(self.absent),
            "load": [measured.as_json() for measured in self.load],
            "figures": [figure.as_json() for figure in self.judged],
            "growth": [curve.as_json() for curve in self.curves],
        }
        return json.dumps(everything, indent=1)

    def write(self, path: Path) -> None:
        """Write the JSON to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.as_json() + "\n")

    def text(self) -> str:
        """Return the tables."""
        parts = [self._load_table(), self._cost_table(), self._growth_table(), self._target_table()]
        parts += [f"not measured: {peer}: {why}" for peer, why in self.absent.items()]
        return "\n\n".join(part for part in parts if part)

    def _load_table(self) -> str:
        if not self.load:
            return ""
        columns = [c for c in COLUMNS if any(c in measured.rounds for measured in self.load)]
        rows = [["", "", *columns]]
        for measured in self.load:
            figure, _ = load_target(measured.case)
            row = [measured.case.name, "p50" if figure == "p50" else "/s"]
            for column in columns:
                value = measured.median(column, figure)
                if column == ECHO and value is not None:
                    row.append(f"{value * 1e6:.0f} us" if figure == "p50" else f"{value:,.0f}/s")
                else:
                    ratio = measured.ratio(column, figure)
                    row.append("-" if ratio is None else f"{ratio:.2f}")
            rows.append(row)
        return f"{NOTE}\n\n{aligned(rows, left=2)}"

    def _cost_table(self) -> str:
        """Return the processor time of each peer for one request, all of its threads."""
        columns = [c for c in _COSTS if any(c in measured.rounds for measured in self.load)]
        rows = [["", *columns]]
        for measured in self.load:
            costs = [measured.median(column, "cost") for column in columns]
            cells = ["-" if cost is None else f"{cost * 1e6:.0f} us" for cost in costs]
            rows.append([measured.case.name, *cells])
        told = "Processor time of the peer for one request, all of its threads."
        return f"{told}\n\n{aligned(rows, left=1)}" if self.load else ""

    def _growth_table(self) -> str:
        parts = []
        for axis in dict.fromkeys(curve.axis for curve in self.curves):
            curves = [curve for curve in self.curves if curve.axis == axis]
            rows = [[axis, *(f"{size:,}" for size in curves[0].sizes)]]
            rows += [[c.operation, *(f"{ratio:.2f}" for ratio in c.ratios)] for c in curves]
            parts.append(aligned(rows, left=1))
        if not parts:
            return ""
        told = "Processor time of the daemon for one turn, as a ratio to the smallest size."
        return "\n\n".join([told, *parts])

    def _target_table(self) -> str:
        rows = [["", "", "", "target", "met"]]
        rows += [
            [f.name, f"{f.value:.3g}", f.unit, str(f.target), f.verdict, f.about]
            for f in self.judged
        ]
        return aligned(rows, left=1) if len(rows) > 1 else ""


def aligned(rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return rows of cells in columns; the first `left` and any fifth on are flush left."""
    rows = list(rows)
    wide = max(map(len, rows))
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows) for i in range(wide)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(widths[i]) if i < left or i >= 5 else cell.rjust(widths[i])
            for i, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
