"""Damping: which mentions of gossip the leader has to hear of, and which only repeat. Pure.

Agents repeat what they have heard. A mention is passed on when it says something new of its proxy,
or when it moves the expiry by a quarter of the TTL or more. So from one damper the leader hears of
a name four times in each TTL, however many agents mention it all the time.

What the leader then knows is exact, but for expiries: these are wrong by less than a quarter of the
TTL, early or late. **The grace**: a leader that lets each name, and each mark of a terminating one,
live for a quarter of its TTL longer expires nothing before a leader that hears all. After a
takeover it must give at least this, and the time until all relays have connected again, before it
expires the first name. Two dampers one after the other, at a relay and at the leader before its
journal, need twice that.

A name may also come to be known otherwise: another host has moved it, say. The leader tells all
hosts, and each damper forgets what it had told of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, NamedTuple

from trackd_client.wire.checks import check_row, more_of

#: The part of a TTL by which an expiry may be wrong.
GRACE: Final = 0.25


class _Expiry(NamedTuple):
    """When something expires at the leader, and the TTL that it was told with."""

    at: float
    ttl: float

    @property
    def next_due(self) -> float:
        """When a mention with the same TTL has to be heard."""
        return self.at - (1 - GRACE) * self.ttl

    def is_near(self, at: float, ttl: float) -> bool:
        """Return whether another expiry is so near that the leader need not hear of it."""
        return abs(at - self.at) < GRACE * min(ttl, self.ttl)


class _Told(NamedTuple):
    """What the leader was told last of a name.

    Attributes:
        group: of the proxy.
        generation: of the proxy.
        expiry: of the name.
        terminating: None when nothing was said of it.
        mark: the expiry of the mark when `terminating` is true.
        address: None when nothing was said of it; "" when it was withdrawn.
    """

    group: str
    generation: int
    expiry: _Expiry
    terminating: bool | None
    mark: _Expiry | None
    address: str | None


@dataclass(slots=True, eq=False)
class Due:
    """What the leader must be told of one message of gossip.

    Attributes:
        rows: these rows of it, in their order.
        told: what the leader knows of each name when it has taken them in.
        sooner: the names that now expire before a mention that repeats the last one would be due.
    """

    rows: list[Any] = field(default_factory=list)
    told: dict[str, _Told] = field(default_factory=dict)
    sooner: list[str] = field(default_factory=list)


class Damper:
    """Remembers what the leader was told, and says what else it must be told.

    What `due` returns is on its way. Until `settle` says what has become of it, each mention of its
    names is due. When something else has changed what the leader knows of a name, `forget` makes
    the next mention of it due.
    """

    def __init__(
        self, default_ttl: float, max_ttl: float, max_name: int = 255, most: int = 200_000
    ) -> None:
        """Begin with a leader that knows nothing.

        Args:
            default_ttl: seconds: the leader's `proxy_expiry`.
            max_ttl: seconds to which the leader lowers a longer TTL.
            max_name: bytes of a name and of a group.
            most: names that are remembered. Mentions of further ones are always due.
        """
        self._default_ttl = default_ttl
        self._max_ttl = max_ttl
        self._max_name = max_name
        self._most = most
        self._told: dict[str, _Told] = {}
        self._waits: dict[str, Due] = {}  # by name, the last message in which it is on its way
        self._purge_at = 0.0  # when the first of them expires, as far as is known

    def __len__(self) -> int:
        """Return how many names are remembered."""
        return len(self._told)

    def due(self, rows: Sequence[Any], now: float) -> Due:
        """Return what the leader must be told of a message.

        Of a name that is there twice, the last row counts, as at the leader.

        Args:
            rows: `proxies` of a `track_expected`, as it was received.
            now: seconds that never go back.

        Raises:
            ProtocolError: a row is not allowed, so the leader would refuse all. Nothing is
                remembered.
        """
        due = Due()
        new = [i for i, row in enumerate(rows) if not self._repeats(row, now)]
        if not new:  # nearly always
            return due
        checked = [(i, *check_row(rows[i], i, self._max_name)) for i in new]
        last = {row[0]: i for i, row in enumerate(rows)}
        for i, name, group, generation, ttl in checked:
            if last[name] != i:
                continue
            ttl = min(ttl or self._default_ttl, self._max_ttl)  # noqa: PLW2901
            expiry = _Expiry(now + ttl, ttl)
            said = more_of(rows[i])
            old = self._told.get(name)
            is_sooner = old is not None and old.expiry.next_due > expiry.at
            if old is not None and (
                (old.group, old.generation) != (group, generation) or old.expiry.at < now
            ):
                old = None  # what was said of the proxy before does not count any more
            if old is None or _is_news(old, expiry, said):
                due.rows.append(rows[i])
                due.sooner += [name] if is_sooner else []
                told = _after(old, group, generation, expiry, said)
                if not self._repeats_waiting(name, told, said):
                    due.told[name] = told
                    self._told.pop(name, None)
                    self._waits[name] = due
        return due

    def _repeats_waiting(self, name: str, told: _Told, said: dict[str, Any]) -> bool:
        """Return whether a row says the same as the last one that is on its way.

        Then that one goes on to count. Otherwise none ever would, where mentions come faster than
        the leader answers.
        """
        waiting = self._waits.get(name)
        last = None if waiting is None else waiting.told[name]
        return (
            last is not None
            and (last.group, last.generation) == (told.group, told.generation)
            and not _is_news(last, told.expiry, said)
        )

    def settle(self, due: Due, now: float, *, taken: bool) -> None:
        """Note what has become of a message that was on its way.

        Args:
            due: what `due` has returned. Names that were said again since are on their way yet.
            now: seconds that never go back.
            taken: whether the leader has taken it in; otherwise it was refused, or is lost.
        """
        for name, told in due.told.items():
            if self._waits.get(name) is due:
                del self._waits[name]
                if taken:
                    self._remember(name, told, now)

    def _repeats(self, row: Any, now: float) -> bool:
        """Return whether a row is allowed, has no fifth element, and says nothing new."""
        try:
            name, group, generation, ttl = row
            told = self._told[name]
        except (TypeError, ValueError, KeyError):
            return False
        if ttl is None:
            ttl = self._default_ttl
        elif (type(ttl) is not float and type(ttl) is not int) or not 0 < ttl < inf:
            return False
        at, told_ttl = told.expiry
        ttl = min(ttl, self._max_ttl)
        return (
            told.generation == generation
            and told.group == group
            and type(generation) is int
            and type(row) is list
            and at >= now
            and abs(now + ttl - at) < GRACE * min(ttl, told_ttl)
        )

    def forget(self, names: Iterable[str]) -> None:
        """Let the next mention of each name be due."""
        for name in names:
            self._told.pop(name, None)
            self._waits.pop(name, None)

    def clear(self) -> None:
        """Let everything be due."""
        self._told.clear()
        self._waits.clear()

    def _remember(self, name: str, told: _Told, now: float) -> None:
        if name not in self._told and len(self._told) >= self._most:
            if now <= self._purge_at:
                return
            self._told = {name: each for name, each in self._told.items() if each.expiry.at >= now}
            self._purge_at = min((each.expiry.at for each in self._told.values()), default=now)
            if len(self._told) >= self._most:
                return
        self._told[name] = told


def _is_news(old: _Told, expiry: _Expiry, said: dict[str, Any]) -> bool:
    """Return whether a mention of the same place says more than the leader knows."""
    if not old.expiry.is_near(*expiry):
        return True
    terminating, address = said.get("terminating"), said.get("address")
    if terminating is not None and terminating != old.terminating:
        return True
    if terminating and old.mark is not None and not old.mark.is_near(*expiry):
        return True
    return address is not None and address != old.address


def _after(
    old: _Told | None, group: str, generation: int, expiry: _Expiry, said: dict[str, Any]
) -> _Told:
    """Return what the leader knows of a name after a mention."""
    terminating, address = said.get("terminating"), said.get("address")
    mark = expiry if terminating else None
    if old is not None:
        if terminating is None:
            terminating, mark = old.terminating, old.mark
        if address is None:
            address = old.address
    return _Told(group, generation, expiry, terminating, mark, address)
