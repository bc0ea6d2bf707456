"""The desired set as an index: how many proxies are desired, and how many of those are claimed.

Desired are the tracked proxies of the largest generation of their group, over all groups. The
index counts them by group and generation and keeps the two totals up to date with every change.
It never walks proxies, and knows no names, expiries or leases.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, nsmallest


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
    """

    group: str
    generation: int
    tracked: int = 0
    claimed: int = 0
    desired: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    cohorts: dict[int, Cohort] = field(default_factory=dict)
    largest: Cohort | None = None
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


class DesiredSet:
    """Counts of tracked and claimed proxies by group and generation.

    A change costs O(1), or O(log g) amortised when a generation appears in or vanishes from a
    group of g generations.

    Attributes:
        count: Number of desired proxies.
        claimed: How many of those a lease holds.
    """

    __slots__ = ("_groups", "claimed", "count")

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self.count = 0
        self.claimed = 0

    def add(self, group: str, generation: int, *, claimed: bool) -> Cohort:
        """Count one more tracked proxy, and return the cohort that it belongs to from now on."""
        members = self._groups.get(group)
        if members is None:
            members = self._groups[group] = _Group()
        cohort = members.cohorts.get(generation)
        if cohort is None:
            cohort = Cohort(group, generation)
            members.open(cohort)
            if members.largest is None or generation > members.largest.generation:
                self._promote(members, cohort)
        cohort.tracked += 1
        if cohort.desired:
            self.count += 1
        if claimed:
            self.claim(cohort)
        return cohort

    def remove(self, cohort: Cohort, *, claimed: bool) -> None:
        """Stop counting one tracked proxy: it expired, or moved to another cohort."""
        if claimed:
            self.unclaim(cohort)
        cohort.tracked -= 1
        if cohort.desired:
            self.count -= 1
        if cohort.tracked:
            return
        members = self._groups[cohort.group]
        del members.cohorts[cohort.generation]
        if not members.cohorts:
            del self._groups[cohort.group]
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

    def groups(self, limit: int | None = None) -> Iterator[tuple[str, Cohort, list[Cohort]]]:
        """Yield each group's name, its desired cohort, and all its cohorts, the first by name."""
        names = sorted(self._groups) if limit is None else nsmallest(limit, self._groups)
        for name in names:
            members = self._groups[name]
            assert members.largest is not None
            yield name, members.largest, list(members.cohorts.values())

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
