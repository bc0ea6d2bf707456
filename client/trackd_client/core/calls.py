"""Each call of a client as a value: what it requests, and how its reply is read. No I/O.

The synchronous and the asyncio client make the same calls and differ in how they send and wait::

    def ping(self) -> None:              async def ping(self) -> None:
        self._call(calls.ping())             await self._call(calls.ping())
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from trackd_client.core.arguments import check_number, principal_list, proxy_rows
from trackd_client.core.reading import read
from trackd_client.errors import BadArgument
from trackd_client.proxy import Proxy
from trackd_client.results import Explanation, Fleet, ProxyExplanation, Status
from trackd_client.wire import requests
from trackd_client.wire.clock import boottime
from trackd_client.wire.requests import RequestFields

T = TypeVar("T")

#: Stands for the deadline that a tracker's `timeout` gives.
BY_TIMEOUT: Final = -1.0


class Call(NamedTuple, Generic[T]):
    """A call that grants no lease.

    Attributes:
        op: the operation.
        fields: its own fields.
        read: returns the result that the fields of the reply mean.
        in_session: whether the request is made within a session, which is opened for it.
        never_stale: whether the daemon runs it however late it arrives.
    """

    op: str
    fields: Mapping[str, Any]
    read: Callable[[dict[str, Any]], T]
    in_session: bool = True
    never_stale: bool = False

    def result(self, reply: dict[str, Any]) -> T:
        """Return the result that the fields of the reply mean.

        Raises:
            NoAnswer: they are not as the protocol says.
        """
        return read(f"a reply to {self.op}", self.read, reply)


class Grant(NamedTuple):
    """A call that may grant a lease.

    Attributes:
        op: the operation.
        fields: its own fields.
        deadline: seconds of CLOCK_BOOTTIME, None for never; by default the tracker's `timeout`
            from now.
        parks: whether the daemon may park the request; it is then sent again more and more
            seldom.
        refused: what `AcquireTimeout` says when no lease was granted; empty: the result is None.
    """

    op: str
    fields: Mapping[str, Any]
    deadline: float | None = BY_TIMEOUT
    parks: bool = False
    refused: str = ""


def _call(
    request: RequestFields,
    read: Callable[[dict[str, Any]], T],
    *,
    in_session: bool = True,
    never_stale: bool = False,
) -> Call[T]:
    return Call(request.op, request.encode(), read, in_session, never_stale)


def _grant(request: RequestFields, **more: Any) -> Grant:
    return Grant(request.op, request.encode(), **more)


# -- what agents do -----------------------------------------------------------------------


def track_expected(proxies: Iterable[Proxy]) -> Call[None]:
    """Send gossip."""
    return _call(requests.TrackExpected(proxy_rows(proxies)), _nothing)


def set_connection_count(count: int) -> Call[None]:
    """Set how many connections are wanted."""
    return _call(requests.SetConnectionCount(count), _nothing)


def is_claimed(principals: tuple[str, ...]) -> Call[bool]:
    """Ask whether a lease holds a proxy."""
    return _call(requests.IsClaimed(principal_list(principals)), _is_claimed)


def release(fields: requests.Release) -> Call[None]:
    """Release a lease."""
    return _call(fields, _nothing, never_stale=True)


def retire(lease: int) -> Call[bool]:
    """Mark the proxy that a lease holds as terminating."""
    return _call(requests.Retire(lease), lambda reply: bool(reply["retired"]))


def offer(lease: int) -> Call[bool]:
    """Offer the proxy that a lease holds to others."""
    return _call(requests.Offer(lease), lambda reply: bool(reply["offered"]))


def try_acquire() -> Grant:
    """Ask for a lease, and do not wait for one."""
    return _grant(requests.TryAcquire())


def acquire(timeout: float | None) -> Grant:
    """Ask for a lease, and wait for one.

    Args:
        timeout: seconds to wait at most, 0 to ask once, or None for no limit.

    Raises:
        BadArgument: `timeout` is not a number, or less than 0.
    """
    if timeout == 0:
        return _grant(requests.TryAcquire(), refused="no lease was granted at once")
    deadline = deadline_of(timeout)
    within = "" if timeout is None else f" within {timeout:g} s"
    refused = f"no lease was granted{within}"
    return Grant("acquire", {}, deadline=deadline, parks=True, refused=refused)


def adopt(principals: tuple[str, ...], *, follow: bool = False) -> Grant:
    """Ask for a lease that has claimed a proxy."""
    return _grant(requests.Adopt(principal_list(principals), follow))


# -- what operators ask: it needs no session, and opens none -------------------------------


def ping() -> Call[None]:
    """Ask for an answer."""
    return _call(requests.Ping(), _nothing, in_session=False)


def status() -> Call[Status]:
    """Ask for the daemon's counts."""
    return _call(requests.Status(), lambda reply: Status(own_fields(reply)), in_session=False)


