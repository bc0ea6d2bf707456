"""The operations of operators: how things stand, why, what has happened, and what admins may do.

Each function answers one operation, as the methods of `trackd.requests.Requests` do: it is given
those, the call and, within a session, the session; it decodes its own fields and returns the
fields of the reply. Whoever may open the socket may look; what changes something is for admins.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from trackd.config.settings import SETTINGS
from trackd.host.logs import fields as about
from trackd.operation import Fields, Operation
from trackd.operations.metrics import Family, counter_families, gauge, gauges
from trackd.probe import PROBE
from trackd_client import __version__
from trackd_client.errors import Code
from trackd_client.protocol import ProtocolError, check_count, check_name

if TYPE_CHECKING:
    from trackd.actors.mailbox import Call
    from trackd.requests import Requests
    from trackd.sessions.sessions import Session
    from trackd.state.state import State

log = logging.getLogger("trackd.operators")

#: Groups that `status` and `metrics`, and proxies that `explain` tells by name.
MOST_GROUPS: Final = 100
MOST_MISSING: Final = 100
#: Proxies that `explain` names because lost claims met them most.
MOST_MET: Final = 5
#: Rows of a page, and events of one reply.
MOST_ROWS: Final = 1000


# -- how things stand ------------------------------------------------------------------------


def probe(desk: Requests, call: Call) -> Fields:
    """Store something, and answer this very process with the counts that people want."""
    if call.peer is None or call.peer.pid != os.getpid():
        raise ProtocolError(Code.UNKNOWN_OPERATION, f"there is no operation {PROBE!r}")
    state, tracker = desk.state, desk.state.tracker
    desk.facts.requests -= 1  # nobody asked for anything
    if desk.facts.store_problem is None:
        state.changes.mark()
    return {
        "desired": tracker.desired_count,
        "claimed_desired": tracker.claimed_desired_count,
        "claimed": tracker.claimed_count,
        "inflight": tracker.inflight,
        "waiting": len(state.queue),
        "sessions": len(state.sessions),
        "store": _store_word(desk),
    }


def status(desk: Requests, _call: Call) -> Fields:
    """Tell the counts of everything."""
    state, tracker, facts = desk.state, desk.state.tracker, desk.facts
    return {
        "cluster": tracker.cluster_name,
        "server": __version__,
        "pid": os.getpid(),
        "epoch": state.epoch,
        "tracker_id": state.tracker_id,
        "uptime": desk.now() - facts.started,
        "mode": "agent mesh" if tracker.connection_count <= 0 else "proxy peering",
        "connection_count": tracker.connection_count,
        "proxy_expiry": tracker.proxy_expiry,
        "tracked": tracker.tracked_count,
        "desired": tracker.desired_count,
        "target": tracker.target,
        "claimed": tracker.claimed_count,
        "claimed_desired": tracker.claimed_desired_count,
        "inflight": tracker.inflight,
        "waiting": len(state.queue),
        "sessions": len(state.sessions),
        "last_lease": tracker.last_lease,
        "requests": facts.requests,
        "store": _store_word(desk),
        "store_problem": facts.store_problem,
        "store_bytes": facts.store_bytes(),
        "history": len(state.changes.history),
        "events": facts.events,
        "http": desk.config.http,
        "reloads": facts.reloads,
        "reload": facts.reload,
        "group_count": tracker.group_count,
        "groups": [
            {
                "group": group.name,
                "generation": group.generation,
                "tracked": group.tracked,
                "desired": group.desired,
                "claimed": group.claimed,
            }
            for group in tracker.groups(MOST_GROUPS)
        ],
    }


def explain(desk: Requests, call: Call) -> Fields:
    """Tell each number of rule 6 and what it decides now, or all that is known of one name."""
    if "name" in call.body:
        return _explain_name(desk, check_name(call.body["name"], "name", desk.config.max_name))
    state, tracker = desk.state, desk.state.tracker
    bootstrap, need = tracker.bootstrap, tracker.need
    retry_after = state.retry_after()
    if desk.facts.store_problem is not None:
        reason = "store"
    elif state.queue:
        reason = "waiters"
    elif retry_after is not None:
        reason = "budget"
    else:
        reason = "bootstrap" if bootstrap else "need" if need else "satisfied"
    fields = {
        "would_grant": reason in ("bootstrap", "need"),
        "reason": reason,
        "bootstrap": bootstrap,
        "need": need,
        "connection_count": tracker.connection_count,
        "tracked": tracker.tracked_count,
        "desired": tracker.desired_count,
        "target": tracker.target,
        "claimed": tracker.claimed_count,
        "claimed_desired": tracker.claimed_desired_count,
        "inflight": tracker.inflight,
        "waiting": len(state.queue),
        "missing": tracker.missing(MOST_MISSING),
        "missing_count": tracker.desired_count - tracker.claimed_desired_count,
        "recent": _recent_claims(state),
    }
    return fields if retry_after is None else {**fields, "retry_after": retry_after}


def _recent_claims(state: State) -> Fields:
    """Tell how the last claims went: many that met a held proxy speak of the load balancer."""
    met = Counter(claim.name for claim in state.recent if claim.held)
    return {
        "claims": len(state.recent) - met.total(),
        "duplicates": met.total(),
        "since": state.recent[0].time if state.recent else None,
        "met": [list(pair) for pair in met.most_common(MOST_MET)],
    }


def _explain_name(desk: Requests, name: str) -> Fields:
    state, tracker = desk.state, desk.state.tracker
    meant = tracker.resolve([name])
    row = _proxy_row(state, meant or name)
    lease = row["lease"]
    tombstone = state.forgotten.get(row["name"])
    if lease is not None:
        why = "claimed"
    elif row["tracked"]:
        why = "missing" if row["desired"] else "old_generation"
    else:
        why = "unknown" if tombstone is None else "forgotten"
    aliases = [] if lease is None else state.leases[lease].principals
    return {
        "name": name,
        "meant": meant,
        "why": why,
        "claimed": lease is not None,
        "aliases": [alias for alias in aliases if alias != meant],
        "tombstone": None if tombstone is None else tombstone._asdict(),
        "proxy": row,
    }


def config(desk: Requests, call: Call) -> Fields:
    """Tell the settings: nothing secret is among them."""
    wanted = _wanted(call)
    defaults = {field.name: field.default for field in dataclasses.fields(desk.config)}
    return {
        "settings": [
            {
                "name": setting.name,
                "value": getattr(desk.config, setting.name),
                "default": defaults[setting.name],
                "live": setting.live,
                "table": setting.table,
            }
            for setting in SETTINGS.values()
            if wanted is None or setting.name in wanted
        ]
    }


def metrics(desk: Requests, call: Call) -> Fields:
    """Tell what is counted."""
    wanted = _wanted(call)
    families = [*_gauges(desk), *counter_families(desk.facts.metrics)]
    return {"families": [each for each in families if wanted is None or each[0] in wanted]}


def _gauges(desk: Requests) -> list[Family]:
    state, tracker, facts = desk.state, desk.state.tracker, desk.facts
    groups = tracker.groups(MOST_GROUPS)
    tracked = [[[group.name], group.tracked] for group in groups]
    desired = [[[group.name], group.generation] for group in groups]
    info = {"version": __version__, "cluster": tracker.cluster_name}
    return [
        gauges("trackd_info", "The daemon.", list(info), [[list(info.values()), 1]]),
        gauge("trackd_start_time_seconds", "Unix time of the start.", facts.wall),
        gauge("trackd_epoch", "Starts of the daemon with this state.", state.epoch),
        gauge("trackd_revision", "Changes of the state, over restarts.", state.changes.revision),
        gauges(
            "trackd_tracked_proxies",
            f"Tracked proxies by group, the first {MOST_GROUPS} groups by name.",
            ["group"],
            tracked,
        ),
        gauges(
            "trackd_group_generation",
            f"Largest generation of a group, the first {MOST_GROUPS} by name.",
            ["group"],
            desired,
        ),
        gauge("trackd_groups", "Groups that have a tracked proxy.", tracker.group_count),
        gauge("trackd_all_tracked_proxies", "Tracked proxies.", tracker.tracked_count),
        gauge("trackd_desired_proxies", "Desired proxies.", tracker.desired_count),
        gauge("trackd_claimed_proxies", "Claimed proxies, tracked or not.", tracker.claimed_count),
        gauge(
            "trackd_claimed_desired_proxies",
            "Desired proxies that are claimed.",
            tracker.claimed_desired_count,
        ),
        gauge("trackd_target_connections", "Connections that are wanted.", tracker.target),
        gauge(
            "trackd_connection_count",
            "Most connections wanted; 0 or less: one to every desired proxy.",
            tracker.connection_count,
        ),
        gauge("trackd_inflight_leases", "Leases that have not claimed.", tracker.inflight),
        gauge("trackd_waiting_requests", "Requests that wait for a lease.", len(state.queue)),
        gauge("trackd_sessions", "Sessions.", len(state.sessions)),
        gauge(
            "trackd_store_failing",
            "Whether changes cannot be stored just now.",
            int(facts.store_problem is not None),
        ),
        gauge("trackd_store_bytes", "Size of the state file.", facts.store_bytes() or 0),
    ]


def _store_word(desk: Requests) -> str:
    if desk.facts.store_problem is not None:
        return "failing"
    return "ok" if desk.config.state_dir else "off"


# -- who and what, row by row ------------------------------------------------------------------


def snapshot(desk: Requests, call: Call) -> Fields:
    """Tell a page of a listing."""
    body, state, listings = call.body, desk.state, desk.facts.listings
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
    page = listings.page(of, cursor, _limit(call), lambda key: row(state, key))
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


def _proxy_row(state: State, name: str) -> Fields:
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
    row = _proxy_row(state, name)
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


_Keys = Callable[["State"], Any]
_Row = Callable[["State", Any], Fields | None]
_LISTINGS: Final[dict[str, tuple[_Keys, _Row]]] = {
    "proxies": (lambda state: state.tracker.names(), _listed_proxy),
    "leases": (lambda state: state.leases, _lease_row),
    "sessions": (lambda state: state.sessions.by_id, _session_row),
}


# -- what has happened -------------------------------------------------------------------------


def history(desk: Requests, call: Call) -> Fields:
    """Tell the events after a revision, as far as they are kept."""
    after = check_count(call.body.get("after", 0), "after")
    kept = desk.state.changes.history
    return {
        "events": kept.after(after, _limit(call)),
        "oldest": kept.oldest,
        "newest": desk.state.changes.revision,
        "history": kept.most,
    }


def _wanted(call: Call) -> list[Any] | None:
    """Return the names that a request asks for, or None for all."""
    names = call.body.get("names")
    if names is not None and type(names) is not list:
        raise ProtocolError(Code.INVALID_ARGUMENT, "names must be an array")
    return names


def _limit(call: Call) -> int:
    return check_count(call.body.get("limit", MOST_ROWS), "limit", least=1, most=MOST_ROWS)


# -- what admins do ----------------------------------------------------------------------------


def force_release(desk: Requests, call: Call, _session: Session) -> Fields:
    """Take a lease away from its holder."""
    lease = check_count(call.body.get("lease"), "lease", least=1)
    assert call.peer is not None
    released = desk.state.force_release(lease, call.peer)
    if released is None:
        return {"released": False, "session": None, "name": None}
    session, name = released
    log_act(desk, call, "force_release", lease=lease, session=session.id, proxy=name)
    return {"released": True, "session": session.id, "name": name}


def end_session(desk: Requests, call: Call, _session: Session) -> Fields:
    """End a session, and free its leases."""
    number = check_count(call.body.get("session"), "session", least=1)
    ended = desk.state.sessions.by_id.get(number)
    if ended is None:
        return {"ended": False, "freed": []}
    freed = desk.state.end_session(ended, "admin", call.peer)
    log_act(desk, call, "end_session", session=number, freed=len(freed))
    return {"ended": True, "freed": freed}


def forget(desk: Requests, call: Call, _session: Session) -> Fields:
    """Drop a proxy from what is tracked, until there is newer gossip of it."""
    name = check_name(call.body.get("name"), "name", desk.config.max_name)
    assert call.peer is not None
    tombstone = desk.state.forget(name, call.peer)
    claimed = desk.state.tracker.holder(name) is not None
    if tombstone is None:
        return {"forgotten": False, "claimed": claimed, "until": None}
    log_act(desk, call, "forget", proxy=name)
    return {"forgotten": True, "claimed": claimed, "until": tombstone.until}


def reload(desk: Requests, call: Call, _session: Session) -> Fields:
    """Have the configuration read again; `status` tells what came of it."""
    facts = desk.facts
    facts.reloads_asked = max(facts.reloads_asked, facts.reloads) + 1
    log_act(desk, call, "reload")
    facts.ask_reload()
    return {"reloads": facts.reloads_asked}


def log_act(desk: Requests, call: Call, operation: str, **values: object) -> None:
    """Log and count what an administrator did."""
    assert call.peer is not None
    desk.facts.metrics.admin_acts[operation] += 1
    who = {"operation": operation, "uid": call.peer.uid, "pid": call.peer.pid}
    log.info("admin act", extra=about(**who, **values))


OPERATIONS: Final[dict[str, Operation]] = {
    PROBE: Operation(probe),
    "status": Operation(status),
    "explain": Operation(explain),
    "snapshot": Operation(snapshot),
    "log": Operation(history),
    "metrics": Operation(metrics),
    "config": Operation(config),
    "force_release": Operation(force_release, changes=True, admin=True),
    "end_session": Operation(end_session, changes=True, admin=True),
    "forget": Operation(forget, changes=True, admin=True),
    "reload": Operation(reload, admin=True),
}
