"""What the daemon counts: plain numbers in the one writer, and their names for Prometheus.

Counting costs an addition. Names, labels and text formats are made when a client asks for the
metrics. Grants, claims, releases and the like are counted from their events, once those are
stored. Counters begin at 0 with the process, as Prometheus expects; gauges are read from the state.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from trackd.sessions.sessions import REASONS

#: Upper bounds in seconds: what a request takes, a commit, and a crashed agent's leases.
_REQUEST_SECONDS: Final = (
    50e-6,
    100e-6,
    250e-6,
    500e-6,
    1e-3,
    2.5e-3,
    5e-3,
    10e-3,
    50e-3,
    0.25,
    1.0,
)
_COMMIT_SECONDS: Final = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 5e-3, 25e-3, 0.1, 1.0)
_CRASH_SECONDS: Final = (0.5e-3, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 0.1, 1.0, 10.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128)

#: Labels that begin at 0: Prometheus sees no increase in a series that appears with a 1.
_GRANTS: Final = ("adopt", "bootstrap", "need")
_REFUSALS: Final = ("budget", "satisfied", "waiters")
_RELEASES: Final = (*REASONS, "asked", "claim_timeout", "given_up")


class Histogram:
    """Values counted by the bounds that they do not exceed.

    Attributes:
        counts: how many fell between a bound and the one before; the last is above them all.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin empty.

        Args:
            bounds: ascending.
        """
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def sample(self, labels: Sequence[str] = ()) -> list[Any]:
        """Return labels, cumulative counts by bound, and the sum."""
        bounds = [*self.bounds, "+Inf"]
        counts = accumulate(self.counts)
        return [list(labels), [list(pair) for pair in zip(bounds, counts, strict=True)], self.sum]


class Metrics:
    """All counters. Only the actor's thread writes them."""

    def __init__(self) -> None:
        self.grants = Counter(dict.fromkeys(_GRANTS, 0))
        self.refusals = Counter(dict.fromkeys(_REFUSALS, 0))
        self.claims = 0
        self.duplicates = 0
        self.releases = Counter(dict.fromkeys(_RELEASES, 0))
        self.sessions_opened = 0
        self.sessions_ended = Counter(dict.fromkeys(REASONS, 0))
        self.gossip_messages = 0
        self.gossip_proxies = 0
        self.lowered_generations = 0
        self.limited_ttls = 0
        self.expiries = 0
        self.errors: Counter[str] = Counter()
        self.quota_refusals: Counter[str] = Counter()
        self.admin_acts: Counter[str] = Counter()
        self.events = 0
        self.request_seconds: dict[str, Histogram] = {}
        self.batch_requests = Histogram(_BATCH)
        self.commit_seconds = Histogram(_COMMIT_SECONDS)
        self.crash_seconds = Histogram(_CRASH_SECONDS)

    def request(self, op: str, seconds: float) -> None:
        """Count a request that was received and answered within so many seconds."""
        histogram = self.request_seconds.get(op)
        if histogram is None:
            histogram = self.request_seconds[op] = Histogram(_REQUEST_SECONDS)
        histogram.observe(seconds)

    def take(self, kinds: Sequence[tuple[str, str]]) -> None:
        """Count events by kind and reason, once they are stored."""
        self.events += len(kinds)
        for kind, reason in kinds:
            match kind:
                case "lease_granted":
                    self.grants[reason] += 1
                case "proxy_claimed":
                    self.claims += 1
                case "lease_released":
                    self.releases[reason] += 1
                case "session_opened":
                    self.sessions_opened += 1
                case "session_ended":
                    self.sessions_ended[reason] += 1
                case "proxy_expired":
                    self.expiries += 1
                case _:
                    pass
