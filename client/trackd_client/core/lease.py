"""A lease without I/O; each client adds its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from trackd_client.core import calls
from trackd_client.core.arguments import check_outcome, check_rtt, principal_list
from trackd_client.core.calls import Call
from trackd_client.core.conversation import Conversation, Session
from trackd_client.core.insist import insist
from trackd_client.errors import TROUBLES, BadArgument, SessionLost, TrackerClosed, UsedAfterFork
from trackd_client.proxy import Target
from trackd_client.wire.checks import is_address
from trackd_client.wire.clock import boottime
from trackd_client.wire.requests import Claim, Release

log = logging.getLogger("trackd_client")


class Settable(Protocol):
    """What `threading.Event` and `asyncio.Event` have in common."""

    def set(self) -> None:
        """Set the flag, for good."""

    def is_set(self) -> bool:
        """Return whether the flag is set."""


class Advice(Settable, Protocol):
    """A flag that calls functions once it is set."""

    def call(self, callback: Callable[[], object]) -> None:
        """Call a function when the flag is set; at once if it is set already."""


class BaseFlag:
    """What the flags of both clients add to an event: they call functions once they are set."""

    _callbacks: list[Callable[[], object]]
    is_set: Callable[[], bool]

    def call(self, callback: Callable[[], object]) -> None:
        """Call a function when the flag is set; at once if it is set already."""
        self._callbacks.append(callback)
        if self.is_set():
            self._call_all()

    def _call_all(self) -> None:
        """Call each function once, and log what it raises. Several threads may do it at once."""
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return  # another thread has taken the last one
            try:
                callback()
            except OSError as error:  # its socket is closed already, say
                log.debug("a function that was given to on_close failed: %s", error)
            except Exception:
                log.exception("a function that was given to on_close failed")


class BaseGranter(Protocol):
    """What a lease needs of its tracker."""

    _conversation: Conversation

    def _release_later(self, lease: BaseLease) -> None:
        """Release a lease without waiting for the daemon's reply."""

    def _forget(self, lease: BaseLease) -> None:
        """Forget a lease that is released."""

    def _report_soon(self) -> None:
        """Send what leases have reported, once it is time for the next batch. Never waits."""


