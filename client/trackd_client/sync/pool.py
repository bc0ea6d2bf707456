"""`AgentPool`: the whole loop of an agent, in threads. `trackd_client.aio.pool` has it in tasks.

The user gives `dial(lease)`, which connects, finds out the principals, calls
`lease.claim(...)`, and serves until the tunnel closes. The pool does the rest: when to dial,
how to back off, what to do about proxies that are taken, and letting go::

    def dial(lease: Lease) -> None:
        with connect(BALANCER) as tunnel:
            if lease.claim(*tunnel.principals):
                for gossip in tunnel.serve(until=lease.should_close):
                    pool.feed(gossip)

    with Tracker(cluster="example.com") as tracker, AgentPool(tracker, dial) as pool:
        stop.wait()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from trackd_client.core.base_tracker import log
from trackd_client.core.pool_core import LATER, Dial, Gossip, PoolCore, proxies_in
from trackd_client.errors import SessionLost, TrackdError, TrackerClosed
from trackd_client.policy import Policy, PoolEvent
from trackd_client.sync.connection import Wake
from trackd_client.sync.tracker import Lease, Tracker


class AgentPool(PoolCore[Lease]):
    """Keeps as many tunnels as the daemon grants leases for. Threads.

    Leaving the `with` block drains it. The tracker is not closed; other code may share it.
    """

    def __init__(
        self,
        tracker: Tracker,
        dial: Callable[[Lease], object],
        *,
        max_concurrent_dials: int = 4,
        policy: Policy | None = None,
        on_event: Callable[[PoolEvent], None] | None = None,
        drain_timeout: float | None = 30.0,
    ) -> None:
        """Say how to dial; `start`, or a `with` block, begins.

        Args:
            tracker: whose leases to dial with.
            dial: connects, claims and serves; runs in a thread of its own for each lease,
                which is released when it returns or raises.
            max_concurrent_dials: dials that may be under way at once, until they claim.
            policy: how the dials are paced.
            on_event: called with a `PoolEvent` for each change, in the thread that made it.
            drain_timeout: seconds that leaving the `with` block waits for tunnels to close,
                or None for ever.

        Raises:
            BadArgument: max_concurrent_dials is not positive.
        """
        super().__init__(max_concurrent_dials, policy, on_event)
        self._tracker = tracker
        self._dial = dial
        self._drain_timeout = drain_timeout
        self._room = threading.Condition(self._lock)
        self._wake = Wake()
        self._draining = threading.Event()
        self._dispatcher = threading.Thread(target=self._dispatch, name="trackd-pool", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._dispatcher.start()

    def feed(self, *gossip: Gossip) -> bool:
        """Pass on what a proxy said of the others: `Proxy` objects, or Teleport's JSON.

        Returns:
            Whether the daemon took it. Without a daemon it is dropped: gossip comes again.

        Raises:
            BadPayload: it is neither.
        """
        proxies = proxies_in(gossip)
        try:
            self._tracker.track_expected(*proxies)
        except TrackdError as error:
            return self._dropped(error)
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Dial no more, advise every tunnel to close, and wait until all have.

        Each lease is released when its `dial` returns, and at the latest when the time is up.

        Args:
            timeout: seconds to wait at most, or None for ever.

        Returns:
            Whether all dials returned in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._begin_drain()
        if not self._draining.is_set():
            self._draining.set()
            self._wake.set()
            if self._dispatcher.is_alive():
                self._dispatcher.join()  # it ends at once
            self._wake.close()
        with self._room:
            for dial in self._dials:
                dial.lease.should_close.set()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = self._room.wait_for(lambda: not self._dials, left)
            late = list(self._dials)
        for dial in late:
            for lease in dial.leases:
                lease.let_go()
        return done

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.drain(self._drain_timeout)

    # -- the dispatcher's thread ------------------------------------------------------------

    def _dispatch(self) -> None:
        """Acquire and dial, for as long as the pool lives."""
        try:
            while not self._draining.is_set():
                with self._room:
                    self._room.wait_for(self._may_dial)
                while (pause := self._pause()) and not self._draining.wait(pause):
                    pass
                lease = self._acquire()
                if lease is not None and (self._draining.is_set() or self._pause()):
                    lease.let_go()  # a dial has failed meanwhile; let others have it
                elif lease is not None:
                    dial = self._begin(lease)
                    threading.Thread(
                        target=self._run, args=(dial,), name=f"trackd-dial-{lease.id}", daemon=True
                    ).start()
        except TrackerClosed:
            log.info("the pool ends: its tracker was closed")

    def _acquire(self) -> Lease | None:
        """Wait for a lease; None when there is a reason to look around first."""
        try:
            self._adopt()
            return self._tracker._acquire(None, self._wake)  # noqa: SLF001 - interruptible
        except SessionLost:
            pass  # its tunnels are adopted before the next lease
        except TrackerClosed:
            if not self._draining.is_set():
                raise
        except TrackdError as error:
            self._refused(error)
        return None

    def _adopt(self) -> None:
        """Take up the open tunnels again whose session was lost."""
        for dial in self._lost_dials():
            name = dial.lease.claimed_name
            if name is None or self._draining.is_set():
                return
            try:
                self._adopted(dial, self._tracker.adopt(name))
            except LATER:
                raise  # the tunnel stays open meanwhile
            except TrackdError as error:
                self._not_adopted(dial, error)

    # -- a dial's thread ----------------------------------------------------------------------

    def _run(self, dial: Dial[Lease]) -> None:
        error: BaseException | None = None
        try:
            self._dial(dial.lease)
        except Exception as raised:  # noqa: BLE001 - whatever a dial raises, its lease is released
            error = raised
        finally:
            self._end(dial, error)
            try:
                for lease in dial.leases:
                    lease.release()
            finally:
                self._gone(dial)
            self._look_for_stickiness()

    def _look_for_stickiness(self) -> None:
        if self._is_suspicious():
            explained: dict[str, Any] = {}
            try:
                explained = self._tracker.explain()
            except TrackdError as error:
                log.debug("the missing proxies are not known: %s", error)
            self._judge(explained)

    def _changed(self) -> None:
        """Wake whoever waits for room, or for the last dial to end. Holds the lock."""
        self._room.notify_all()
