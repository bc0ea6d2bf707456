"""Listings: long tables read in pages, none of which holds the one writer for long. Pure.

A listing begins as a list of keys, which is copied once; each page then looks up a few rows as
they are at that moment, and skips those that are no more. What changes meanwhile is told by
events, and events say what a thing became: so rows that are newer than the listing's beginning do
no harm to whoever replays the events after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from trackd.operations.call import Call
from trackd.operations.context import Context
from trackd.operations.operation import Fields
from trackd.state.state import State
from trackd_client.errors import Code
from trackd_client.wire.checks import check_count
from trackd_client.wire.errors import ProtocolError

#: Rows of a page, and events of one reply.
MOST_ROWS: Final = 1000


#: Listings under way at the same time; the oldest makes room.
_MOST: Final = 8


class Listing(NamedTuple):
    """One listing.

    Attributes:
        of: what it lists.
        base: the revision at its beginning.
        keys: of the rows.
    """

    of: str
    base: int
    keys: Sequence[Any]


class Page(NamedTuple):
    """One page: its listing, the rows, and where the next one begins (None: there is none)."""

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
        """Return the page at a cursor, or None when there is no such listing any more.

        Args:
            of: what it must list.
            cursor: as `begin` or an earlier page returned it.
            limit: keys of a page.
            row: gives the row of a key, or None when it is no more.
        """
        number, offset = cursor
        listing = self._open.get(number)
        if listing is None or listing.of != of:
            return None
        self._open.move_to_end(number)
        found = map(row, listing.keys[offset : offset + limit])
        rows = [each for each in found if each is not None]
        following = offset + limit
        if following < len(listing.keys):
            return Page(listing, rows, [number, following])
        del self._open[number]
        return Page(listing, rows, None)


def snapshot(context: Context, call: Call) -> Fields:
    """Tell a page of a listing."""
    body, state, listings = call.body, context.state, context.runtime.listings
    of = body.get("of")
    if type(of) is not str or of not in _LISTINGS:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"of must be one of {', '.join(_LISTINGS)}")
    keys, row = _LISTINGS[of]
    cursor = body.get("cursor")
    if cursor is None:
        cursor = listings.begin(of, state.changes.revision, keys(state))
    elif type(cursor) is not list or len(cursor) != 2:
        raise ProtocolError(Code.INVALID_ARGUMENT, "cursor must be one that a reply has told")
    else:
        for part in cursor:
            check_count(part, "cursor")
    page = listings.page(of, cursor, limit_of(call), lambda key: row(state, key))
    if page is None:
        raise ProtocolError(
            Code.INVALID_ARGUMENT, "cursor belongs to no listing any more; begin another one"
        )
    return {
        "of": of,
        "base": page.listing.base,
        "total": len(page.listing.keys),
        "rows": page.rows,
        "cursor": page.cursor,
    }


def proxy_row(state: State, name: str) -> Fields:
    """Return all that is known of a proxy, tracked or not."""
    tracker = state.tracker
    proxy = tracker.get(name)
    lease = tracker.holder(name)
    holder = None if lease is None else state.leases[lease].session
    return {
        "name": name,
        "tracked": proxy is not None,
        "group": None if proxy is None else proxy.group,
        "generation": None if proxy is None else proxy.generation,
        "expires": None if proxy is None else proxy.expiry,
        "desired": tracker.is_desired(name),
        "largest": None if proxy is None else tracker.largest(proxy.group),
        "lease": lease,
        "session": None if holder is None else holder.id,
        "pid": None if holder is None else holder.peer.pid,
        "mentioned_by": state.mentions.get(name),
    }


def _listed_proxy(state: State, name: str) -> Fields | None:
    row = proxy_row(state, name)
    return row if row["tracked"] or row["lease"] is not None else None


def _lease_row(state: State, lease: int) -> Fields | None:
    held = state.leases.get(lease)
    if held is None:
        return None
    name = state.tracker.lease_name(lease)
    timeout = state.config.claim_timeout
    return {
        "lease": lease,
        "session": held.session.id,
        "pid": held.session.peer.pid,
        "name": name,
        "granted": held.granted,
        "wall": held.wall,
        "claim_by": held.granted + timeout if timeout > 0 and name is None else None,
        "principals": held.principals,
    }


def _session_row(state: State, number: int) -> Fields | None:
    session = state.sessions.by_id.get(number)
    if session is None:
        return None
    return {
        "session": session.id,
        "uid": session.peer.uid,
        "gid": session.peer.gid,
        "pid": session.peer.pid,
        "visible": session.process is not None,
        "name": session.name,
        "version": session.version,
        "command": session.command,
        "labels": session.labels,
        "opened": session.opened,
        "wall": session.wall,
        "leases": len(session.leases),
        "inflight": sum(lease in state.in_flight for lease in session.leases),
        "waiting": len(session.parked),
        "requests": session.requests,
        "gossip": session.gossip,
        "deadline": session.deadline,
    }


def limit_of(call: Call) -> int:
    """Return how many rows or events a request asks for."""
    return check_count(call.body.get("limit", MOST_ROWS), "limit", least=1, most=MOST_ROWS)


_Keys = Callable[[State], Any]
_Row = Callable[[State, Any], Fields | None]
_LISTINGS: Final[dict[str, tuple[_Keys, _Row]]] = {
    "proxies": (lambda state: state.tracker.names(), _listed_proxy),
    "leases": (lambda state: state.leases, _lease_row),
    "sessions": (lambda state: state.sessions.by_id, _session_row),
}
