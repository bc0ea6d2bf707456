"""The public names of the client, its errors, and what it exports of each kind."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

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
    errors,
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
    assert all(getattr(trackd_client, name) is not None for name in trackd_client.__all__)


#: The public modules and their public names. Everything else of the package is private.
PUBLIC = {
    "errors": [
        "AcquireTimeout",
        "BadArgument",
        "BadPayload",
        "Code",
        "DaemonAbsent",
        "DaemonFailed",
        "DialFailed",
        "InvalidRequest",
        "LeaseExpired",
        "LimitExceeded",
        "NoAnswer",
        "NotOwner",
        "PermissionRefused",
        "QuotaExceeded",
        "Refused",
        "SessionLost",
        "StoreUnavailable",
        "SystemRefused",
        "TrackdError",
        "TrackerClosed",
        "UsedAfterFork",
        "VersionMismatch",
        "WrongCluster",
        "WrongLoop",
    ],
    "metrics": ["CONTENT_TYPE", "exposition", "total"],
    "policy": ["Change", "Policy", "PoolEvent", "PoolStats"],
    "proxy": ["Proxy", "Target"],
    "results": [
        "EtcdAlarm",
        "EtcdHealth",
        "EtcdMember",
        "Explanation",
        "Fleet",
        "FleetCandidate",
        "FleetHost",
        "Group",
        "GroupGap",
        "Hint",
        "LeaseRow",
        "Outcomes",
        "Pause",
        "ProxyExplanation",
        "ProxyRow",
        "ProxyTarget",
        "RecentClaims",
        "Reload",
        "Result",
        "SessionRow",
        "Snapshot",
        "Source",
        "Status",
        "Tombstone",
        "Tunnels",
        "UserUsage",
    ],
    "testing": ["Daemon", "MakeDaemon", "make_trackd_daemon", "trackd_daemon"],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_has_these_public_names(name: str) -> None:
    module = importlib.import_module(f"trackd_client.{name}")
    assert module.__all__ == PUBLIC[name]
    assert all(hasattr(module, public) for public in PUBLIC[name])


def test_every_error_that_can_be_raised_is_public() -> None:
    def tree(error: type[Exception]) -> set[str]:
        return {error.__name__}.union(*map(tree, error.__subclasses__()))

    assert tree(TrackdError) == set(errors.__all__) - {"Code"}


def test_every_other_module_of_the_client_says_that_it_is_private() -> None:
    for found in pkgutil.iter_modules(trackd_client.__path__):
        if found.ispkg:
            package = importlib.import_module(f"trackd_client.{found.name}")
            assert (package.__doc__ or "").startswith("Private: "), found.name
        else:
            assert found.name in PUBLIC or found.name.startswith("_"), found.name


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
