"""The desired set as an index: how many proxies are desired, and how many of those are claimed.

Desired are the tracked proxies of the largest generation of their group, over all groups; those
that are marked as terminating only where their whole group is (rule 15). The index counts proxies
by group, generation and mark, and keeps the totals up to date with every change. It never walks
proxies, and knows no names, expiries or leases.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

#: Groups that `DesiredSet.first_groups` returns at most.
MOST_GROUPS: Final = 100
#: More than the largest generation.
_MARKED: Final = 2**64


class GroupCounts(NamedTuple):
    """The proxies of one group, counted.

    Attributes:
        name: The group's name.
        generation: The generation whose proxies are desired: the largest.
        tracked: Number of tracked proxies of all generations.
        desired: Number of desired proxies.
        claimed: Number of desired proxies that a lease holds.
    """

    name: str
    generation: int
    tracked: int
    desired: int
    claimed: int


class GroupSummary(NamedTuple):
    """`GroupCounts`, and all generations.

    Attributes:
        name: The group's name.
        generation: The generation whose proxies are desired: the largest.
        tracked: Number of tracked proxies of all generations.
        desired: Number of desired proxies.
        claimed: Number of desired proxies that a lease holds.
        generations: Number of tracked proxies by generation.
    """

    name: str
    generation: int
    tracked: int
    desired: int
    claimed: int
    generations: dict[int, int]


@dataclass(slots=True, eq=False)
class Cohort:
    """The tracked proxies of one generation of one group, counted: those that are marked, or not.

    All of them share this object, so that a million proxies cost the garbage collector nothing.
    Only `DesiredSet` writes to it.

    Attributes:
        group: The group's name.
        generation: The generation.
        terminating: Whether its proxies are marked as terminating.
        tracked: How many proxies are tracked; a cohort without any is gone.
        claimed: How many of those a lease holds.
        offered: How many of those leases are offered (rule 20).
        desired: Whether its proxies are desired.
        source: Who put a proxy here last, as the owner of the tracker noted it.
    """

    group: str
    generation: int
    terminating: bool
    tracked: int = 0
    claimed: int = 0
    offered: int = 0
    desired: bool = False
    source: int | None = None

    @property
    def rank(self) -> int:
        """Orders the cohorts of a group: each one that is marked comes below all others."""
        return _rank(self.generation, self.terminating)


def _rank(generation: int, terminating: bool) -> int:
    return generation - _MARKED if terminating else generation


@dataclass(slots=True)
class _Group:
    cohorts: dict[int, Cohort] = field(default_factory=dict)  # by rank
    largest: Cohort | None = None  # the desired one
    tracked: int = 0
    claimed_marked: int = 0
    # Negated ranks: the root is the largest. Those that left stay until they reach the root or
    # until `open` has too many of them.
    heap: list[int] = field(default_factory=list)

    def open(self, cohort: Cohort) -> None:
        if len(self.heap) > 2 * len(self.cohorts) + 8:
            self.heap = [-rank for rank in self.cohorts]
            heapify(self.heap)
        self.cohorts[cohort.rank] = cohort
        heappush(self.heap, -cohort.rank)

    def find_largest(self) -> Cohort:
        while -self.heap[0] not in self.cohorts:
            heappop(self.heap)
        return self.cohorts[-self.heap[0]]


class _FirstNames:
    """The first names of a set that changes, in order, without a walk over all of it.

    The first ones are a sorted list. The others are a heap. A name that has left the set stays in
    the heap until it reaches the root or until there are too many of them.
    """

    __slots__ = ("_all", "_first", "_others")

    def __init__(self, names: Collection[str]) -> None:
        """Watch a set, whose changes `add` and `remove` report."""
        self._all = names
        self._first: list[str] = []
        self._others: list[str] = []

    def names(self) -> list[str]:
        """Return the first `MOST_GROUPS` names."""
        return list(islice(self._first, MOST_GROUPS))

    def add(self, name: str) -> None:
        """Take over a name that is now in the set."""
        first = self._first
        if not self._others or name < first[-1]:
            insort(first, name)
            if len(first) <= 2 * MOST_GROUPS:
                return
            name = first.pop()
        if len(self._others) > 2 * len(self._all) + 8:
            self._others = [each for each in set(self._others) if each in self._all]
            heapify(self._others)
        heappush(self._others, name)

    def remove(self, name: str) -> None:
        """Take over that a name has left the set."""
        first, others = self._first, self._others
        place = bisect_left(first, name)
        if place == len(first) or first[place] != name:
            return
        last = first[-1]
        del first[place]
        while others and len(first) < MOST_GROUPS:
            following = heappop(others)
            # Others are larger than the first ones: a smaller or equal one left the set, and may
            # have come back since.
            if following > last and following in self._all:
                first.append(following)


class DesiredSet:
    """Counts of tracked and claimed proxies by group and generation.

    A change costs O(1), or O(log g) amortised when a generation appears in or vanishes from a
    group of g generations.

    Attributes:
        count: Number of desired proxies.
        claimed: How many of those a lease holds.
        offered: How many of those leases are offered (rule 20).
        claimed_terminating: Number of claimed proxies that are not desired for their mark: those
            of groups with a proxy that has none.
        watch: called with each cohort that has become desired or stopped being so, or None.
        changed: the groups whose counts may have changed, for those who take them out; None: nobody
            does.
    """

    __slots__ = (
        "_first",
        "_groups",
        "changed",
        "claimed",
        "claimed_terminating",
        "count",
        "offered",
        "watch",
    )

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._first = _FirstNames(self._groups)
        self.count = 0
        self.claimed = 0
        self.offered = 0
        self.claimed_terminating = 0
        self.watch: Callable[[Cohort], None] | None = None
        self.changed: set[str] | None = None

    def add(
        self,
        group: str,
        generation: int,
        *,
        claimed: bool,
        terminating: bool = False,
        offered: bool = False,
    ) -> Cohort:
        """Count one more tracked proxy, and return the cohort that it belongs to from now on."""
        members = self._groups.get(group)
        if members is None:
            members = self._groups[group] = _Group()
            self._first.add(group)
        rank = _rank(generation, terminating)
        cohort = members.cohorts.get(rank)
        if cohort is None:
            cohort = Cohort(group, generation, terminating)
            members.open(cohort)
            if members.largest is None or rank > members.largest.rank:
                self._promote(members, cohort)
        cohort.tracked += 1
        members.tracked += 1
        if self.changed is not None:
            self.changed.add(group)
        if cohort.desired:
            self.count += 1
        if claimed:
            self.claim(cohort)
        if offered:
            self.offer(cohort)
        return cohort

    def remove(self, cohort: Cohort, *, claimed: bool, offered: bool = False) -> None:
        """Stop counting one tracked proxy: it expired, or moved to another cohort."""
        if offered:
            self.end_offer(cohort)
        if claimed:
            self.unclaim(cohort)
        members = self._groups[cohort.group]
        cohort.tracked -= 1
        members.tracked -= 1
        if self.changed is not None:
            self.changed.add(cohort.group)
        if cohort.desired:
            self.count -= 1
        if cohort.tracked:
            return
        del members.cohorts[cohort.rank]
        if not members.cohorts:
            del self._groups[cohort.group]
            self._first.remove(cohort.group)
        elif cohort.desired:
            self._promote(members, members.find_largest())

    def claim(self, cohort: Cohort) -> None:
        """Count a tracked proxy of the cohort as claimed."""
        cohort.claimed += 1
        if self.changed is not None:
            self.changed.add(cohort.group)
        if cohort.desired:
            self.claimed += 1
        if cohort.terminating:
            self._count_marked(cohort, 1)

    def unclaim(self, cohort: Cohort) -> None:
        """Stop counting a tracked proxy of the cohort as claimed."""
        cohort.claimed -= 1
        if self.changed is not None:
            self.changed.add(cohort.group)
        if cohort.desired:
            self.claimed -= 1
        if cohort.terminating:
            self._count_marked(cohort, -1)

    def offer(self, cohort: Cohort) -> None:
        """Count a claimed proxy of the cohort as offered."""
        cohort.offered += 1
        if cohort.desired:
            self.offered += 1

    def end_offer(self, cohort: Cohort) -> None:
        """Stop counting a claimed proxy of the cohort as offered."""
        cohort.offered -= 1
        if cohort.desired:
            self.offered -= 1

    def is_terminating(self, cohort: Cohort) -> bool:
        """Return whether the proxies of a cohort are not desired because they are marked."""
        if not cohort.terminating:
            return False
        largest = self._groups[cohort.group].largest
        return largest is not None and not largest.terminating

    @property
    def group_count(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def largest(self, group: str) -> int | None:
        """Return the desired generation of a group, or None when there is no such group."""
        members = self._groups.get(group)
        return None if members is None or members.largest is None else members.largest.generation

    def newest(self, group: str) -> int | None:
        """Return the largest generation of a group, marked or not, or None. Walks generations."""
        members = self._groups.get(group)
        if members is None:
            return None
        return max(cohort.generation for cohort in members.cohorts.values())

    def first_groups(self) -> list[GroupCounts]:
        """Return the counts of the first `MOST_GROUPS` groups by name, however many there are."""
        return [self._counts(name) for name in self._first.names()]

    def groups(self) -> list[GroupSummary]:
        """Return a summary of every group, sorted by name. Walks all groups and generations."""
        return [
            GroupSummary(*self._counts(name), _generations(self._groups[name]))
            for name in sorted(self._groups)
        ]

    def count_of(self, group: str) -> tuple[int, int]:
        """Return how many proxies of a group are desired, and how many of these are claimed."""
        members = self._groups.get(group)
        if members is None or members.largest is None:
            return 0, 0
        return members.largest.tracked, members.largest.claimed

    def source(self, group: str) -> int | None:
        """Return who put a proxy into the desired generation of a group last, if that is known."""
        members = self._groups.get(group)
        return None if members is None or members.largest is None else members.largest.source

    def _counts(self, name: str) -> GroupCounts:
        members = self._groups[name]
        largest = members.largest
        assert largest is not None
        return GroupCounts(
            name, largest.generation, members.tracked, largest.tracked, largest.claimed
        )

    def _promote(self, members: _Group, cohort: Cohort) -> None:
        old = members.largest
        if old is not None:
            old.desired = False
            self.count -= old.tracked
            self.claimed -= old.claimed
            self.offered -= old.offered
            if old.terminating != cohort.terminating:  # the marks of the group count now, or not
                marked = members.claimed_marked
                self.claimed_terminating += marked if old.terminating else -marked
        members.largest = cohort
        cohort.desired = True
        self.count += cohort.tracked
        self.claimed += cohort.claimed
        self.offered += cohort.offered
        if self.watch is not None:
            if old is not None:
                self.watch(old)
            self.watch(cohort)

    def _count_marked(self, cohort: Cohort, claimed: int) -> None:
        members = self._groups[cohort.group]
        members.claimed_marked += claimed
        if self.is_terminating(cohort):
            self.claimed_terminating += claimed


def _generations(members: _Group) -> dict[int, int]:
    tracked = Counter[int]()
    for cohort in members.cohorts.values():
        tracked[cohort.generation] += cohort.tracked
    return dict(tracked)
