"""The decisions of an election: who leads after a transaction, and until when. Pure.

A leader holds a lease of etcd, and the key `leader` ends with it. Etcd counts the lease's seconds
from when it grants or prolongs it, which is after we asked. So a leader that counts from when it
asked believes for less long than etcd does, whatever the network and the scheduler do between.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: The `valid_until` of a term that is over.
OVER: Final = float("-inf")


class LeaderKey(NamedTuple):
    """The key `leader` as a transaction found it.

    Attributes:
        lease: the lease that it ends with.
        create_revision: the fence of its term.
    """

    lease: int
    create_revision: int


def fence_of(created: int | None, found: LeaderKey | None, lease: int) -> int | None:
    """Return the fence when we lead after we tried to create `leader`, or None.

    Args:
        created: the revision at which this try created it, or None when it was there already.
        found: the key that was there already.
        lease: ours. When the key ends with it, an earlier try whose answer was lost created it.
    """
    if created is not None:
        return created
    return found.create_revision if found is not None and found.lease == lease else None


def extend(valid_until: float, ttl: float, sent: float, now: float) -> float:
    """Return until when a term is valid after a keepalive was acknowledged.

    A term that was over when the answer came stays over, even if etcd still has the lease:
    somebody may have seen it end.

    Args:
        valid_until: until when it was valid before, in seconds of CLOCK_BOOTTIME.
        ttl: the seconds that etcd promised; 0: the lease is gone.
        sent: when the keepalive was sent.
        now: when its answer had come.
    """
    if ttl <= 0 or now >= valid_until:
        return OVER
    return max(valid_until, sent + ttl)


def next_keepalive(ttl: float, sent: float, now: float, *, acknowledged: bool) -> float:
    """Return the seconds until the next keepalive: a third of the TTL, or soon after a failure."""
    if not acknowledged:
        return ttl / 20
    return max(0.0, sent + ttl / 3 - now)
