"""Models of other ways to keep tunnels, made from what their makers and users have published.

A model is a loop with the published constants, and nothing of the original's code. Each is held
to a figure that is known of its original (`tests/benchmarks/test_coverage.py`). Where a constant
leaves something open, the model takes what is better for the original, and says so. Each of these
processes works for itself: 3 agents are 3 such loops, each of which wants its own tunnels.

Sources, as of 2026:

* Teleport: its issues 67496 (a dial cannot be aimed at a missing proxy) and 34980 (reconnecting
  agents meet a rate limit), and how its agents behave: a lease is polled for each second, one dial
  at a time, a linear backoff of 1 s up to 8 s after every dial, successes too. Known figure: 8 to
  15 s for 6 proxies without one duplicate.
* konnectivity: the flags `--sync-interval` (1 s) and `--sync-interval-cap` (10 s) of its agent,
  and issue 816 of kubernetes-sigs/apiserver-network-proxy, which describes the loop: about 1 s,
  with jitter of a tenth, after a duplicate while servers are missing; after errors 1.5 times as
  long each time. Known figures: 5.5 dials and 5 s for 3 servers behind a random balancer; 5 s on
  average to get back one of 5 servers (that issue).
* cloudflared: developers.cloudflare.com, *Tunnel run parameters*: `retries`, 5 by default, at 1, 2,
  4, 8, 16 s; four connections to the edge, begun 1 s apart. Known figure: 4 connections, 1 s apart.
* Processes that each retry: systemd.service(5): `Restart=always` with `RestartSec=100ms`, its
  default, and no limit for starts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from benchmarks.coverage.agents import SPREAD_SECONDS, Agent
from benchmarks.coverage.local_daemon import CLUSTER
from benchmarks.coverage.network import DialRefusedError, Network, Site, Tunnel
from trackd.rules import Tracker

#: Teleport: seconds between two polls, and the step and the bound of its backoff.
TELEPORT_POLL: Final = 1.0
TELEPORT_STEP: Final = 1.0
TELEPORT_CAP: Final = 8.0
#: konnectivity: seconds between two syncs, their bound after errors, the factor, the jitter.
KONNECTIVITY_SYNC: Final = 1.0
KONNECTIVITY_CAP: Final = 10.0
KONNECTIVITY_FACTOR: Final = 1.5
KONNECTIVITY_JITTER: Final = 0.1
#: cloudflared: seconds between the starts of two connections, the first pause, doublings at most.
CLOUDFLARED_STAGGER: Final = 1.0
CLOUDFLARED_RETRY: Final = 1.0
CLOUDFLARED_DOUBLINGS: Final = 4
#: systemd: seconds until a unit that ended is started again.
RESTART_SEC: Final = 0.1


class ModelAgent(Agent):
    """A process that dials by itself."""

    def __init__(self, network: Network, chance: random.Random) -> None:
        super().__init__(network)
        self.chance = chance

    async def run(self, after: float) -> None:
        """Dial until the process dies."""
        raise NotImplementedError

    def reached(self, site: Site) -> Tunnel:
        """Open a tunnel to the proxy that a dial has reached.

        Raises:
            DialRefusedError: it went down since.
        """
        tunnel = self.network.open(site)
        self.hold(tunnel)
        return tunnel

    def has(self, site: Site) -> bool:
        """Return whether this process has a tunnel to a proxy."""
        return any(tunnel.site is site and not tunnel.closed.is_set() for tunnel in self.tunnels)

    def connected(self) -> int:
        """Return how many tunnels this process has."""
        return sum(not tunnel.closed.is_set() for tunnel in self.tunnels)

    def is_content(self) -> bool:
        """Return whether it has all the tunnels that it wants for itself."""
        return self.connected() >= self.network.target


class TeleportAgent(ModelAgent):
    """Polls for a lease of its own process, and backs off after every dial.

    Which proxies are missing it knows by the same gossip as trackd. In its favour, the backoff
    begins again as soon as a poll finds that nothing is missing.
    """

    async def run(self, after: float) -> None:
        await asyncio.sleep(after)
        loop = asyncio.get_running_loop()
        tracker = Tracker(cluster_name=CLUSTER, clock=loop.time)
        tracker.set_connection_count(
            0 if self.network.target == len(self.network.sites) else self.network.target
        )

        def listen() -> None:
            if self.connected():
                tracker.track_expected(self.network.gossip())

        self.network.on_gossip.append(listen)
        heard = loop.time()
        backoff = 0.0
        while True:
            if loop.time() >= heard + 5.0:
                heard = loop.time()
                listen()
            lease = tracker.try_acquire()
            if lease is None:
                backoff = 0.0
                await asyncio.sleep(TELEPORT_POLL)
                continue
            await self._dial(tracker, lease)
            backoff = min(TELEPORT_CAP, backoff + TELEPORT_STEP)
            await asyncio.sleep(backoff * self.chance.uniform(0.5, 1.0))

    async def _dial(self, tracker: Tracker, lease: int) -> None:
        try:
            site = await self.network.dial()
            if not tracker.claim(lease, [site.name]):
                tracker.release(lease)
                return
            tunnel = self.reached(site)
        except DialRefusedError:
            tracker.release(lease)
            return
        tracker.track_expected(self.network.gossip())
        self.spawn(self._keep(tracker, lease, tunnel))

    async def _keep(self, tracker: Tracker, lease: int, tunnel: Tunnel) -> None:
        await tunnel.closed.wait()
        self.close(tunnel)
        tracker.release(lease)


class KonnectivityAgent(ModelAgent):
    """Dials one server a sync while it has fewer than it knows that there are.

    The number of servers is what each of them is configured with, so that one which is down
    counts, too.
    """

    async def run(self, after: float) -> None:
        await asyncio.sleep(after)
        pause = KONNECTIVITY_SYNC
        while True:
            if self.connected() < self.network.target:
                try:
                    site = await self.network.dial()
                    if not self.has(site):
                        self.spawn(self._keep(self.reached(site)))
                    pause = KONNECTIVITY_SYNC
                except DialRefusedError:
                    pause = min(KONNECTIVITY_CAP, pause * KONNECTIVITY_FACTOR)
            await asyncio.sleep(pause * (1.0 + KONNECTIVITY_JITTER * self.chance.random()))

    async def _keep(self, tunnel: Tunnel) -> None:
        await tunnel.closed.wait()
        self.close(tunnel)


class CloudflaredAgent(ModelAgent):
    """Starts as many connections as are wanted, one a second; each keeps whatever it reached.

    The original chooses among the addresses of its edge. Behind a balancer it cannot, and it does
    not look which server it has reached: several of its connections may go to one. `aims` gives it
    the addresses.
    """

    aims = False

    async def run(self, after: float) -> None:
        await asyncio.sleep(after)
        for number in range(self.network.target):
            self.spawn(self._connection(number))
            await asyncio.sleep(CLOUDFLARED_STAGGER)

    async def _connection(self, number: int) -> None:
        failures = 0
        while True:
            try:
                target = self.network.sites[number] if self.aims else None
                tunnel = self.reached(await self.network.dial(target))
                failures = 0
                await tunnel.closed.wait()
                self.close(tunnel)
            except DialRefusedError:
                pass
            await asyncio.sleep(CLOUDFLARED_RETRY * 2.0 ** min(failures, CLOUDFLARED_DOUBLINGS))
            failures += 1


class AimingCloudflaredAgent(CloudflaredAgent):
    """The same with an address for each of its connections."""

    aims = True


class RestartingProcess(ModelAgent):
    """A unit with one tunnel, that systemd starts again whenever it ends."""

    def is_content(self) -> bool:
        """Return whether it has its one tunnel."""
        return self.connected() > 0

    async def run(self, after: float) -> None:
        await asyncio.sleep(after)
        while True:
            try:
                tunnel = self.reached(await self.network.dial())
                await tunnel.closed.wait()
                self.close(tunnel)
            except DialRefusedError:
                pass
            await asyncio.sleep(RESTART_SEC)


def _start(
    kind: Callable[[Network, random.Random], ModelAgent],
    network: Network,
    seed: random.Random,
    n: int,
) -> list[Agent]:
    fleet: list[Agent] = []
    for _ in range(n):
        agent = kind(network, seed)
        agent.spawn(agent.run(seed.random() * SPREAD_SECONDS))
        fleet.append(agent)
    return fleet


#: Starts a fleet of so many agents, by name. What never looks which proxy it has reached cannot
#: reach all but by luck.
Start = Callable[[Network, random.Random, int], list[Agent]]
MODELS: Final[dict[str, Start]] = {
    "teleport": lambda *args: _start(TeleportAgent, *args),
    "konnectivity": lambda *args: _start(KonnectivityAgent, *args),
    "cloudflared": lambda *args: _start(CloudflaredAgent, *args),
    "cloudflared, aimed": lambda *args: _start(AimingCloudflaredAgent, *args),
    "N processes": lambda network, chance, _: _start(
        RestartingProcess, network, chance, network.target
    ),
    "3N processes": lambda network, chance, _: _start(
        RestartingProcess, network, chance, 3 * network.target
    ),
}
