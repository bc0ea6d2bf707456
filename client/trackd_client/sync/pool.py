"""`AgentPool`: the whole loop of an agent, in threads.

The user gives `dial(lease)`. It connects, learns the principals, calls `lease.claim(...)`, and
serves until the tunnel closes. The pool decides when to dial and how to back off, and it releases
each lease::

    def dial(lease: Lease) -> None:
        with connect(BALANCER) as tunnel:
            if lease.claim(*tunnel.principals):
                for gossip in tunnel.serve(until=lease.should_close):
                    pool.feed(gossip)

    with Tracker(cluster="example.com") as tracker, AgentPool(tracker, dial) as pool:
        stop.wait()
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from typing import Self

from trackd_client.core import calls
from trackd_client.core.base_tracker import CLOSE_SECONDS
from trackd_client.core.discovery import Gossip, Reading, read_gossip
from trackd_client.core.pool_core import Dial, PoolCore, check_wait, is_async
from trackd_client.core.sockets import check_threads
from trackd_client.errors import (
    BadArgument,
    Refused,
    TrackdError,
    UsedAfterFork,
)
from trackd_client.policy import Policy, PoolEvent
from trackd_client.sync.connection import Wake
from trackd_client.sync.lease import Flag, Lease
from trackd_client.sync.tracker import Tracker


class AgentPool(PoolCore[Lease]):
    """Keeps a tunnel for each lease that the daemon grants, in threads.

    Leaving the `with` block drains the pool. The tracker stays open; other code may share it.
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
        """Set up a pool; `start` or a `with` block begins to dial.

        Args:
            tracker: where leases come from.
            dial: connects, claims and serves. It runs in a thread of its own for each lease;
                the lease is released when it returns or raises.
            max_concurrent_dials: dials that have not claimed yet, at most.
            policy: the pace of the dials.
            on_event: called with a `PoolEvent` for each change, in the thread that made it.
            drain_timeout: seconds that leaving the `with` block waits for tunnels to close, or None
                for no limit.

        Raises:
            BadArgument: an argument is of the wrong type or out of range: `dial` is an async
                function, say, or the tracker an `AsyncTracker`.
        """
        if not isinstance(tracker, Tracker):
            raise BadArgument(f"AgentPool needs a Tracker, not {tracker!r:.100}")
        if not callable(dial):
            raise BadArgument(f"dial must be a function, not {dial!r:.100}")
        if is_async(dial):
            raise BadArgument("dial is async; AgentPool runs it in a thread: use AsyncAgentPool")
        super().__init__(
            tracker,
            max_concurrent_dials=max_concurrent_dials,
            policy=policy,
            on_event=on_event,
            drain_timeout=drain_timeout,
        )
        self._tracker = tracker
        self._dial = dial
        self._room = threading.Condition(self._lock)
        self._wake = Wake()
        self._draining = Flag()
        self._dispatcher = threading.Thread(target=self._dispatch, name="trackd-pool", daemon=True)

    def start(self) -> None:
        """Start to dial.

        Raises:
            UsedAfterFork: this is a forked child; the pool lives on in its parent.
            TrackdError: it was started before, the system has no room for a thread, or threads
                are greenlets.
        """
        self._check_process()
        check_threads()
        try:
            self._dispatcher.start()
        except RuntimeError as error:  # a second start, or no room for a thread
            raise TrackdError(f"the pool cannot start: {error}") from None

    def feed(self, *gossip: Gossip) -> bool:
        """Pass gossip on to the daemon: `Proxy` objects, or Teleport's JSON.

        Returns:
            Whether the daemon took it. Without a daemon it is dropped: gossip comes again.

        Raises:
            BadPayload: an argument is neither.
        """
        reading = read_gossip(gossip)
        try:
            self._follow_names(reading)  # before the daemon knows of a proxy without a tunnel
            return self._fed(self._tracker._feed(reading))  # noqa: SLF001 - returns what it skipped
        except UsedAfterFork:
            raise
        except TrackdError as error:
            return self._dropped(error)

    def _follow_names(self, reading: Reading) -> None:
        """Hold tunnels by the names of gossip: one was claimed before gossip named its proxy."""
        for dial, principals in self._misnamed(reading):
            try:
                self._renamed(dial, self._tracker.adopt(*principals))
            except Refused as error:
                self._not_renamed(dial, principals[1], error)

    def drain(self, timeout: float | None = None) -> bool:
        """Stop dialling, advise every tunnel to close, and wait until all have closed.

        Each lease is released when its `dial` returns, or when the time is up.

        Args:
            timeout: seconds to wait at most, or None for no limit.

        Returns:
            Whether all dials returned in time.

        Raises:
            UsedAfterFork: this is a forked child; the pool lives on in its parent.
            BadArgument: `timeout` is not a time.
        """
        check_wait(timeout, "timeout")
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        self._begin_drain()
        if not self._draining.is_set():
            self._draining.set()
            self._wake.set()
            if self._dispatcher.is_alive():
                # It ends at once, unless it waits for what this thread holds: a signal handler.
                self._dispatcher.join(CLOSE_SECONDS)
            if not self._dispatcher.is_alive():
                self._wake.close()
        with self._room:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = self._room.wait_for(lambda: not self._dials, left)
            late = list(self._dials)
        for dial in late:
            self._let_go(dial)
        return done

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._inherited:
            self.drain(self._drain_timeout)

    # -- the dispatcher's thread ------------------------------------------------------------

    def _dispatch(self) -> None:
        """Acquire and dial until the pool is drained."""
        while not self._draining.is_set():
            try:
                self._dispatch_one()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it passes, and the pool goes on
                if self._ends(error):
                    return

    def _dispatch_one(self) -> None:
        """Acquire a lease when it is time to, and dial with it."""
        with self._room:
            self._room.wait_for(self._may_dial)
        while (pause := self._pause()) and not self._draining.wait(pause):
            pass
        lease = self._acquire()
        if lease is not None:
            self._use(lease)

    def _begin(self, lease: Lease) -> Dial[Lease]:
        check_threads()  # they may have become greenlets during the wait
        return super()._begin(lease)

    def _spawn(self, dial: Dial[Lease]) -> None:
        """Run a dial in a thread of its own. Without room for a thread the dial has failed."""
        thread = threading.Thread(
            target=self._run, args=(dial,), name=f"trackd-dial-{dial.lease.id}", daemon=True
        )
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self._end(dial, error)
            self._let_go(dial)
            self._gone(dial)

    def _acquire(self) -> Lease | None:
        """Wait for a lease; None when the loop must check its conditions first."""
        try:
            self._adopt()
            return self._tracker._grant(calls.acquire(None), self._wake)  # noqa: SLF001 - the wake-up ends the wait
        except TrackdError as error:
            if not self._goes_on(error):
                raise
        return None

    def _adopt(self) -> None:
        """Adopt the open tunnels whose session was lost."""
        for dial in self._lost_dials():
            name = dial.lease.claimed_name
            if name is None or self._stopping:
                return
            try:
                self._adopted(dial, self._tracker.adopt(name))
            except TrackdError as error:
                if not self._abandon(dial, error):
                    raise

    # -- a dial's thread ----------------------------------------------------------------------

    def _run(self, dial: Dial[Lease]) -> None:
        error: BaseException | None = None
        try:
            result = self._dial(dial.lease)
            if inspect.iscoroutine(result):
                result.close()
                error = BadArgument("dial returned a coroutine, which a thread cannot run")
        except Exception as raised:  # noqa: BLE001 - whatever a dial raises, its lease is released
            error = raised
        finally:
            if not self._inherited:
                self._finish(dial, error)

    def _finish(self, dial: Dial[Lease], error: BaseException | None) -> None:
        """Count how a dial ended, and release its leases."""
        try:
            self._end(dial, error)
            for lease in self._leases_of(dial):
                lease.release()
        except Exception as failed:  # noqa: BLE001 - of a release, which the tracker completes
            self._log_failed(failed)
            self._let_go(dial)
        finally:
            self._gone(dial)
        self._check_stickiness()

    def _check_stickiness(self) -> None:
        if self._is_suspicious():
            try:
                self._judge(self._tracker.explain())
            except TrackdError as error:
                self._judge({}, error)

    def _changed(self) -> None:
        """Wake those that wait for room or for the last dial to end. Holds the lock."""
        self._room.notify_all()
