"""Agents share the reverse-tunnel proxies of a cluster through the trackd daemon of their host.

A *proxy* is a reverse-tunnel server behind a load balancer, and nobody can choose which one
a dial reaches. Each agent process asks the daemon for a *lease*, permission to dial once;
dials; and *claims* the proxy that it reached, unless another lease holds it already. What
connected proxies say of each other (*gossip*) goes to the daemon, which so knows how many
tunnels are wanted::

    from trackd_client import Proxy, Tracker

    with Tracker(cluster="example.com") as tracker:
        tracker.track_expected(Proxy("p1", generation=2))
        with tracker.acquire() as lease:
            tunnel = dial()
            if lease.claim(*tunnel.principals):
                tunnel.serve()

Leases belong to the *session* of their process; when it ends, however it ends, they are free.
"""

from typing import TYPE_CHECKING, Any

from trackd_client import errors
from trackd_client._version import __version__
from trackd_client.core.discovery import parse_discovery
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.errors import (
    AcquireTimeout,
    BadPayload,
    DaemonAbsent,
    DialFailed,
    NoAnswer,
    Refused,
    SessionLost,
    TrackdError,
)
from trackd_client.policy import Policy, PoolEvent, PoolStats
from trackd_client.proxy import Proxy, Target
from trackd_client.results import (
    Explanation,
    Fleet,
    FleetHost,
    LeaseRow,
    ProxyExplanation,
    ProxyRow,
    SessionRow,
    Snapshot,
    Status,
)

if TYPE_CHECKING:
    from trackd_client.aio.lease import AsyncLease
    from trackd_client.aio.pool import AsyncAgentPool
    from trackd_client.aio.tracker import AsyncTracker
    from trackd_client.sync.lease import Lease
    from trackd_client.sync.pool import AgentPool
    from trackd_client.sync.tracker import Tracker

__all__ = [
    "AcquireTimeout",
    "AgentPool",
    "AsyncAgentPool",
    "AsyncLease",
    "AsyncTracker",
    "BadPayload",
    "DaemonAbsent",
    "DialFailed",
    "Event",
    "Explanation",
    "Fleet",
    "FleetHost",
    "Lease",
    "LeaseRow",
    "Mirror",
    "NoAnswer",
    "Policy",
    "PoolEvent",
    "PoolStats",
    "Proxy",
    "ProxyExplanation",
    "ProxyRow",
    "Refused",
    "SessionLost",
    "SessionRow",
    "Snapshot",
    "Status",
    "Target",
    "TrackdError",
    "Tracker",
    "__version__",
    "errors",
    "parse_discovery",
]

#: Imported when they are first used, so that a program loads no client that it does not use, and
#: the daemon none at all: asyncio would double the time that an import takes.
_LATE = {
    "AgentPool": "trackd_client.sync.pool",
    "AsyncAgentPool": "trackd_client.aio.pool",
    "AsyncLease": "trackd_client.aio.lease",
    "AsyncTracker": "trackd_client.aio.tracker",
    "Lease": "trackd_client.sync.lease",
    "Tracker": "trackd_client.sync.tracker",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
