"""`AsyncAgentPool`: the whole loop of an agent, in tasks. See `trackd_client.sync.pool`."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final, Self

from trackd_client.aio.lease import AsyncLease
from trackd_client.aio.tracker import AsyncTracker
from trackd_client.core import calls, pool_core
from trackd_client.core.arguments import check_wait
from trackd_client.core.calls import BY_TIMEOUT
from trackd_client.core.dial import Dial, is_async
from trackd_client.core.discovery import Gossip, read_gossip
from trackd_client.core.pool_core import LOOK_AGAIN, PoolCore, replace_until
from trackd_client.errors import (
    BadArgument,
    TrackdError,
    TrackerClosed,
    UsedAfterFork,
    WrongLoop,
)
from trackd_client.policy import Policy, PoolEvent
from trackd_client.wire.clock import boottime

#: Seconds that a dial may take to end once it is cancelled, before a drain waits no longer.
CANCEL_SECONDS: Final = 1.0


class AsyncAgentPool(PoolCore[AsyncLease]):
    """Keeps as many tunnels as the daemon grants leases for. Tasks of one event loop.

    Leaving the `async with` block drains it. The tracker is not closed.
    """

    def __init__(
        self,
        tracker: AsyncTracker,
        dial: Callable[[AsyncLease], Awaitable[object]],
        *,
        max_concurrent_dials: int = 4,
        max_tunnels: int | None = None,
        policy: Policy | None = None,
        on_event: Callable[[PoolEvent], None] | None = None,
        drain_timeout: float | None = 30.0,
        alive: Callable[[AsyncLease], object] | None = None,
    ) -> None:
        """Set how to dial; `start`, or an `async with` block, begins.

        The arguments are those of `AgentPool`; `alive` may be async, and runs in the event loop. A
        dial that does not end in time is cancelled.

        Raises:
            BadArgument: an argument is of the wrong type or out of range: `dial` is not an async
                function, say, or the tracker is not an `AsyncTracker`.
        """
        if not isinstance(tracker, AsyncTracker):
            raise BadArgument(f"AsyncAgentPool needs an AsyncTracker, not {tracker!r:.100}")
        if not callable(dial):
            raise BadArgument(f"dial must be an async function, not {dial!r:.100}")
        if _is_plain(dial):
            raise BadArgument("dial is not async; write `async def`, or use AgentPool")
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
        self._change = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start to dial, in the running event loop.

        Raises:
            UsedAfterFork: this is a forked child; the pool lives on in its parent.
            WrongLoop: no event loop is running.
            TrackdError: it was started before.
        """
        self._check_process()
        if self._dispatcher is not None:
            raise TrackdError("the pool cannot start: it was started before")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoop("the pool cannot start: no event loop is running here") from None
        self._dispatcher = loop.create_task(self._dispatch(), name="trackd-pool")

    async def feed(self, *gossip: Gossip) -> bool:
        """Pass gossip on to the daemon, and return whether it took it; see `AgentPool.feed`."""
        reading = read_gossip(gossip)
        try:
            return self._fed(await self._tracker._feed(reading))  # noqa: SLF001 - returns what it skipped
        except UsedAfterFork:
            raise
        except TrackdError as error:
            return self._dropped(error)

    async def drain(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as `AgentPool.drain`
        *,
        replace_first: bool = False,
    ) -> bool:
        """Stop dialling, advise every tunnel to close, wait until all have closed, cancel the rest.

        A drain that is cancelled itself cancels the dials at once.

        With `replace_first`, the pool first offers its tunnels to other agents, one after the
        other, and keeps each one open until it is replaced (see `AsyncLease.offer`). The last
        quarter of the time, 5 s at most, is kept for closing what nobody has replaced by then.

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
        try:
            if self._dispatcher is not None:
                self._dispatcher.cancel()
                await asyncio.wait([self._dispatcher])
            if replace_first:
                with suppress(TrackerClosed):
                    await self._replace(until)
                self._begin_drain()
            if not self._tasks:
                return True
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            _, late = await asyncio.wait(self._tasks, timeout=left)
        except asyncio.CancelledError:
            self._cancel(self._tasks)
            raise
        if late:
            self._cancel(late)
            await asyncio.wait(late, timeout=CANCEL_SECONDS)
        return not late

    async def _replace(self, until: float | None) -> None:
        """Offer one tunnel after the other, until all are replaced or the time is up.

        Args:
            until: seconds of CLOCK_BOOTTIME, or None for no limit.

        Raises:
            TrackerClosed: the tracker was closed, or its daemon ended the session for that.
        """
        offered: AsyncLease | None = None
        while (dial := self._next_to_replace()) is not None:
            now = boottime()
            if until is not None and now >= until:
                return
            asked_until = now + self._tracker.timeout
            deadline = asked_until if until is None else min(until, asked_until)
            lease = dial.leases[-1]
            try:
                if lease.lost:
                    await self._adopt(deadline)
                elif lease is not offered:
                    offer, session = calls.offer(lease.id), lease._session  # noqa: SLF001
                    await self._tracker._request(  # noqa: SLF001 - the drain's time bounds it
                        offer.op, offer.fields, session=session, deadline=deadline
                    )
                    offered = lease
            except TrackdError as error:
                self._not_offered(lease, error)
            with suppress(TimeoutError):
                left = min(LOOK_AGAIN, deadline - now)
                await asyncio.wait_for(dial.lease.should_close.wait(), left)

    def _cancel(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Cancel dials, and release the leases of all."""
        for dial in self._dials:
            self._let_go(dial)
        for task in tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._inherited:
            await self.drain(self._drain_timeout)

    async def _dispatch(self) -> None:
        """Acquire and dial until the pool is drained."""
        while True:
            try:
                await self._dispatch_one()
            except Exception as error:  # noqa: BLE001 - it passes, and the pool goes on
                if self._ends(error):
                    return

    async def _dispatch_one(self) -> None:
        """Acquire a lease when it is time to, and dial with it."""
        while not self._has_work():
            self._change.clear()
            await self._change.wait()
        await asyncio.sleep(self._pause())
        lease = await self._acquire()
        if lease is not None:
            self._use(lease)  # no await since the grant: a cancelled dispatcher loses none

    def _spawn(self, dial: Dial[AsyncLease]) -> None:
        """Run a dial in a task of its own; its leases are released however the task ends."""
        task = asyncio.create_task(self._run(dial), name=f"trackd-dial-{dial.lease.id}")
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not self._inherited:
                self._let_go(dial)
                self._gone(dial)

        task.add_done_callback(ended)

    def _follow(self, dial: Dial[AsyncLease]) -> None:
        task = asyncio.create_task(self._ask(dial), name=f"trackd-alive-{dial.lease.id}")
        dial.on_end = task.cancel

    async def _ask(self, dial: Dial[AsyncLease]) -> None:
        """Report that a tunnel is alive, as often as `alive` says so, until its dial ends."""
        while self._alive is not None:
            await asyncio.sleep(pool_core.ALIVE_SECONDS)
            try:
                said = self._alive(dial.lease)
                self._report(dial, await said if inspect.isawaitable(said) else said)
            except Exception as error:  # noqa: BLE001 - of the user's function; others rely on this
                self._not_asked(error)

    async def _acquire(self) -> AsyncLease | None:
        """Wait for a lease; None when the loop must check its conditions first."""
        try:
            await self._adopt()
            if self._may_dial():
                return await self._tracker.acquire()
        except TrackdError as error:
            if not self._goes_on(error):
                raise
        return None

    async def _adopt(self, deadline: float = BY_TIMEOUT) -> None:
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
                self._adopted(dial, await self._tracker._grant(adopt))  # noqa: SLF001 - with a deadline
            except TrackdError as error:
                if not self._abandon(dial, error):
                    raise

    async def _run(self, dial: Dial[AsyncLease]) -> None:
        error: BaseException | None = None
        try:
            result: object = self._dial(dial.lease)
            if inspect.isawaitable(result):
                await result
            else:
                error = BadArgument(f"dial must return an awaitable, not {result!r:.100}")
        except Exception as raised:  # noqa: BLE001 - whatever a dial raises, its lease is released
            error = raised
        finally:
            if not self._inherited:
                self._end(dial, error)
        try:
            for lease in self._leases_of(dial):
                await lease.release()
        except Exception as failed:  # noqa: BLE001 - of a release, which the tracker completes
            self._log_failed(failed)
        if self._is_suspicious():
            try:
                self._judge(await self._tracker.explain())
            except TrackdError as failed:
                self._judge({}, failed)

    def _changed(self) -> None:
        self._change.set()


def _is_plain(dial: object) -> bool:
    """Return whether a function is a plain `def`, which would hold up the event loop.

    A lambda, a decorated function and one that is annotated with what it returns may give an
    awaitable all the same.
    """
    while isinstance(dial, partial):
        dial = dial.func
    function = getattr(dial, "__func__", dial)
    return (
        inspect.isfunction(function)
        and not is_async(function)
        and function.__name__ != "<lambda>"
        and not hasattr(function, "__wrapped__")
        and function.__annotations__.get("return") in (None, "None")
    )
