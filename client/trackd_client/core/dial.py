"""One call of the user's `dial`: its leases, how it has gone, and what its end says. No I/O."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from trackd_client.core.lease import LeaseT
from trackd_client.errors import DialFailed, TrackdError
from trackd_client.wire.requests import MAX_RETRY_AFTER


@dataclass(slots=True, eq=False)
class Dial(Generic[LeaseT]):
    """One call of the user's `dial`.

    Attributes:
        lease: the lease that `dial` was called with.
        leases: that lease, and those by which its tunnel was adopted later.
        held_name: the proxy that it reached in vain, or None: another lease held it, or it was
            terminating.
        claimed_at: when it claimed, in seconds of time.monotonic, or None.
        abandoned: whether its session was lost and its tunnel cannot be adopted.
        ended: whether it has ended, so that its leases are being released.
        on_end: called then, once; None: nothing is.
    """

    lease: LeaseT
    leases: list[LeaseT] = field(default_factory=list)
    held_name: str | None = None
    claimed_at: float | None = None
    abandoned: bool = False
    ended: bool = False
    on_end: Callable[[], object] | None = None


def outcome_of(error: BaseException | None) -> tuple[str, float | None] | None:
    """Return what a failed dial says of its end: the reason, and the seconds to wait if given.

    None when it says nothing of the other end: the daemon was the trouble, not the dial.
    """
    if isinstance(error, DialFailed):
        asked = error.retry_after
        return error.failed, None if asked is None else max(0.0, min(asked, MAX_RETRY_AFTER))
    if isinstance(error, TrackdError):
        return None
    ssl = sys.modules.get("ssl")  # where nobody has imported it, nobody raises its errors
    if ssl is not None and isinstance(error, ssl.SSLError):
        return "tls", None
    if isinstance(error, TimeoutError):
        return "timeout", None
    return ("refused" if isinstance(error, ConnectionRefusedError) else "other"), None


def is_async(dial: object) -> bool:
    """Return whether a function is async, also within `functools.partial` or as `__call__`."""
    while isinstance(dial, partial):
        dial = dial.func
    call = getattr(type(dial), "__call__", None)  # noqa: B004 - looked at, not called
    return inspect.iscoroutinefunction(dial) or inspect.iscoroutinefunction(call)
