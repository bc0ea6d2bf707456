"""Facts about the running process, beside the state; they are never stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from trackd.operations.listings import Listings
from trackd.rules.tracker import Tracker
from trackd.state.counters import Metrics
from trackd.state.coverage import Coverage, GroupGaps
from trackd_client.wire.done import Done


def _not_served() -> None:
    """Do nothing: reloads are not set up yet."""


class Subscribers(Protocol):
    """The subscriptions to the event socket, by user."""

    @property
    def refused(self) -> int:
        """How many were refused."""

    def count(self, uid: int) -> int:
        """Return how many subscriptions a user has."""

    def uids(self) -> list[int]:
        """Return the users who have any."""


class NoSubscribers:
    """The subscriptions where no events are published."""

    refused = 0

    def count(self, _uid: int) -> int:
        """Return 0."""
        return 0

    def uids(self) -> list[int]:
        """Return nothing."""
        return []


@dataclass(slots=True)
class HttpState:
    """The state of the HTTP service, for the tracker.

    Attributes:
        problem: why HTTP is not served though it is configured, or None.
    """

    problem: str | None = None


class Gossip(Protocol):
    """The gossip that a leader takes in, of all that the hosts of a fleet repeat."""

    def due(
        self, rows: Sequence[Any], now: float, tracker: Tracker, host: str
    ) -> AbstractContextManager[list[Any]]:
        """Give a block the rows of a host that say something new; it takes them in, or fails."""

    def note_copy(self, body: Mapping[str, Any], host: str) -> None:
        """Note a request of a host that was answered before, which may be gossip."""


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """Facts about a leader.

    Attributes:
        host: the host that leads.
        term: the number of its term.
        hosts: returns a row for each host of the fleet.
        forget: forgets a host that is silent; what is heard of it later counts as ever.
        yield_lead: lets this process end soon, after its replies have left.
        candidates: returns a row for each candidate that is there.
        etcd: returns how etcd is, or None before it was asked.
    """

    host: str
    term: int
    hosts: Callable[[], list[dict[str, Any]]]
    forget: Callable[[str], None]
    yield_lead: Callable[[], None]
    candidates: Callable[[], list[dict[str, Any]]]
    etcd: Callable[[], dict[str, Any] | None]


@dataclass(slots=True)
class Runtime:
    """Facts about the running process.

    Attributes:
        boot_id: the boot id of the running kernel.
        started: when the process started, in seconds of CLOCK_BOOTTIME.
        wall: the same moment in Unix time.
        requests: the number of requests served since then.
        store_problem: why changes cannot be stored now, or None.
        unstored_done: what sessions were done with while that was so, by token, for later.
        store_bytes: returns the size of the state file, or None when there is none.
        events: the endpoint of the event stream, or "".
        ask_reload: asks the overseer to read the configuration again.
        reloads_asked: the number of the last reload that was asked for.
        reloads: the number of reloads that were done.
        reload: the outcome of the last one, as `status` has it; None before the first.
        logged_max_ttl: the `max_ttl` for which a longer TTL was logged, or None.
        http: whether HTTP is served.
        subscribers: who subscribes to events.
        coverage: for how long connections were missing.
        gaps: for how long the desired proxies of each group had no tunnel.
        metrics: the counters.
        listings: the listings under way.
        fleet: facts about the leader of a fleet; None where the daemon serves its host alone.
        damper: what a leader takes in of gossip; None: all.
    """

    boot_id: str
    started: float
    wall: float
    requests: int = 0
    store_problem: str | None = None
    unstored_done: dict[bytes, Done] = field(default_factory=dict)
    store_bytes: Callable[[], int | None] = lambda: None
    events: str = ""
    ask_reload: Callable[[], None] = _not_served
    reloads_asked: int = 0
    reloads: int = 0
    reload: dict[str, Any] | None = None
    logged_max_ttl: float | None = None
    http: HttpState = field(default_factory=HttpState)
    subscribers: Subscribers = field(default_factory=NoSubscribers)
    metrics: Metrics = field(default_factory=Metrics)
    coverage: Coverage = field(init=False)
    gaps: GroupGaps = field(init=False)
    listings: Listings = field(default_factory=Listings)
    fleet: FleetFacts | None = None
    damper: Gossip | None = None

    def __post_init__(self) -> None:
        """Begin to add up what is missing."""
        self.coverage = Coverage(self.started)
        self.gaps = GroupGaps(self.started)
