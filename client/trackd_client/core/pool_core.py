"""The part of a pool that threads and tasks share: bookkeeping, pace, hooks. No I/O."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Generic

from trackd_client.core import calls
from trackd_client.core.arguments import check_callable, check_type, check_wait
from trackd_client.core.base_tracker import BaseTracker, log
from trackd_client.core.calls import Grant
from trackd_client.core.dial import Dial, outcome_of
from trackd_client.core.lease import LeaseT
from trackd_client.core.limited_log import LimitedLog
from trackd_client.errors import (
    CUT_OFF,
    BadArgument,
    DaemonAbsent,
    DaemonFailed,
    DialFailed,
    InvalidRequest,
    LimitExceeded,
    NoAnswer,
    QuotaExceeded,
    Refused,
    SessionLost,
    StoreUnavailable,
    SystemRefused,
    TrackdError,
    TrackerClosed,
)
from trackd_client.policy import Change, Pace, Policy, PoolEvent, PoolStats
from trackd_client.wire.clock import boottime

#: Seconds between two questions whether a tunnel is alive.
ALIVE_SECONDS: Final = 2.0
#: Seconds of the time of a drain that are kept for tunnels to close, and the share of a short time.
_CLOSING_SECONDS: Final = 5.0
_CLOSING_SHARE: Final = 0.25
#: Seconds after which a drain that waits for a replacement looks again.
LOOK_AGAIN: Final = 0.25
#: Errors for which an adoption is tried again later.
_LATER = (DaemonAbsent, DaemonFailed, NoAnswer, SessionLost, StoreUnavailable, SystemRefused)


class PoolCore(Generic[LeaseT]):
    """The bookkeeping of a pool. Threads may call it; a lock guards what it changes."""

    def __init__(
        self,
        tracker: BaseTracker[LeaseT],
        *,
        max_concurrent_dials: int,
        max_tunnels: int | None,
        policy: Policy | None,
        on_event: Callable[[PoolEvent], None] | None,
        drain_timeout: float | None,
        alive: Callable[[LeaseT], object] | None,
    ) -> None:
        check_callable(alive, "alive")
        check_wait(drain_timeout, "drain_timeout")
        check_type(max_concurrent_dials, int, "max_concurrent_dials")
        if max_concurrent_dials < 1:
            raise BadArgument("max_concurrent_dials must be at least 1")
        check_type(max_tunnels, int, "max_tunnels", optional=True)
        if max_tunnels is not None and max_tunnels < 1:
            raise BadArgument("max_tunnels must be at least 1, or None")
        check_type(policy, Policy, "policy", optional=True)
        check_callable(on_event, "on_event")
        self._conversation = tracker._conversation  # noqa: SLF001 - the pool is its user
        self._drain_timeout = drain_timeout
        self._limited_log = LimitedLog(log)
        self._max_dials = max_concurrent_dials
        self._max_tunnels = max_tunnels
        self._pace = Pace(policy or Policy())
        self._on_event = on_event
        self._alive = alive
        self._lock = threading.RLock()
        self._dials: dict[Dial[LeaseT], None] = {}
        self._stats = PoolStats()
        self._not_before = 0.0
        self._stopping = False
        self._replacing = False  # whether a drain waits until tunnels are replaced
        self._last_held = ""  # the last held proxy that a dial reached

    def stats(self) -> PoolStats:
        """Return a copy of the counts.

        Raises:
            UsedAfterFork: this is a forked child; the pool lives on in its parent.
        """
        self._check_process()
        with self._lock:
            return replace(self._stats)

    def _check_process(self) -> None:
        """Refuse use in a forked child, where a lock may be held for good.

        Raises:
            UsedAfterFork: this is one.
        """
        self._conversation.check_process()

    @property
    def _inherited(self) -> bool:
        """Whether this is a forked child, which has no tunnels to close or leases to release."""
        return self._conversation.inherited

    @abstractmethod
    def _changed(self) -> None:
        """Wake those that wait for room or for the last dial to end. Holds the lock."""

    @abstractmethod
    def _spawn(self, dial: Dial[LeaseT]) -> None:
        """Run a dial beside those that run already, and release its leases when it ends."""

    @abstractmethod
    def _follow(self, dial: Dial[LeaseT]) -> None:
        """Ask every `ALIVE_SECONDS` whether the tunnel of a dial is alive, until the dial ends."""

    # -- before a dial ----------------------------------------------------------------------

    def _may_dial(self) -> bool:
        has_room = self._max_tunnels is None or len(self._dials) < self._max_tunnels
        most = 1 if self._pace.is_sticky else self._max_dials
        return self._stopping or (has_room and self._stats.dialling < most)

    def _has_work(self) -> bool:
        """Return whether a dial may begin, or a tunnel is to be adopted."""
        return self._may_dial() or bool(self._lost_dials())

    def _note_lost(self) -> None:
        """Wake the dispatcher, also of a full pool: the tunnel of a lost lease is to be adopted."""
        with self._lock:
            self._changed()

    def _pause(self) -> float:
        """Return the seconds to wait before the next lease is acquired."""
        return max(0.0, self._not_before - time.monotonic())

    def _goes_on(self, error: TrackdError) -> bool:
        """Back off after an error of adopting or acquiring; return whether the pool goes on."""
        if isinstance(error, TrackerClosed):
            return self._stopping
        if not isinstance(error, SessionLost):  # its tunnels are adopted before the next lease
            self._refused(error)
        return True

    def _ends(self, error: BaseException) -> bool:
        """Log an error of the dispatcher, and return whether it ends the pool."""
        if isinstance(error, TrackerClosed):
            log.info("the pool ends: its tracker was closed")
            return True
        self._broke(error)
        return False

    def _refused(self, error: TrackdError) -> None:
        """Back off after an error of `acquire`."""
        retry_after = error.retry_after if isinstance(error, Refused) else None
        self._limited_log.warning(f"refused {type(error).__name__}", "no lease for now: %s", error)
        self._back_off(self._pace.failed() if retry_after is None else retry_after)

    def _broke(self, error: BaseException) -> None:
        """Back off after an error that is not the daemon's: no memory is left, say."""
        self._limited_log.warning(
            type(error).__name__, "the pool cannot dial now: %r", error, error=error
        )
        self._back_off(self._pace.failed())

    def _log_failed(self, error: BaseException) -> None:
        """Log what a release raised."""
        self._limited_log.warning(
            f"release {type(error).__name__}", "a release raised %r", error, error=error
        )

    def _use(self, lease: LeaseT) -> None:
        """Dial with a lease, unless the pool ends or a dial has failed meanwhile."""
        if self._stopping or self._pause():
            lease.let_go()  # leave it to others
            return
        try:
            self._spawn(self._begin(lease))
        except BaseException:
            lease.let_go()
            raise

    def _begin(self, lease: LeaseT) -> Dial[LeaseT]:
        """Count a dial that begins, and follow the claims of its lease."""
        dial = Dial(lease, [lease])

        def claimed(succeeded: bool, name: str | None) -> None:
            self._claimed(dial, name, succeeded=succeeded)

        lease.on_claim, lease.follows = claimed, True
        lease.lost.call(self._note_lost)
        with self._lock:
            if self._stopping:
                lease.should_close.set()
            self._dials[dial] = None
            self._stats.dials += 1
            self._stats.dialling += 1
        self._emit(PoolEvent(change=Change.CONNECTING, lease=lease.id))
        return dial

    # -- during a dial ------------------------------------------------------------------------

    def _claimed(self, dial: Dial[LeaseT], name: str | None, *, succeeded: bool) -> None:
        """Note the result of a claim of the dial."""
        if not succeeded:
            dial.held_name = name
            return
        if dial.lease.terminating:  # a tunnel to it is no use: it closes, and counts as a duplicate
            dial.held_name = name
            dial.lease.should_close.set()
            return
        with self._lock:
            dial.claimed_at = time.monotonic()
            dial.held_name = None
            self._stats.dialling -= 1
            self._stats.connected += 1
            self._stats.claims += 1
            self._pace.connected()
            self._changed()
        self._emit(PoolEvent(change=Change.CLAIMED, lease=dial.lease.id, name=name))
        if self._alive is not None and dial.on_end is None:
            self._follow(dial)

    def _lost_dials(self) -> list[Dial[LeaseT]]:
        """Return the dials whose claims were lost with their session."""
        with self._lock:
            return [
                dial
                for dial in self._dials
                if dial.claimed_at is not None
                and dial.leases[-1].lost.is_set()
                and not dial.leases[-1].revoked
                and not dial.abandoned
            ]

    def _adopted(self, dial: Dial[LeaseT], lease: LeaseT | None) -> bool:
        """Note the lease by which a tunnel was adopted, or None: another lease holds the proxy.

        The lease is released when the dial has ended in the meantime.

        Returns:
            Whether the tunnel is held by the lease.
        """
        if lease is None:
            dial.abandoned = True
            dial.lease.should_close.set()
            return False
        if lease.terminating:
            with self._lock:
                self._stats.duplicates += 1
            dial.lease.should_close.set()
        with self._lock:
            if not dial.ended:
                # The dial has its first lease only: advice for the new one must reach it there.
                lease.should_close = dial.lease.should_close
                dial.leases.append(lease)
                dial.lease._successor = lease  # noqa: SLF001 - the dial reports by its first one
                lease._first = dial.lease  # noqa: SLF001 - and is told its name there
                lease.lost.call(self._note_lost)
                return True
        lease.let_go()
        return False

    def _readoption(self, dial: Dial[LeaseT]) -> Grant | None:
        """Return the call that adopts a tunnel whose session was lost; None: it is not wanted."""
        name, presented = dial.lease.claimed_name, dial.lease.presented
        if name is None or not self._adopts:
            return None
        names = dict.fromkeys((name, *presented))
        return calls.adopt(tuple(names)[: max(1, len(presented))], follow=True)

    def _leases_of(self, dial: Dial[LeaseT]) -> list[LeaseT]:
        """Return all leases of a dial that has ended, or whose time is up; none is added later."""
        with self._lock:
            ended, dial.ended = dial.ended, True
            leases = list(dial.leases)
        if dial.on_end is not None and not ended:
            dial.on_end()
        return leases

    def _let_go(self, dial: Dial[LeaseT]) -> None:
        """Release all leases of a dial without waiting for the daemon's replies."""
        for lease in self._leases_of(dial):
            lease.let_go()

    def _abandon(self, dial: Dial[LeaseT], error: TrackdError) -> bool:
        """Give up a tunnel unless a later try may adopt it; return whether it was given up."""
        if isinstance(error, _LATER) and error.reason != CUT_OFF:
            return False  # the tunnel stays open meanwhile
        if not isinstance(error, TrackerClosed):  # then nobody wants it adopted
            log.warning("the tunnel to %s cannot be adopted: %s", dial.lease.claimed_name, error)
        self._adopted(dial, None)
        return True

    def _begin_drain(self, *, replace_first: bool = False) -> None:
        """Stop beginning dials, and advise every tunnel to close.

        Args:
            replace_first: whether open tunnels are not advised before they are replaced.
        """
        with self._lock:
            self._stopping = True
            self._replacing = replace_first
            dials = [dial for dial in self._dials if not replace_first or dial.claimed_at is None]
            self._changed()
        for dial in dials:  # without the lock: this calls functions of the dials
            dial.lease.should_close.set()

    def _report(self, dial: Dial[LeaseT], said: object) -> None:
        """Report what `alive` has returned: True, or a round-trip time in seconds."""
        if said is True:
            dial.lease.report()
        elif said is not None and said is not False:
            rtt: Any = said
            dial.lease.report(rtt)

    def _not_asked(self, error: Exception) -> None:
        """Log why it is not known whether a tunnel is alive; its lease is stale before long."""
        self._limited_log.warning(
            f"alive {type(error).__name__}", "`alive` of the pool failed: %r", error, error=error
        )

    @property
    def _adopts(self) -> bool:
        """Whether tunnels whose session was lost are wanted."""
        return self._replacing or not self._stopping

    def _next_to_replace(self) -> Dial[LeaseT] | None:
        """Return the oldest tunnel that a drain must see replaced.

        None: there is none left, a drain that does not wait has begun, or the daemon is too old.
        """
        if "offers" not in self._conversation.features:
            return None
        with self._lock:
            for dial in self._dials if self._replacing else ():
                if not (dial.claimed_at is None or dial.lease.should_close.is_set() or dial.ended):
                    return dial
        return None

    def _not_offered(self, lease: LeaseT, error: TrackdError) -> None:
        """Log that a tunnel could not be offered; the drain tries again.

        Raises:
            TrackerClosed: no later try can succeed.
        """
        if isinstance(error, TrackerClosed):
            raise error
        log.debug("%s is not offered for now: %s", lease, error)

    # -- after a dial -------------------------------------------------------------------------

    def _end(self, dial: Dial[LeaseT], error: BaseException | None) -> None:
        """Count how a dial ended, and set the pace of the next one.

        Call it before the lease is released: the release may grant the next lease at once, and
        the pause must hold for that one.
        """
        lease = dial.lease
        name = lease.claimed_name
        # What a claim raises when the session or the tracker is gone is no mistake of the dial, and
        # what a dial says of itself goes to the daemon.
        expected = isinstance(error, SessionLost | TrackerClosed | DialFailed)
        if error and not self._stopping and not expected:
            self._log_dial(lease.id, error)
        with self._lock:
            self._stats.dialling -= dial.claimed_at is None
            self._stats.connected -= dial.claimed_at is not None
        if dial.claimed_at is not None:
            self._emit(PoolEvent(change=Change.CLOSED, lease=lease.id, name=name, error=error))
            asked = self._stopping or lease.should_close.is_set()
            if time.monotonic() - dial.claimed_at >= self._pace.policy.stayed_up:
                self._pace.stayed_up()
            elif not asked:
                with self._lock:
                    pause = self._fail(dial, error)
                self._back_off(pause)
        elif dial.held_name is not None:
            with self._lock:
                self._stats.duplicates += 1
                pause = self._pace.duplicate(dial.held_name, hinted=self._hint_of(dial))
                self._last_held = dial.held_name
                dial.leases[-1]._set_outcome("held", None)  # noqa: SLF001 - the pool releases it
            self._emit(PoolEvent(change=Change.DUPLICATE, lease=lease.id, name=dial.held_name))
            self._back_off(pause)
        elif not self._stopping:
            with self._lock:
                pause = self._fail(dial, error)
            self._emit(PoolEvent(change=Change.FAILED, lease=lease.id, error=error))
            self._back_off(pause)

    def _hint_of(self, dial: Dial[LeaseT]) -> bool | None:
        """Return whether the daemon has said that the balancer is sticky; None: it is too old."""
        if "hints" not in self._conversation.features:
            return None
        return dial.lease._sticky >= max(1, self._pace.policy.sticky_after)  # noqa: SLF001

    def _fail(self, dial: Dial[LeaseT], error: BaseException | None) -> float | None:
        """Count a failed dial, and let its lease say how it failed.

        Returns:
            The seconds to pause; None where the daemon decides when to dial next. Holds the lock.
        """
        self._stats.failures += 1
        outcome = outcome_of(error)
        if outcome is None or not self._conversation.takes_outcomes:
            return self._pace.failed()
        dial.leases[-1]._set_outcome(*outcome)  # noqa: SLF001 - the pool releases it
        return None

    def _log_dial(self, lease: int, error: BaseException) -> None:
        """Log the exception of a dial; a traceback shows where a mistake in it is."""
        mistake = None if isinstance(error, OSError | TrackdError) else error
        self._limited_log.warning(
            f"dial {type(error).__name__}",
            "the dial with lease %d raised %r",
            lease,
            error,
            error=mistake,
        )

    def _gone(self, dial: Dial[LeaseT]) -> None:
        """Forget a dial that has ended and whose leases are released."""
        with self._lock:
            self._dials.pop(dial, None)
            self._changed()

    def _back_off(self, pause: float | None) -> None:
        if pause is None:
            return
        with self._lock:
            self._stats.pause = pause
            self._not_before = max(self._not_before, time.monotonic() + pause)
        self._emit(PoolEvent(change=Change.BACKING_OFF, pause=pause))

    def _is_suspicious(self) -> bool:
        """Return whether `_judge` needs the daemon's `explain`."""
        return self._pace.is_suspicious

    def _judge(self, explained: Mapping[str, Any], error: TrackdError | None = None) -> None:
        """Decide whether the load balancer is sticky; if so, emit that once and slow down.

        Args:
            explained: the daemon's reply to `explain`, or nothing when it did not answer.
            error: what `explain` raised then.
        """
        if error is not None:
            log.debug("explain did not say what is missing: %s", error)
        with self._lock:
            pace, policy = self._pace, self._pace.policy
            # A dial that reaches a proxy whose lease is offered succeeds as well.
            missing = explained.get("missing_count", 0) + explained.get("offered", 0)
            if not pace.is_suspicious or not pace.judge(explained.get("desired", 0), missing):
                return
            self._stats.sticky += 1
        event = PoolEvent(
            change=Change.STICKY,
            name=self._last_held,
            pause=policy.sticky_pause,
            missing=tuple(explained.get("missing", ())),
        )
        log.warning(
            "%d dials in a row reached proxies that other leases hold, the last one %s; is the"
            " load balancer sticky? no dial has reached %s",
            pace.duplicates,
            event.name,
            ", ".join(event.missing) or "(unknown)",
        )
        self._emit(event)
        self._back_off(policy.sticky_pause)

    def _fed(self, skipped: int) -> bool:
        """Count the entries of gossip that were skipped."""
        with self._lock:
            self._stats.skipped += skipped
        return True

    def _dropped(self, error: TrackdError) -> bool:
        # Without a daemon, gossip comes again; what the daemon refuses, it will refuse again.
        refused = isinstance(error, InvalidRequest | LimitExceeded | QuotaExceeded)
        level = logging.WARNING if refused else logging.DEBUG
        log.log(level, "gossip dropped: %s", error)
        return False

    def _emit(self, event: PoolEvent) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - a failing hook must not cost a lease
            log.exception("the on_event hook of a pool failed at %s", event.change)


def replace_until(timeout: float | None) -> float | None:
    """Return until when a drain waits for replacements, in seconds of CLOCK_BOOTTIME.

    Args:
        timeout: seconds that the drain may take, or None for no limit; it is None then.
    """
    if timeout is None:
        return None
    return boottime() + timeout - min(_CLOSING_SECONDS, _CLOSING_SHARE * timeout)