class BaseLease:
    """The part of a lease that both clients share."""

    lost: Advice
    should_close: Advice
    _tracker: BaseGranter

    def __init__(
        self,
        tracker: BaseGranter,
        session: Session,
        fields: Mapping[str, Any],
        claim_by: float | None,
    ) -> None:
        self.id: int = fields["lease"]
        self.claimed_name: str | None = fields.get("name")
        self._tracker = tracker
        self._session = session
        self._claim_by = claim_by
        self._releasing = False
        self._released = False
        #: The missing proxy that it is for, if that can be dialled itself, or None.
        self.target = _target_of(fields)
        self._outcome: tuple[str | None, float | None] = (None, None)
        #: The names that its last claim presented.
        self.presented: tuple[str, ...] = ()
        #: Whether it takes the name that gossip has for its proxy, as the leases of pools do.
        self.follows = False
        #: Whether the proxy was about to go when this lease claimed it; a pool closes such a
        #: tunnel.
        self.terminating = bool(fields.get("terminating"))
        #: How many dials of the host in a row show that the load balancer is sticky, as the daemon
        #: has found when this dial met a held proxy; 0: it is not sticky.
        self._sticky = 0
        #: The lease that holds its proxy now: a pool has adopted the tunnel.
        self._successor: BaseLease | None = None
        #: The lease of the dial whose tunnel it has adopted.
        self._first: BaseLease = self
        #: Whether the daemon has taken it back (an admin asked, or its tunnel was stale), or
        #: another lease has replaced it. The tunnel must be closed, not adopted.
        self.revoked = False
        #: Called with True and the name when a claim succeeded, and with False and the name when
        #: another lease holds the proxy.
        self.on_claim: Callable[[bool, str | None], None] | None = None

    @property
    def released(self) -> bool:
        """Whether the lease holds nothing any longer: it was released, or lost."""
        return self._released or self.lost.is_set()

    @property
    def remaining_claim_time(self) -> float | None:
        """Seconds left to claim, or None when the lease has claimed or has no time limit."""
        if self._claim_by is None or self.claimed_name is not None:
            return None
        return max(0.0, self._claim_by - boottime())

    def on_close(self, callback: Callable[[], object]) -> None:
        """Have a function called once `should_close` is set: the tunnel should close.

        It is for a dial that blocks in a read: the function shuts its socket down, say. It is
        called at once when the flag is set already; else in the thread that sets it, or on the
        event loop. It must return soon. What it raises is logged; an OSError, which a socket raises
        that is closed already, only at the level DEBUG.

        Args:
            callback: takes no arguments; its result is ignored.

        Raises:
            BadArgument: it cannot be called.
            UsedAfterFork: this is a forked child, where nothing would call it.
        """
        self._tracker._conversation.check_process()  # noqa: SLF001 - a part of it
        if not callable(callback):
            raise BadArgument(f"callback must be a function, not {callback!r:.100}")
        self.should_close.call(callback)

    def report(self, rtt: float | None = None) -> bool:
        """Report that the tunnel of this lease is alive, as the dial has just seen.

        Never waits, and may be called as often as one likes: the tracker sends one message a second
        at most, with the newest report of each lease, in the background. Where the daemon has a
        `tunnel_timeout`, a lease that has reported once is taken back when no report follows for so
        long. So report only what shows that the tunnel works, an answer of its other end, say.

        Args:
            rtt: its round-trip time in seconds, from 0 to 60; None: it is not known.

        Returns:
            Whether it will be sent, unless the connection breaks. False when the lease was released
            or lost, or the daemon is too old to know this.

        Raises:
            BadArgument: `rtt` is not such a number.
            UsedAfterFork: this is a forked child.
        """
        check_rtt(rtt)
        conversation = self._tracker._conversation  # noqa: SLF001 - a part of it
        conversation.check_process()
        lease = self._successor or self
        session = lease._session  # noqa: SLF001
        if lease.released or "reports" not in conversation.features:
            return False
        conversation.reports.add(session, lease.id, rtt, boottime())
        self._tracker._report_soon()  # noqa: SLF001
        return True

    def _set_outcome(self, failed: str | None, retry_after: float | None) -> None:
        """Set how its dial ended, which the release says.

        Raises:
            BadArgument: there is no such outcome, or the time does not go with it.
        """
        check_outcome(failed, retry_after)
        if failed is not None:
            self._outcome = failed, retry_after

    def _release_fields(self) -> Release:
        """Return the request that releases it; an older daemon is not sent the outcome."""
        if not self._tracker._conversation.takes_outcomes:  # noqa: SLF001 - a part of it
            return Release(self.id)
        return Release(self.id, *self._outcome)

    def _rename(self, name: object) -> None:
        """Take in that the lease holds its proxy by the name that gossip has for it."""
        if isinstance(name, str):
            self.claimed_name = self._first.claimed_name = name

    def let_go(self) -> None:
        """Release the lease without waiting for the daemon's reply. Not a coroutine."""
        if not self.released:
            self._releasing = True
            self._tracker._release_later(self)  # noqa: SLF001 - a part of it

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else "released" if self._released else None
        return f"<{type(self).__name__} {self.id} {state or self.claimed_name or 'in flight'}>"

    def _claim(self, principals: tuple[str, ...]) -> Call[bool] | None:
        """Return the call that claims a proxy, or None when the lease was released.

        A claim after the release is a mistake in the program: it is logged, and fails.

        Raises:
            SessionLost: the session that owned the lease is gone.
            BadArgument: a principal is not text.
        """
        if self._session.lost:
            gone = f"lease {self.id} is gone with the session that owned it"
            raise SessionLost(gone, self._session.reason)
        if self._releasing or self._released:
            log.warning("lease %d was released and cannot claim; acquire another", self.id)
            return None
        self.presented = principals
        claim = Claim(self.id, principal_list(principals), self.follows)
        return Call("claim", claim.encode(), self._take_claim)

    def _retire(self) -> Call[bool] | None:
        """Return the call that marks the proxy as terminating, or None when it cannot be made.

        The lease holds nothing any more, or the daemon is too old.
        """
        if self.released or "terminating" not in self._tracker._conversation.features:  # noqa: SLF001
            return None
        return calls.retire(self.id)

    def _offer(self) -> Call[bool] | None:
        """Return the call that offers the proxy to others, or None when it cannot be made.

        The lease holds nothing any more, or the daemon is too old.
        """
        if self.released or "offers" not in self._tracker._conversation.features:  # noqa: SLF001
            return None
        return calls.offer(self.id)

    def _look(self, principals: tuple[str, ...]) -> Call[bool]:
        """Return the call that asks whether a lease holds the proxy that is being dialled."""
        return calls.is_claimed(principals)._replace(read=self._take_claimed)

    def _take_claim(self, fields: Mapping[str, Any]) -> bool:
        claimed, name = bool(fields["claimed"]), fields["name"]
        if claimed:
            self.claimed_name = name
            self.terminating = bool(fields.get("terminating"))
        self._sticky = _sticky_of(fields)
        if self.on_claim is not None and (claimed or fields.get("reason") == "held"):
            self.on_claim(claimed, name)
        return claimed

    def _take_claimed(self, fields: Mapping[str, Any]) -> bool:
        self._sticky = _sticky_of(fields)
        if fields["claimed"] and self.on_claim is not None:
            self.on_claim(False, fields["name"])  # the agent will end the dial for that reason
        return bool(fields["claimed"])

    def _is_released_despite(self, error: BaseException) -> bool:
        """Complete a release that raised an error, and return whether that error may pass.

        A release is sent as soon as a daemon is there. One that an exception interrupted, by a
        signal handler or a cancel, is completed too, and so does a second call of `release`.
        """
        if isinstance(error, UsedAfterFork):
            return False
        if isinstance(error, SessionLost) or (
            isinstance(error, TrackerClosed) and self._tracker._conversation.closed  # noqa: SLF001
        ):
            self._tracker._forget(self)  # noqa: SLF001 - the end of the session released it
            return True
        passes = isinstance(error, TROUBLES)
        if passes:
            log.warning("lease %d will be released when the daemon can: %s", self.id, error)
        insist(self.let_go)
        return passes


def _sticky_of(fields: Mapping[str, Any]) -> int:
    """Return how many dials in a row show that the balancer is sticky, as a reply says; 0: none."""
    hint = fields.get("hint")
    if not isinstance(hint, dict) or hint.get("balancer") != "sticky":
        return 0
    in_a_row = hint.get("in_a_row")
    return in_a_row if isinstance(in_a_row, int) else 0


def _target_of(fields: Mapping[str, Any]) -> Target | None:
    """Return the target that a grant carries, or None."""
    target = fields.get("target")
    if not isinstance(target, dict):
        return None
    name, address = target.get("name"), target.get("address")
    return Target(name, address) if isinstance(name, str) and is_address(address) else None


LeaseT = TypeVar("LeaseT", bound=BaseLease)
