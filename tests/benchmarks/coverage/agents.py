"""Fleets: ways to keep tunnels to every proxy. The first is trackd's own `AsyncAgentPool`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from benchmarks.coverage.local_daemon import CLUSTER, LocalDaemon, LocalTracker, SimulatedClient
from benchmarks.coverage.network import GOSSIP_SECONDS, Network, Tunnel
from trackd.rules.backoff import Backoff
from trackd_client import AsyncAgentPool, AsyncLease
from trackd_client.policy import Policy, PoolStats

#: Seconds within which all agents of a host begin.
SPREAD_SECONDS = 0.01


class Agent:
    """A process of the host: its tasks, and the tunnels that end with it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.tunnels: dict[Tunnel, None] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in their order: a seed repeats a run

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something as long as the process lives."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))
        return task

    def die(self) -> None:
        """End at once, like a process that is killed: the kernel closes its tunnels."""
        for task in list(self._tasks):
            task.cancel()
        for tunnel in list(self.tunnels):
            self.close(tunnel)

    def is_content(self) -> bool:
        """Return whether it has what it wants beside what the host wants."""
        return True

    def hold(self, tunnel: Tunnel) -> None:
        """Note a tunnel of this process."""
        self.tunnels[tunnel] = None

    def close(self, tunnel: Tunnel) -> None:
        """Close one of its tunnels."""
        self.tunnels.pop(tunnel, None)
        self.network.close(tunnel)


class PoolAgent(Agent):
    """An agent with an `AsyncAgentPool`, as users write it."""

    def __init__(
        self,
        network: Network,
        chance: random.Random,
        tracker: SimulatedClient,
        policy: Policy | None = None,
    ) -> None:
        """Begin, short of `start`.

        Args:
            network: where the proxies are.
            chance: what the pace of dials is drawn from.
            tracker: the client of the daemon.
            policy: the pace.
        """
        super().__init__(network)
        self.tracker = tracker
        self._pool = AsyncAgentPool(tracker, self._dial, policy=policy)
        self._pool._pace.jitter = chance.uniform
        network.on_gossip.append(self._pass_on)

    async def start(self, after: float) -> None:
        """Begin to dial, and pass gossip on at intervals while there are tunnels to hear it by."""
        await asyncio.sleep(after)
        self._pool.start()
        while True:
            await asyncio.sleep(GOSSIP_SECONDS)
            self._pass_on()

    @property
    def backoff(self) -> Backoff:
        """The pause of its host after failed dials."""
        assert isinstance(self.tracker, LocalTracker)
        return self.tracker.daemon.state.backoff

    def stats(self) -> PoolStats:
        """Return the counts of the pool."""
        return self._pool.stats()

    def die(self) -> None:
        """End at once; the daemon hears of it from the kernel."""
        self.network.on_gossip.remove(self._pass_on)
        self.tracker.die()
        pool = self._pool
        for task in (pool._dispatcher, *sorted(pool._tasks, key=asyncio.Task.get_name)):
            if task is not None:
                task.cancel()
        super().die()

    def _pass_on(self) -> None:
        if self.tunnels:
            self.spawn(self._pool.feed(*self.network.gossip()))

    async def _dial(self, lease: AsyncLease) -> None:
        aim = lease.target
        known = self.network.sites
        to = None if aim is None else next(site for site in known if site.name == aim.name)
        site = await self.network.dial(to)
        if not await lease.claim(f"{site.name}.{CLUSTER}", site.name):
            return
        tunnel = self.network.open(site)
        self.hold(tunnel)
        try:
            await self._pool.feed(*self.network.gossip())
            await _either(tunnel.closed, lease.should_close)
        finally:
            self.close(tunnel)


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    """Wait for one of two events."""
    tasks = [asyncio.ensure_future(event.wait()) for event in (first, second)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def start_pools(
    network: Network,
    chance: random.Random,
    agents: int,
    *,
    policy: Policy | None = None,
    **settings: Any,
) -> list[Agent]:
    """Start trackd's daemon and its agents."""
    daemon = LocalDaemon(chance, **settings)
    fleet: list[Agent] = []
    for number in range(agents):
        tracker = LocalTracker(daemon, f"agent {number}")
        agent = PoolAgent(network, chance, tracker, policy)
        agent.spawn(agent.start(chance.random() * SPREAD_SECONDS))
        fleet.append(agent)
    return fleet
