"""Who is at the other end: a peer as the kernel describes it, and a process for good."""

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
    """A process for good: its pid, and its start in clock ticks since boot."""

    pid: int
    start: int
