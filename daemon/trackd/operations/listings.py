"""Listings: long tables read in pages, none of which holds the one writer for long. Pure.

A listing begins as a list of keys, which is copied once; each page then looks up a few rows as
they are at that moment, and skips those that are gone. What changes meanwhile is in
events, and events say what a thing became: so rows that are newer than the listing's beginning do
no harm to a client that replays the events after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

#: Bytes after which a page ends, whatever its rows.
PAGE_BYTES: Final = 256 * 1024
#: Listings under way at the same time; the oldest makes room.
_MOST: Final = 8


class Listing(NamedTuple):
    """One listing.

    Attributes:
        of: the table.
        base: the revision at its beginning.
        keys: the keys of its rows.
    """

    of: str
    base: int
    keys: Sequence[Any]


class Page(NamedTuple):
    """One page: its listing, its rows, and the cursor of the next page (None after the last)."""

    listing: Listing
    rows: list[dict[str, Any]]
    cursor: list[int] | None


class Listings:
    """The listings under way."""

    def __init__(self) -> None:
        self._number = 0
        self._open: OrderedDict[int, Listing] = OrderedDict()

    def begin(self, of: str, base: int, keys: Iterable[Any]) -> list[int]:
        """Begin a listing; return the cursor of its first page."""
        self._number += 1
        if len(self._open) >= _MOST:
            self._open.popitem(last=False)
        self._open[self._number] = Listing(of, base, list(keys))
        return [self._number, 0]

    def page(
        self,
        of: str,
        cursor: Sequence[int],
        limit: int,
        row: Callable[[Any], dict[str, Any] | None],
    ) -> Page | None:
        """Return the page at a cursor, or None when the listing is gone.

        Args:
            of: the table that the listing must be of.
            cursor: from `begin` or an earlier page.
            limit: the number of keys of a page.
            row: returns the row of a key, or None when it is gone.
        """
        number, offset = cursor
        listing = self._open.get(number)
        if listing is None or listing.of != of:
            return None
        self._open.move_to_end(number)
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
        del self._open[number]
        return Page(listing, rows, None)
