"""Identities from the kernel: the peer of a connection, and a process that no other can be."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """The process that made a connection.

    Attributes:
        uid: its effective user id at that moment.
        gid: its effective group id.
        pid: its process id as this daemon sees it; 0 when it lives in a pid namespace
            that this one cannot see.
    """

    uid: int
    gid: int
    pid: int


class Process(NamedTuple):
    """A process: its pid, and its start in clock ticks since boot. A reused pid differs in that."""

    pid: int
    start: int
