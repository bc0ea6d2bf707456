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
from contextlib import suppress
from typing import Self

from trackd_client.core import calls, pool_core
from trackd_client.core.arguments import check_wait
from trackd_client.core.base_tracker import CLOSE_SECONDS
from trackd_client.core.calls import BY_TIMEOUT
from trackd_client.core.dial import Dial, is_async
from trackd_client.core.discovery import Gossip, read_gossip
from trackd_client.core.pool_core import LOOK_AGAIN, PoolCore, replace_until
from trackd_client.core.sockets import check_threads, is_held, start_thread
from trackd_client.errors import (
    BadArgument,
    TrackdError,
    TrackerClosed,
    UsedAfterFork,
)
from trackd_client.policy import Policy, PoolEvent
from trackd_client.sync.connection import Wake
from trackd_client.sync.lease import Flag, Lease
from trackd_client.sync.tracker import Tracker
from trackd_client.wire.clock import boottime


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
        max_tunnels: int | None = None,
        policy: Policy | None = None,
        on_event: Callable[[PoolEvent], None] | None = None,
        drain_timeout: float | None = 30.0,
        alive: Callable[[Lease], object] | None = None,
    ) -> None:
        """Set up a pool; `start` or a `with` block begins to dial.

        Args:
            tracker: where leases come from.
            dial: connects, claims and serves. It runs in a thread of its own for each lease;
                the lease is released when it returns or raises.
            max_concurrent_dials: dials that have not claimed yet, at most.
            max_tunnels: dials at most, those that have claimed included; None for no limit.
            policy: the pace of the dials.
            on_event: called with a `PoolEvent` for each change, in the thread that made it.
            drain_timeout: seconds that leaving the `with` block waits for tunnels to close, or None
                for no limit.
            alive: asked of each tunnel every 2 s, in a thread for each, once the dial has claimed:
                True or a round-trip time in seconds reports that the tunnel is alive (see
                `Lease.report`), False or None reports nothing. A pool never reports by itself,
                since that would prove only that the process lives.

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
        if is_async(alive):
            raise BadArgument("alive is async; AgentPool asks it in a thread: use AsyncAgentPool")
        super().__init__(
            tracker,
            max_concurrent_dials=max_concurrent_dials,
            max_tunnels=max_tunnels,
            policy=policy,
            on_event=on_event,
            drain_timeout=drain_timeout,
            alive=alive,
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
            start_thread(self._dispatcher)
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
            return self._fed(self._tracker._feed(reading))  # noqa: SLF001 - returns what it skipped
        except UsedAfterFork:
            raise
        except TrackdError as error:
            return self._dropped(error)

    def drain(self, timeout: float | None = None, *, replace_first: bool = False) -> bool:
        """Stop dialling, advise every tunnel to close, and wait until all have closed.

        Each lease is released when its `dial` returns, or when the time is up.

        With `replace_first`, the pool first offers its tunnels to other agents, one after the
        other, and keeps each one open until it is replaced (see `Lease.offer`). The last quarter
        of the time, 5 s at most, is kept for closing what nobody has replaced by then.

        In a signal handler that has interrupted a call of the same tracker, dials cannot end before
        the handler returns. The drain then begins, and this returns False at once; call it again
        after the handler, or leave the `with` block.

        Args:
            timeout: seconds to wait at most, or None for no limit.
            replace_first: whether tunnels are replaced before they close. An older daemon does not
                know how.

        Returns:
            Whether all dials returned in time.

        Raises:
            UsedAfterFork: this is a forked child; the pool lives on in its parent.
            BadArgument: `timeout` is not a time.
        """
        check_wait(timeout, "timeout")
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        until = replace_until(timeout)
        self._begin_drain(replace_first=replace_first)
        if not self._draining.is_set():
            self._draining.set()
            self._wake.set()
        if is_held(self._lock) or self._tracker._blocks_others():  # noqa: SLF001 - of the same client
            return False
        if self._dispatcher.is_alive() and self._dispatcher is not threading.current_thread():
            self._dispatcher.join(CLOSE_SECONDS)
        if not self._dispatcher.is_alive():
            self._wake.close()
        if replace_first:
            with suppress(TrackerClosed):
                self._replace(until)
            self._begin_drain()
        with self._room:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = self._room.wait_for(lambda: not self._dials, left)
            late = list(self._dials)
        for dial in late:
            self._let_go(dial)
        return done

    def _replace(self, until: float | None) -> None:
        """Offer one tunnel after the other, until all are replaced or the time is up.

        Args:
            until: seconds of CLOCK_BOOTTIME, or None for no limit.

        Raises:
            TrackerClosed: the tracker was closed, or its daemon ended the session for that.
        """
        offered: Lease | None = None
        while (dial := self._next_to_replace()) is not None:
            now = boottime()
            if until is not None and now >= until:
                return
            asked_until = now + self._tracker.timeout
            deadline = asked_until if until is None else min(until, asked_until)
            lease = dial.leases[-1]
            try:
                if lease.lost:
                    self._adopt(deadline)
                elif lease is not offered:
                    offer, session = calls.offer(lease.id), lease._session  # noqa: SLF001
                    self._tracker._request(  # noqa: SLF001 - the drain's time bounds it
                        offer.op, offer.fields, session=session, deadline=deadline
                    )
                    offered = lease
            except TrackdError as error:
                self._not_offered(lease, error)
            dial.lease.should_close.wait(min(LOOK_AGAIN, deadline - now))

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
            self._room.wait_for(self._has_work)
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
            if self._may_dial():
                return self._tracker._grant(calls.acquire(None), self._wake)  # noqa: SLF001 - the wake-up ends the wait
        except TrackdError as error:
            if not self._goes_on(error):
                raise
        return None

    def _adopt(self, deadline: float = BY_TIMEOUT) -> None:
        """Adopt the open tunnels whose session was lost.

        Args:
            deadline: seconds of CLOCK_BOOTTIME; by default the tracker's `timeout` from now.
        """
        for dial in self._lost_dials():
            adopt = self._readoption(dial)
            if adopt is None:
                return
            adopt = adopt._replace(deadline=deadline)
            try:
                self._adopted(dial, self._tracker._grant(adopt))  # noqa: SLF001 - with a deadline
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

    def _follow(self, dial: Dial[Lease]) -> None:
        ended = threading.Event()
        dial.on_end = ended.set
        thread = threading.Thread(
            target=self._ask, args=(dial, ended), name=f"trackd-alive-{dial.lease.id}", daemon=True
        )
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # no room: the dial goes on without
            self._not_asked(error)

    def _ask(self, dial: Dial[Lease], ended: threading.Event) -> None:
        """Report that a tunnel is alive, as often as `alive` says so, until its dial ends."""
        while self._alive is not None and not ended.wait(pool_core.ALIVE_SECONDS):
            try:
                self._report(dial, self._alive(dial.lease))
            except Exception as error:  # noqa: BLE001 - of the user's function; others rely on this
                self._not_asked(error)

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
