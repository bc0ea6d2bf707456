"""What is known of proxies, leases and claims, and what the rules say of it.

Here are the steps of a change, one by one, and the questions that the rules answer: is a lease to
be granted, which name is meant, can a lease have it. `Tracker` makes whole operations of them. The
daemon asks and takes each step itself, because it stores every step.

Everything here is pure: no I/O, no threads, no logging, no clock. Rule numbers in comments are
those of docs/rules.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from trackd.rules.checks import check_int, check_principals, check_seconds, check_str
from trackd.rules.desired import Cohort, DesiredSet, GroupCounts, GroupSummary
from trackd.rules.gossip import LONGEST, find_unknown
from trackd.rules.marks import RETIRE_HOLD, UNMARKED, Mark, Marks
from trackd.rules.mentions import GossipRow, Mentions
from trackd.rules.targets import Address, Aim, Sharing, Targets

DEFAULT_PROXY_EXPIRY = 180.0
"""Seconds after which a proxy expires when neither gossip nor the configuration says."""


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


class Registry:
    """The proxies, leases and claims of one cluster.

    Args:
        cluster_name: Names that end in `.<cluster_name>` are resolved without it; not empty.
        proxy_expiry: Seconds until a mention without TTL expires; 0 or less means 180.
    """

    __slots__ = (
        "_cluster_name",
        "_connection_count",
        "_desired",
        "_holders",
        "_last_lease",
        "_leases",
        "_mentions",
        "_offered",
        "_proxy_expiry",
        "_suffix",
        "_tracked",
        "edition",
        "marks",
        "targets",
    )

    def __init__(self, cluster_name: str, proxy_expiry: float = DEFAULT_PROXY_EXPIRY) -> None:
        check_str(cluster_name, "cluster_name")
        if not cluster_name:
            raise ValueError("cluster_name must not be empty")
        self._cluster_name = cluster_name
        self._suffix = "." + cluster_name
        self.proxy_expiry = proxy_expiry
        self._connection_count = 0
        self._last_lease = 0
        self._leases: dict[int, str | None] = {}  # what each claims; None while in flight
        self._holders: dict[str, int] = {}  # the lease that claims a name, tracked or not
        self._offered: set[int] = set()  # of the leases that hold a name (rule 20)
        self._tracked: dict[str, Cohort] = {}
        self._desired = DesiredSet()
        self._mentions = Mentions()
        #: Which names are marked as terminating (rule 15).
        self.marks = Marks()
        #: Which addresses are known, and which leases are aimed at one (rule 16).
        self.targets = Targets()
        #: Another object after each change of what `unknown` depends on.
        self.edition = object()
        self._desired.watch = self.targets.change_desired

    # -- settings -------------------------------------------------------------------------

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

    def unknown(
        self, entries: Sequence[Any], max_ttl: float = LONGEST
    ) -> tuple[list[int], list[int]]:
        """Find the entries that do more than repeat what is tracked.

        All other entries name a tracked proxy with its group and generation, so their fields are
        as valid as those that were checked before, and their TTL is None, or positive. What they
        say of termination is known as well. An unknown entry may be of any type and hold anything.

        Args:
            entries: One message of gossip, as it was received.
            max_ttl: Seconds.

        Returns:
            Indexes into `entries`: of the unknown ones, and of the others whose TTL is above
            `max_ttl`.
        """
        return find_unknown(self._tracked, self.marks, self.targets, entries, max_ttl)

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

    # -- the steps of a change, each without a check --------------------------------------

    @property
    def mentions(self) -> Mentions:
        """Which names expire when, and who mentioned them last."""
        return self._mentions

    def ttl_used(self, ttl: float | None) -> float:
        """Return the seconds for which a mention holds, given the TTL that it carries."""
        return self._proxy_expiry if ttl is None or ttl <= 0 else ttl

    def put(self, rows: Iterable[GossipRow]) -> None:
        """Insert or move proxies; their mentions follow."""
        self.edition = object()
        tracked = self._tracked
        for name, group, generation, _ in rows:
            cohort = tracked.get(name)
            if cohort is not None and cohort.generation == generation and cohort.group == group:
                continue
            claimed, marked = name in self._holders, name in self.marks.by_name
            offered = self._is_name_offered(name)
            tracked[name] = self._desired.add(
                group, generation, claimed=claimed, terminating=marked, offered=offered
            )
            if cohort is not None:
                self._desired.remove(cohort, claimed=claimed, offered=offered)
                if name in self.targets.by_name:
                    self._place_target(name)

    def mark(self, name: str, mark: Mark) -> None:
        """Give a name a mark, or take it away (`UNMARKED`); the name may be untracked."""
        if (mark.said is None) != (self.marks.get(name).said is None):
            self.edition = object()
        self.marks.put(name, mark)
        cohort, marked = self._tracked.get(name), mark != UNMARKED
        if cohort is not None and cohort.terminating != marked:
            claimed, offered = name in self._holders, self._is_name_offered(name)
            added = self._tracked[name] = self._desired.add(
                cohort.group,
                cohort.generation,
                claimed=claimed,
                terminating=marked,
                offered=offered,
            )
            if added.source is None:
                added.source = cohort.source
            self._desired.remove(cohort, claimed=claimed, offered=offered)
            if name in self.targets.by_name:
                self._place_target(name)

    def share_targets(self, sharing: Sharing) -> None:
        """Let grants carry the addresses that nobody, their own user or all have said."""
        if self.targets.sharing != sharing:
            self.targets.sharing = sharing
            for name in self.targets.by_name:
                self._place_target(name)

    def put_address(self, name: str, address: Address | None) -> None:
        """Keep the address of a name, or forget it (None)."""
        old = self.targets.by_name.get(name)
        if address is None or old is None or address.text != old.text:
            self.edition = object()
        self.targets.put(name, address)
        self._place_target(name)

    def aim(self, lease: int, aim: Aim | None) -> None:
        """Aim a lease that is in flight at a name, or take its aim from it (None)."""
        if aim is None:
            aim = self.targets.aims[lease]
            self.targets.end_aim(lease)
        else:
            self.targets.aim(lease, aim)
        self._place_target(aim.name)

    def _place_target(self, name: str) -> None:
        cohort = self._tracked.get(name) if self.is_available(name) else None
        self.targets.place(name, cohort)

    def _free_target(self, lease: int, name: str | None) -> None:
        """Take its aim from a lease that is not in flight any more, and look at what it holds."""
        if lease in self.targets.aims:
            self.aim(lease, None)
        if name in self.targets.by_name:
            assert name is not None
            self._place_target(name)

    def without_gossip(self, names: Iterable[str]) -> dict[str, Mark]:
        """Return the marks to give to proxies before they are dropped: what gossip said ends."""
        marked = self.marks.by_name
        if not marked:
            return {}
        return {
            name: marked[name]._replace(said=None)
            for name in names
            if name in marked and marked[name].said is not None
        }

    def retire_hold(self, name: str, now: float) -> Mark:
        """Return the mark of a retired name after the release of its lease."""
        hold = min(RETIRE_HOLD, self.ttl_of(name)) if name in self._tracked else RETIRE_HOLD
        return self.marks.get(name)._replace(retired=now + hold)

    def drop(self, names: Iterable[str]) -> None:
        """Stop tracking proxies, and drop their mentions; a claim on one of them stays."""
        self.edition = object()
        names = list(names)
        self._mentions.drop(names)
        for name in names:
            claimed, offered = name in self._holders, self._is_name_offered(name)
            self._desired.remove(self._tracked.pop(name), claimed=claimed, offered=offered)

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
        if self.targets.by_name or self.targets.aims:
            self._free_target(lease, name)

    def free(self, lease: int) -> str | None:
        """Free what a lease claims, or take it out of flight; return the name that it held."""
        name = self._leases.pop(lease)
        if name is not None:
            del self._holders[name]
            cohort = self._tracked.get(name)
            if cohort is not None:
                self._desired.unclaim(cohort)
            if lease in self._offered:
                self._offered.remove(lease)
                if cohort is not None:
                    self._desired.end_offer(cohort)
        if self.targets.by_name or self.targets.aims:
            self._free_target(lease, name)
        return name

    def rename(self, lease: int, name: str) -> None:
        """Let a lease hold a name that no lease holds, instead of one that is not tracked."""
        offered = lease in self._offered
        self._offered.discard(lease)
        del self._holders[self._leases[lease] or ""]
        self.hold(lease, name)
        if offered:
            self.put_offer(lease)

    def put_offer(self, lease: int) -> None:
        """Offer a lease that holds a name, and is not offered."""
        self._offered.add(lease)
        cohort = self._tracked.get(self._leases[lease] or "")
        if cohort is not None:
            self._desired.offer(cohort)
            if self.targets.by_name:
                self._place_target(self._leases[lease] or "")

    def _is_name_offered(self, name: str) -> bool:
        return bool(self._offered) and self._holders.get(name) in self._offered

    # -- which name, and whether a lease can have it --------------------------------------

    def resolve(self, principals: Sequence[str]) -> str | None:
        """Return the one name that these principals mean, or None (rule 7)."""
        check_principals(principals)
        for principal in principals:
            if principal in self._tracked or principal in self._holders:
                return principal or None
        return principals[0].removesuffix(self._suffix) or None if principals else None

    def aliases_of(self, principals: Sequence[str]) -> list[str]:
        """Return the names that these principals may mean: as written, then shortened (rule 7)."""
        shortened = (principal.removesuffix(self._suffix) for principal in principals)
        return [name for name in dict.fromkeys((*principals, *shortened)) if name]

    def resolve_to_follow(self, principals: Sequence[str]) -> str | None:
        """Return the one name that these principals mean to a lease that follows gossip (rule 7).

        Where none of them is known as written, a shortened one may be.
        """
        name = self.resolve(principals)
        if name is None or name in self._tracked or name in self._holders:
            return name
        for alias in self.aliases_of(principals):
            if alias in self._tracked or alias in self._holders:
                return alias
        return name

    def is_available(self, name: str) -> bool:
        """Return whether a lease in flight can claim a name: no lease holds it, or offers it.

        Nobody takes over a terminating proxy, whose tunnel would have to close (rule 15).
        """
        holder = self._holders.get(name)
        return holder is None or (holder in self._offered and not self.is_terminating(name))

    # -- counts ---------------------------------------------------------------------------

    @property
    def bootstrap(self) -> bool:
        """Whether rule 6 grants because nothing is in flight, and nothing claimed or tracked."""
        return not self.inflight and not (self._holders and self._tracked)

    @property
    def need(self) -> bool:
        """Whether rule 6 grants because the target is not met by claims and leases in flight."""
        desired = self._desired
        return self.target > desired.claimed - desired.offered + self.inflight

    @property
    def replaced(self) -> list[int]:
        """The offered leases that are not needed: the target is met without any of them (rule 20).

        Without a target nothing says that a tunnel is not needed.
        """
        if not self._offered:
            return []
        desired = self._desired
        is_met = 0 < self.target <= desired.claimed - desired.offered
        return sorted(self._offered) if is_met else []

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
        """Number of desired proxies: tracked, of the largest generation, and not terminating."""
        return self._desired.count

    @property
    def claimed_desired_count(self) -> int:
        """Number of desired proxies that a lease holds."""
        return self._desired.claimed

    @property
    def offered_desired_count(self) -> int:
        """Number of desired proxies that an offered lease holds; rule 6 does not count them."""
        return self._desired.offered

    @property
    def claimed_terminating_count(self) -> int:
        """Number of terminating proxies that a lease holds (`is_terminating`)."""
        return self._desired.claimed_terminating

    @property
    def missing_count(self) -> int:
        """Number of wanted connections that are missing; one to a terminating proxy is there."""
        desired = self._desired
        return max(0, self.target - desired.claimed - desired.claimed_terminating)

    @property
    def last_lease(self) -> int:
        """The id granted last; 0 before the first."""
        return self._last_lease

    @property
    def next_expiry(self) -> float | None:
        """The earliest expiry of a tracked proxy, in seconds of the clock; None without any."""
        return self._mentions.next_expiry()

    # -- who and what ---------------------------------------------------------------------

    @property
    def leases(self) -> Mapping[int, str | None]:
        """A live view of the leases: id, and the name it holds or None while in flight."""
        return MappingProxyType(self._leases)

    def lease_name(self, lease: int) -> str | None:
        """Return the name that a lease holds; None when it holds none or is not held itself."""
        check_int(lease, "lease")
        return self._leases.get(lease)

    def is_offered(self, lease: int) -> bool:
        """Return whether a lease is offered."""
        return lease in self._offered

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
        """Return the desired generation of a group; None when it has no tracked proxy."""
        return self._desired.largest(group)

    def newest(self, group: str) -> int | None:
        """Return the largest generation of a group, terminating or not; None without any."""
        return self._desired.newest(group)

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

    def is_marked(self, name: str) -> bool:
        """Return whether a name, exactly as written, is a tracked proxy marked as terminating."""
        cohort = self._tracked.get(name)
        return cohort is not None and cohort.terminating

    def is_terminating(self, name: str) -> bool:
        """Return whether a tracked proxy is not desired because it is marked as terminating."""
        cohort = self._tracked.get(name)
        return cohort is not None and self._desired.is_terminating(cohort)

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

    def watch_groups(self) -> None:
        """Note from now on which groups change, for `take_changed_groups`."""
        self._desired.changed = set()

    def take_changed_groups(self) -> list[tuple[str, int, int]]:
        """Return the groups that may have changed since the last call, each with its counts.

        These are its desired proxies, and how many of them no lease holds.
        """
        changed, self._desired.changed = self._desired.changed, set()
        return [
            (group, desired, desired - claimed)
            for group in changed or ()
            for desired, claimed in (self._desired.count_of(group),)
        ]

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
