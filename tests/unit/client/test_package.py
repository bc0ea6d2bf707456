"""The public names of the client, its errors, and what it exports of each kind."""

from __future__ import annotations

import dataclasses

import pytest

import trackd_client
from trackd_client import (
    AcquireTimeout,
    BadPayload,
    DaemonAbsent,
    Lease,
    NoAnswer,
    Proxy,
    Refused,
    SessionLost,
    TrackdError,
    Tracker,
)


def test_the_public_names_are_these() -> None:
    assert trackd_client.__all__ == [
        "AcquireTimeout",
        "AgentPool",
        "AsyncAgentPool",
        "AsyncLease",
        "AsyncTracker",
        "BadPayload",
        "DaemonAbsent",
        "Event",
        "Lease",
        "Mirror",
        "NoAnswer",
        "Policy",
        "PoolEvent",
        "PoolStats",
        "Proxy",
        "Refused",
        "SessionLost",
        "TrackdError",
        "Tracker",
        "__version__",
        "errors",
        "parse_discovery",
    ]
    assert all(getattr(trackd_client, name) is not None for name in trackd_client.__all__)


def test_both_clients_have_the_same_public_names() -> None:
    from trackd_client import AgentPool, AsyncAgentPool, AsyncLease, AsyncTracker

    for sync, other in (
        (Tracker, AsyncTracker),
        (Lease, AsyncLease),
        (AgentPool, AsyncAgentPool),
    ):
        names = {name for name in dir(sync) if not name.startswith("_")}
        assert names == {name for name in dir(other) if not name.startswith("_")}


def test_every_error_is_a_trackd_error_and_what_python_calls_it() -> None:
    assert issubclass(DaemonAbsent, TrackdError)
    assert issubclass(DaemonAbsent, ConnectionError)
    assert issubclass(NoAnswer, TrackdError)
    assert issubclass(NoAnswer, TimeoutError)
    assert issubclass(AcquireTimeout, TrackdError)
    assert issubclass(AcquireTimeout, TimeoutError)
    assert issubclass(BadPayload, TrackdError)
    assert issubclass(BadPayload, ValueError)
    assert issubclass(Refused, TrackdError)
    assert issubclass(SessionLost, TrackdError)
    assert not issubclass(DaemonAbsent, NoAnswer)
    assert not issubclass(NoAnswer, Refused)


def test_a_proxy_is_frozen_and_its_name_comes_first() -> None:
    proxy = Proxy("p1", group="", generation=2, ttl=None)
    assert proxy == Proxy(name="p1", generation=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        proxy.name = "p2"  # type: ignore[misc]
