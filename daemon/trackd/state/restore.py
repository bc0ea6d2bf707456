"""Between the durable state and the store: rows of a checkpoint, and what a restart makes of it.

`row_of` returns the row of a key as it is now. `restore` reads all rows into an empty state, and
applies the batches of the journal by the code of the living daemon. No I/O.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from trackd.rules.backoff import Backoff, Pause
from trackd.rules.marks import Mark
from trackd.rules.registry import Place
from trackd.rules.targets import UNPROVEN, Address, Aim, Trust
from trackd.rules.tombstones import GroupTombstone
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Ended, KeptReply, Lease, Session, Waiter
from trackd.state.apply import NO_LABELS, apply
from trackd.state.changes import META, Key, Keys, Moment, hostless, unpack
from trackd.state.events import pack_events
from trackd.state.sources import Source
from trackd.state.state import State
from trackd_client.wire.done import Done

#: Returns the rows of a kind: the key and the value of each, as they were packed.
RowsOf = Callable[[str], Iterable[tuple[Any, Any]]]


def row_of(state: State, key: Key) -> Any:
    """Return the value that a checkpoint stores under a key, or None when there is none."""
    kind, name = key
    match kind:
        case "session":
            session = state.sessions.by_token.get(name)
            return None if session is None else _session_row(session)
        case "reply":
            token, seq = name
            session = state.sessions.by_token.get(token)
            return None if session is None else session.replies.get(seq)
        case "lease":
            held = state.leases.get(name)
            if held is None:
                return None
            claimed = state.tracker.lease_name(name)
            row = [held.session.token, claimed, held.granted, held.wall, held.principals]
            more = _more_of_lease(state, name)
            return [*row, more] if more else row
        case "mention":
            mention = state.tracker.mentions.by_number.get(name)
            return None if mention is None else [mention.expiry, mention.ttl, mention.by]
        case "names":
            return _names_row(state, name)
        case "mark":
            return state.tracker.marks.by_name.get(name)
        case "address":
            return _hostless(state.tracker.targets.by_name.get(name))
        case "tombstone":
            return state.tombstones.get(name)
        case "group_tombstone":
            return state.tombstones.get_group(name)
        case "source":
            return _hostless(state.sources.get(name))
        case "ended":
            return _hostless(state.sessions.ended.get(name))
        case "pause":
            session = state.paused.get(name)
            return (
                None if session is None or session.backoff is None else _pause_row(session.backoff)
            )
        case "history":
            return state.history.chunk(name)
        case "meta":
            return _meta(state)
        case _:
            raise ValueError(f"there are no rows of {kind!r}")


def _hostless(row: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return None if row is None else hostless(row)


def _pause_row(backoff: Backoff) -> tuple[Any, ...] | None:
    return _hostless(backoff.pause)


def _session_row(session: Session) -> list[Any]:
    uid, gid, pid, host = session.peer
    row = [
        session.id,
        uid,
        gid,
        pid,
        None if session.process is None else session.process.start,
        session.name,
        session.version,
        session.labels,
        session.opened,
        session.wall,
        session.command,
        session.done.ranges,
        [
            [waiter.seq, waiter.order, waiter.deadline, waiter.tag]
            for waiter in session.parked.values()
        ],
        sorted(session.expired),
        session.notices,
    ]
    if host:
        row += [host, "" if session.process is None else session.process.boot]
    return row


def _more_of_lease(state: State, lease: int) -> dict[str, Any]:
    """Return what few leases have, by its name."""
    life, aim = state.lives.by_lease.get(lease), state.tracker.targets.aims.get(lease)
    more: dict[str, Any] = {} if life is None else {"reports": True, "stale": life.stale}
    if aim is not None:
        more["aim"] = aim
    if lease in state.aliases.by_lease:
        more["follows"] = True
    return {**more, "offered": True} if state.tracker.is_offered(lease) else more


def _names_row(state: State, number: int) -> Any:
    """Return the living names of a mention with their places: runs of group, generation, names."""
    mentions = state.tracker.mentions
    if number not in mentions.by_number:
        return None
    place = state.tracker.place
    return [
        [group, generation, list(names)]
        for (group, generation), names in groupby(mentions.living(number), place)
    ]


def _meta(state: State) -> dict[str, Any]:
    meta = {
        "revision": state.revision,
        "epoch": state.epoch,
        "tracker_id": state.tracker_id,
        "cluster": state.cluster,
        "last_lease": state.tracker.last_lease,
        "last_session": state.sessions.last_id,
        "connection_count": state.tracker.connection_count,
        "configured_count": state.configured_count,
        "budget": state.budget.level(),
        "last_served": state.queue.last_served,
    }
    if state.reports_outcomes:
        meta["outcomes"], meta["pause"] = True, _pause_row(state.backoff)
    if state.tracker.targets.trust != UNPROVEN:
        meta["trust"] = state.tracker.targets.trust
    return meta


def restore(
    state: State,
    rows_of: RowsOf,
    batches: Iterable[bytes],
    touch: Callable[[Keys], None],
    done: Mapping[bytes, Sequence[int]] = MappingProxyType({}),
) -> None:
    """Bring back what was stored: the checkpoint, and the batches of the journal after it.

    All sessions that were open are open again; the caller ends those whose process is gone.

    Args:
        state: an empty one.
        rows_of: returns the rows of a kind.
        batches: the packed batches, read after the rows.
        touch: called with the keys of what the batches edit, before that, and of rows that are
            not needed any more, since a setting is smaller now.
        done: the ranges of requests that sessions were done with at last, by token.

    Raises:
        LookupError, TypeError, ValueError: what was stored makes no sense.
    """
    _load(state, rows_of, touch)
    for packed in batches:
        _replay(state, unpack(packed), touch)
    for session in state.sessions:
        live = session.live
        live.done = Done(session.done.ranges)
        live.done.update(list(done.get(session.token, ())))
        session.cover([seq for seq in session.replies if seq in live.done])


def _load(state: State, rows_of: RowsOf, touch: Callable[[Keys], None]) -> None:
    meta: dict[str, Any] = next((value for _, value in rows_of(META[0])), {})
    for token, row in rows_of("session"):
        state.sessions.add(_session_from(token, row))
    for (token, seq), reply in rows_of("reply"):
        state.sessions.by_token[token].keep_reply(seq, KeptReply(*reply))
    _load_queue(state)
    _load_leases(state, rows_of, meta)
    _load_proxies(state, rows_of)
    for token, ended in sorted(rows_of("ended"), key=lambda row: row[1][1]):
        state.sessions.ended[token] = Ended(*ended)
    for token, row in rows_of("pause"):
        session = state.paused[token] = state.sessions.by_token[token]
        session.backoff = Backoff(_pause_from(row))
    _load_history(state, rows_of, touch)
    if not meta:
        return
    state.revision = meta["revision"]
    state.epoch = meta["epoch"]
    state.tracker_id = meta["tracker_id"]
    state.cluster = meta["cluster"]
    state.configured_count = meta["configured_count"]
    state.sessions.last_id = meta["last_session"]
    state.queue.last_served = meta["last_served"]
    state.budget.restore(*meta["budget"])
    state.reports_outcomes = meta.get("outcomes", False)
    state.backoff.pause = _pause_from(meta.get("pause"))
    state.tracker.targets.trust = Trust(*meta.get("trust", UNPROVEN))


def _pause_from(row: Sequence[Any] | None) -> Pause | None:
    return None if row is None else Pause(*row)


def _load_history(state: State, rows_of: RowsOf, touch: Callable[[Keys], None]) -> None:
    events: dict[int, bytes] = {}
    older: dict[int, Sequence[Sequence[bytes]]] = {}
    for chunk, (first, packed, *lists) in rows_of("history"):
        events.update(enumerate(packed, first))
        if lists:
            older[chunk] = lists
    touch([("history", chunk) for chunk in state.history.restore(events, older)])


def _session_from(token: bytes, row: Sequence[Any]) -> Session:
    number, uid, gid, pid, start, name, version, labels, opened, wall, command, *rest = row
    done, waits, expired, notices = rest[:4]
    host, boot = rest[4:6] or ("", "")
    session = Session(
        id=number,
        token=token,
        peer=Peer(uid, gid, pid, host),
        process=None if start is None else Process(pid, start, host, boot),
        name=name,
        version=sys.intern(version),
        labels=labels or NO_LABELS,
        opened=opened,
        wall=wall,
        command=sys.intern(command),
        expired=frozenset(expired),
        done=Done(done),
        notices=notices,
    )
    for seq, order, deadline, tag in waits:
        session.park(Waiter(session, seq, order, tag, deadline))
    return session


def _load_queue(state: State) -> None:
    waiters = [waiter for session in state.sessions for waiter in session.parked.values()]
    for waiter in sorted(waiters, key=lambda waiter: waiter.order):
        waiter.session.use.waiters += 1
        state.queue.add(waiter)


def _load_leases(state: State, rows_of: RowsOf, meta: dict[str, Any]) -> None:
    claimed: dict[int, str | None] = {}
    offered: list[int] = []
    aims: dict[int, Aim] = {}
    rows = sorted(rows_of("lease"), key=itemgetter(0))
    for lease, (token, name, granted, wall, principals, *rest) in rows:
        session = state.sessions.by_token[token]
        session.leases.add(lease)
        session.use.leases += 1
        state.leases[lease] = Lease(session, granted, wall, principals, granted)
        claimed[lease] = name
        more = rest[0] if rest else {}
        if more.get("reports"):
            state.lives.begin(lease, stale=more["stale"])
        if more.get("follows"):
            state.aliases.add(lease, state.tracker.aliases_of(principals))
        if more.get("offered"):
            session.offered = lease
            offered.append(lease)
        if name is None:
            state.in_flight[lease] = None
        if "aim" in more:
            aims[lease] = Aim(*more["aim"])
    state.tracker.restore(
        proxies=(),
        leases=claimed,
        last_lease=meta.get("last_lease", 0),
        connection_count=meta.get("connection_count", 0),
        offered=offered,
    )
    for lease, aimed in aims.items():
        state.tracker.aim(lease, aimed)


def _load_proxies(state: State, rows_of: RowsOf) -> None:
    tracker = state.tracker
    for name, mark in rows_of("mark"):
        tracker.mark(name, Mark(*mark))
    mentioned = dict(rows_of("mention"))
    for number, found in sorted(rows_of("names"), key=itemgetter(0)):
        expiry, ttl, by = mentioned[number]
        for group, generation, names in found:
            tracker.put([(name, group, generation, None) for name in names])
            for name in names if tracker.marks.by_name else names[:1]:  # of each cohort one
                tracker.note_source(name, by)
        tracker.mentions.add(
            number, [name for _, _, names in found for name in names], expiry, ttl, by
        )
    for name, address in rows_of("address"):
        tracker.put_address(name, Address(*address))
    for name, (group, generation, until) in sorted(rows_of("tombstone"), key=lambda row: row[1][2]):
        state.tombstones.add(name, Place(group, generation), until)
    for group, row in sorted(rows_of("group_tombstone"), key=lambda row: row[1][2]):
        state.tombstones.add_group(group, GroupTombstone(*row))
    for number, source in sorted(rows_of("source")):
        state.sources.add(number, Source(*source))


def _replay(state: State, batch: Sequence[Moment], touch: Callable[[Keys], None]) -> None:
    first = state.revision + 1
    for moment in batch:
        for change in moment.changes:
            touch(change.edits())
            apply(state, change, moment.at, moment.wall)
    if batch:
        add_events(state, first, pack_events(batch, first), batch[-1].at, touch)


def add_events(
    state: State, first: int, packed: Sequence[bytes], now: float, touch: Callable[[Keys], None]
) -> None:
    """Add the events of a batch to the history.

    Its chunks need not be those of the checkpoint's base: an event says its revision, and one that
    is known is passed over.

    Args:
        state: its revision counts them already.
        first: the revision of the first one.
        packed: the events.
        now: seconds of CLOCK_BOOTTIME.
        touch: called with the keys of the history that were edited.
    """
    assert state.revision == first + len(packed) - 1
    touch([("history", chunk) for chunk in state.history.extend(first, packed, now)])
