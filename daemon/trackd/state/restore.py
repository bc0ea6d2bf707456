"""From the state to the checkpoint (`value_of`), and from the stored image to a state (`load`).

Between two checkpoints the state writes a record of each change to the journal. No I/O.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from trackd.rules.tombstones import GroupTombstone
from trackd.rules.tracker import Place
from trackd.sessions.sessions import Ended, Lease, Waiter
from trackd.state.sources import Source
from trackd.state.state import State
from trackd.storage.image import Image
from trackd.storage.records import Key
from trackd.storage.rows import lease_row, session_from, session_row


def value_of(state: State, key: Key) -> Any:
    """Return the value that the checkpoint stores under a key, or None when there is none."""
    kind, name = key
    match kind:
        case "session":
            session = state.sessions.by_token.get(name)
            return None if session is None else session_row(session).values()
        case "lease":
            lease = state.leases.get(name)
            return (
                None if lease is None else lease_row(state.tracker.lease_name(name), lease).values()
            )
        case "proxy":
            proxy = state.tracker.get(name)
            if proxy is None:
                return None
            return [
                *(proxy.group, proxy.generation, proxy.expiry),
                *(state.mentions.get(name), state.tracker.ttl_of(name)),
            ]
        case "forgotten":
            tombstone = state.tombstones.get(name)
            return None if tombstone is None else list(tombstone)
        case "forgotten_group":
            group = state.tombstones.get_group(name)
            return None if group is None else list(group)
        case "source":
            source = state.sources.get(name)
            return None if source is None else list(source)
        case "ended":
            ended = state.sessions.ended.get(name)
            return None if ended is None else list(ended)
        case "history":
            return state.changes.history.chunk(name)
        case "meta":
            return _meta(state).get(name)
        case _:
            return None


def _meta(state: State) -> dict[str, Any]:
    return {
        "revision": state.changes.revision,
        "epoch": state.epoch,
        "tracker_id": state.tracker_id,
        "cluster": state.cluster,
        "last_lease": state.tracker.last_lease,
        "last_session": state.sessions.last_id,
        "connection_count": state.tracker.connection_count,
        "configured_count": state.config.connection_count,
        "budget": list(state.budget.level()),
        "last_served": state.queue.last_served,
    }


def load(state: State, image: Image) -> None:
    """Load what an earlier process stored into a new state.

    All sessions that were open are open again; the caller ends those whose process is gone.
    """
    meta, now = image.meta, state.effects.now()
    state.changes.revision = meta.get("revision", 0)
    state.epoch = meta.get("epoch", 0)
    state.tracker_id = meta.get("tracker_id", "")
    state.cluster = meta.get("cluster", "")
    state.sessions.last_id = meta.get("last_session", 0)
    if "budget" in meta:
        state.budget.restore(*meta["budget"])
    state.advice.changed(now)
    state.stored_count = meta.get("connection_count")
    count = state.config.connection_count
    if meta.get("configured_count") == count:
        count = meta.get("connection_count", count)
    state.tracker.restore(
        proxies=[(name, *row[:3], *row[4:5]) for name, row in image.proxies.items()],
        leases={lease: row.name for lease, row in image.leases.items()},
        last_lease=meta.get("last_lease", 0),
        connection_count=count,
    )
    state.mentions = {name: row[3] for name, row in image.proxies.items() if row[3:]}
    for name, tombstone in sorted(image.forgotten.items(), key=lambda item: item[1][2]):
        group, generation, until = tombstone
        state.tombstones.add(name, Place(group, generation), until)
    for group, low_high_until in sorted(
        image.forgotten_groups.items(), key=lambda item: item[1][2]
    ):
        state.tombstones.add_group(group, GroupTombstone(*low_high_until))
    for number, source in sorted(image.sources.items()):
        state.sources.add(number, Source(*source))
    for name, number in state.mentions.items():
        state.tracker.note_source(name, number)  # what is left of who put it there
    for token, ended in sorted(image.ended.items(), key=lambda item: item[1][1]):
        state.sessions.ended[token] = Ended(*ended)
    for token, row in image.sessions.items():
        session = session_from(token, row)
        state.note_sign_of_life(session)
        if state.sessions.add(session) and session.process is not None:
            state.effects.watch(session.process)
    _restore_queue(state, image)
    for lease, held in sorted(image.leases.items(), key=lambda item: item[1].granted):
        session = state.sessions.by_token[held.token]
        session.leases.add(lease)
        session.use.leases += 1
        state.leases[lease] = Lease(session, held.granted, held.wall, held.principals, held.granted)
        if held.name is None:
            state.in_flight[lease] = None
    changed = state.changes.history.restore(image.events, image.older_events, now)
    state.changes.touched += [("history", chunk) for chunk in changed]


def _restore_queue(state: State, image: Image) -> None:
    """Park the waiters again, in the order of their arrival.

    Those of a file without tags are tagged as if they had come before anybody was served.
    """
    waits = [
        (order, token, seq, deadline, *tag)
        for token, row in image.sessions.items()
        for seq, (order, deadline, *tag) in row.waits.items()
    ]
    for order, token, seq, deadline, *known in sorted(waits, key=itemgetter(0)):
        session = state.sessions.by_token[token]
        tag = known[0] if known else state.queue.next_tag(session)
        waiter = session.parked[seq] = Waiter(session, seq, order, tag, deadline, None)
        session.use.waiters += 1
        state.queue.add(waiter)
    state.queue.last_served = image.meta.get("last_served", 0)
