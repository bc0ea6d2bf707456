"""The rules: which leases are granted, and who holds which proxy.

Agents on a host keep one connection to every desired proxy, but nobody can choose which proxy a
dial reaches. So an agent takes a lease before it dials, and claims the proxy that it finds at the
other end, by any of the names that the proxy presents. The tracker grants no more leases than
there are proxies without a connection, and lets no two leases claim the same proxy. It learns
from gossip which proxies exist; a proxy that gossip stops mentioning expires.

Everything here is pure: no I/O, no threads, no logging, the clock is an argument. It knows nothing
of sessions, waiters or the store. Rule numbers in comments are those of docs/rules.md.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from trackd.rules.checks import (
    check_int,
    check_principals,
    check_proxies,
    check_proxy,
    check_seconds,
    check_str,
)
from trackd.rules.desired import Cohort, DesiredSet, GroupCounts, GroupSummary
from trackd.rules.mentions import TTL_OF, GossipRow, Mentions
from trackd_client.proxy import Proxy

__all__ = [
    "DEFAULT_PROXY_EXPIRY",
    "GossipRow",
    "GroupCounts",
    "GroupSummary",
    "Place",
    "TrackedProxy",
    "Tracker",
]

DEFAULT_PROXY_EXPIRY = 180.0
"""Seconds after which a proxy expires when neither gossip nor the configuration says."""

_UNKNOWN = object()
_LONGEST = sys.float_info.max  # seconds: any finite TTL


class Place(NamedTuple):
    """Where a proxy belongs: its group, and the generation of that."""

    group: str
    generation: int


class TrackedProxy(NamedTuple):
    """A tracked proxy; its expiry is absolute, in seconds of the tracker's clock."""

    name: str
    group: str
    generation: int
    expiry: float


