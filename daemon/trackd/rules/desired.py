"""The desired set as an index: how many proxies are desired, and how many of those are claimed.

Desired are the tracked proxies of the largest generation of their group, over all groups. The
index counts them by group and generation and keeps the two totals up to date with every change.
It never walks proxies, and knows no names, expiries or leases.
"""

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

#: Groups that `DesiredSet.first_groups` returns at most.
MOST_GROUPS: Final = 100


class GroupCounts(NamedTuple):
    """The proxies of one group, counted.

    Attributes:
        name: The group's name.
        generation: Its largest generation, whose proxies are desired.
        tracked: Number of tracked proxies of all generations.
        desired: Number of tracked proxies of the largest generation.
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
        generation: Its largest generation, whose proxies are desired.
        tracked: Number of tracked proxies of all generations.
        desired: Number of tracked proxies of the largest generation.
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
    """The tracked proxies of one generation of one group, counted.

    All of them share this object, so that a million proxies cost the garbage collector nothing.
    Only `DesiredSet` writes to it.

    Attributes:
        group: The group's name.
        generation: The generation.
        tracked: How many proxies are tracked; a cohort without any is gone.
        claimed: How many of those a lease holds.
        desired: Whether this is the largest generation of its group.
        source: Who put a proxy here last, as the owner of the tracker noted it.
    """

    group: str
    generation: int
    tracked: int = 0
    claimed: int = 0
    desired: bool = False
    source: int | None = None


@dataclass(slots=True, eq=False)
class _Group:
    cohorts: dict[int, Cohort] = field(default_factory=dict)
    largest: Cohort | None = None
    tracked: int = 0
    # Negated generations: the root is the largest. Those that left stay until they reach the root
    # or until `open` has too many of them.
    heap: list[int] = field(default_factory=list)

    def open(self, cohort: Cohort) -> None:
        if len(self.heap) > 2 * len(self.cohorts) + 8:
            self.heap = [-generation for generation in self.cohorts]
            heapify(self.heap)
        self.cohorts[cohort.generation] = cohort
        heappush(self.heap, -cohort.generation)

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
                last = following


class DesiredSet:
    """Counts of tracked and claimed proxies by group and generation.

    A change costs O(1), or O(log g) amortised when a generation appears in or vanishes from a
    group of g generations.

    Attributes:
        count: Number of desired proxies.
        claimed: How many of those a lease holds.
    """

    __slots__ = ("_first", "_groups", "claimed", "count")

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._first = _FirstNames(self._groups)
        self.count = 0
        self.claimed = 0

    def add(self, group: str, generation: int, *, claimed: bool) -> Cohort:
        """Count one more tracked proxy, and return the cohort that it belongs to from now on."""
        members = self._groups.get(group)
        if members is None:
            members = self._groups[group] = _Group()
            self._first.add(group)
        cohort = members.cohorts.get(generation)
        if cohort is None:
            cohort = Cohort(group, generation)
            members.open(cohort)
            if members.largest is None or generation > members.largest.generation:
                self._promote(members, cohort)
        cohort.tracked += 1
        members.tracked += 1
        if cohort.desired:
            self.count += 1
        if claimed:
            self.claim(cohort)
        return cohort

    def remove(self, cohort: Cohort, *, claimed: bool) -> None:
        """Stop counting one tracked proxy: it expired, or moved to another cohort."""
        if claimed:
            self.unclaim(cohort)
        members = self._groups[cohort.group]
        cohort.tracked -= 1
        members.tracked -= 1
        if cohort.desired:
            self.count -= 1
        if cohort.tracked:
            return
        del members.cohorts[cohort.generation]
        if not members.cohorts:
            del self._groups[cohort.group]
            self._first.remove(cohort.group)
        elif cohort.desired:
            self._promote(members, members.find_largest())

    def claim(self, cohort: Cohort) -> None:
        """Count a tracked proxy of the cohort as claimed."""
        cohort.claimed += 1
        if cohort.desired:
            self.claimed += 1

    def unclaim(self, cohort: Cohort) -> None:
        """Stop counting a tracked proxy of the cohort as claimed."""
        cohort.claimed -= 1
        if cohort.desired:
            self.claimed -= 1

    @property
    def group_count(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def largest(self, group: str) -> int | None:
        """Return the largest generation of a group, or None when there is no such group."""
        members = self._groups.get(group)
        return None if members is None or members.largest is None else members.largest.generation

    def first_groups(self) -> list[GroupCounts]:
        """Return the counts of the first `MOST_GROUPS` groups by name, however many there are."""
        return [self._counts(name) for name in self._first.names()]

    def groups(self) -> list[GroupSummary]:
        """Return a summary of every group, sorted by name. Walks all groups and generations."""
        return [
            GroupSummary(
                *self._counts(name),
                {
                    cohort.generation: cohort.tracked
                    for cohort in self._groups[name].cohorts.values()
                },
            )
            for name in sorted(self._groups)
        ]

    def source(self, group: str) -> int | None:
        """Return who put a proxy into the largest generation of a group last, if that is known."""
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
        members.largest = cohort
        cohort.desired = True
        self.count += cohort.tracked
        self.claimed += cohort.claimed
