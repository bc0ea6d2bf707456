"""What is done to a fleet, and what is measured of it. One seed, one run, one row of figures."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.coverage.agents import Agent, start_pools
from benchmarks.coverage.local_daemon import simulated_processes
from benchmarks.coverage.models import MODELS
from benchmarks.coverage.network import MENTION_SECONDS, Network
from helpers import virtual_time
from trackd_client.policy import Policy

#: Seconds after which a run gives up reaching every proxy.
PATIENCE: Final = 3600.0
#: The same for those that look away once each of their tunnels is open.
SHORT_PATIENCE: Final = 120.0
#: Seconds between two looks whether all agents have what they want.
LOOK: Final = 0.5
#: Seconds that a fleet is left alone once it is full, so that nothing of the start plays in.
CALM: Final = 20.0
#: Seconds that a proxy is down when it restarts, from its announcement to that, and from one proxy
#: of a rolling restart to the next.
DOWN: Final = 5.0
NOTICE: Final = 5.0
EACH: Final = 20.0
#: Seconds that a proxy is away so that gossip has forgotten it when it returns.
LONG_AWAY: Final = 60.0
#: Seconds that the balancer and all proxies are away when everything restarts.
OUTAGE: Final = 10.0

#: One row of figures. What never came is infinite.
Figures = dict[str, float]
#: Those that reach every proxy behind a balancer that is not sticky.
COVERING: Final = (
    *("trackd", "trackd, aimed", "trackd, rate 10", "trackd, brisk"),
    *("teleport", "konnectivity"),
)
#: What a pool may be set to where dials are cheap: it does not slow down after duplicates.
BRISK: Final = Policy(duplicate_step=0.0, sticky_after=1000)


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated.

    Attributes:
        scenario: one of `SCENARIOS`.
        fleet: `trackd`, or one of `MODELS`.
        proxies: how many there are.
        agents: how many agents of one host.
        balancer: one of `BALANCERS`.
        count: tunnels that are wanted; 0 for one to each proxy.
    """

    scenario: str
    fleet: str = "trackd"
    proxies: int = 6
    agents: int = 3
    balancer: str = "random"
    count: int = 0


