"""A lease without I/O; each client adds its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from trackd_client.core import calls
from trackd_client.core.arguments import principal_list
from trackd_client.core.calls import Call
from trackd_client.core.conversation import Conversation, Session
from trackd_client.core.insist import insist
from trackd_client.errors import TROUBLES, SessionLost, TrackerClosed, UsedAfterFork
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd_client")


class Settable(Protocol):
    """What `threading.Event` and `asyncio.Event` have in common."""

    def set(self) -> None:
        """Set the flag, for good."""

    def is_set(self) -> bool:
        """Return whether the flag is set."""


class BaseGranter(Protocol):
    """What a lease needs of its tracker."""

    _conversation: Conversation

    def _release_later(self, lease: BaseLease) -> None:
        """Release a lease without waiting for the daemon's reply."""

    def _forget(self, lease: BaseLease) -> None:
        """Forget a lease that is released."""


class BaseLease:
    """The part of a lease that both clients share."""

    lost: Settable
    should_close: Settable
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
        #: The names that its last claim presented.
        self.presented: tuple[str, ...] = ()
        #: Whether an admin has taken it back. Its tunnel must be closed, not adopted.
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
            raise SessionLost(f"lease {self.id} is gone with the session that owned it")
        if self._releasing or self._released:
            log.warning("lease %d was released and cannot claim; acquire another", self.id)
            return None
        self.presented = principals
        fields = {"lease": self.id, "principals": principal_list(principals)}
        return Call("claim", fields, self._take_claim)

    def _look(self, principals: tuple[str, ...]) -> Call[bool]:
        """Return the call that asks whether a lease holds the proxy that is being dialled."""
        return calls.is_claimed(principals)._replace(read=self._take_claimed)

    def _take_claim(self, fields: Mapping[str, Any]) -> bool:
        claimed, name = bool(fields["claimed"]), fields["name"]
        if claimed:
            self.claimed_name = name
        if self.on_claim is not None and (claimed or fields.get("reason") == "held"):
            self.on_claim(claimed, name)
        return claimed

    def _take_claimed(self, fields: Mapping[str, Any]) -> bool:
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


LeaseT = TypeVar("LeaseT", bound=BaseLease)
