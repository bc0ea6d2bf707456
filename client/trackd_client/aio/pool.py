"""`AsyncAgentPool`: the whole loop of an agent, in tasks. See `trackd_client.sync.pool`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from trackd_client.aio.tracker import AsyncLease, AsyncTracker
from trackd_client.core.base_tracker import log
from trackd_client.core.pool_core import LATER, Dial, Gossip, PoolCore, proxies_in
from trackd_client.errors import SessionLost, TrackdError, TrackerClosed
from trackd_client.policy import Policy, PoolEvent

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
        policy: Policy | None = None,
        on_event: Callable[[PoolEvent], None] | None = None,
        drain_timeout: float | None = 30.0,
    ) -> None:
        """Say how to dial; see `AgentPool`. A dial that does not end in time is cancelled."""
        super().__init__(max_concurrent_dials, policy, on_event)
        self._tracker = tracker
        self._dial = dial
        self._drain_timeout = drain_timeout
        self._change = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to dial, in the running event loop."""
        self._dispatcher = asyncio.get_running_loop().create_task(
            self._dispatch(), name="trackd-pool"
        )

    async def feed(self, *gossip: Gossip) -> bool:
        """Pass on what a proxy said of the others; see `AgentPool.feed`."""
        proxies = proxies_in(gossip)
        try:
            await self._tracker.track_expected(*proxies)
        except TrackdError as error:
            return self._dropped(error)
        return True

    async def drain(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as `AgentPool.drain`
        """Dial no more, advise every tunnel to close, wait until all have, cancel the rest.

        Args:
            timeout: seconds to wait at most, or None for ever.

        Returns:
            Whether all dials returned in time.
        """
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.wait([self._dispatcher])
        self._begin_drain()
        for dial in self._dials:
            dial.lease.should_close.set()
        if not self._tasks:
            return True
        _, late = await asyncio.wait(self._tasks, timeout=timeout)
        for dial in self._dials if late else ():
            self._let_go(dial)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_SECONDS)
        return not late

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.drain(self._drain_timeout)

    async def _dispatch(self) -> None:
        """Acquire and dial, for as long as the pool lives."""
        try:
            while True:
                while not self._may_dial():
                    self._change.clear()
                    await self._change.wait()
                await asyncio.sleep(self._pause())
                lease = await self._acquire()
                # No await since the grant: a cancelled dispatcher loses none.
                if lease is not None and self._pause():
                    lease.let_go()  # a dial has failed meanwhile; let others have it
                elif lease is not None:
                    self._spawn(self._begin(lease))
        except TrackerClosed:
            log.info("the pool ends: its tracker was closed")

    def _spawn(self, dial: Dial[AsyncLease]) -> None:
        """Let a dial run; its leases are released whatever becomes of its task."""
        task = asyncio.create_task(self._run(dial), name=f"trackd-dial-{dial.lease.id}")
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._let_go(dial)
            self._gone(dial)

        task.add_done_callback(ended)

    def _let_go(self, dial: Dial[AsyncLease]) -> None:
        for lease in dial.leases:
            lease.let_go()

    async def _acquire(self) -> AsyncLease | None:
        """Wait for a lease; None when there is a reason to look around first."""
        try:
            await self._adopt()
            return await self._tracker.acquire()
        except SessionLost:
            pass  # its tunnels are adopted before the next lease
        except TrackerClosed:
            raise
        except TrackdError as error:
            self._refused(error)
        return None

    async def _adopt(self) -> None:
        """Take up the open tunnels again whose session was lost."""
        for dial in self._lost_dials():
            name = dial.lease.claimed_name
            if name is None:
                return
            try:
                self._adopted(dial, await self._tracker.adopt(name))
            except LATER:
                raise  # the tunnel stays open meanwhile
            except TrackdError as error:
                self._not_adopted(dial, error)

    async def _run(self, dial: Dial[AsyncLease]) -> None:
        error: BaseException | None = None
        try:
            await self._dial(dial.lease)
        except Exception as raised:  # noqa: BLE001 - whatever a dial raises, its lease is released
            error = raised
        finally:
            self._end(dial, error)
        for lease in dial.leases:
            await lease.release()
        if self._is_suspicious():
            explained: dict[str, Any] = {}
            try:
                explained = await self._tracker.explain()
            except TrackdError as failed:
                log.debug("the missing proxies are not known: %s", failed)
            self._judge(explained)

    def _changed(self) -> None:
        self._change.set()
