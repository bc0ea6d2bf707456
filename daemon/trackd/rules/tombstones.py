"""Tombstones of the proxies and groups that an administrator had forgotten. Pure.

Agents that still have a tunnel to such a proxy go on to mention it. A tombstone keeps that gossip
from bringing the proxy back: until the expiry that the proxy had left, gossip of the same group
and of the same or a smaller generation is ignored. Newer gossip counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final, NamedTuple

from trackd.rules.mentions import GossipRow
from trackd.rules.registry import Place

#: Most tombstones that are kept; beyond that the oldest is dropped.
_MOST: Final = 10_000
_MOST_GROUPS: Final = 1_000


class Tombstone(NamedTuple):
    """Which gossip of one forgotten proxy is ignored, and until when.

    Attributes:
        group: the group that the proxy was in; gossip of another one counts.
        generation: gossip of this generation or a smaller one is ignored.
        until: seconds of CLOCK_BOOTTIME.
    """

    group: str
    generation: int
    until: float


class GroupTombstone(NamedTuple):
    """Which gossip of one group is ignored, and until when.

    Attributes:
        low: gossip of this generation,
        high: up to this one, is ignored.
        until: seconds of CLOCK_BOOTTIME.
    """

    low: int
    high: int
    until: float


class Tombstones:
    """The tombstones by the name of their proxy or group, the oldest first."""

    def __init__(self) -> None:
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._groups: OrderedDict[str, GroupTombstone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tombstones) + len(self._groups)

    def __iter__(self) -> Iterator[tuple[str, Tombstone]]:
        return iter(self._tombstones.items())

    def get(self, name: str) -> Tombstone | None:
        """Return the tombstone of a proxy, or None."""
        return self._tombstones.get(name)

    def add(self, name: str, place: Place, until: float) -> None:
        """Set a tombstone, as the newest one."""
        self._tombstones[name] = Tombstone(*place, until)
        self._tombstones.move_to_end(name)

    def drop(self, name: str) -> None:
        """Drop a tombstone; KeyError when there is none."""
        del self._tombstones[name]

    def too_many(self, name: str) -> list[str]:
        """Return the names of the oldest ones that must make room for one of a name."""
        return _oldest(self._tombstones, name, _MOST)

    def get_group(self, group: str) -> GroupTombstone | None:
        """Return the tombstone of a group, or None."""
        return self._groups.get(group)

    def add_group(self, group: str, tombstone: GroupTombstone) -> None:
        """Set the tombstone of a group, as the newest one."""
        self._groups[group] = tombstone
        self._groups.move_to_end(group)

    def drop_group(self, group: str) -> None:
        """Drop the tombstone of a group; KeyError when there is none."""
        del self._groups[group]

    def too_many_groups(self, group: str) -> list[str]:
        """Return the groups whose tombstones, the oldest, must make room for one of a group."""
        return _oldest(self._groups, group, _MOST_GROUPS)

    def keeps_away(self, row: GossipRow, now: float) -> bool:
        """Return whether this mention of a proxy is to be ignored."""
        name, group, generation, _ = row
        whole = self._groups.get(group)
        if whole is not None and whole.low <= generation <= whole.high and whole.until >= now:
            return True
        tombstone = self._tombstones.get(name)
        return (
            tombstone is not None
            and tombstone.group == group
            and tombstone.generation >= generation
            and tombstone.until >= now
        )

    def past(self, now: float) -> list[str]:
        """Return the names of the tombstones that no longer hold at `now`."""
        return [name for name, tombstone in self._tombstones.items() if tombstone.until < now]

    def past_groups(self, now: float) -> list[str]:
        """Return the groups whose tombstones no longer hold at `now`."""
        return [group for group, tombstone in self._groups.items() if tombstone.until < now]


def _oldest(kept: Collection[str], name: str, most: int) -> list[str]:
    """Return the first ones of too many, so that there is room for a name."""
    others = (each for each in kept if each != name)
    return list(islice(others, max(0, len(kept) - (name in kept) + 1 - most)))
