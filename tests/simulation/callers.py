"""Agents that call the client at random: in any order, and cancel their calls at any moment."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from benchmarks.coverage.agents import Agent
from benchmarks.coverage.local_daemon import CLUSTER
from benchmarks.coverage.network import Network
from simulation.host import SimulatedTracker
from trackd_client import AsyncLease, Proxy
from trackd_client.errors import TrackdError

#: Seconds between two calls on average, and after which some are cancelled at most: while a message
#: is on its way, or while the request waits.
_PAUSE = 0.7
_PATIENCE = (0.2, 4.0)
#: Leases that a caller has at most.
_MOST = 4


class Caller(Agent):
    """A process that calls the client at random, and forgets some of its leases."""

    def __init__(self, network: Network, chance: random.Random, tracker: SimulatedTracker) -> None:
        super().__init__(network)
        self.tracker = tracker
        self._chance = chance
        self._leases: list[AsyncLease] = []
        self._forgotten: list[AsyncLease] = []

    async def run(self) -> None:
        """Make one call after the other, some of them side by side."""
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / _PAUSE))
            call = self._call()
            if self._chance.random() < 0.3:
                self.spawn(call)
            else:
                await call

    def die(self) -> None:
        """End at once; the kernel notifies the daemon."""
        super().die()
        self.tracker.die()

    def stop(self) -> None:
        """Call nothing any more; calls under way are cancelled."""
        for task in list(self._tasks):
            task.cancel()

    async def end(self, *, graceful: bool) -> None:
        """End by closing the client, or at once."""
        self.stop()
        if graceful:
            await self.tracker.close()
        self.die()

    async def _call(self) -> None:
        patience = self._chance.uniform(0.001, self._chance.choice(_PATIENCE))
        with suppress(TrackdError, TimeoutError):
            async with asyncio.timeout(patience if self._chance.random() < 0.5 else None):
                await self._act()

    async def _act(self) -> None:
        chance, tracker = self._chance, self.tracker
        site = chance.choice(self.network.sites).name
        lease = chance.choice(self._leases) if self._leases else None
        acts = ["try_acquire", "acquire", "acquire", "acquire", "gossip", "count", "look", "adopt"]
        if lease is not None:
            acts = [*acts, *("claim", "claim", "release", "release", "retire", "offer", "report")]
            acts += ["let go", "forget"]
            if len(self._leases) > _MOST:
                acts = ["release", "forget"]
        match chance.choice(acts):
            case "try_acquire":
                self._keep(await tracker.try_acquire())
            case "acquire":
                self._keep(await tracker.acquire(chance.uniform(0.0, 10.0)))
            case "adopt":
                self._keep(await tracker.adopt(f"{site}.{CLUSTER}", site))
            case "gossip":
                known = chance.sample(self.network.sites, chance.randint(0, 2))
                ttl = chance.uniform(1.0, 20.0)
                await tracker.track_expected(
                    *(Proxy(each.name, generation=1, ttl=ttl) for each in known)
                )
            case "count":
                await tracker.set_connection_count(chance.choice((0, 0, 1, 3)))
            case "look":
                await tracker.is_claimed(site)
            case act:
                assert lease is not None
                await self._use(act, lease, site)

    async def _use(self, act: str, lease: AsyncLease, site: str) -> None:
        match act:
            case "claim":
                await lease.claim(f"{site}.{CLUSTER}", site)
            case "retire":
                await lease.retire()
            case "offer":
                await lease.offer()
            case "report":
                lease.report()
            case "release":
                self._drop(lease)
                failed = self._chance.choice((None, None, None, "refused", "timeout"))
                await lease.release(failed=failed)
            case "let go":
                self._drop(lease)
                lease.let_go()
            case _:
                self._drop(lease)
                self._forgotten.append(lease)

    def _keep(self, lease: AsyncLease | None) -> None:
        if lease is not None:
            self._leases.append(lease)

    def _drop(self, lease: AsyncLease) -> None:
        if lease in self._leases:
            self._leases.remove(lease)