def explain(name: str | None) -> Call[Explanation | ProxyExplanation]:
    """Ask why a lease would be granted, or what is known of a proxy."""
    kind = Explanation if name is None else ProxyExplanation
    return _call(requests.Explain(name), lambda reply: kind(own_fields(reply)), in_session=False)


def metrics() -> Call[dict[str, Any]]:
    """Ask for all that the daemon counts."""
    return _call(requests.Metrics(), own_fields, in_session=False)


def config() -> Call[dict[str, Any]]:
    """Ask for the daemon's settings."""
    return _call(requests.Config(), own_fields, in_session=False)


def fleet() -> Call[Fleet]:
    """Ask who leads the fleet, and how its hosts are."""
    return _call(requests.Fleet(), lambda reply: Fleet(own_fields(reply)), in_session=False)


# -- what admins do -------------------------------------------------------------------------


def force_release(lease: int) -> Call[dict[str, Any]]:
    """Take a lease back from its session."""
    return _call(requests.ForceRelease(lease), own_fields)


def end_session(session: int) -> Call[dict[str, Any]]:
    """End a session."""
    return _call(requests.EndSession(session), own_fields)


def forget(name: str | None, group: str | None, generation: int | None) -> Call[dict[str, Any]]:
    """Stop tracking a proxy or a group; only what is given is sent."""
    return _call(requests.Forget(name, group, generation), own_fields)


def drop_host(host: str) -> Call[dict[str, Any]]:
    """End all sessions of a host of the fleet."""
    return _call(requests.DropHost(host), own_fields)


def yield_lead(term: int) -> Call[dict[str, Any]]:
    """Let another candidate lead the fleet."""
    return _call(requests.YieldLead(term), own_fields)


def resume() -> Call[dict[str, Any]]:
    """End the pauses after failed dials."""
    return _call(requests.Resume(), own_fields)


def reload() -> Call[dict[str, Any]]:
    """Make the daemon read its configuration."""
    return _call(requests.Reload(), own_fields)


# -- replies and deadlines --------------------------------------------------------------------


def own_fields(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a reply without the number that matches it."""
    return {name: value for name, value in reply.items() if name != "seq"}


def deadline_of(timeout: float | None) -> float | None:
    """Return the moment that is `timeout` seconds from now, or None for never.

    Raises:
        BadArgument: `timeout` is not a number, or less than 0.
    """
    if timeout is None:
        return None
    check_number(timeout, "timeout")
    if timeout >= threading.TIMEOUT_MAX:  # three centuries
        return None
    if not timeout >= 0:
        raise BadArgument("timeout must be a number of at least 0, or None")
    return boottime() + timeout


def _nothing(_: Mapping[str, Any]) -> None:
    """Read a reply that says only that the request was run."""


def _is_claimed(reply: Mapping[str, Any]) -> bool:
    return bool(reply["claimed"])
