"""Applies changes to the durable state: the only code that edits it. Pure.

The living daemon and a restart run the same code. It is strict: a change that does not fit the
state raises, since then the journal is not that of this state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from trackd.rules.backoff import Backoff, Pause
from trackd.rules.gossip import runs
from trackd.rules.marks import Mark
from trackd.rules.registry import Place
from trackd.rules.targets import Address, Aim, Trust
from trackd.rules.tombstones import GroupTombstone
from trackd.sessions.identity import Peer
from trackd.sessions.sessions import EXPIRED_LEASES, KeptReply, Lease, Session, Waiter
from trackd.state import changes
from trackd.state.changes import Change
from trackd.state.events import count_events
from trackd.state.sources import Source
from trackd.state.state import State

#: The labels of all sessions without labels.
NO_LABELS: Final[dict[str, str]] = {}


def apply(state: State, change: Change, at: float, wall: float) -> None:
    """Apply a change.

    Args:
        state: what to edit.
        change: the change.
        at: its moment, in seconds of CLOCK_BOOTTIME.
        wall: the same moment in Unix time.

    Raises:
        KeyError, ValueError: the change does not fit the state.
    """
    _APPLY[type(change)](state, change, at, wall)
    state.revision += count_events(change)


# -- the daemon -----------------------------------------------------------------------


def _epoch_began(state: State, change: changes.EpochBegan, _at: float, _wall: float) -> None:
    state.epoch = change.epoch
    state.tracker_id = change.tracker_id
    state.cluster = change.cluster
    state.configured_count = change.configured
    state.tracker.set_connection_count(change.connections)


def _count_set(state: State, change: changes.CountSet, _at: float, _wall: float) -> None:
    state.tracker.set_connection_count(change.connections)


def _configured(state: State, change: changes.Configured, _at: float, _wall: float) -> None:
    state.configured_count = change.connections


def _probed(_state: State, _change: changes.Probed, _at: float, _wall: float) -> None:
    """Change nothing."""


# -- sessions -------------------------------------------------------------------------


def _session_opened(state: State, change: changes.SessionOpened, at: float, wall: float) -> None:
    if change.token in state.sessions.by_token or change.number in state.sessions.by_id:
        raise ValueError(f"session {change.number} is there already")
    state.sessions.add(
        Session(
            id=change.number,
            token=change.token,
            peer=Peer(change.uid, change.gid, change.pid, change.host),
            process=change.process,
            name=sys.intern(change.name),
            version=sys.intern(change.version),
            labels=change.labels or NO_LABELS,
            opened=at,
            wall=wall,
            command=sys.intern(change.command),
        )
    )


def _session_ended(state: State, change: changes.SessionEnded, at: float, _wall: float) -> None:
    session = state.sessions.by_token[change.token]
    if session.leases or session.parked:
        raise ValueError(f"session {change.number} still has leases or waits")
    state.sessions.remove(session, change.reason, at)


def _ended_dropped(state: State, change: changes.EndedDropped, _at: float, _wall: float) -> None:
    for token in change.tokens:
        del state.sessions.ended[token]


def _replied(state: State, change: changes.Replied, _at: float, _wall: float) -> None:
    session = state.sessions.by_token[change.token]
    if change.covered or change.done != session.done.ranges:
        _acknowledge(session, change)
    session.keep_reply(change.seq, KeptReply(change.frame, change.lease))


def _acknowledged(state: State, change: changes.Acknowledged, _at: float, _wall: float) -> None:
    _acknowledge(state.sessions.by_token[change.token], change)


def _acknowledge(session: Session, change: changes.Replied | changes.Acknowledged) -> None:
    session.done.ranges = change.done  # shared, see `Done`
    for seq in change.covered:
        session.drop_reply(seq)


def _parked(state: State, change: changes.Parked, _at: float, _wall: float) -> None:
    session = state.sessions.by_token[change.token]
    waiter = Waiter(session, change.seq, change.order, change.tag, change.deadline)
    session.park(waiter)
    session.use.waiters += 1
    state.queue.add(waiter)


def _unparked(state: State, change: changes.Unparked, _at: float, _wall: float) -> None:
    session = state.sessions.by_token[change.token]
    waiter = session.unpark(change.seq)
    session.use.waiters -= 1
    state.queue.remove(waiter)
    if change.served:
        state.queue.last_served = max(state.queue.last_served, waiter.tag)


def _notified(state: State, change: changes.Notified, _at: float, _wall: float) -> None:
    session = state.sessions.by_token[change.token]
    session.notices = [*session.notices, change.notice]


def _fetched(state: State, change: changes.Fetched, _at: float, _wall: float) -> None:
    state.sessions.by_token[change.token].notices = ()


# -- leases ---------------------------------------------------------------------------


def _granted(state: State, change: changes.Granted, at: float, wall: float) -> None:
    session = state.sessions.by_token[change.token]
    if state.tracker.grant() != change.lease:
        raise ValueError(f"lease {change.lease} is not the next one")
    session.leases.add(change.lease)
    session.use.leases += 1
    state.leases[change.lease] = Lease(session, at, wall, (), at)
    state.in_flight[change.lease] = None


def _claimed(state: State, change: changes.Claimed, _at: float, _wall: float) -> None:
    if state.tracker.holder(change.name) is not None:
        raise ValueError(f"{change.name} is claimed already")
    del state.in_flight[change.lease]
    state.tracker.hold(change.lease, change.name)
    state.leases[change.lease].principals = change.principals
    if change.follows:
        state.aliases.add(change.lease, state.tracker.aliases_of(change.principals))


def _renamed(state: State, change: changes.Renamed, _at: float, _wall: float) -> None:
    tracker = state.tracker
    if tracker.lease_name(change.lease) != change.before or tracker.is_tracked(change.before):
        raise ValueError(f"lease {change.lease} does not hold {change.before}, or it is tracked")
    if tracker.holder(change.name) is not None:
        raise ValueError(f"{change.name} is claimed already")
    tracker.rename(change.lease, change.name)


def _released(state: State, change: changes.Released, _at: float, _wall: float) -> None:
    lease = state.leases.pop(change.lease)
    lease.session.leases.remove(change.lease)
    lease.session.use.leases -= 1
    if lease.session.offered == change.lease:
        lease.session.offered = None
    if change.name is None:
        del state.in_flight[change.lease]
    state.tracker.free(change.lease)
    if state.aliases.by_lease:
        state.aliases.drop(change.lease)
    if state.lives.by_lease:
        state.lives.end(change.lease)


def _claim_timed_out(state: State, change: changes.ClaimTimedOut, _at: float, _wall: float) -> None:
    session = state.sessions.by_token[change.token]
    expired = session.expired
    if len(expired) >= EXPIRED_LEASES:
        expired -= {min(expired)}
    session.expired = expired | {change.lease}


def _dial_spent(state: State, change: changes.DialSpent, _at: float, _wall: float) -> None:
    state.budget.restore(change.tokens, change.at)


# -- proxies --------------------------------------------------------------------------


def _tracked(state: State, change: changes.Tracked, at: float, _wall: float) -> None:
    tracker, rows = state.tracker, change.rows
    moved = [rows[each if isinstance(each, int) else each[0]] for each in change.changed]
    tracker.put(moved)
    for row in moved:
        tracker.note_source(row[0], change.by)
    for number, (ttl, names) in enumerate(runs(rows), change.first):
        used = change.default_ttl if ttl is None or ttl <= 0 else ttl
        tracker.mentions.add(number, names, at + used, used, change.by)


def _mentioned(state: State, change: changes.Mentioned, at: float, _wall: float) -> None:
    ttl = change.ttl
    state.tracker.mentions.add(change.number, change.names, at + ttl, ttl, change.by)


def _renewed(state: State, change: changes.Renewed, at: float, _wall: float) -> None:
    state.tracker.mentions.renew(change.number, at + change.ttl, change.ttl, change.by)


def _renewed_each(state: State, change: changes.RenewedEach, at: float, _wall: float) -> None:
    for number, ttl in zip(change.numbers, change.ttls, strict=True):
        state.tracker.mentions.renew(number, at + ttl, ttl, change.by)


def _expired(state: State, change: changes.Expired, _at: float, _wall: float) -> None:
    state.tracker.drop(row[0] for row in change.rows)


def _forgotten(state: State, change: changes.Forgotten, _at: float, _wall: float) -> None:
    state.tracker.drop([change.name])
    for name in change.dropped:
        state.tombstones.drop(name)
    state.tombstones.add(change.name, Place(change.group, change.generation), change.until)


def _tombstones_dropped(
    state: State, change: changes.TombstonesDropped, _at: float, _wall: float
) -> None:
    for name in change.names:
        state.tombstones.drop(name)
    for group in change.groups:
        state.tombstones.drop_group(group)


def _group_forgotten(
    state: State, change: changes.GroupForgotten, _at: float, _wall: float
) -> None:
    state.tracker.drop(name for name, _ in change.rows)
    for group in change.dropped:
        state.tombstones.drop_group(group)
    state.tombstones.add_group(change.group, GroupTombstone(change.low, change.high, change.until))


def _marked(state: State, change: changes.Marked, _at: float, _wall: float) -> None:
    for name, said, retired in change.rows:
        state.tracker.mark(name, Mark(said, retired))


def _source_remembered(
    state: State, change: changes.SourceRemembered, _at: float, _wall: float
) -> None:
    for number in change.dropped:
        state.sources.drop(number)
    state.sources.add(change.number, Source(change.uid, change.pid, change.agent, change.host))


# -- targets --------------------------------------------------------------------------


def _addressed(state: State, change: changes.Addressed, _at: float, _wall: float) -> None:
    for name, *fields in change.rows:
        state.tracker.put_address(name, Address(*fields) if fields else None)


def _aimed(state: State, change: changes.Aimed, _at: float, _wall: float) -> None:
    aim = None
    if change.name is not None and change.address is not None:
        aim = Aim(change.name, change.address)
    state.tracker.aim(change.lease, aim)


def _targets_trusted(
    state: State, change: changes.TargetsTrusted, _at: float, _wall: float
) -> None:
    state.tracker.targets.trust = Trust(*change)


# -- outcomes of dials ----------------------------------------------------------------


def _dial_failed(state: State, _change: changes.DialFailed, _at: float, _wall: float) -> None:
    state.reports_outcomes = True


def _paused(state: State, change: changes.Paused, _at: float, _wall: float) -> None:
    after = state.tracker.last_lease
    pause = Pause(
        change.failures,
        change.until,
        after,
        change.reason,
        change.retry_after,
        change.number,
        change.uid,
        change.pid,
        change.agent,
        change.host,
    )
    if change.token is None:
        state.backoff.begin(pause)
        return
    session = state.sessions.by_token[change.token]
    session.backoff = session.backoff or Backoff()
    session.backoff.begin(pause)
    state.paused[change.token] = session


def _resumed(state: State, change: changes.Resumed, _at: float, _wall: float) -> None:
    if change.token is None:
        state.backoff.end()
    else:
        state.paused.pop(change.token).backoff = None


# -- signs of life --------------------------------------------------------------------


def _reports_began(state: State, change: changes.ReportsBegan, _at: float, _wall: float) -> None:
    if change.lease not in state.leases or change.lease in state.lives.by_lease:
        raise ValueError(f"lease {change.lease} is gone, or has reported before")
    state.lives.begin(change.lease)


def _lease_stale(state: State, change: changes.LeaseStale, _at: float, _wall: float) -> None:
    state.lives.mark_stale(change.lease)


# -- hand-overs -----------------------------------------------------------------------


def _offered(state: State, change: changes.Offered, _at: float, _wall: float) -> None:
    session = state.leases[change.lease].session
    if session.offered is not None:
        raise ValueError(f"session {session.id} offers lease {session.offered} already")
    session.offered = change.lease
    state.tracker.put_offer(change.lease)


_APPLY: Final[dict[type[Any], Callable[[State, Any, float, float], None]]] = {
    changes.EpochBegan: _epoch_began,
    changes.CountSet: _count_set,
    changes.Configured: _configured,
    changes.Probed: _probed,
    changes.SessionOpened: _session_opened,
    changes.SessionEnded: _session_ended,
    changes.EndedDropped: _ended_dropped,
    changes.Replied: _replied,
    changes.Acknowledged: _acknowledged,
    changes.Parked: _parked,
    changes.Unparked: _unparked,
    changes.Notified: _notified,
    changes.Fetched: _fetched,
    changes.Granted: _granted,
    changes.Claimed: _claimed,
    changes.Renamed: _renamed,
    changes.Released: _released,
    changes.ClaimTimedOut: _claim_timed_out,
    changes.DialSpent: _dial_spent,
    changes.Tracked: _tracked,
    changes.Mentioned: _mentioned,
    changes.Renewed: _renewed,
    changes.RenewedEach: _renewed_each,
    changes.Expired: _expired,
    changes.Forgotten: _forgotten,
    changes.TombstonesDropped: _tombstones_dropped,
    changes.GroupForgotten: _group_forgotten,
    changes.SourceRemembered: _source_remembered,
    changes.Marked: _marked,
    changes.Addressed: _addressed,
    changes.Aimed: _aimed,
    changes.TargetsTrusted: _targets_trusted,
    changes.DialFailed: _dial_failed,
    changes.Paused: _paused,
    changes.Resumed: _resumed,
    changes.ReportsBegan: _reports_began,
    changes.LeaseStale: _lease_stale,
    changes.Offered: _offered,
}
