"""What `make bench-coverage` simulates, with how many seeds, and the figures over these."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Final

from benchmarks.coverage.scenarios import Case, Figures, simulate

SIZES: Final = (3, 6, 30, 100)
AGENTS: Final = (1, 3, 10)
#: Seeds of a case, by scenario and number of proxies: as many as some minutes allow.
SEEDS: Final[dict[str, dict[int, int]]] = {
    "cold": {3: 300, 6: 200, 30: 40, 100: 6},
    "agent dies": {6: 60, 30: 12},
    "proxy dies": {6: 100, 30: 20},
    "proxy returns": {6: 40, 30: 10},
    "proxy returns late": {6: 30, 30: 10},
    "rolling": {6: 12, 30: 4},
    "rolling, announced": {6: 12, 30: 4},
    "everything restarts": {6: 40, 30: 6},
}
#: The same for runs with a sticky balancer, which never end early.
STICKY_SEEDS: Final = 10
#: Seeds that one task of a worker takes, and the proxies from which on it takes one.
_CHUNK: Final = 10
_LARGE: Final = 30
#: A worker lives as long as the benchmark: Python searches for garbage far less often.
_GARBAGE: Final = 100_000


@dataclass(frozen=True, slots=True)
class Row:
    """A case and what its runs gave: each figure of all runs, in ascending order.

    Attributes:
        case: what was simulated.
        figures: by name.
    """

    case: Case
    figures: dict[str, list[float]]

    @property
    def runs(self) -> int:
        """How many runs there were."""
        return len(next(iter(self.figures.values())))

    def quantile(self, name: str, share: float) -> float:
        """Return the least figure that this share of the runs does not exceed."""
        values = self.figures[name]
        return values[max(0, math.ceil(share * len(values)) - 1)]

    def median(self, name: str) -> float:
        """Return the median of a figure."""
        return self.quantile(name, 0.5)

    def p99(self, name: str) -> float:
        """Return the 99th percentile of a figure; with less than 100 runs, the largest."""
        return self.quantile(name, 0.99)

    def mean(self, name: str) -> float:
        """Return the mean of a figure."""
        values = self.figures[name]
        return sum(values) / len(values)


def cases() -> Iterator[Case]:
    """Yield everything that is simulated."""
    for fleet, size, agents in product(("trackd", "teleport", "konnectivity"), SIZES, AGENTS):
        if fleet == "trackd" or size < SIZES[-1] or agents == 1:  # they take long otherwise
            yield Case("cold", fleet, size, agents)
    for fleet, size in product(
        ("cloudflared", "cloudflared, aimed", "N processes", "3N processes"), (6, 30)
    ):
        yield Case("cold", fleet, size, 1)
    for balancer, size in product(("round-robin", "least-connections"), (6, 30, 100)):
        yield Case("cold", "trackd", size, 3, balancer)
    for fleet in ("trackd", "konnectivity"):
        yield Case("cold", fleet, 6, 3, "sticky")
    for size in (6, 30):
        for agents in AGENTS:
            yield Case("cold", "trackd, aimed", size, agents)
        for scenario in ("agent dies", "proxy returns late", "rolling, announced"):
            yield Case(scenario, "trackd, aimed", size, 3)
    for size in (30, 100):
        yield Case("cold", "trackd, brisk", size, 1)
    yield Case("rolling, announced", "trackd, brisk", 30, 3)
    for balancer, size in product(("random", "least-connections"), (6, 30)):
        for agents in (3, 10):
            yield Case("agent dies", "trackd", size, agents, balancer)
        for scenario in ("proxy returns", "proxy returns late", "rolling", "rolling, announced"):
            yield Case(scenario, "trackd", size, 3, balancer)
    for fleet, agents in (("trackd", 3), ("teleport", 1), ("konnectivity", 1)):
        for size, count in ((6, 3), (30, 10)):
            yield Case("proxy dies", fleet, size, agents, count=count)
    for fleet, size in product(("teleport", "konnectivity", "N processes"), (6, 30)):
        for scenario in ("proxy returns", "proxy returns late", "rolling"):
            if fleet != "N processes" or scenario == "rolling":
                yield Case(scenario, fleet, size, 1)
    for scenario in ("rolling", "rolling, announced"):
        yield Case(scenario, "trackd", 30, 3, "random", 10)
    for fleet, size in product(
        ("trackd", "trackd, rate 10", "teleport", "konnectivity", "N processes"), (6, 30)
    ):
        for agents in (1,) if fleet == "N processes" else AGENTS:
            yield Case("everything restarts", fleet, size, agents)


def seeds_of(case: Case, scale: float) -> int:
    """Return how many seeds a case gets; at least two."""
    number = STICKY_SEEDS if case.balancer == "sticky" else SEEDS[case.scenario][case.proxies]
    return max(2, round(number * scale))


def row_of(case: Case, runs: Iterable[Figures]) -> Row:
    """Return the row of a case from the figures of its runs."""
    every = list(runs)
    return Row(case, {name: sorted(run[name] for run in every) for name in every[0]})


def measure(case: Case, seeds: Iterable[int]) -> Row:
    """Simulate a case with each seed, in this process."""
    return row_of(case, (simulate(case, seed) for seed in seeds))


def _begin_worker() -> None:
    gc.freeze()
    gc.set_threshold(_GARBAGE, 50, 50)


def _work(job: tuple[Case, list[int]]) -> list[Figures]:
    case, seeds = job
    return [simulate(case, seed) for seed in seeds]


def measure_all(plan: Sequence[Case], first: int, scale: float) -> list[Row]:
    """Simulate many cases, on all cores; the rows are in the order of the cases.

    Args:
        plan: what to simulate.
        first: the first seed of each case; the others follow.
        scale: how many seeds there are, in proportion to `SEEDS`.
    """
    jobs: list[tuple[Case, list[int]]] = []
    for case in plan:
        seeds = list(range(first, first + seeds_of(case, scale)))
        step = 1 if case.proxies >= _LARGE else _CHUNK
        jobs += [(case, seeds[i : i + step]) for i in range(0, len(seeds), step)]
    found: dict[Case, list[Figures]] = {case: [] for case in plan}
    with ProcessPoolExecutor(os.cpu_count(), initializer=_begin_worker) as workers:
        for (case, _), runs in zip(jobs, workers.map(_work, jobs), strict=True):
            found[case] += runs
    return [row_of(case, runs) for case, runs in found.items()]
