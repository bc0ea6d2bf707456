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

from trackd.rules.backoff import HOST_REASONS, SESSION_REASONS
from trackd.sessions.sessions import REASONS
from trackd.state import changes
from trackd.state.changes import Moment

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
#: And what a dial takes, and how long a tunnel lasts: up to 30 days.
_DIAL_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LIFETIMES: Final = (1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)

#: Labels that begin at 0: Prometheus sees no increase in a series that appears with a 1.
_GRANTS: Final = ("adopt", "bootstrap", "need")
_REFUSALS: Final = ("backoff", "budget", "satisfied", "waiters")
#: A host is lost only in a fleet; see `Metrics.expect_hosts`.
_HOST_LOST: Final = "host_lost"
_SESSION_ENDS: Final = tuple(reason for reason in REASONS if reason != _HOST_LOST)
_TUNNEL_ENDS: Final = (*_SESSION_ENDS, "asked", "handed_over", "stale")
_RELEASES: Final = (*_TUNNEL_ENDS, "claim_timeout", "given_up")
_FAILURES: Final = (*sorted(HOST_REASONS | SESSION_REASONS),)
_OUTCOMES: Final = ("claimed", "held", "unreported", *_FAILURES)


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

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, or several of the same size."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    @property
    def total(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Return the value that this share of all does not exceed, as Prometheus estimates it.

        Between two bounds values are taken to be spread evenly; above the last one they count as
        that. Without values it is 0.
        """
        rank, below, least = share * self.total, 0, 0.0
        for count, bound in zip(self.counts, self.bounds, strict=False):
            if count and below + count >= rank:
                return least + (bound - least) * (rank - below) / count
            below, least = below + count, bound
        return self.bounds[-1] if self.total else 0.0

    def sample(self, labels: Sequence[str] = ()) -> list[Any]:
        """Return labels, cumulative counts by bound, and the sum."""
        bounds = [*self.bounds, "+Inf"]
        counts = accumulate(self.counts)
        return [list(labels), [list(pair) for pair in zip(bounds, counts, strict=True)], self.sum]


class Durations:
    """How long dials take by their outcome, and tunnels last by the cause of their end.

    A dial begins with its grant and a tunnel with its claim. What began before the process is not
    known here, and does not count; an adopted tunnel had no dial.

    Attributes:
        dials: seconds from a grant to its claim, or to its release without one, by the outcome.
        tunnels: seconds from a claim to its release, by the cause.
    """

    __slots__ = ("_began", "_outcomes", "dials", "tunnels")

    def __init__(self) -> None:
        self.dials = {outcome: Histogram(_DIAL_SECONDS) for outcome in _OUTCOMES}
        self.tunnels = {cause: Histogram(_LIFETIMES) for cause in _TUNNEL_ENDS}
        # When the dial or the tunnel of a lease began, and how its dial ends if nothing is claimed.
        self._began: dict[int, float] = {}
        self._outcomes: dict[int, str] = {}

    def clear(self) -> None:
        """Forget the leases: this process begins to serve a state."""
        self._began.clear()
        self._outcomes.clear()

    def granted(self, change: changes.Granted, at: float) -> None:
        """Note that a dial begins."""
        if change.reason != "adopt":
            self._began[change.lease] = at

    def note_outcome(self, lease: int, outcome: str) -> None:
        """Note how the dial of a lease ends, should it claim nothing."""
        if lease in self._began:
            self._outcomes[lease] = outcome

    def claimed(self, lease: int, at: float) -> None:
        """Note that a dial has become a tunnel."""
        began = self._began.get(lease)
        self._began[lease] = at
        if began is not None:
            self.dials["claimed"].observe(at - began)

    def released(self, change: changes.Released, at: float) -> None:
        """Note that a dial has ended without a tunnel, or that a tunnel has ended."""
        began = self._began.pop(change.lease, None)
        outcome = self._outcomes.pop(change.lease, "unreported")
        if began is None or change.cause == "given_up":  # its agent has never seen it
            return
        if change.name is not None:
            if change.cause not in self.tunnels:
                self.tunnels[change.cause] = Histogram(_LIFETIMES)
            self.tunnels[change.cause].observe(at - began)
        else:
            outcome = "timeout" if change.cause == "claim_timeout" else outcome
            self.dials[outcome].observe(at - began)


class Metrics:
    """All counters. Only the actor's thread writes them."""

    def __init__(self) -> None:
        self.grants = Counter(dict.fromkeys(_GRANTS, 0))
        self.refusals = Counter(dict.fromkeys(_REFUSALS, 0))
        self.claims = 0
        self.duplicates = 0
        self.releases = Counter(dict.fromkeys(_RELEASES, 0))
        self.stale = 0
        self.aims = Counter({"missed": 0, "reached": 0})
        self.sessions_opened = 0
        self.sessions_ended = Counter(dict.fromkeys(_SESSION_ENDS, 0))
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
        self.dial_failures = Counter(dict.fromkeys(_FAILURES, 0))
        self.durations = Durations()

    def expect_hosts(self) -> None:
        """Begin to count what only happens in a fleet: that hosts are lost."""
        self.sessions_ended.setdefault(_HOST_LOST, 0)
        self.releases.setdefault(_HOST_LOST, 0)
        self.durations.tunnels.setdefault(_HOST_LOST, Histogram(_LIFETIMES))

    def requests(self, op: str, seconds: float, count: int) -> None:
        """Count requests of one batch: received and answered within so many seconds."""
        histogram = self.request_seconds.get(op)
        if histogram is None:
            histogram = self.request_seconds[op] = Histogram(_REQUEST_SECONDS)
        histogram.observe(seconds, count)

    def take(self, batch: Sequence[Moment]) -> None:
        """Count the changes of a batch, once they are stored."""
        durations = self.durations
        for moment in batch:
            for change in moment.changes:
                match change:
                    case changes.Replied():  # half of all changes
                        pass
                    case changes.Granted():
                        self.grants[change.reason] += 1
                        durations.granted(change, moment.at)
                    case changes.Claimed():
                        self.claims += 1
                        durations.claimed(change.lease, moment.at)
                    case changes.Released():
                        self.releases[change.cause] += 1
                        durations.released(change, moment.at)
                    case changes.LeaseStale():
                        self.stale += 1
                    case changes.SessionOpened():
                        self.sessions_opened += 1
                    case changes.SessionEnded():
                        self.sessions_ended[change.reason] += 1
                    case changes.DialFailed():
                        self.dial_failures[change.reason] += 1
                        durations.note_outcome(change.lease, change.reason)
                    case changes.Expired():
                        self.expiries += len(change.rows)
                    case changes.EpochBegan():
                        durations.clear()
                    case _:
                        pass
