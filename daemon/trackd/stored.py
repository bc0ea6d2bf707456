"""What of the state is stored, and how it comes back: between `State` and the plain image.

The state leaves a record of each change as it happens; here is what the checkpoint holds of each
thing at any moment (`value_of`), and how a new process takes everything over (`load`). No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trackd.image import Image, LeaseRow, SessionRow
from trackd.rules.tracker import Place
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import EXPIRED_LEASES, Ended, Lease, Remembered, Session, Waiter
from trackd_client.protocol import Done

if TYPE_CHECKING:
    from trackd.state import State
    from trackd.store import Key


def value_of(state: State, key: Key) -> Any:
    """Return what the checkpoint holds of a thing, or None when it is no more."""
    kind, name = key
    match kind:
        case "session":
            session = state.sessions.by_token.get(name)
            return None if session is None else session_row(session).values()
        case "lease":
            lease = state.leases.get(name)
            return None if lease is None else lease_row(state, name, lease).values()
        case "proxy":
            proxy = state.tracker.get(name)
            if proxy is None:
                return None
            return [proxy.group, proxy.generation, proxy.expiry, state.mentions.get(name)]
        case "forgotten":
            tombstone = state.forgotten.get(name)
            return None if tombstone is None else list(tombstone)
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
    }


def load(state: State, image: Image) -> None:
    """Have a fresh state take over what an earlier process left.

    The sessions are those that were open; whether their processes live, the caller finds out.
    """
    meta, now = image.meta, state.around.now()
    state.changes.revision = meta.get("revision", 0)
    state.epoch = meta.get("epoch", 0)
    state.tracker_id = meta.get("tracker_id", "")
    state.cluster = meta.get("cluster", "")
    state.sessions.last_id = meta.get("last_session", 0)
    if "budget" in meta:
        state.budget.restore(*meta["budget"])
    state.advice.changed(now)
    count = state.config.connection_count
    if meta.get("configured_count") == count:
        count = meta.get("connection_count", count)
    state.tracker.restore(
        proxies=[(name, *row[:3]) for name, row in image.proxies.items()],
        leases={lease: row.name for lease, row in image.leases.items()},
        last_lease=meta.get("last_lease", 0),
        connection_count=count,
    )
    state.mentions = {name: row[3] for name, row in image.proxies.items() if row[3:]}
    for name, tombstone in sorted(image.forgotten.items(), key=lambda item: item[1][2]):
        group, generation, until = tombstone
        state.forgotten.add(name, Place(group, generation), until)
    for token, ended in sorted(image.ended.items(), key=lambda item: item[1][1]):
        state.sessions.ended[token] = Ended(*ended)
    for token, row in image.sessions.items():
        session = _session(token, row)
        state.heard_of(session)
        if state.sessions.add(session) and session.process is not None:
            state.around.watch(session.process)
        for seq, (order, deadline) in row.waits.items():
            session.parked[seq] = Waiter(session, seq, order, deadline, None)
    waiters = [waiter for session in state.sessions for waiter in session.parked.values()]
    for waiter in sorted(waiters, key=lambda waiter: waiter.order):
        state.queue.add(waiter)
    for lease, held in sorted(image.leases.items(), key=lambda item: item[1].granted):
        session = state.sessions.by_token[held.token]
        session.leases.add(lease)
        state.leases[lease] = Lease(session, held.granted, held.wall, held.principals)
        if held.name is None:
            state.in_flight[lease] = None
    state.changes.history.restore(image.events)


def lease_row(state: State, lease: int, held: Lease) -> LeaseRow:
    """Return a lease as it is stored."""
    name = state.tracker.lease_name(lease)
    return LeaseRow(held.session.token, name, held.granted, held.wall, held.principals)


def session_row(session: Session) -> SessionRow:
    """Return a session as it is stored."""
    process = session.process
    return SessionRow(
        id=session.id,
        uid=session.peer.uid,
        gid=session.peer.gid,
        pid=session.peer.pid,
        start=None if process is None else process.start,
        name=session.name,
        version=session.version,
        labels=session.labels,
        opened=session.opened,
        wall=session.wall,
        done=list(session.done.ranges),
        replies={
            seq: [reply.frame, reply.lease]
            for seq, reply in session.replies.items()
            if reply.stored
        },
        waits={seq: [waiter.order, waiter.deadline] for seq, waiter in session.parked.items()},
        expired=sorted(session.expired),
        command=session.command,
    )


def _session(token: bytes, row: SessionRow) -> Session:
    return Session(
        id=row.id,
        token=token,
        peer=Peer(row.uid, row.gid, row.pid),
        process=None if row.start is None else Process(row.pid, row.start),
        name=row.name,
        version=row.version,
        labels=row.labels,
        opened=row.opened,
        wall=row.wall,
        command=row.command,
        expired=frozenset(sorted(row.expired)[-EXPIRED_LEASES:]),
        # Whether it was told before the restart is not known; twice does no harm.
        notices=[{"notice": "lease_expired", "lease": lease} for lease in row.expired],
        done=Done(row.done),
        replies={
            seq: Remembered(frame, True, lease) for seq, (frame, lease) in row.replies.items()
        },
    )
