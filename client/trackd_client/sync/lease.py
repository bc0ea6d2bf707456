"""`Lease`: a lease of the synchronous client."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol, Self

from trackd_client.core import calls
from trackd_client.core.calls import Call, T
from trackd_client.core.conversation import Session, check_process
from trackd_client.core.insist import insist
from trackd_client.core.lease import BaseFlag, BaseGranter, BaseLease
from trackd_client.errors import SessionLost

#: The longest part of a wait in seconds.
_SLICE: Final = 2.0


class Granter(BaseGranter, Protocol):
    """What a lease needs of its tracker."""

    def _call(self, call: Call[T], *, session: Session | None = None) -> T:
        """Make a call and return its result."""


class Flag(threading.Event, BaseFlag):
    """An event that is true once it is set: `if lease.lost:`, or `lease.lost.wait(5)`.

    A signal handler or a finalizer may set it while the same thread waits for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cond = threading.Condition(threading.RLock())  # the lock of an event is no RLock
        self._callbacks = []
        self._pid = os.getpid()

    def __bool__(self) -> bool:
        return self.is_set()

    def set(self) -> None:
        """Set it, for good."""
        super().set()
        self._call_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, and return whether it is.

        Args:
            timeout: seconds to wait at most, or None for no limit.

        Raises:
            UsedAfterFork: this is a forked child, where nothing would set it.
        """
        check_process(self._pid, "lease")
        # In slices: set between the look and the wait of the same thread, it wakes nobody.
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not super().wait(min(_SLICE, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return self.is_set()
        return True


class Lease(BaseLease):
    """Permission to dial once; with a claim, the exclusive hold of one proxy.

    It is a context manager: leaving the block releases the lease.

    Attributes:
        id: its number, unique among all leases of the cluster's daemon.
        claimed_name: the name of the proxy that it claimed, or None. It keeps its value
            when the lease is released or lost.
        lost: set when the lease is gone: its session was lost, it did not claim in time, or it was
            revoked.
        revoked: whether the daemon took it back, because an admin asked for that, because its
            tunnel was stale or because this host is cut off from its fleet, or whether another
            lease has replaced it (`offer`); its tunnel must be closed.
        target: the `name` and `address` of the missing proxy that it is for, if gossip says where
            that can be dialled; None: dial the load balancer. The address is somebody else's text.
        terminating: whether its proxy was about to go when this lease claimed it.
        should_close: set when the daemon advises to close this tunnel, because there are more
            tunnels than wanted, or because the lease was revoked or replaced.
    """

    lost: Flag
    should_close: Flag
    _tracker: Granter

    def __init__(
        self,
        tracker: Granter,
        session: Session,
        fields: Mapping[str, Any],
        claim_by: float | None,
    ) -> None:
        super().__init__(tracker, session, fields, claim_by)
        self.lost = Flag()
        self.should_close = Flag()

    def claim(self, *principals: str) -> bool:
        """Claim the proxy that was reached.

        Args:
            principals: the names that the proxy presents; any may be the gossip name.

        Returns:
            True when this lease now holds the proxy. False when another lease holds it, when
            the principals name nothing, when this lease has claimed already, or when it was
            released. A lease that is still in flight may try again.

        Raises:
            SessionLost: the lease is gone with its session.
            BadArgument: a principal is not text.
            LeaseExpired: it was in flight for longer than the daemon allows.
            TrackdError: the daemon does not answer, or refuses.
        """
        claim = self._claim(principals)
        if claim is None:
            return False
        return self._tracker._call(claim, session=self._session)  # noqa: SLF001 - one module

    def is_claimed(self, *principals: str) -> bool:
        """Return whether any lease holds the proxy that is being dialled.

        A dial may ask as soon as it knows the principals, before a costly handshake ends. When it
        ends the dial for this reason, it releases the lease with `failed="held"`; pools do so. The
        daemon may then hint that the load balancer is sticky, as after a claim, and the lease's
        pool obeys.
        """
        return self._tracker._call(self._look(principals))  # noqa: SLF001 - one module

    def retire(self) -> bool:
        """Mark the proxy of this lease as terminating: it is about to go.

        The daemon no longer wants a tunnel to it, and grants a lease for another proxy if one is
        missing then. The mark lasts as long as the lease holds the proxy, and some seconds more.

        Returns:
            Whether it is marked. False when the lease was released or lost, or the daemon is too
            old to know this.

        Raises:
            InvalidRequest: this lease has not claimed.
            TrackdError: the daemon does not answer, or refuses.
        """
        retire = self._retire()
        try:
            return retire is not None and self._tracker._call(retire, session=self._session)  # noqa: SLF001
        except SessionLost:
            return False

    def offer(self) -> bool:
        """Offer the proxy of this lease to other agents, for a tunnel that is about to close.

        The lease goes on holding its proxy, and its tunnel stays open. The daemon grants a lease
        for a replacement. When that is there, this lease is lost, and `should_close` is set. A
        tracker offers one lease at a time; the offer ends with the lease.

        Returns:
            Whether it is offered, or was replaced already. False when the lease was released or
            lost, or the daemon is too old to know this: then close the tunnel as ever.

        Raises:
            InvalidRequest: this lease has not claimed.
            LimitExceeded: the tracker offers another lease.
            TrackdError: the daemon does not answer, or refuses.
        """
        offer = self._offer()
        try:
            return offer is not None and self._tracker._call(offer, session=self._session)  # noqa: SLF001
        except SessionLost:
            return False

    def release(self, *, failed: str | None = None, retry_after: float | None = None) -> None:
        """Release the lease: its proxy, or its permission to dial, is free for others.

        A second call does nothing. Without a daemon it does not fail: the release is sent as soon
        as a daemon is there.

        Args:
            failed: how the dial ended, if it failed: `refused`, `timeout`, `tls` or `rate`, which
                may pause the dials of the whole host; `auth` or `other`, which may pause those of
                this agent; or `held`, when `is_claimed` ended it. None says nothing.
            retry_after: seconds for which the other end asked not to dial, at most 60, or None.

        Raises:
            BadArgument: there is no such outcome, or `retry_after` does not go with it.
        """
        self._set_outcome(failed, retry_after)
        try:
            if not self.released:
                self._releasing = True
                release = calls.release(self._release_fields())
                self._tracker._call(release, session=self._session)  # noqa: SLF001
                self._tracker._forget(self)  # noqa: SLF001
        except BaseException as error:
            if not self._is_released_despite(error):
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._tracker._conversation.inherited:  # noqa: SLF001 - a part of it
                self.release()
        except BaseException:
            insist(self.let_go)  # it may have been interrupted before it began
            raise
