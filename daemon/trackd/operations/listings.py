"""Listings: long tables read in pages, none of which holds the one writer for long. Pure.

A listing begins as a list of keys, which is copied once; each page then looks up a few rows as
they are at that moment, and skips those that are gone. What changes meanwhile is in
events, and events say what a thing became: so rows that are newer than the listing's beginning do
no harm to a client that replays the events after it.

The lists of all listings together are bounded in bytes. When there is no room for another one, the
oldest of the process goes that holds the most, of the user whose processes hold the most. So a
process that begins listings and abandons them loses its own, and not those of others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from trackd.rules.user import User
from trackd.sessions.identity import Peer

#: Bytes after which a page ends, whatever its rows.
PAGE_BYTES: Final = 256 * 1024
#: Bytes of all listings: 128 short ones, or seven of a million rows.
MOST_BYTES: Final = 64 << 20
#: Bytes that a listing counts as: so many, and some for each key.
_BYTES: Final = 512 << 10
_KEY_BYTES: Final = 8
#: Seconds after the last page when a listing ends.
IDLE_SECONDS: Final = 60.0


class Listing(NamedTuple):
    """One listing.

    Attributes:
        peer: the process that reads it.
        of: the table.
        base: the revision at its beginning.
        keys: the keys of its rows.
    """

    peer: Peer
    of: str
    base: int
    keys: Sequence[Any]

    @property
    def size(self) -> int:
        """The bytes that it counts as."""
        return _BYTES + _KEY_BYTES * len(self.keys)


class Page(NamedTuple):
    """One page: its listing, its rows, and the cursor of the next page (None after the last)."""

    listing: Listing
    rows: list[dict[str, Any]]
    cursor: list[int] | None


class Listings:
    """The listings under way.

    Attributes:
        has_new: whether one has begun since the caller made this False, so that the next moment
            for `drop_idle` may be another one.
    """

    def __init__(self) -> None:
        self.has_new = False
        self._number = 0
        self._open: OrderedDict[int, Listing] = OrderedDict()  # the one used last comes last
        self._used: dict[int, float] = {}
        self._size = 0

    def begin(self, peer: Peer, of: str, base: int, keys: Iterable[Any], now: float) -> list[int]:
        """Begin a listing; return the cursor of its first page.

        Args:
            peer: the process that reads it.
            of: the table.
            base: the revision now.
            keys: the keys of its rows.
            now: seconds of a clock.
        """
        self._number += 1
        listing = Listing(peer, of, base, list(keys))
        self.drop_idle(now)
        while self._open and self._size + listing.size > MOST_BYTES:
            self._drop(self._choose_victim(listing))
        self._open[self._number] = listing
        self._used[self._number] = now
        self._size += listing.size
        self.has_new = True
        return [self._number, 0]

    def page(
        self,
        peer: Peer,
        of: str,
        cursor: Sequence[int],
        limit: int,
        row: Callable[[Any], dict[str, Any] | None],
        now: float,
    ) -> Page | None:
        """Return the page at a cursor, or None when the peer has no such listing.

        Args:
            peer: the process that reads it.
            of: the table that the listing must be of.
            cursor: from `begin` or an earlier page.
            limit: the number of keys of a page.
            row: returns the row of a key, or None when it is gone.
            now: seconds of a clock.
        """
        number, offset = cursor
        listing = self._open.get(number)
        if listing is None or listing.of != of or listing.peer != peer:
            return None
        self._open.move_to_end(number)
        self._used[number] = now
        rows = []
        room = PAGE_BYTES
        following = offset
        for key in listing.keys[offset : offset + limit]:
            following += 1
            found = row(key)
            if found is not None:
                rows.append(found)
                room -= len(msgpack.packb(found))
                if room <= 0:
                    break
        if following < len(listing.keys):
            return Page(listing, rows, [number, following])
        self._drop(number)
        return Page(listing, rows, None)

    def next_idle(self) -> float | None:
        """Return when the next listing ends unless a page of it is read; None: there is none."""
        oldest = next(iter(self._open), None)
        return None if oldest is None else self._used[oldest] + IDLE_SECONDS

    def drop_idle(self, now: float) -> None:
        """End the listings that nobody reads on."""
        while (due := self.next_idle()) is not None and due <= now:
            self._drop(next(iter(self._open)))

    def _choose_victim(self, new: Listing) -> int:
        """Return the listing that makes room for a new one."""
        held: Counter[User] = Counter({new.peer.user: new.size})
        for listing in self._open.values():
            held[listing.peer.user] += listing.size
        user = max((each.peer.user for each in self._open.values()), key=lambda user: held[user])
        by_peer: Counter[Peer] = Counter({new.peer: new.size})
        for listing in self._open.values():
            by_peer[listing.peer] += listing.size
        peers = (each.peer for each in self._open.values() if each.peer.user == user)
        peer = max(peers, key=lambda peer: by_peer[peer])
        return next(number for number, each in self._open.items() if each.peer == peer)

    def _drop(self, number: int) -> None:
        self._size -= self._open.pop(number).size
        del self._used[number]
