"""What is wanted of each figure. A target is a bound on one figure, nearly always a ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.load import CASES, ONE, OUTSTANDING, SIXTEEN, Case, Measured
from benchmarks.mixes import Mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound.

    Attributes:
        bound: the most that a figure may be, or the least.
        least: which of the two.
        wished: a bound that would be better still, or None.
    """

    bound: float
    least: bool = False
    wished: float | None = None

    def met(self, figure: float) -> bool:
        """Tell whether a figure keeps the bound."""
        return figure >= self.bound if self.least else figure <= self.bound

    def far_off(self, figure: float) -> bool:
        """Return whether a figure is worse than a quarter of the target: more than noise."""
        return figure < self.bound / 4 if self.least else figure > self.bound * 4

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One result, by itself.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: of the figure; "" is a ratio.
        target: what is wanted of it, or None.
        about: more that people may want to know.
    """

    name: str
    value: float
    unit: str = ""
    target: Target | None = None
    about: str = ""

    @property
    def verdict(self) -> str:
        """`yes`, `no`, or "" without a target."""
        if self.target is None:
            return ""
        return "yes" if self.target.met(self.value) else "no"

    @property
    def far_off(self) -> bool:
        """Whether it is worse than a quarter of its target."""
        return self.target is not None and self.target.far_off(self.value)

    def as_json(self) -> dict[str, object]:
        """Return all of it as plain values."""
        target = self.target
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": None if target is None else target.bound,
            "least": None if target is None else target.least,
            "met": None if target is None else target.met(self.value),
            "about": self.about,
        }


_READS = (Mix.IS_CLAIMED, Mix.REFUSED)


def load_target(case: Case) -> tuple[str, Target | None]:
    """Return which figure of a case matters, and what is wanted of it."""
    if case.shape is ONE:
        if case.mix.gossip:
            return "p50", None
        return "p50", Target(bound=1.2 if case.mix in _READS else 1.4)
    if case.shape is SIXTEEN:
        if case.mix in _READS:
            return "rate", Target(bound=0.75, least=True, wished=0.85)
        return "rate", Target(bound=0.6, least=True)
    if case.shape is OUTSTANDING:
        return "rate", Target(bound=0.4, least=True)
    return "rate", None


def of_load(measured: Measured) -> list[Figure]:
    """Return what the targets ask of one row of the table: the daemon's own cost, on the wire."""
    figure, target = load_target(measured.case)
    ratio = measured.ratio("wire", figure)
    if ratio is None or target is None:
        return []
    word = "p50" if figure == "p50" else "throughput"
    figures = [Figure(name=f"{measured.case.name}: {word} / echo", value=ratio, target=target)]
    ours, redis = (measured.median(column, "rate") for column in ("library", "redis"))
    if measured.case == Case(shape=SIXTEEN, mix=Mix.CYCLE) and ours and redis:
        name = f"{measured.case.name}: throughput / Redis, library to library"
        figures.append(Figure(name=name, value=ours / redis, target=Target(bound=1.0, least=True)))
    return figures


#: What `--quick` measures, and the regression guard judges.
QUICK: tuple[Case, ...] = (
    *(Case(shape=ONE, mix=mix) for mix in (Mix.IS_CLAIMED, Mix.REFUSED, Mix.CYCLE)),
    *(Case(shape=SIXTEEN, mix=mix) for mix in (Mix.IS_CLAIMED, Mix.CYCLE)),
    Case(shape=OUTSTANDING, mix=Mix.IS_CLAIMED),
)
assert set(QUICK) <= set(CASES)

#: By name, so that nobody writes a bound twice.
TARGETS: Mapping[str, Target] = {
    "growth": Target(bound=1.3),
    "gossip": Target(bound=5.0),
    "gossip_beside": Target(bound=5.0),
    "tracked_bytes": Target(bound=600.0),
    "session_bytes": Target(bound=2048.0),
    "idle_rss": Target(bound=45.0),
    "kill": Target(bound=10.0),
    "backlog": Target(bound=1.3),
    "restart": Target(bound=1.5),
    "wakeups": Target(bound=1.0),
    "idle_cpu": Target(bound=0.1),
    "behind_status": Target(bound=20.0),
    "beside_pages": Target(bound=20.0),
    "beside_metrics": Target(bound=0.8, least=True),
}
