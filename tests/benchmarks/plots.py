"""Draws the figures of docs/performance.md: `python -m benchmarks.plots FILE DIRECTORY`.

FILE is what `make bench` wrote; the directory gets `performance-load.svg` and
`performance-growth.svg`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "trackd", "svg.fonttype": "none", "font.size": 8})
from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen

_COLORS = {"wire": "#1b6ca8", "library": "#7fb3d8", "redis": "#c0392b", "managers": "#999999"}


def load(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the requests per second of each case, as a share of the echo's."""
    rows = [row for row in rows if not row["mix"].startswith("gossip")]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1))
    height = 0.8 / len(_COLORS)
    for i, row in enumerate(rows):
        echo = row["rounds"]["echo"]
        for j, (column, color) in enumerate(_COLORS.items()):
            rounds = row["rounds"].get(column)
            if rounds:
                share = statistics.median(
                    mine["rate"] / base["rate"] for mine, base in zip(rounds, echo, strict=True)
                )
                label = column if not i else None
                axes.barh(i + j * height, share, height, color=color, label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([i + 0.3 for i in range(len(rows))], [row["case"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("requests per second, as a share of a bare ROUTER that echoes (= 1)")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def growth(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the curves, a panel for each axis."""
    names = list(dict.fromkeys(curve["axis"] for curve in curves))
    figure, panels = plt.subplots(2, -(-len(names) // 2), figsize=(10, 5), sharey=True)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    for name, panel in zip(names, panels.flat, strict=False):
        for curve in curves:
            if curve["axis"] == name:
                sizes = [max(size, 1) for size in curve["sizes"]]  # none at all is drawn at one
                panel.plot(sizes, curve["ratios"], marker=".", label=curve["operation"])
        panel.set_xscale("log")
        panel.set_ylim(0, 3)
        panel.axhline(1.3, color="black", linewidth=0.5, linestyle=":")
        panel.set_title(name)
        panel.legend(frameon=False, fontsize=6, loc="upper left")
    figure.supylabel("processor time of one turn / at the smallest size")
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main(file: Path, directory: Path) -> None:
    """Draw whatever the file has figures for."""
    results = json.loads(file.read_text())
    if results["load"]:
        load(results["load"], directory / "performance-load.svg")
    if results["growth"]:
        growth(results["growth"], directory / "performance-growth.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
