"""The subscriptions of the event socket, by user and by connection.

libzmq keeps every subscription, however many, until its connection ends, and does not say when
that is. So this counts what each connection subscribed to, and looks at the kernel whether a
connection is still there: at its descriptor and the inode of its socket.

The publisher's thread adds. The tracker's thread may count at the same time: it copies what it
looks at, which the interpreter does in one step.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

#: Subscriptions of one connection. A client needs one; after a reconnect the number goes on.
MOST_OF_CONNECTION: Final = 64
#: Connections of one user that are counted; beyond that the oldest is not counted any more.
_MOST_CONNECTIONS: Final = 4096
#: Users that are counted before those without a living connection are forgotten.
_MOST_USERS: Final = 1024


class PeerOfEvents(NamedTuple):
    """A connection of the event socket, by the kernel's word.

    Attributes:
        descriptor: of the daemon.
        inode: of its socket, which no other socket has while it lives.
        uid: the user of the peer.
        gid: the peer's group.
        pid: the peer's process.
    """

    descriptor: int
    inode: int
    uid: int
    gid: int
    pid: int

    @property
    def lives(self) -> bool:
        """Whether the descriptor is still that of this connection."""
        return _inode_of(self.descriptor) == self.inode


def find_peer(descriptor: int, address: str) -> PeerOfEvents | None:
    """Return the peer of a connection, or None when it has ended.

    Args:
        descriptor: of the connection.
        address: its `Peer-Address` in libzmq, which ends in `uid:gid:pid`.

    Raises:
        ValueError: the address does not end so.
    """
    uid, gid, pid = (int(part) for part in address.split(":")[-3:])
    inode = _inode_of(descriptor)
    return None if inode is None else PeerOfEvents(descriptor, inode, uid, gid, pid)


def _inode_of(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


class Subscribers:
    """How many subscriptions each connection of each user has made.

    Attributes:
        quota: subscriptions that a user may have who has quotas.
        refused: connections that were refused one more.
    """

    def __init__(self) -> None:
        self.quota = MOST_OF_CONNECTION
        self.refused = 0
        self._users: dict[int, dict[PeerOfEvents, int]] = {}

    def add(self, peer: PeerOfEvents, *, exempt: bool) -> bool:
        """Count a subscription; return False, and forget the connection, when it is one too many.

        Args:
            peer: the connection.
            exempt: whether its user has no quotas.
        """
        if len(self._users) > _MOST_USERS:
            self._users = {uid: self._users[uid] for uid in self.uids()}
        connections = self._users.setdefault(peer.uid, {})
        connections[peer] = connections.get(peer, 0) + 1
        if connections[peer] <= MOST_OF_CONNECTION and (
            exempt or sum(connections.values()) <= self.quota or self._drop_dead(peer.uid)
        ):
            if len(connections) > _MOST_CONNECTIONS:
                self._drop_dead(peer.uid)
            while len(connections) > _MOST_CONNECTIONS:
                del connections[next(iter(connections))]
            return True
        del connections[peer]
        self.refused += 1
        return False

    def _drop_dead(self, uid: int) -> bool:
        """Forget the connections of a user that have ended; return whether the rest is allowed."""
        connections = self._users[uid]
        for peer in [peer for peer in connections if not peer.lives]:
            del connections[peer]
        return sum(connections.values()) <= self.quota

    def count(self, uid: int) -> int:
        """Return how many subscriptions the living connections of a user have made."""
        connections = self._users.get(uid)
        if not connections:
            return 0
        return sum(number for peer, number in connections.copy().items() if peer.lives)

    def uids(self) -> list[int]:
        """Return the users who have a subscription."""
        return [uid for uid in self._users.copy() if self.count(uid)]