class Tracker:
    """Proxies, leases and claims of one cluster, and the rules that join them.

    Whatever is wrong in an argument is a ValueError that names it, and changes nothing. Not safe
    for threads: one writer owns it.

    Args:
        cluster_name: Names that end in `.<cluster_name>` are resolved without it; not empty.
        proxy_expiry: Seconds until a mention without TTL expires; 0 or less means 180.
        clock: Returns seconds and never goes back. The tracker has no other clock.
    """

    __slots__ = (
        "_clock",
        "_cluster_name",
        "_connection_count",
        "_desired",
        "_holders",
        "_last_lease",
        "_leases",
        "_mentions",
        "_proxy_expiry",
        "_suffix",
        "_tracked",
    )

    def __init__(
        self,
        cluster_name: str,
        proxy_expiry: float = DEFAULT_PROXY_EXPIRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_str(cluster_name, "cluster_name")
        if not cluster_name:
            raise ValueError("cluster_name must not be empty")
        if not callable(clock):
            raise ValueError(f"clock must be callable, not {clock!r}")  # noqa: TRY004
        self._cluster_name = cluster_name
        self._suffix = "." + cluster_name
        self._clock = clock
        self.proxy_expiry = proxy_expiry
        self._connection_count = 0
        self._last_lease = 0
        self._leases: dict[int, str | None] = {}  # what each claims; None while in flight
        self._holders: dict[str, int] = {}  # the lease that claims a name, tracked or not
        self._tracked: dict[str, Cohort] = {}
        self._desired = DesiredSet()
        self._mentions = Mentions()

    # -- settings ---------------------------------------------------------------------

    @property
    def cluster_name(self) -> str:
        """The cluster whose proxies are tracked."""
        return self._cluster_name

    @property
    def proxy_expiry(self) -> float:
        """Seconds until a mention without TTL expires. May be set; holds for later mentions."""
        return self._proxy_expiry

    @proxy_expiry.setter
    def proxy_expiry(self, seconds: float) -> None:
        check_seconds(seconds, "proxy_expiry")
        self._proxy_expiry = seconds if seconds > 0 else DEFAULT_PROXY_EXPIRY

    @property
    def connection_count(self) -> int:
        """Most connections wanted; 0 or less: one to every desired proxy."""
        return self._connection_count

    def set_connection_count(self, count: int) -> None:
        """Limit the target to `count` connections when it is positive, to none otherwise."""
        check_int(count, "connection_count")
        self._connection_count = count

    # -- gossip -----------------------------------------------------------------------

    def track_expected(self, proxies: Iterable[Proxy]) -> list[str]:
        """Take in gossip: insert or overwrite each proxy by name (rule 2).

        Absence from a message never removes a proxy.

        Args:
            proxies: What one message mentions; the last mention of a name wins.

        Returns:
            The names that are new, or whose group or generation is another now; empty when only
            expiries have moved.
        """
        return list(self.track_rows(check_proxies(proxies)))

    def unknown(self, entries: Sequence[Any], max_ttl: float = _LONGEST) -> list[int]:
        """Return the places of the entries that do more than repeat what is tracked.

        All other entries name a tracked proxy with its group and generation, so their fields are
        as valid as those that were checked before, and their TTL is None, or positive and at
        most `max_ttl`. An unknown entry may be of any type and hold anything.

        Args:
            entries: One message of gossip, as it was received.
            max_ttl: Seconds.

        Returns:
            Indexes into `entries`.
        """
        tracked, found = self._tracked, list[int]()
        for i, entry in enumerate(entries):
            try:
                name, group, generation, ttl = entry
                cohort = tracked[name]
            except (TypeError, ValueError, KeyError):
                found.append(i)
                continue
            if not (
                cohort.generation == generation
                and cohort.group == group
                and type(generation) is int
                and type(entry) is list
                and (
                    ttl is None or ((type(ttl) is float or type(ttl) is int) and 0 < ttl <= max_ttl)
                )
            ):
                found.append(i)
        return found

    def track_rows(self, rows: Sequence[GossipRow]) -> dict[str, Place | None]:
        """Insert or overwrite each proxy by name (rule 2), without checking any field.

        Args:
            rows: One message of gossip; the last row of a name wins.

        Returns:
            The names that are new, or whose group or generation has changed, each with its place
            before the message; None for a new one.
        """
        rows = last_rows(rows)
        before = {rows[i][0]: place for i, place in self.changed_by(rows)}
        now = self._clock()
        self.put(rows)
        for ttl, names in runs(rows):
            ttl = self.ttl_used(ttl)  # noqa: PLW2901
            renewed = self._mentions.renewable(names)
            if renewed is not None:
                self._mentions.renew(renewed.number, now + ttl, ttl, 0)
            else:
                self._mentions.add(self._mentions.last + 1, names, now + ttl, ttl, 0)
        return before

    def changed_by(self, rows: Sequence[GossipRow]) -> list[tuple[int, Place | None]]:
        """Return what rows of gossip would change, and change nothing.

        Args:
            rows: One message; no name twice.

        Returns:
            For each proxy that is new or whose place would change: the index of its row, and its
            place now, or None.
        """
        tracked, found = self._tracked, list[tuple[int, Place | None]]()
        for i, (name, group, generation, _) in enumerate(rows):
            cohort = tracked.get(name)
            if cohort is None:
                found.append((i, None))
            elif cohort.generation != generation or cohort.group != group:
                found.append((i, Place(cohort.group, cohort.generation)))
        return found

    def sweep(self) -> list[str]:
        """Drop the proxies whose expiry has passed, and return their names (rules 3, 4).

        A claim on one of them stays (rule 5).
        """
        expired = self._mentions.due(self._clock())
        self.drop(expired)
        return expired

    def forget(self, name: str) -> Place | None:
        """Drop a proxy before its expiry, because an administrator asks; a claim on it stays.

        Returns:
            Where it was; None when it is not tracked.
        """
        check_str(name, "name")
        if name not in self._tracked:
            return None
        place = self.place(name)
        self.drop([name])
        return place

    # -- the steps of a change, each without a check ----------------------------------

    @property
    def mentions(self) -> Mentions:
        """Which names expire when, and who mentioned them last."""
        return self._mentions

    def ttl_used(self, ttl: float | None) -> float:
        """Return the seconds for which a mention holds, given the TTL that it carries."""
        return self._proxy_expiry if ttl is None or ttl <= 0 else ttl

    def put(self, rows: Iterable[GossipRow]) -> None:
        """Insert or move proxies; their mentions follow."""
        tracked = self._tracked
        for name, group, generation, _ in rows:
            cohort = tracked.get(name)
            if cohort is not None and cohort.generation == generation and cohort.group == group:
                continue
            claimed = name in self._holders
            tracked[name] = self._desired.add(group, generation, claimed=claimed)
            if cohort is not None:
                self._desired.remove(cohort, claimed=claimed)

    def drop(self, names: Iterable[str]) -> None:
        """Stop tracking proxies, and drop their mentions; a claim on one of them stays."""
        names = list(names)
        self._mentions.drop(names)
        for name in names:
            self._desired.remove(self._tracked.pop(name), claimed=name in self._holders)

    def grant(self) -> int:
        """Grant a lease, and return its id."""
        self._last_lease += 1
        self._leases[self._last_lease] = None
        return self._last_lease

    def hold(self, lease: int, name: str) -> None:
        """Let a lease that is in flight hold a name that no lease holds."""
        self._leases[lease] = name
        self._holders[name] = lease
        cohort = self._tracked.get(name)
        if cohort is not None:
            self._desired.claim(cohort)

    # -- leases -----------------------------------------------------------------------

    def try_acquire(self) -> int | None:
        """Drop what has expired, then grant a lease by rule 6.

        Returns:
            The id of the lease, in flight; None when no further connection is wanted now.
        """
        self.sweep()
        return self.grant() if self.bootstrap or self.need else None

    def claim(self, lease: int, principals: Sequence[str]) -> str | None:
        """Let a lease that is in flight hold the proxy that presents these names (rule 8).

        Args:
            lease: The id that `try_acquire` returned.
            principals: The names that the dialled proxy presents, in its order.

        Returns:
            The name that the lease holds now. None when the lease is not in flight, no name is
            meant, or another lease holds it; then nothing has changed.
        """
        check_int(lease, "lease")
        name = self.resolve(principals)
        if self._leases.get(lease, _UNKNOWN) is not None or name is None or name in self._holders:
            return None
        self.hold(lease, name)
        return name

    def adopt(self, principals: Sequence[str]) -> tuple[int, str] | None:
        """Grant a lease and claim in one step, for a tunnel that is open already (rule 14).

        The connection count does not apply.

        Returns:
            The lease and the name that it holds; None when no name is meant or a lease holds it.
        """
        name = self.resolve(principals)
        if name is None or name in self._holders:
            return None
        lease = self.grant()
        self.hold(lease, name)
        return lease, name

    def release(self, lease: int) -> bool:
        """Free what a lease claims, or take it out of flight (rule 9).

        Returns:
            Whether the lease was held until now.
        """
        check_int(lease, "lease")
        if lease not in self._leases:
            return False
        name = self._leases.pop(lease)
        if name is not None:
            del self._holders[name]
            cohort = self._tracked.get(name)
            if cohort is not None:
                self._desired.unclaim(cohort)
        return True

    def is_claimed(self, principals: Sequence[str]) -> bool:
        """Return whether a lease holds the proxy that presents these names (rule 10)."""
        return self.resolve(principals) in self._holders

    def resolve(self, principals: Sequence[str]) -> str | None:
        """Return the one name that these principals mean, or None (rule 7)."""
        check_principals(principals)
        for principal in principals:
            if principal in self._tracked or principal in self._holders:
                return principal or None
        return principals[0].removesuffix(self._suffix) or None if principals else None

    # -- counts -----------------------------------------------------------------------

    @property
    def bootstrap(self) -> bool:
        """Whether rule 6 grants because nothing is in flight, and nothing claimed or tracked."""
        return not self.inflight and not (self._holders and self._tracked)

    @property
    def need(self) -> bool:
        """Whether rule 6 grants because the target is not met by claims and leases in flight."""
        return self.target > self._desired.claimed + self.inflight

    @property
    def target(self) -> int:
        """Number of connections wanted: the desired proxies, or the connection count if less."""
        desired = self._desired.count
        return min(desired, self._connection_count) if self._connection_count > 0 else desired

    @property
    def inflight(self) -> int:
        """Number of leases that have not claimed."""
        return len(self._leases) - len(self._holders)

    @property
    def claimed_count(self) -> int:
        """Number of proxies that a lease holds, tracked or not."""
        return len(self._holders)

    @property
    def tracked_count(self) -> int:
        """Number of tracked proxies."""
        return len(self._tracked)

    @property
    def desired_count(self) -> int:
        """Number of tracked proxies of the largest generation of their group."""
        return self._desired.count

    @property
    def claimed_desired_count(self) -> int:
        """Number of desired proxies that a lease holds."""
        return self._desired.claimed

    @property
    def last_lease(self) -> int:
        """The id granted last; 0 before the first."""
        return self._last_lease

    @property
    def next_expiry(self) -> float | None:
        """The earliest expiry of a tracked proxy, in seconds of the clock; None without any."""
        return self._mentions.next_expiry()

    # -- who and what -----------------------------------------------------------------

    @property
    def leases(self) -> Mapping[int, str | None]:
        """A live view of the leases: id, and the name it holds or None while in flight."""
        return MappingProxyType(self._leases)

    def lease_name(self, lease: int) -> str | None:
        """Return the name that a lease holds; None when it holds none or is not held itself."""
        check_int(lease, "lease")
        return self._leases.get(lease)

    def holder(self, name: str) -> int | None:
        """Return the lease that holds a name, exactly as written, or None."""
        check_str(name, "name")
        return self._holders.get(name)

    def place(self, name: str) -> Place:
        """Return the group and generation of a tracked proxy; KeyError when it is not tracked."""
        cohort = self._tracked[name]
        return Place(cohort.group, cohort.generation)

    def note_source(self, name: str, source: int) -> None:
        """Note who put a tracked proxy into its group and generation; the latest one counts."""
        self._tracked[name].source = source

    def source_of(self, group: str) -> int | None:
        """Return who put a proxy into the largest generation of a group last, if it was noted."""
        return self._desired.source(group)

    def names_of(self, group: str, low: int, high: int) -> list[str]:
        """Return the tracked proxies of a group from one generation to another. Walks."""
        return [
            name
            for name, cohort in self._tracked.items()
            if cohort.group == group and low <= cohort.generation <= high
        ]

    def largest(self, group: str) -> int | None:
        """Return the largest generation of a group; None when it has no tracked proxy."""
        return self._desired.largest(group)

    def names(self) -> list[str]:
        """Return the tracked names, and those that are claimed without being tracked."""
        return [*self._tracked, *(name for name in self._holders if name not in self._tracked)]

    def ttl_of(self, name: str) -> float:
        """Return the TTL, in seconds, with which a tracked proxy was mentioned last."""
        return self._mentions.of(name).ttl

    def is_tracked(self, name: str) -> bool:
        """Return whether a name, exactly as written, is a tracked proxy."""
        return name in self._tracked

    def is_desired(self, name: str) -> bool:
        """Return whether a name, exactly as written, is a desired proxy."""
        check_str(name, "name")
        cohort = self._tracked.get(name)
        return cohort is not None and cohort.desired

    def get(self, name: str) -> TrackedProxy | None:
        """Return the tracked proxy of a name, exactly as written, or None."""
        check_str(name, "name")
        cohort = self._tracked.get(name)
        if cohort is None:
            return None
        return TrackedProxy(name, cohort.group, cohort.generation, self._mentions.of(name).expiry)

    def __iter__(self) -> Iterator[TrackedProxy]:
        """Iterate over the tracked proxies, in no particular order: for snapshots."""
        for name, cohort in self._tracked.items():
            yield TrackedProxy(
                name, cohort.group, cohort.generation, self._mentions.of(name).expiry
            )

    @property
    def group_count(self) -> int:
        """Number of groups that have a tracked proxy."""
        return self._desired.group_count

    def first_groups(self) -> list[GroupCounts]:
        """Return the counts of the first 100 groups by name, at the same cost for any number."""
        return self._desired.first_groups()

    def groups(self) -> list[GroupSummary]:
        """Return a summary of each group, sorted by name. Walks: for tests."""
        return self._desired.groups()

    def missing(self, limit: int) -> list[str]:
        """Return up to `limit` desired proxies that no lease holds. Walks: for operators."""
        check_int(limit, "limit")
        unclaimed = (
            name
            for name, cohort in self._tracked.items()
            if cohort.desired and name not in self._holders
        )
        wanted = min(max(limit, 0), self._desired.count - self._desired.claimed)
        return list(islice(unclaimed, wanted))

    # -- restart ----------------------------------------------------------------------

    def restore(
        self,
        *,
        proxies: Iterable[tuple[str, str, int, float] | tuple[str, str, int, float, float | None]],
        leases: Mapping[int, str | None],
        last_lease: int,
        connection_count: int,
    ) -> None:
        """Take over what an earlier process left, into a tracker that has seen nothing.

        Args:
            proxies: Name, group, generation and absolute expiry of each tracked proxy, as
                iterating over a tracker yields them; then the TTL of its last mention, if known.
            leases: What each lease holds, None while in flight.
            last_lease: The id granted last.
            connection_count: See `set_connection_count`.

        Raises:
            ValueError: This tracker has tracked or granted already, or the state makes no sense.
        """
        if self._tracked or self._last_lease:
            raise ValueError("restore needs a tracker that has neither tracked nor granted")
        check_int(last_lease, "last_lease")
        check_int(connection_count, "connection_count")
        if last_lease < 0:
            raise ValueError(f"last_lease must not be negative, not {last_lease}")
        holders: dict[str, int] = {}
        for lease, held in leases.items():
            check_int(lease, "lease")
            if not 0 < lease <= last_lease:
                raise ValueError(f"lease {lease} is not between 1 and last_lease {last_lease}")
            if held is None:
                continue
            check_str(held, f"the name that lease {lease} holds")
            if not held or held in holders:
                raise ValueError(f"lease {lease} cannot hold {held!r}")
            holders[held] = lease
        rows = {}
        for name, group, generation, expiry, *known in proxies:
            ttl = known[0] if known else None
            check_proxy(name, group, generation, ttl)
            if ttl is not None and ttl <= 0:
                raise ValueError(f"the ttl of {name!r} must be positive, not {ttl}")
            check_seconds(expiry, f"the expiry of {name!r}")
            if name in rows:
                raise ValueError(f"proxy {name!r} is there twice")
            rows[name] = group, generation, expiry, ttl
        self._leases = dict(leases)
        self._holders = holders
        self._last_lease = last_lease
        self._connection_count = connection_count
        for name, (group, generation, *_) in rows.items():
            self._tracked[name] = self._desired.add(group, generation, claimed=name in holders)
        mentioned = sorted(
            (expiry, self.ttl_used(ttl), name) for name, (_, _, expiry, ttl) in rows.items()
        )
        for (expiry, ttl), run in groupby(mentioned, itemgetter(0, 1)):
            number = self._mentions.last + 1
            self._mentions.add(number, [name for _, _, name in run], expiry, ttl, 0)


def last_rows(rows: Sequence[GossipRow]) -> Sequence[GossipRow]:
    """Return rows of which no name is there twice: the last one of each."""
    last = {row[0]: row for row in rows}
    return rows if len(last) == len(rows) else list(last.values())


def runs(rows: Iterable[GossipRow]) -> Iterator[tuple[float | None, list[str]]]:
    """Yield the names of neighbours that carry the same TTL, and that TTL."""
    for ttl, run in groupby(rows, TTL_OF):
        yield ttl, [row[0] for row in run]
