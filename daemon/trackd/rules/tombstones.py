"""Proxies that an administrator had forgotten, and the gossip that must not bring them back. Pure.

Those who still hold a tunnel to such a proxy go on to mention it. Gossip of the group that it was
in, with the generation that it had or a smaller one, does not count for as long as the last
mention of it would have; anything newer does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple

from trackd.rules.tracker import Place, Row

#: Tombstones kept; the oldest makes room.
_MOST: Final = 10_000


class Tombstone(NamedTuple):
    """What keeps old gossip from bringing a forgotten proxy back.

    Attributes:
        group: where it was.
        generation: gossip of this one or of a smaller one does not count.
        until: seconds of CLOCK_BOOTTIME.
    """

    group: str
    generation: int
    until: float


class Forgotten:
    """The tombstones by name, the oldest first."""

    def __init__(self) -> None:
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tombstones)

    def __iter__(self) -> Iterator[tuple[str, Tombstone]]:
        return iter(self._tombstones.items())

    def get(self, name: str) -> Tombstone | None:
        """Return the tombstone of a proxy, or None."""
        return self._tombstones.get(name)

    def add(self, name: str, place: Place, until: float) -> list[str]:
        """Forget a proxy; return the names whose tombstones made room."""
        self._tombstones[name] = Tombstone(*place, until)
        self._tombstones.move_to_end(name)
        dropped = []
        while len(self._tombstones) > _MOST:
            dropped.append(self._tombstones.popitem(last=False)[0])
        return dropped

    def keeps_away(self, row: Row, now: float) -> bool:
        """Tell whether this mention of a proxy does not count."""
        name, group, generation, _ = row
        tombstone = self._tombstones.get(name)
        return (
            tombstone is not None
            and tombstone.group == group
            and tombstone.generation >= generation
            and tombstone.until >= now
        )

    def drop_old(self, now: float) -> list[str]:
        """Drop the tombstones whose time is over; return their names."""
        over = [name for name, tombstone in self._tombstones.items() if tombstone.until < now]
        for name in over:
            del self._tombstones[name]
        return over