class World:
    """One run: a network and a fleet.

    Attributes:
        case: what is simulated.
        chance: the only source of chance.
        network: the network.
        fleet: the agents.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.chance = random.Random(f"{case} {seed}")
        self.network = Network(
            self.chance, case.proxies, case.balancer, target=case.count or case.proxies
        )
        self.fleet: list[Agent] = self._start()

    def _start(self) -> list[Agent]:
        case = self.case
        if not case.fleet.startswith("trackd"):
            return MODELS[case.fleet](self.network, self.chance, case.agents)
        self.network.has_addresses = case.fleet == "trackd, aimed"
        rate = 10.0 if case.fleet == "trackd, rate 10" else 0.0
        return start_pools(
            self.network,
            self.chance,
            case.agents,
            policy=BRISK if case.fleet == "trackd, brisk" else None,
            connection_count=case.count,
            dial_rate=rate,
            dial_burst=10,
        )

    def now(self) -> float:
        """Return the seconds since the run began."""
        return asyncio.get_running_loop().time() - virtual_time.START

    async def full(self) -> float:
        """Wait until the target is reached; return the moment, or infinity when it never is."""
        patience = PATIENCE if self.case.fleet in COVERING else SHORT_PATIENCE
        patience = SHORT_PATIENCE if self.case.balancer == "sticky" else patience
        moment = await self.network.full(patience)
        return math.inf if moment is None else moment - virtual_time.START

    async def rest(self) -> None:
        """Wait until every agent has what it wants for itself; nobody dials then.

        The target may be reached before: of several agents that each want every proxy, together.
        """
        for _ in range(0 if self.case.balancer == "sticky" else round(PATIENCE / LOOK)):
            if all(agent.is_content() for agent in self.fleet):
                return
            await asyncio.sleep(LOOK)

    async def calm(self) -> None:
        """Wait until the fleet is full and has been so for a while; begin to count."""
        await self.full()
        await self.rest()
        await asyncio.sleep(CALM)
        self.network.reset()


async def cold(world: World) -> Figures:
    """From nothing to a tunnel to each proxy."""
    full = await world.full()
    network = world.network
    dials = len(network.truth.dials)
    await world.rest()
    return {
        "seconds": full,
        "dials": dials if math.isfinite(full) else math.inf,
        "covered": network.covered / network.target,
        "dials at rest": len(network.truth.dials),
    }


async def agent_dies(world: World) -> Figures:
    """One agent is killed; the others replace its tunnels."""
    await world.calm()
    victims = [agent for agent in world.fleet if agent.tunnels]
    victim = world.chance.choice(victims)
    world.fleet.remove(victim)
    died = world.now()
    lost = len(victim.tunnels)
    victim.die()
    full = await world.full()
    dials = world.network.truth.dials
    first = dials[0] - virtual_time.START if dials else math.inf
    return {"seconds": full - died, "to the dial": first - died, "lost": lost, "dials": len(dials)}


async def proxy_dies(world: World) -> Figures:
    """One proxy with a tunnel dies for good; fewer tunnels are wanted than there are proxies."""
    await world.calm()
    network = world.network
    network.stop(world.chance.choice([site for site in network.sites if site.tunnels]))
    died = world.now()
    full = await world.full()
    return {"seconds": full - died, "dials": len(network.truth.dials)}


async def proxy_returns(world: World) -> Figures:
    """One proxy dies and is back before gossip has forgotten it."""
    return await _away(world, DOWN)


async def proxy_returns_late(world: World) -> Figures:
    """One proxy dies, gossip forgets it, and it is back after that."""
    return await _away(world, LONG_AWAY)


async def _away(world: World, seconds: float) -> Figures:
    await world.calm()
    network = world.network
    site = world.chance.choice(network.sites)
    network.stop(site)
    if seconds > DOWN:
        network.forget(site)
    await asyncio.sleep(seconds)
    away = network.reset()
    network.start(site)
    mentioned = world.now() + (MENTION_SECONDS if seconds > DOWN else 0.0)
    full = await world.full()
    truth = network.truth
    return {
        "seconds": full - mentioned,
        "dials": len(truth.dials),
        "futile dials": away.futile,
    }


async def rolling_announced(world: World) -> Figures:
    """All proxies restart, one after the other, and each says so before it goes."""
    return await _rolling(world, announced=True)


async def rolling(world: World) -> Figures:
    """All proxies restart, one after the other, without a word."""
    return await _rolling(world, announced=False)


async def _rolling(world: World, *, announced: bool) -> Figures:
    await world.calm()
    network = world.network
    for site in network.sites:
        if announced:
            network.announce(site)
        await asyncio.sleep(NOTICE)
        network.stop(site)
        await asyncio.sleep(DOWN)
        network.start(site)
        await asyncio.sleep(EACH - NOTICE - DOWN)
    await world.full()
    truth = network.reset()
    return {
        "short": truth.short_seconds,
        "short / downtime": truth.short_seconds / (DOWN * len(network.sites)),
        "surplus": truth.surplus_seconds,
        "dials": len(truth.dials),
        "futile dials": truth.futile,
        "to terminating": truth.to_terminating,
    }


async def everything_restarts(world: World) -> Figures:
    """The balancer and all proxies go at once, and are back together."""
    await world.calm()
    network = world.network
    for site in network.sites:
        network.stop(site)
    await asyncio.sleep(OUTAGE)
    back = world.now()
    for site in network.sites:
        network.start(site)
    full = await world.full()
    await world.rest()
    dials = network.truth.dials
    return {
        "seconds": full - back,
        "dials at rest": len(dials),
        "most in a second": most_within(dials, 1.0),
        "most in 0.1 s": most_within(dials, 0.1),
    }


def most_within(moments: list[float], seconds: float) -> int:
    """Return the most moments that lie within so many seconds."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


SCENARIOS: Final[dict[str, Callable[[World], Awaitable[Figures]]]] = {
    "cold": cold,
    "agent dies": agent_dies,
    "proxy dies": proxy_dies,
    "proxy returns": proxy_returns,
    "proxy returns late": proxy_returns_late,
    "rolling": rolling,
    "rolling, announced": rolling_announced,
    "everything restarts": everything_restarts,
}


def simulate(case: Case, seed: int) -> Figures:
    """Run a case once, and return its figures; the same seed gives the same figures."""

    async def main() -> Figures:
        return await SCENARIOS[case.scenario](World(case, seed))

    with simulated_processes():
        return virtual_time.run(main)
