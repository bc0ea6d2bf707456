"""Identities from the kernel: the peer of a connection, and a process that no other can be.

A daemon of one host knows no name of it: there `host` is "". The leader of a fleet serves agents
of other hosts too, and names these: a uid or a pid means nothing without its host.
"""

from __future__ import annotations

from typing import NamedTuple

from trackd.rules.user import User


class Peer(NamedTuple):
    """The process that made a connection.

    Attributes:
        uid: its effective user id at that moment.
        gid: its effective group id.
        pid: its process id as this daemon sees it; 0 when it lives in a pid namespace
            that this one cannot see.
        host: the host that it runs on; "" for the daemon's own.
    """

    uid: int
    gid: int
    pid: int
    host: str = ""

    @property
    def user(self) -> User:
        """The user that it runs as."""
        return self.host, self.uid

    def has_user_of(self, other: Peer) -> bool:
        """Return whether it runs as the same user as another one; cheaper than `user` of both."""
        return self.uid == other.uid and self.host == other.host


class Process(NamedTuple):
    """A process. One that has a reused pid differs from the former in its start or boot.

    Attributes:
        pid: its process id.
        start: its start in clock ticks since boot.
        host: the host that it runs on; "" for the daemon's own.
        boot: the boot id of that host; "" for the daemon's own.
    """

    pid: int
    start: int
    host: str = ""
    boot: str = ""
