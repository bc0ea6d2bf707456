"""Which names are marked as terminating, and until when (rule 15).

A name has a mark because gossip says so, because a lease says so, or both. The index never reads a
clock. A mark that has ended stays until somebody puts another one in its place.
"""

from collections.abc import Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final, NamedTuple

#: Seconds for which a retired name stays marked after the release of its lease, at most.
RETIRE_HOLD: Final = 5.0


class Mark(NamedTuple):
    """Why a name is marked; each part is a time in seconds, or None when it does not hold.

    Attributes:
        said: until when gossip says so.
        retired: until when a lease says so; infinite while the retired lease holds the name.
    """

    said: float | None
    retired: float | None

    @property
    def end(self) -> float:
        """The first time at which a part ends; infinite when none does."""
        return min(inf if part is None else part for part in self)

    def left(self, now: float) -> "Mark":
        """Return the parts that have not ended strictly before now."""
        return Mark(*(part if part is not None and part >= now else None for part in self))


UNMARKED: Final = Mark(None, None)


class Marks:
    """The marks by name. A change costs O(log m) amortised with m marks.

    Attributes:
        by_name: the marks.
        ends: a heap of ends and names; empty when no mark ends. Entries may be out of date.
    """

    __slots__ = ("by_name", "ends")

    def __init__(self) -> None:
        self.by_name: dict[str, Mark] = {}
        self.ends: list[tuple[float, str]] = []

    def get(self, name: str) -> Mark:
        """Return the mark of a name; `UNMARKED` when it has none."""
        return self.by_name.get(name, UNMARKED)

    def put(self, name: str, mark: Mark) -> None:
        """Give a name a mark in place of the one that it has; `UNMARKED` takes it away."""
        if mark == UNMARKED:
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = mark
            if mark.end < inf:
                heappush(self.ends, (mark.end, name))
        if len(self.ends) > 2 * len(self.by_name) + 64:
            self.ends = [(each.end, name) for name, each in self.by_name.items() if each.end < inf]
            heapify(self.ends)

    def after(
        self,
        rows: Sequence[Any],
        moved: Collection[str],
        said: Mapping[str, bool],
        now: float,
        default_ttl: float,
    ) -> dict[str, Mark]:
        """Return the marks that a message of gossip changes, and change nothing.

        Args:
            rows: the message: name, group, generation and TTL first; no name twice.
            moved: the names that the message tracks, or puts into another group or generation.
            said: the names of which it says whether they are terminating.
            now: seconds.
            default_ttl: seconds, for rows without a TTL.
        """
        ttls = {row[0]: row[3] for row in rows} if said else {}
        names = [name for name in said if name in ttls]
        if self.by_name:
            names += [name for name in moved if name in self.by_name and name not in said]
        found = {}
        for name in names:
            old = self.get(name)
            until, word = old.said, said.get(name)
            if word:
                ttl = ttls[name]
                until = now + (default_ttl if ttl is None or ttl <= 0 else ttl)
            elif word is False or name in moved:
                until = None
            mark = Mark(until, old.retired)
            if mark != old:
                found[name] = mark
        return found

    def due(self, now: float) -> dict[str, Mark]:
        """Return the names of which a part has ended strictly before now, with what is left."""
        found: dict[str, Mark] = {}
        while (first := self._first()) is not None and first[0] < now:
            name = heappop(self.ends)[1]
            found[name] = self.by_name[name].left(now)
        for name in found:
            heappush(self.ends, (self.by_name[name].end, name))
        return found

    def next_end(self) -> float | None:
        """Return the earliest end of a part, or None."""
        first = self._first()
        return None if first is None else first[0]

    def _first(self) -> tuple[float, str] | None:
        ends = self.ends
        while ends:
            end, name = ends[0]
            if self.get(name).end == end:
                return ends[0]
            heappop(ends)
        return None
