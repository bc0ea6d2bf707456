"""Sessions and leases as rows of the store."""

from __future__ import annotations

from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import EXPIRED_LEASES, UNSTORED_NOTICES, Lease, Remembered, Session
from trackd.storage.image import LeaseRow, SessionRow
from trackd_client.wire.done import Done


def lease_row(name: str | None, held: Lease) -> LeaseRow:
    """Return a lease, and the name that it claimed or None, as they are stored."""
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
        waits={
            seq: [waiter.order, waiter.deadline, waiter.tag]
            for seq, waiter in session.parked.items()
        },
        expired=sorted(session.expired),
        command=session.command,
        notices=[each for each in session.notices if each["notice"] not in UNSTORED_NOTICES],
    )


def session_from(token: bytes, row: SessionRow) -> Session:
    """Return the session that a row describes; its leases and waiters are not in it yet."""
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
        # A file without notices does not say which of these were fetched; twice does no harm.
        notices=[{"notice": "lease_expired", "lease": lease} for lease in row.expired]
        if row.notices is None
        else row.notices,
        done=Done(row.done),
        replies={
            seq: Remembered(frame, True, lease) for seq, (frame, lease) in row.replies.items()
        },
    )
