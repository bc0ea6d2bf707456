"""For how long connections were missing, and when none was, since the daemon started. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

#: Groups of which the seconds are kept one by one.
MOST_GAPS: Final = 50
#: What the others are called together.
OTHER: Final = "other"
#: Seconds that may be left of a difference of sums that is 0.
_ROUNDING: Final = 1e-6


class Coverage:
    """Adds up the seconds for which connections were missing. A restart begins at 0.

    Times are seconds of the caller's clock, which never goes back.
    """

    __slots__ = ("_at", "_full_at", "_missing", "_seconds", "_target")

    def __init__(self, now: float) -> None:
        """Begin without a target."""
        self._at = now
        self._target = 0
        self._missing = 0
        self._seconds = 0.0
        self._full_at: float | None = None

    def note(self, target: int, missing: int, now: float) -> None:
        """Note how many connections are wanted, and how many of these are missing, from now on."""
        self._seconds = self.missing_seconds(now)
        self._full_at = self.full_at(now)
        self._at, self._target, self._missing = now, target, missing

    def missing_seconds(self, now: float) -> float:
        """Return for how many seconds connections were missing, each one counted."""
        return self._seconds + self._missing * (now - self._at)

    def full_at(self, now: float) -> float | None:
        """Return when no connection was missing last; None when that never was so.

        Without a target there is nothing to be full.
        """
        return now if self._target > 0 and not self._missing else self._full_at


class GroupCount(NamedTuple):
    """How many proxies of a group are desired, and how many of these no lease holds."""

    name: str
    desired: int
    missing: int


class GroupGap(NamedTuple):
    """A group that missed something: its desired proxies that no lease holds, and the seconds.

    The name is None for all groups together that are not kept one by one.
    """

    name: str | None
    missing: int
    seconds: float


class _Gap:
    """The seconds of one group, until `at`; `missing` are missing from then on."""

    __slots__ = ("at", "desired", "missing", "seconds")

    def __init__(self, desired: int, missing: int, at: float) -> None:
        self.desired = desired
        self.missing = missing
        self.seconds = 0.0
        self.at = at

    def sum_up(self, now: float) -> float:
        """Return the seconds until now."""
        return self.seconds + self.missing * (now - self.at)


class GroupGaps:
    """Adds up for how many seconds the desired proxies of each group had no tunnel.

    Groups that miss something are kept one by one, the largest `MOST_GAPS` of them; the others are
    one sum. A group that is not kept any longer leaves its seconds there, so that the sum never
    sinks. A change of a group costs O(1), and sometimes O(`MOST_GAPS`).
    """

    __slots__ = ("_all", "_by_name", "_is_new")

    def __init__(self, now: float) -> None:
        self._all = _Gap(0, 0, now)
        self._by_name: dict[str, _Gap] = {}
        self._is_new = False

    def begin_state(self) -> None:
        """Expect the counts of another state: a group that it does not have misses nothing."""
        self._is_new = True

    def note(self, missing: int, changed: Iterable[GroupCount], now: float) -> None:
        """Note what is missing from now on.

        Args:
            missing: of the desired proxies of all groups.
            changed: the groups whose counts may have changed; of a new state all.
            now: seconds of a clock that never goes back.
        """
        _go_on(self._all, 0, missing, now)
        if self._is_new:
            self._is_new = False
            for old in self._by_name.values():
                _go_on(old, old.desired, 0, now)
        by_name = self._by_name
        smallest: str | None = None
        for count in changed:
            gap = by_name.get(count.name)
            if gap is not None:
                _go_on(gap, count.desired, count.missing, now)
                if not count.desired:
                    del by_name[count.name]
                continue
            if not count.missing or count.name == OTHER:
                continue
            if len(by_name) >= MOST_GAPS:
                if smallest is None or smallest not in by_name:
                    smallest = min(by_name, key=lambda name: by_name[name].desired)
                if by_name[smallest].desired >= count.desired:
                    continue
                del by_name[smallest]
            by_name[count.name] = _Gap(count.desired, count.missing, now)

    def seconds(self, now: float) -> list[tuple[str, float]]:
        """Return the seconds of each group that is kept, by name, and at last of all others."""
        found = [(name, gap.sum_up(now)) for name, gap in sorted(self._by_name.items())]
        return [*found, (OTHER, self._others(now).seconds)]

    def most_missing(self, now: float) -> list[GroupGap]:
        """Return the groups that missed something, and at last all others together, if they did.

        Those that miss most now come first, then those that did for longest.
        """
        found = [GroupGap(name, g.missing, g.sum_up(now)) for name, g in self._by_name.items()]
        found = [gap for gap in found if gap.missing or gap.seconds]
        found.sort(key=lambda gap: (-gap.missing, -gap.seconds, gap.name))
        others = self._others(now)
        return [*found, others] if others.missing or others.seconds else found

    def _others(self, now: float) -> GroupGap:
        kept = self._by_name.values()
        missing = self._all.missing - sum(gap.missing for gap in kept)
        seconds = self._all.sum_up(now) - sum(gap.sum_up(now) for gap in kept)
        return GroupGap(None, missing, seconds if seconds > _ROUNDING else 0.0)


def _go_on(gap: _Gap, desired: int, missing: int, now: float) -> None:
    gap.seconds, gap.at = gap.sum_up(now), now
    gap.desired, gap.missing = desired, missing
