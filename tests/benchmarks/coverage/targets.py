"""The targets for coverage, judged by the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.coverage.network import DIAL_SECONDS
from benchmarks.coverage.plan import AGENTS, Row
from benchmarks.coverage.scenarios import Case

#: Seconds that the replacement may take beside its dial, after the end of an agent's process.
_AGENT_SLACK: Final = 0.02
#: The rate and the burst of the fleet "trackd, rate 10".
_RATE, _BURST = 10, 10
#: Modelled peers that reach every proxy behind a random balancer.
_PEERS: Final = ("teleport", "konnectivity")


@dataclass(frozen=True, slots=True)
class Target:
    """A target, and what was measured.

    Attributes:
        what: in words.
        measured: the figure.
        limit: the most that it may be.
        note: what else is worth knowing.
    """

    what: str
    measured: float
    limit: float
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether it is met."""
        return self.measured <= self.limit


def coupons(proxies: int) -> float:
    """Return N·H(N): the dials that reach each of N proxies at least once, on average."""
    return proxies * sum(1.0 / number for number in range(1, proxies + 1))


class Rows:
    """The rows of a run, by case."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {row.case: row for row in rows}

    def __call__(self, *case: object, **more: object) -> Row:
        """Return the row of a case, as `Case` takes it."""
        return self._rows[Case(*case, **more)]  # type: ignore[arg-type] # as Case takes it


def _agents(number: int) -> str:
    return "1 agent" if number == 1 else f"{number} agents"


def _cold_dials(rows: Rows) -> Iterator[Target]:
    for size in (3, 6, 30, 100):
        every = [rows("cold", "trackd", size, agents) for agents in AGENTS]
        runs = sum(row.runs for row in every)
        mean = sum(row.mean("dials") * row.runs for row in every) / runs
        yield Target(
            f"{size} proxies, random: dials to full coverage / N·H(N), mean",
            mean / coupons(size),
            1.05,
            f"{mean:.1f} dials; {runs} runs with 1, 3 and 10 agents",
        )


def _aimed(rows: Rows) -> Iterator[Target]:
    for size in (6, 30):
        every = [rows("cold", "trackd, aimed", size, agents) for agents in AGENTS]
        yield Target(
            f"{size} proxies, with addresses: dials to full coverage / N, largest median",
            max(row.median("dials") for row in every) / size,
            1.05,
            f"p99 {max(row.p99('dials') for row in every):.0f}",
        )
        for scenario, what in (
            ("agent dies", "an agent dies, seconds to its tunnels again"),
            ("proxy returns late", "a proxy is back, seconds from its mention"),
        ):
            row = rows(scenario, "trackd, aimed", size, 3)
            yield Target(
                f"{size} proxies, with addresses: {what}, median",
                row.median("seconds"),
                DIAL_SECONDS + _AGENT_SLACK,
                f"p99 {row.p99('seconds'):.3f} s",
            )
        row = rows("rolling, announced", "trackd, aimed", size, 3)
        yield Target(
            f"{size} proxies, with addresses: rolling, announced, seconds below / downtime, median",
            row.median("short / downtime"),
            1.2,
            f"futile dials {row.median('futile dials'):.0f} of {row.median('dials'):.0f}",
        )


def _cold_seconds(rows: Rows) -> Iterator[Target]:
    for size in (6, 30):
        for agents in AGENTS:
            peer = min(
                _PEERS, key=lambda fleet: rows("cold", fleet, size, agents).median("seconds")
            )
            ours = rows("cold", "trackd", size, agents)
            theirs = rows("cold", peer, size, agents).median("seconds")
            yield Target(
                f"{size} proxies, {_agents(agents)}: time to full coverage / {peer}'s, median",
                ours.median("seconds") / theirs,
                0.1,
                f"{ours.median('seconds'):.2f} s, p99 {ours.p99('seconds'):.2f} s;"
                f" {peer} {theirs:.2f} s",
            )


def _replacements(rows: Rows) -> Iterator[Target]:
    for balancer in ("least-connections", "random"):
        for size in (6, 30):
            row = rows("agent dies", "trackd", size, 3, balancer)
            yield Target(
                f"{size} proxies, {balancer}: an agent dies, seconds to its tunnels again, median",
                row.median("seconds"),
                DIAL_SECONDS + _AGENT_SLACK,
                f"p99 {row.p99('seconds'):.3f} s; first dial {row.median('to the dial'):.3f} s",
            )
    for balancer in ("least-connections", "random"):
        for size in (6, 30):
            row = rows("proxy returns late", "trackd", size, 3, balancer)
            yield Target(
                f"{size} proxies, {balancer}: a proxy is back, seconds from its mention, median",
                row.median("seconds"),
                DIAL_SECONDS + _AGENT_SLACK,
                f"p99 {row.p99('seconds'):.2f} s",
            )


def _rolling(rows: Rows) -> Iterator[Target]:
    for scenario, balancer in (
        ("rolling, announced", "least-connections"),
        ("rolling, announced", "random"),
        ("rolling", "least-connections"),
        ("rolling", "random"),
    ):
        for size in (6, 30):
            row = rows(scenario, "trackd", size, 3, balancer)
            yield Target(
                f"{size} proxies, {balancer}: {scenario}, seconds below target / downtime, median",
                row.median("short / downtime"),
                1.2,
                f"futile dials {row.median('futile dials'):.0f} of {row.median('dials'):.0f}",
            )
    row = rows("rolling, announced", "trackd", 30, 3, "random", 10)
    without = rows("rolling", "trackd", 30, 3, "random", 10)
    yield Target(
        "30 proxies, 10 wanted: rolling, announced, seconds below target, largest",
        row.quantile("short", 1.0),
        0.0,
        f"without the announcement {without.median('short'):.2f} s, median",
    )
    yield Target(
        "30 proxies, 10 wanted: rolling, announced, futile dials, those to a terminating proxy too",
        row.quantile("futile dials", 1.0) + row.quantile("to terminating", 1.0),
        0.0,
    )


def _restarts(rows: Rows) -> Iterator[Target]:
    for size in (6, 30):
        row = rows("everything restarts", "trackd, rate 10", size, 10)
        free = rows("everything restarts", "trackd", size, 10).median("most in a second")
        yield Target(
            f"{size} proxies, everything restarts: most dials in a second, dial_rate 10, burst 10",
            row.quantile("most in a second", 1.0),
            _RATE + _BURST,
            f"without dial_rate {free:.0f}, median",
        )
        for agents in AGENTS:
            peer = min(
                _PEERS,
                key=lambda fleet: rows("everything restarts", fleet, size, agents).median(
                    "dials at rest"
                ),
            )
            ours = rows("everything restarts", "trackd", size, agents).median("dials at rest")
            theirs = rows("everything restarts", peer, size, agents).median("dials at rest")
            yield Target(
                f"{size} proxies, {_agents(agents)}, everything restarts: dials / {peer}'s, median",
                ours / theirs,
                0.5,
                f"{ours:.0f} and {theirs:.0f}",
            )


def judge(rows: Sequence[Row]) -> list[Target]:
    """Return all targets, with what the rows say of them."""
    found = Rows(rows)
    parts = (_cold_dials, _aimed, _cold_seconds, _replacements, _rolling, _restarts)
    return [target for part in parts for target in part(found)]
