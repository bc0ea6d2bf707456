"""`snapshot`: the rows of proxies, leases and sessions, page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from trackd.operations.call import Call
from trackd.operations.context import Context, host_fields
from trackd.operations.operation import Fields
from trackd.rules.backoff import Pause
from trackd.state.decide import MOST_ALIASES
from trackd.state.state import State
from trackd_client.errors import Code
from trackd_client.wire import requests
from trackd_client.wire.errors import ProtocolError

#: Missing proxies that come first in a long listing, so that readers of its beginning see them.
MOST_FIRST: Final = 2000


def snapshot(context: Context, call: Call, request: requests.Snapshot) -> Fields:
    """Return a page of a listing."""
    state, listings, of, cursor = (
        context.state,
        context.runtime.listings,
        request.of,
        request.cursor,
    )
    keys, row = _LISTINGS[of]
    peer, now = call.peer, context.now()
    assert peer is not None
    if cursor is None:
        cursor = listings.begin(peer, of, context.decide.revision, keys(state), now)
    page = listings.page(peer, of, cursor, request.limit, lambda key: row(context, key), now)
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
        **context.state_fields(),
    }


def proxy_row(state: State, name: str) -> Fields:
    """Return all that is known of a proxy, tracked or not."""
    tracker = state.tracker
    proxy = tracker.get(name)
    lease = tracker.holder(name)
    holder = None if lease is None else state.leases[lease].session
    row = {
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
        **({} if holder is None else host_fields(holder.peer.host)),
        "mentioned_by": None if proxy is None else tracker.mentions.of(name).by,
    }
    if tracker.is_marked(name):
        row["terminating"] = True
    if name in tracker.targets.by_name:
        row["address"] = tracker.targets.by_name[name].text
    return row


def life_fields(state: State, lease: int | None) -> Fields:
    """Return what the reports of a lease say of its tunnel; nothing if it has never reported."""
    life = None if lease is None else state.lives.by_lease.get(lease)
    if life is None:
        return {}
    fields: Fields = {"reported": life.reported, "rtt": life.rtt}
    if life.stale:
        fields["stale"] = True
    return fields


def pause_fields(pause: Pause) -> Fields:
    """Return all that people want to know of a pause after failed dials."""
    fields = pause._asdict()
    del fields["after"]
    if not pause.host:
        del fields["host"]
    return fields


def _proxy_keys(state: State) -> list[str]:
    """Return the names of a listing; one of several pages begins with missing proxies."""
    names = state.tracker.names()
    if len(names) <= requests.MAX_ROWS:
        return names
    missing = dict.fromkeys(state.tracker.missing(MOST_FIRST))
    return [*missing, *(name for name in names if name not in missing)] if missing else names


def _listed_proxy(context: Context, name: str) -> Fields | None:
    row = proxy_row(context.state, name)
    return row if row["tracked"] or row["lease"] is not None else None


def _lease_row(context: Context, lease: int) -> Fields | None:
    state = context.state
    held = state.leases.get(lease)
    if held is None:
        return None
    name = state.tracker.lease_name(lease)
    row = {
        "lease": lease,
        "session": held.session.id,
        "pid": held.session.peer.pid,
        **host_fields(held.session.peer.host),
        "name": name,
        "granted": held.granted,
        "wall": held.wall,
        "claim_by": context.decide.claim_by(lease) if name is None else None,
        "principals": held.principals[:MOST_ALIASES],
        **life_fields(state, lease),
    }
    if state.tracker.is_offered(lease):
        row["offered"] = True
    return row


def _session_row(context: Context, number: int) -> Fields | None:
    state = context.state
    session = state.sessions.by_id.get(number)
    if session is None:
        return None
    row = {
        "session": session.id,
        "uid": session.peer.uid,
        "gid": session.peer.gid,
        "pid": session.peer.pid,
        **host_fields(session.peer.host),
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
        "requests": session.live.requests,
        "gossip": session.live.gossip,
        "deadline": session.live.deadline,
    }
    if session.backoff is not None and session.backoff.pause is not None:
        row["pause"] = pause_fields(session.backoff.pause)
    return row


_Keys = Callable[[State], Any]
_Row = Callable[[Context, Any], Fields | None]
_LISTINGS: Final[dict[str, tuple[_Keys, _Row]]] = {
    "proxies": (_proxy_keys, _listed_proxy),
    "leases": (lambda state: state.leases, _lease_row),
    "sessions": (lambda state: state.sessions.by_id, _session_row),
}
